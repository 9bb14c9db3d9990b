"""Does the 95 % interval of an INT8 drop hold the true drop in 95 of 100 cases? On generated scenes, whose population is known.

    python benchmarks/int8_coverage.py --work DIR --output FILE [--scenes 2000]

The demo detector in FP32 and in INT8 sees all scenes; what it loses on all of them is the truth. Data sets of several sizes are
drawn from them without replacement, each gets its paired interval, and the share of intervals that hold the truth is counted.
A draw from so many scenes is narrower than one from the world, by sqrt(1 - size / scenes), which favours coverage and is given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from redline.data.calibration import choose_calibration
from redline.data.coco import load_dataset, read_bytes
from redline.demo.scenes import write_dataset
from redline.doctor import inspect_machine
from redline.export import export_onnx
from redline.model.load import load_detector
from redline.parity import Evaluation, ground_truth, map_drop, observe, resampled_ap
from redline.quantizing import calibrate, table_of
from redline.records import Head, ModelSpec, Preprocess
from redline.records.spec import DataRef
from redline.sensitivity import Scales, choose_calibrator
from redline.store import dump
from redline.vision import decode

SIZES, DRAWS, RESAMPLES = (50, 100, 200, 400), 300, 1000
CALIBRATION = 64
SEEDS = (7_000_000, 8_000_000)
"""Series of scenes for evaluation and calibration, apart from those that the demo detector was trained and chosen on."""


def scenes(folder: Path, count: int, seed: int) -> Any:
    if not (folder / "instances.json").exists():
        write_dataset(folder, count, seed)
    return load_dataset(DataRef(images=str(folder / "images"), annotations=str(folder / "instances.json")))


def part(whole: Evaluation, chosen: Any) -> Evaluation:
    """The evaluation of the images `chosen`, without matching anything again."""
    place = np.full(whole.images, -1)
    place[chosen] = np.arange(len(chosen))
    categories = []
    for category in whole.categories:
        kept = place[category.image] >= 0
        categories.append(replace(
            category, scores=category.scores[kept], image=place[category.image[kept]].astype(np.int32),
            matched=category.matched[:, kept], ignored=category.ignored[:, kept], truths=category.truths[chosen],
        ))  # fmt: skip
    found = replace(whole, images=len(chosen), categories=tuple(c for c in categories if c.truths.any()))
    ap = float(resampled_ap(found, np.ones((1, len(chosen)), np.int64))[0])
    return replace(found, accuracy=replace(whole.accuracy, ap=ap))


def coverage(before: Evaluation, after: Evaluation, size: int) -> dict[str, Any]:
    whole = map_drop(before, after, resamples=1)
    held = {"absolute": 0, "relative": 0}
    widths = []
    for draw in range(DRAWS):
        chosen = np.sort(np.random.default_rng([size, draw]).choice(before.images, size, replace=False))
        found = map_drop(part(before, chosen), part(after, chosen), resamples=RESAMPLES, seed=draw)
        held["absolute"] += found.absolute_low <= whole.absolute <= found.absolute_high
        held["relative"] += found.relative_low_pct <= whole.relative_pct <= found.relative_high_pct
        widths.append(found.relative_high_pct - found.relative_low_pct)
    shares = {name: count / DRAWS for name, count in held.items()}
    spread = {name: 1.96 * float(np.sqrt(share * (1 - share) / DRAWS)) for name, share in shares.items()}
    return {
        "images": size, "draws": DRAWS, "share_of_intervals_with_the_truth": shares, "plus_minus": spread,
        "median_width_relative_pct": float(np.median(widths)), "finite_population_factor": (1 - size / before.images) ** 0.5,
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--scenes", type=int, default=2000)
    given = options.parse_args()
    result: dict[str, Any] = {
        "what": "coverage of the interval of an INT8 drop",
        "environment": json.loads(dump(inspect_machine())),
    }

    def note(part: str, value: Any) -> None:
        result[part] = value
        given.output.write_text(json.dumps(result, indent=1) + "\n")
        print(part, json.dumps(value)[:400], flush=True)

    preprocess = Preprocess(size=(320, 320), channels="rgb", scale=1.0)
    detector = load_detector(ModelSpec(factory="redline.zoo:demo", head=Head(kind="yolox"), preprocess=preprocess))
    network = export_onnx(detector, given.work, input_hw=(320, 320))
    dataset, held = (
        scenes(given.work / name, n, s)
        for name, n, s in zip(("eval", "calib"), (given.scenes, CALIBRATION), SEEDS, strict=True)
    )
    choice = choose_calibration(held, CALIBRATION, evaluate=dataset)
    ranges = calibrate(network, detector, [Path(image.path) for image in choice.images], threads=2)
    light = [decode(read_bytes(image), name=image.path) for image in choice.images]
    losses = choose_calibrator(Scales(network, detector, light, given.work, threads=2), ranges)
    note("calibrators", [json.loads(dump(loss)) for loss in losses])
    images: Sequence[Any] = [decode(read_bytes(image), name=image.path) for image in dataset.images]
    whole = Scales(network, detector, images, given.work, threads=2)
    reference, found = whole.detections(None), whole.detections(table_of(network, ranges, losses[0].method))
    truth = ground_truth(dataset, reference, "index")
    before, after = (observe(truth, one).evaluation for one in (reference, found))
    note(
        "demo",
        {"layers": "all in INT8", "calibrator": losses[0].method, **json.loads(dump(map_drop(before, after, resamples=1000)))},
    )
    rows = []
    for size in SIZES:
        rows.append(coverage(before, after, size))
        note("coverage", rows)


if __name__ == "__main__":
    main()
