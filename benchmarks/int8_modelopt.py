"""INT8 by nvidia-modelopt beside INT8 by redline: YOLOX-Nano at 416, the same calibration images, the same evaluation.

    python benchmarks/int8_modelopt.py prepare --shared DIR --work DIR     here: graph, calibration inputs, redline's graphs
    python benchmarks/int8_modelopt.py make --work DIR                     in an environment with nvidia-modelopt[onnx]
    python benchmarks/int8_modelopt.py compare --shared DIR --work DIR --output FILE [--modelopt VERSION]     here

Drop: relative AP over 61 COCO images, with its 95 % interval, ONNX Runtime CPU. In INT8: share of the convolutions' operations
whose input and weight are rounded in the graph; and, where tensorrt-rtx is installed, how many layers an engine built ahead of
time for compute capability 8.9 has, and how many of them only change type or layout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

METHODS = ("max", "entropy")
IMAGES = 40
SIDE = 416
CAPABILITY = "8.9"


def prepare(given: argparse.Namespace) -> None:
    from gpu_models import detector, graph
    from redline.data.calibration import choose_calibration
    from redline.data.coco import load_dataset, read_bytes
    from redline.export.quantized import export_int8
    from redline.quantizing import calibrate, table_of
    from redline.records.spec import DataRef
    from redline.vision import decode
    from redline.vision import prepare as prepared

    weights = given.shared / "models" / "yolox_nano_coco"
    source, network = detector(f"yolox{SIDE}", weights), graph(f"yolox{SIDE}", weights, given.work, False)
    place = given.shared / "data" / "coco_calib40"
    held = load_dataset(DataRef(images=str(place / "images"), annotations=str(place / "instances.json")), role="calibrate")
    choice = choose_calibration(held, IMAGES)
    tensors = [prepared(decode(read_bytes(image), name=image.path), source.preprocess, "fixed")[0] for image in choice.images]
    shutil.copy(network.path, given.work / "network.onnx")
    np.savez(given.work / "calibration.npz", **{network.input.name: np.stack(tensors)})
    start = time.perf_counter()
    ranges = calibrate(network, source, [Path(image.path) for image in choice.images], threads=2)
    seconds = round(time.perf_counter() - start, 1)
    for method in METHODS:
        export_int8(network, given.work, table_of(network, ranges, method), name=f"redline-{method}")
        (given.work / f"redline-{method}.json").write_text(json.dumps({"seconds": seconds}))


def make(given: argparse.Namespace) -> None:
    from modelopt.onnx.quantization import quantize

    data = dict(np.load(given.work / "calibration.npz"))
    for method in METHODS:
        copied = given.work / f"copy-{method}.onnx"  # it was seen to rewrite its input
        shutil.copy(given.work / "network.onnx", copied)
        before = copied.read_bytes()
        start = time.perf_counter()
        quantize(
            str(copied), quantize_mode="int8", calibration_data=data, calibration_method=method, calibration_eps=["cpu"],
            high_precision_dtype="fp32", output_path=str(given.work / f"modelopt-{method}.onnx"), log_level="ERROR",
        )  # fmt: skip
        row = {"seconds": round(time.perf_counter() - start, 1), "rewrote_its_input": copied.read_bytes() != before}
        (given.work / f"modelopt-{method}.json").write_text(json.dumps(row))


def in_int8(path: Path) -> dict[str, Any]:
    """Convolutions, and the share of their operations, whose input and weight come out of a DequantizeLinear."""
    from redline.engine.graph_facts import node_facts

    model = onnx.load(path)
    back = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    flop = {fact.name: fact.flop for fact in node_facts(model, (1, 3, SIDE, SIDE))}
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    rounded = [node for node in layers if set(node.input[:2]) <= back]
    whole = sum(flop[node.name] for node in layers)
    pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    share = sum(flop[node.name] for node in rounded) / whole if whole else 0.0
    return {"convolutions": len(layers), "in_int8": len(rounded), "share_of_operations": share, "quantize_nodes": pairs}


def built(path: Path, work: Path) -> dict[str, Any]:
    """An engine built ahead of time: its layers, those that only change type or layout, and the types by operations."""
    from redline.engine.foundry import Foundry
    from redline.engine.tensorrt_store import AHEAD_OF_TIME
    from redline.engine.tensorrt_versions import find
    from redline.progress import Progress
    from redline.records import BuildOptions, EngineProfile
    from redline.records import OnnxModel as Model
    from redline.store import Store, load

    shape = (1, 3, SIDE, SIDE)
    profile = EngineProfile(index=0, minimum=shape, optimum=shape, maximum=shape)
    options = BuildOptions(precision="int8", profiles=(profile,), capabilities=(CAPABILITY,))
    full = load(Model, (work / f"yolox{SIDE}" / "full.json").read_bytes())
    graph = replace(full, path=str(path), digest=hashlib.sha256(path.read_bytes()).hexdigest())
    made = Foundry(find("tensorrt-rtx"), Store(work / "store"), None, Progress(None).build, place=AHEAD_OF_TIME).build(
        graph, options, path.stem
    )
    own = [layer for layer in made.proof.layers if not layer.nodes]
    return {
        "layers": len(made.proof.layers), "that_only_change_type_or_layout": len(own), "plan_bytes": made.plan_bytes,
        "shares": dict(made.proof.shares), "note": made.proof.note,
    }  # fmt: skip


def compare(given: argparse.Namespace) -> None:
    from gpu_accuracy import data_of, drop
    from gpu_models import detector, graph
    from redline.data.coco import read_bytes
    from redline.doctor import inspect_machine
    from redline.errors import RedlineError
    from redline.parity import divergence
    from redline.sensitivity import Scales
    from redline.store import dump
    from redline.vision import decode

    name, weights = f"yolox{SIDE}", given.shared / "models" / "yolox_nano_coco"
    source, network = detector(name, weights), graph(name, weights, given.work, False)
    dataset = data_of(name, given.shared)
    images = [decode(read_bytes(image), name=image.path) for image in dataset.images]
    scales = Scales(network, source, images, given.work, threads=2)
    reference = scales.detections(None)
    result: dict[str, Any] = {
        "what": __doc__.split("\n\n")[0] if __doc__ else "", "environment": json.loads(dump(inspect_machine())),
        "modelopt": given.modelopt, "calibration_images": IMAGES, "rows": [],
    }  # fmt: skip
    for path in sorted(given.work.glob("*-*.onnx")):
        by, method = path.stem.split("-")
        if by not in ("redline", "modelopt"):
            continue
        found = scales.seen_by(replace(network, path=str(path)))
        row: dict[str, Any] = {"by": by, "calibrator": method, **json.loads(path.with_suffix(".json").read_text())}
        row |= in_int8(path) | {"divergence": divergence(reference, found)}
        lost = drop(name, dataset, "int8", reference, found)["drop"]
        row |= {key: lost[key] for key in ("candidate_ap", "relative_pct", "relative_low_pct", "relative_high_pct")}
        try:
            row["engine"] = built(path, given.work)
        except (RedlineError, ImportError) as error:
            row["engine"] = str(error)[:300]
        result["rows"].append(row)
        print(json.dumps(row)[:500], flush=True)
        given.output.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("part", choices=["prepare", "make", "compare"])
    options.add_argument("--shared", type=Path)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--output", type=Path)
    options.add_argument("--modelopt", default="not said", help="version that made the graphs")
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    {"prepare": prepare, "make": make, "compare": compare}[given.part](given)


if __name__ == "__main__":
    main()
