"""mAP of detections that the GPU benchmark wrote (FP16 engine and FP32 eager torch), with the paired interval of the drop.

python benchmarks/gpu_accuracy.py --shared DIR [--output FILE] detections-yolox640.npz ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu_models import spec
from redline.data import load_dataset
from redline.parity import differs, ground_truth, observe
from redline.parity.bootstrap import map_drop
from redline.records import Dataset, Detections
from redline.records.spec import DataRef
from redline.store import dump

MUST_PCT = 0.1
RESAMPLES = 2000


def data_of(name: str, shared: Path) -> Dataset:
    folder, file = ("coco_val61", "instances.json") if name.startswith("yolox") else ("bccd", "instances_test.json")
    place = shared / "data" / folder
    return load_dataset(DataRef(images=str(place / "images"), annotations=str(place / file)))


def drop(name: str, dataset: Dataset, reference: Sequence[Detections], found: Sequence[Detections]) -> dict[str, Any]:
    """AP of both and the relative drop with its 95 % interval, images resampled in pairs."""
    truth = ground_truth(dataset, reference, spec(name, Path()).labels)
    before, after = (observe(truth, detections).evaluation for detections in (reference, found))
    row = json.loads(dump(map_drop(before, after, resamples=RESAMPLES, budget_pct=MUST_PCT)))
    return {
        "model": name, "images": len(found), "detections": [sum(len(d.scores) for d in side) for side in (reference, found)],
        "images_that_differ": sum(differs(a, b) is not None for a, b in zip(reference, found, strict=True)),
        "must_pct": MUST_PCT, "met": row["relative_pct"] <= MUST_PCT, "drop": row,
    }  # fmt: skip


def read(path: Path, dataset: Dataset) -> tuple[list[Detections], list[Detections]]:
    """(FP32, FP16) detections in the data set's order."""
    held = np.load(path)
    place = {str(name): index for index, name in enumerate(held["files"])}
    order = [place[Path(image.path).name] for image in dataset.images]
    sides = []
    for how in ("fp32", "fp16"):
        ends = np.cumsum(held[f"{how}_counts"])
        parts = [[*np.split(held[f"{how}_{field}"], ends[:-1])] for field in ("boxes", "scores", "labels")]
        sides.append([Detections(boxes=parts[0][i], scores=parts[1][i], labels=parts[2][i]) for i in order])
    return sides[0], sides[1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="+", type=Path)
    options.add_argument("--shared", type=Path, required=True)
    options.add_argument("--output", type=Path)
    given = options.parse_args()
    rows = []
    for path in given.files:
        name = path.stem.removeprefix("detections-")
        dataset = data_of(name, given.shared)
        rows.append(drop(name, dataset, *read(path, dataset)))
        print(json.dumps(rows[-1]), flush=True)
    if given.output:
        given.output.write_text(json.dumps({"phase": "accuracy", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
