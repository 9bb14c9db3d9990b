"""NMS against the definition written as nested loops in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from redline.vision import at_most, nms
from redline.vision import suppression as module

Array = np.ndarray[Any, Any]


def naive(boxes: Array, scores: Array, labels: Array, anchors: Array, iou: float, limit: int, class_aware: bool) -> list[int]:
    sound = [i for i in range(len(scores)) if np.isfinite(scores[i]) and np.isfinite(boxes[i]).all()]
    order = sorted(sound, key=lambda i: (-scores[i], anchors[i], labels[i]))
    kept: list[int] = []
    for i in order:
        if len(kept) < limit and all(
            overlap(boxes[i], boxes[k]) <= iou for k in kept if not class_aware or labels[i] == labels[k]
        ):
            kept.append(i)
    return kept


def overlap(a: Array, b: Array) -> float:
    zero = np.float32(0)
    width = max(min(a[2], b[2]) - max(a[0], b[0]), zero)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), zero)
    areas = [max(c[2] - c[0], zero) * max(c[3] - c[1], zero) for c in (b, a)]
    union = areas[0] + areas[1] - width * height
    return float(width * height / union) if union > 0 else 0.0


CORNER = st.integers(0, 12).map(float)
BOX = st.tuples(CORNER, CORNER, CORNER, CORNER)
WILD = st.sampled_from([float("nan"), float("inf"), -float("inf")])
SCORE = st.one_of(st.sampled_from([0.25, 0.5, 0.75]), st.floats(0.125, 1, width=32), WILD)
ROW = st.tuples(BOX, SCORE, st.integers(0, 2), st.integers(0, 5), st.booleans())


@settings(max_examples=300)
@given(
    rows=st.lists(ROW, max_size=40),
    iou=st.sampled_from([0.0, 0.3, 0.5, 0.65, 1.0]),
    limit=st.integers(1, 20),
    class_aware=st.booleans(),
    chunk=st.sampled_from([1, 3, 7, 512]),
)
def test_equals_the_definition(rows: list[Any], iou: float, limit: int, class_aware: bool, chunk: int) -> None:
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    for index, row in enumerate(rows):
        if row[4] and row[2] == 2:
            boxes[index, row[3] % 4] = np.nan
    scores = np.array([row[1] for row in rows], np.float32)
    # Anchors and labels together are unique, as they are in a network's output.
    keys = np.random.default_rng(len(rows)).permutation(max(len(rows), 1))[: len(rows)]
    labels, anchors = (keys % 3).astype(np.int64), (keys // 3).astype(np.int64)
    before, module.CHUNK = module.CHUNK, chunk
    try:
        kept = nms(boxes, scores, labels, anchors, iou=iou, max_detections=limit, class_aware=class_aware)
    finally:
        module.CHUNK = before
    assert kept.tolist() == naive(boxes, scores, labels, anchors, iou, limit, class_aware)


def test_ties_go_by_anchor_then_class() -> None:
    boxes = np.array([[0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10], [9, 9, 10, 10]], np.float32)
    anchors, labels = np.array([2, 1, 0, 0]), np.array([0, 0, 1, 0])
    kept = nms(boxes, np.full(4, 0.5, np.float32), labels, anchors, iou=0.5, max_detections=9, class_aware=True)
    assert kept.tolist() == [3, 2, 1, 0]
    kept = nms(boxes, np.full(4, 0.5, np.float32), labels, anchors, iou=0.5, max_detections=9, class_aware=False)
    assert kept.tolist() == [3, 1, 0]


def test_a_box_is_dropped_only_above_the_threshold() -> None:
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1]], np.float32)  # IoU exactly 0.5
    arguments = (boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64), np.arange(2))
    assert nms(*arguments, iou=0.5, max_detections=9, class_aware=True).tolist() == [0, 1]
    assert nms(*arguments, iou=0.4999, max_detections=9, class_aware=True).tolist() == [0]


def test_a_dropped_box_drops_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], np.float32)  # neighbours 0.43, ends 0.11
    kept = nms(
        boxes,
        np.array([0.9, 0.8, 0.7], np.float32),
        np.zeros(3, np.int64),
        np.arange(3),
        iou=0.4,
        max_detections=9,
        class_aware=True,
    )
    assert kept.tolist() == [0, 2]


def test_no_candidates() -> None:
    empty = np.zeros(0, np.int64)
    kept = nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), empty, empty, iou=0.5, max_detections=5, class_aware=True)
    assert kept.tolist() == []


def test_thousands_of_overlapping_boxes_of_one_class() -> None:
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 60, (4000, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(5, 40, (4000, 2))), axis=1).astype(np.float32)
    scores = rng.random(4000, np.float32)
    zeros, anchors = np.zeros(4000, np.int64), np.arange(4000)
    kept = nms(boxes, scores, zeros, anchors, iou=0.65, max_detections=60, class_aware=False)
    assert kept.tolist() == naive(boxes, scores, zeros, anchors, 0.65, 60, False)


@given(st.floats(0, 1))
def test_at_most_decides_as_float64_would(value: float) -> None:
    bound = at_most(value)
    for score in (bound, np.nextafter(bound, np.float32(2)), np.nextafter(bound, np.float32(-2))):
        assert (score > bound) == (float(score) > value)
