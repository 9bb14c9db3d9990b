"""Small invented image sets and detectors of known faults, from a seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from redline.records import Category, Dataset, Detections, ImageRef, Truth


def invented_set(seed: int, images: int = 12, categories: int = 3, crowds: bool = False) -> Dataset:
    """Images of 200 x 300 with 0 to 5 boxes each; every fourth box is a crowd if `crowds`."""
    rng = np.random.default_rng(seed)
    truths = []
    for _ in range(images):
        number = int(rng.integers(0, 6))
        boxes = np.column_stack([rng.uniform(0, 200, number), rng.uniform(0, 120, number), rng.uniform(10, 90, (number, 2))])
        truths.append(
            Truth(
                boxes=tuple(map(tuple, boxes.tolist())),
                category_ids=tuple((rng.integers(0, categories, number) * 10 + 5).tolist()),
                areas=tuple((boxes[:, 2] * boxes[:, 3]).tolist()),
                crowd=tuple((rng.integers(0, 4, number) == 0).tolist()) if crowds else (False,) * number,
            )
        )
    return Dataset(
        name="invented",
        images=tuple(ImageRef(id=7 * k + 1, path=f"{k}.png", height=200, width=300, sha256="") for k in range(images)),
        truths=tuple(truths),
        categories=tuple(Category(id=10 * k + 5, name=f"kind {k}") for k in range(categories)),
        digest="",
    )


def invented_detections(
    dataset: Dataset, seed: int, noise: float = 6.0, levels: int | None = None, false: int = 5
) -> list[Detections]:
    """Each truth found with moved corners, plus false boxes; scores on `levels` steps make ties. Labels are class indices."""
    rng = np.random.default_rng(seed)
    index = {category.id: k for k, category in enumerate(dataset.categories)}
    found = []
    for truth in dataset.truths or ():
        own = np.array(truth.boxes, float).reshape(-1, 4)
        own = np.repeat(own, rng.integers(0, 3, len(own)), axis=0)
        labels = [index[id] for box in own for t, id in zip(truth.boxes, truth.category_ids, strict=True) if tuple(box) == t]
        more = np.column_stack([rng.uniform(0, 200, false), rng.uniform(0, 120, false), rng.uniform(10, 90, (false, 2))])
        boxes = np.concatenate([own, more])
        boxes[:, 2:] += boxes[:, :2]
        boxes += rng.normal(0, noise, boxes.shape)
        boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
        scores = rng.uniform(0.01, 1, len(boxes))
        if levels:
            scores = np.ceil(scores * levels) / levels
        label = np.array([*labels, *rng.integers(0, len(index), false)], np.int64)
        order = np.argsort(-scores, kind="stable")
        found.append(make(boxes[order], scores[order], label[order]))
    return found


def make(boxes: object, scores: object, labels: object) -> Detections:
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4), scores=np.array(scores, np.float32), labels=np.array(labels, np.int64)
    )


def perfect(dataset: Dataset) -> list[Detections]:
    """The ground truth as detections, labels as category ids."""
    found = []
    for truth in dataset.truths or ():
        boxes = np.array(truth.boxes, float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.append(make(boxes, np.full(len(boxes), 0.9), truth.category_ids))
    return found


def repeated(dataset: Dataset, found: list[Detections], counts: list[int]) -> tuple[Dataset, list[Detections]]:
    """The set and its detections with image i physically there counts[i] times, copies side by side, under new ids."""
    which = np.repeat(np.arange(len(counts)), counts)
    images = tuple(replace(dataset.images[i], id=number) for number, i in enumerate(which, start=1))
    copy = replace(dataset, images=images, truths=tuple((dataset.truths or ())[i] for i in which))
    return copy, [found[i] for i in which]
