"""Greedy non-maximum suppression, exact and fast: candidate pairs are made within a class only, a chunk of ranks at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Indices = NDArray[np.intp]

CHUNK = 512
"""Ranks examined at once; bounds memory at about (CHUNK + max_detections)^2 / 2 pairs."""


def nms(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    anchors_index: NDArray[np.int64],
    *,
    iou: float,
    max_detections: int,
    class_aware: bool,
) -> Indices:
    """Indices of the kept candidates by descending score, ties by ascending (anchor index, class index).

    boxes (K, 4) xyxy, scores (K,), labels (K,), anchors_index (K,). A candidate is dropped if its IoU (float32) with a kept
    one, of its class if `class_aware`, is greater than `iou` (1 or more: nothing is dropped); two boxes without area have
    IoU 0. Candidates whose score or box has a NaN or an infinity are never kept.
    """
    ranked = _ranked(scores, labels, anchors_index)
    sound = np.isfinite(scores) & np.isfinite(boxes).all(axis=1)
    if not sound.all():
        ranked = ranked[sound[ranked]]
    if iou >= 1:
        return ranked[:max_detections]
    threshold = at_most(iou)
    kept = ranked[:0]
    for start in range(0, len(ranked), CHUNK):
        if len(kept) >= max_detections:
            break
        pool = np.concatenate((kept, ranked[start : start + CHUNK]))
        kept = pool[_survivors(boxes[pool], labels[pool] if class_aware else None, threshold)]
    return kept[:max_detections]


def at_most(value: float) -> np.float32:
    """The largest float32 that is not above `value`: for float32 x, x > value exactly if x > at_most(value)."""
    nearest = np.float32(value)
    return np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > value else nearest


def _ranked(scores: NDArray[np.float32], labels: NDArray[np.int64], anchors: NDArray[np.int64]) -> Indices:
    ahead = (anchors[1:] > anchors[:-1]) | ((anchors[1:] == anchors[:-1]) & (labels[1:] >= labels[:-1]))
    if ahead.all():  # the usual case: candidates come in tie order, and one stable sort does
        return np.argsort(-scores, kind="stable")
    return np.lexsort((labels, anchors, -scores))


def _survivors(boxes: NDArray[np.float32], labels: NDArray[np.int64] | None, threshold: np.float32) -> Indices:
    """Ascending indices of the boxes (in rank order) that greedy suppression keeps."""
    count = len(boxes)
    if labels is None:
        order, ends = np.arange(count), np.full(count, count)
    else:
        order = np.argsort(labels, kind="stable")
        grouped = labels[order]
        ends = np.searchsorted(grouped, grouped, side="right")
    first, second = _suppressing_pairs(boxes[order], ends, threshold)
    alive = np.ones(count, np.bool_)
    rows, starts = np.unique(first, return_index=True)
    stops = np.searchsorted(first, rows, side="right")
    for row, start, stop in zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True):
        if alive[row]:
            alive[second[start:stop]] = False
    return np.sort(order[alive])


def _suppressing_pairs(boxes: NDArray[np.float32], ends: Indices, threshold: np.float32) -> tuple[Indices, Indices]:
    """Pairs i < j of one group whose IoU exceeds `threshold`, ascending i. Group of i: the rows up to `ends[i]`."""
    count = len(boxes)
    following = ends - np.arange(count) - 1
    total = int(following.sum())
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        area = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
        first = np.repeat(np.arange(count), following)
        starts = np.cumsum(following) - following
        second = np.arange(total) - np.repeat(starts - np.arange(count) - 1, following)
        width = np.minimum(np.repeat(x2, following), x2[second]) - np.maximum(np.repeat(x1, following), x1[second])
        near = np.flatnonzero(width > 0)
        first, second, width = first[near], second[near], width[near]
        height = np.minimum(y2[first], y2[second]) - np.maximum(y1[first], y1[second])
        overlap: NDArray[Any] = width * np.maximum(height, 0)
        above = overlap / (area[first] + area[second] - overlap) > threshold
    return first[above], second[above]
