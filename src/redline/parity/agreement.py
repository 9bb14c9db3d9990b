"""Ground truth for unlabelled images: what the reference itself is sure of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from redline.records import Category, Dataset, Detections, Truth

AGREEMENT_FLOOR = 0.3
"""Reference detections with at least this score stand for objects: a usual operating point of detectors."""


def agreement_truths(dataset: Dataset, detections: Sequence[Detections], floor: float = AGREEMENT_FLOOR) -> Dataset:
    """The data set with the reference's detections of score >= floor as its ground truth (area = width x height).

    Category ids are the network's class indices, so it is evaluated with labels "category-id", kind "agreement". Against
    it the reference has AP 1 and a candidate's AP says how far it agrees; neither says how good the reference is.
    """
    truths = tuple(_truth(one, floor) for one in detections)
    labels = sorted({id for truth in truths for id in truth.category_ids})
    known = {category.id: category for category in dataset.categories}
    categories = tuple(known.get(label, Category(id=label, name=f"class {label}")) for label in labels)
    return replace(dataset, truths=truths, categories=categories)


def _truth(detections: Detections, floor: float) -> Truth:
    corners = detections.boxes.astype(np.float64).reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    keep = (detections.scores >= floor) & np.isfinite(corners).all(axis=1) & (sides > 0).all(axis=1)
    boxes = np.concatenate([corners[keep, :2], sides[keep]], axis=1)
    return Truth(
        boxes=tuple((x, y, width, height) for x, y, width, height in boxes.tolist()),
        category_ids=tuple(detections.labels[keep].tolist()),
        areas=tuple(sides[keep].prod(axis=1).tolist()),
        crowd=(False,) * int(keep.sum()),
    )
