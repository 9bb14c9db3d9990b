"""FP16 converters compared on our detectors: casts, time, distance from FP32 on photographs, AP on the CPU.

    python benchmarks/half_converters.py convert CONVERTER ... --graphs DIR    in an environment that has the converter
    python benchmarks/half_converters.py compare --graphs DIR --shared DIR [--output FILE]

DIR holds NAME/network.onnx (made by gpu_models.py); a converter writes NAME/half-CONVERTER.onnx and how long it took.
ONNX Runtime on the CPU computes most FP16 operators in float32 and rounds between them; a GPU's kernels round differently.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

MODELS = {"yolox640": True, "retina4": False}
"""name -> is AP computed? (RetinaNet takes too long here: its outputs alone are compared.)"""
SHAPES = {"yolox640": (1, 3, 640, 640), "retina4": (1, 3, 640, 864)}
PHOTOGRAPHS = 4


def by_onnxruntime(source: Path, target: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def by_onnxconverter(source: Path, target: Path) -> None:
    from onnxconverter_common import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def by_autocast(source: Path, target: Path) -> None:
    from modelopt.onnx.autocast import convert_to_mixed_precision

    with tempfile.TemporaryDirectory() as folder:  # its sibling, the quantiser, was seen to rewrite its input
        copied = Path(folder) / source.name
        onnx.save(at_one_shape(onnx.load(source), SHAPES[source.parent.name]), copied)  # it runs the graph on random input
        onnx.save(convert_to_mixed_precision(onnx_path=str(copied), low_precision_type="fp16", keep_io_types=True), target)


def at_one_shape(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    return model


def by_redline(source: Path, target: Path) -> None:
    from redline.export.half import export_half
    from redline.records import OnnxModel
    from redline.store import load

    model = load(OnnxModel, (source.parent / "full.json").read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(export_half(model, Path(folder)).path, target)


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "onnxruntime": by_onnxruntime, "onnxconverter-common": by_onnxconverter, "modelopt-autocast": by_autocast,
    "redline": by_redline,
}  # fmt: skip


def convert(graphs: Path, converters: list[str]) -> None:
    for name in MODELS:
        for converter in converters:
            target = graphs / name / f"half-{converter}.onnx"
            start = time.perf_counter()
            CONVERTERS[converter](graphs / name / "network.onnx", target)
            row = {"seconds": round(time.perf_counter() - start, 2)}
            target.with_suffix(".json").write_text(json.dumps(row))
            print(name, converter, row, flush=True)


def compare(graphs: Path, shared: Path) -> list[dict[str, Any]]:
    from gpu_accuracy import data_of, drop

    rows = []
    for name, evaluated in MODELS.items():
        dataset = data_of(name, shared)
        pictures = dataset.images if evaluated else dataset.images[:PHOTOGRAPHS]
        reference = run(graphs / name / "network.onnx", name, pictures)
        for converter in CONVERTERS:
            path = graphs / name / f"half-{converter}.onnx"
            if not path.exists():
                rows.append({"model": name, "converter": converter, "note": "not converted here"})
                continue
            found = run(path, name, pictures)
            rows.append({"converter": converter, **about(path), **distance(reference[0], found[0])})
            if evaluated:
                rows[-1] |= drop(name, dataset, reference[1], found[1])
            rows[-1]["model"] = name
            print(json.dumps(rows[-1]), flush=True)
    return rows


def about(path: Path) -> dict[str, Any]:
    model = onnx.load(path)
    operators = Counter(node.op_type for node in model.graph.node)
    weights = Counter(onnx.TensorProto.DataType.Name(w.data_type) for w in model.graph.initializer)
    return {
        "casts": operators["Cast"], "nodes": sum(operators.values()), "weights": dict(weights),
        "megabytes": round(path.stat().st_size / 1e6, 2), **json.loads(path.with_suffix(".json").read_text()),
    }  # fmt: skip


def run(path: Path, name: str, pictures: Any) -> tuple[list[Any], list[Any]]:
    """(raw outputs of the first photographs, detections of all)."""
    from gpu_models import spec
    from redline.data import read_bytes
    from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
    from redline.predict import Predictor

    model = spec(name, Path())
    raw: list[Any] = []
    runner = OnnxRuntimeRunner(str(path), threads=2, concurrent=False)

    class Kept:
        """The runner; the outputs of its first calls are kept."""

        def run(self, batch: Any) -> Any:
            outputs = runner.run(batch)
            if len(raw) < PHOTOGRAPHS:
                raw.append(outputs)
            return outputs

    kept: Any = Kept()
    predict = Predictor(kept, model.preprocess, model.head, model.postprocess, "fixed")
    found = [one for picture in pictures for one in predict.from_bytes([read_bytes(picture)])]
    runner.close()
    return raw, found


def distance(reference: list[Any], found: list[Any]) -> dict[str, Any]:
    import numpy as np

    gaps = [np.abs(a - b) for one, other in zip(reference, found, strict=True) for a, b in zip(one, other, strict=True)]
    return {
        "photographs": len(reference),
        "mean_abs": float(np.mean([gap.mean() for gap in gaps])),
        "max_abs": float(max(gap.max() for gap in gaps)),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("verb", choices=("convert", "compare"))
    options.add_argument("converters", nargs="*", metavar="CONVERTER", help=", ".join(CONVERTERS))
    options.add_argument("--graphs", type=Path, required=True)
    options.add_argument("--shared", type=Path)
    options.add_argument("--output", type=Path)
    given = options.parse_args()
    if given.verb == "convert":
        convert(given.graphs, given.converters or [*CONVERTERS])
        return
    rows = compare(given.graphs, given.shared)
    if given.output:
        from redline.doctor import inspect_machine
        from redline.store import dump

        text = json.dumps({"environment": json.loads(dump(inspect_machine())), "rows": rows}, indent=1)
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
