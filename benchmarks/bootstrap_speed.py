"""How long the paired bootstrap of an mAP difference takes, against running faster-coco-eval on every resampled set.

    python benchmarks/bootstrap_speed.py [--resamples 1000] [--naive 3] [--json FILE]

Two invented inputs: 61 images with 80 categories (COCO-like) and 1,000 images with 6 categories, each with two systems.
Both ways work on the same resamples, and their APs are compared. One core: BLAS is not used.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import numpy as np

from redline import parity
from redline.records import Category, Dataset, Detections, ImageRef, Truth

CASES = {
    "61 images, 80 categories": {"images": 61, "categories": 80, "objects": 7.5, "false": 280},
    "1000 images, 6 categories": {"images": 1000, "categories": 6, "objects": 6.0, "false": 90},
}


def invented(images: int, categories: int, objects: float, false: int) -> tuple[Dataset, list[list[Detections]]]:
    """A set with `objects` truths an image (Poisson) and two systems that find them, plus `false` faint boxes an image."""
    rng = np.random.default_rng(0)
    truths, systems = [], ([], [])
    for _ in range(images):
        number = int(rng.poisson(objects))
        corner, sides = rng.uniform(0, 540, (number, 2)), rng.uniform(16, 100, (number, 2))
        labels = np.minimum(rng.geometric(0.12, number), categories) - 1
        truths.append(
            Truth(
                boxes=tuple(map(tuple, np.hstack([corner, sides]).tolist())),
                category_ids=tuple((labels + 1).tolist()),
                areas=tuple(sides.prod(axis=1).tolist()),
                crowd=(False,) * number,
            )
        )
        where = rng.uniform(0, 540, (false, 2))
        boxes = np.vstack([np.hstack([corner, corner + sides]), np.hstack([where, where + rng.uniform(16, 100, (false, 2))])])
        scores = np.concatenate([rng.uniform(0.1, 1, number), rng.uniform(0.001, 0.3, false)])
        classes = np.concatenate([labels, rng.integers(0, categories, false)])
        for noise, found in zip((4.0, 4.2), systems, strict=True):
            seen = np.clip(scores + rng.normal(0, 0.01, scores.size), 0.001, 1)
            order = np.argsort(-seen, kind="stable")
            moved = boxes + rng.normal(0, noise, boxes.shape)
            found.append(
                Detections(boxes=moved[order].astype(np.float32), scores=seen[order].astype(np.float32), labels=classes[order])
            )
    refs = tuple(ImageRef(id=k + 1, path="", height=640, width=640, sha256="") for k in range(images))
    names = tuple(Category(id=k + 1, name=str(k)) for k in range(categories))
    return Dataset(name="invented", images=refs, truths=tuple(truths), categories=names, digest=""), list(systems)


def naive_ap(dataset: Dataset, found: list[Detections], counts: np.ndarray) -> float:
    """faster-coco-eval alone on the set with image i there counts[i] times."""
    from faster_coco_eval import COCO, COCOeval_faster

    truths, results = [], []
    which = np.repeat(np.arange(len(counts)), counts)
    for number, index in enumerate(which, start=1):
        truth, one = dataset.truths[index], found[index]
        for box, label, area in zip(truth.boxes, truth.category_ids, truth.areas, strict=True):
            entry = {"id": len(truths) + 1, "image_id": number, "category_id": label, "bbox": list(box), "area": area}
            truths.append({**entry, "iscrowd": 0})
        boxes = one.boxes.astype(float)
        boxes[:, 2:] = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
        for box, score, label in zip(boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True):
            results.append({"image_id": number, "category_id": label + 1, "bbox": box, "score": score})
    images = [{"id": number, "height": 640, "width": 640} for number in range(1, len(which) + 1)]
    categories = [{"id": category.id, "name": category.name} for category in dataset.categories]
    coco = COCO({"images": images, "annotations": truths, "categories": categories})
    evaluator = COCOeval_faster(coco, coco.loadRes(results), "bbox", print_function=lambda *_: None)
    evaluator.run()
    return float(evaluator.stats[0])


def measure(resamples: int, naive: int, **shape: float) -> dict[str, float]:
    dataset, systems = invented(**shape)
    start = time.perf_counter()
    evaluations = [parity.evaluate(dataset, found, "index") for found in systems]
    evaluate_s = (time.perf_counter() - start) / len(systems)
    start = time.perf_counter()
    drop = parity.map_drop(*evaluations, resamples=resamples)
    fast_s = time.perf_counter() - start
    counts = parity.resample_counts(len(dataset.images), naive, seed=1)
    start = time.perf_counter()
    slow = [[naive_ap(dataset, found, row) for row in counts] for found in systems]
    naive_s = (time.perf_counter() - start) / naive
    fast = [parity.resampled_ap(evaluation, counts) for evaluation in evaluations]
    return {
        "detections": sum(len(one.scores) for one in systems[0]),
        "reference_ap": drop.reference_ap,
        "drop_pct": drop.relative_pct,
        "evaluate_seconds": evaluate_s,
        "bootstrap_seconds": fast_s,
        "naive_seconds_estimated": naive_s * resamples,
        "times_faster": naive_s * resamples / fast_s,
        "largest_ap_difference": float(np.abs(np.array(slow) - np.array(fast)).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--naive", type=int, default=3, help="resampled sets to run faster-coco-eval on")
    parser.add_argument("--json", help="write the result here")
    arguments = parser.parse_args()
    cases = {name: measure(arguments.resamples, arguments.naive, **shape) for name, shape in CASES.items()}
    for name, case in cases.items():
        print(f"{name}: {arguments.resamples} resamples x 2 systems in {case['bootstrap_seconds']:.2f} s; evaluating each "
              f"resampled set {case['naive_seconds_estimated']:.0f} s ({case['times_faster']:.0f} x); AP differs by at most "
              f"{case['largest_ap_difference']:.1e}")  # fmt: skip
    if arguments.json:
        record = {
            "resamples": arguments.resamples,
            "cases": cases,
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        with open(arguments.json, "w") as file:
            json.dump(record, file, indent=2)


if __name__ == "__main__":
    main()
