"""mAP of detections that the GPU benchmark wrote (FP16 or INT8 engine, FP32 eager torch), with the drop's paired interval.

python benchmarks/gpu_accuracy.py --shared DIR [--output FILE] [--weights DIR] detections-yolox640.npz ...

With `--weights`, FP32 is the exported graph in ONNX Runtime here: for files whose reference is another path of the same engine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu_models import detector, graph, spec
from redline.data import load_dataset
from redline.parity import differs, ground_truth, observe
from redline.parity.bootstrap import map_drop
from redline.records import Dataset, Detections
from redline.records.spec import DataRef
from redline.store import dump

MUST_PCT = {"fp16": 0.1, "int8": 0.5}
RESAMPLES = 2000


def data_of(name: str, shared: Path) -> Dataset:
    folder, file = ("coco_val61", "instances.json") if name.startswith("yolox") else ("bccd", "instances_test.json")
    place = shared / "data" / folder
    return load_dataset(DataRef(images=str(place / "images"), annotations=str(place / file)))


def drop(name: str, dataset: Dataset, how: str, reference: Sequence[Detections], found: Sequence[Detections]) -> dict[str, Any]:
    """AP of both and the relative drop with its 95 % interval, images resampled in pairs."""
    must = MUST_PCT[how]
    truth = ground_truth(dataset, reference, spec(name, Path()).labels)
    before, after = (observe(truth, detections).evaluation for detections in (reference, found))
    row = json.loads(dump(map_drop(before, after, resamples=RESAMPLES, budget_pct=must)))
    return {
        "model": name, "images": len(found), "detections": [sum(len(d.scores) for d in side) for side in (reference, found)],
        "images_that_differ": sum(differs(a, b) is not None for a, b in zip(reference, found, strict=True)),
        "precision": how, "must_pct": must, "met": row["relative_pct"] <= must, "drop": row,
    }  # fmt: skip


def read(path: Path, dataset: Dataset) -> tuple[str, list[Detections], list[Detections]]:
    """The engine's precision, FP32's and its detections in the data set's order."""
    held = np.load(path)
    narrow = next(name.split("_")[0] for name in held.files if name.endswith("_counts") and not name.startswith("fp32"))
    place = {str(name): index for index, name in enumerate(held["files"])}
    order = [place[Path(image.path).name] for image in dataset.images]
    sides = []
    for how in ("fp32", narrow):
        ends = np.cumsum(held[f"{how}_counts"])
        parts = [[*np.split(held[f"{how}_{field}"], ends[:-1])] for field in ("boxes", "scores", "labels")]
        sides.append([Detections(boxes=parts[0][i], scores=parts[1][i], labels=parts[2][i]) for i in order])
    return narrow, sides[0], sides[1]


def graph_here(name: str, weights: Path, folder: Path, dataset: Dataset) -> list[Detections]:
    """What the FP32 graph finds on this machine's CPU."""
    from redline.data import read_bytes
    from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
    from redline.predict import Predictor
    from redline.vision import decode

    source, exported = detector(name, weights), graph(name, weights, folder, half=False)
    runner = OnnxRuntimeRunner(exported.path, threads=0, concurrent=False)
    predict = Predictor(runner, source.preprocess, source.head, source.postprocess, "fixed")
    return [predict([decode(read_bytes(image), name=image.path)])[0] for image in dataset.images]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="+", type=Path)
    options.add_argument("--shared", type=Path, required=True)
    options.add_argument("--output", type=Path)
    options.add_argument("--weights", type=Path, help="FP32 from the exported graph on this CPU")
    given = options.parse_args()
    rows = []
    for path in given.files:
        name, _, label = path.stem.removeprefix("detections-").partition("@")
        dataset = data_of(name, given.shared)
        how, before, after = read(path, dataset)
        if given.weights is not None:
            with tempfile.TemporaryDirectory() as folder:
                before = graph_here(name.split("-")[0], given.weights, Path(folder), dataset)
        rows.append({"built_as": label or name, **drop(name.split("-")[0], dataset, how, before, after)})
        print(json.dumps(rows[-1]), flush=True)
    if given.output:
        given.output.write_text(json.dumps({"phase": "accuracy", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
