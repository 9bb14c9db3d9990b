"""Greedy non-maximum suppression, exact and fast: candidate pairs are made within a class only, a chunk of ranks at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Indices = NDArray[np.intp]

CHUNK = 256
"""Ranks examined at once; bounds memory at CHUNK * max(max_detections, CHUNK / 2) pairs."""


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
    boxes = boxes[ranked]
    groups = labels[ranked] if class_aware else np.zeros(len(ranked), np.int64)
    kept = ranked[:0]  # from here on candidates are known by their rank
    for start in range(0, len(ranked), CHUNK):
        if len(kept) >= max_detections:
            break
        fresh = start + np.argsort(groups[start : start + CHUNK], kind="stable")
        fresh = _not_covered(boxes, groups, kept, fresh, threshold)
        kept = np.concatenate((kept, np.sort(_greedy(boxes[fresh], groups[fresh], fresh, threshold))))
    return ranked[kept[:max_detections]]


def at_most(value: float) -> np.float32:
    """The largest float32 that is not above `value`: for float32 x, x > value exactly if x > at_most(value)."""
    nearest = np.float32(value)
    return np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > value else nearest


def _ranked(scores: NDArray[np.float32], labels: NDArray[np.int64], anchors: NDArray[np.int64]) -> Indices:
    ahead = (anchors[1:] > anchors[:-1]) | ((anchors[1:] == anchors[:-1]) & (labels[1:] >= labels[:-1]))
    if ahead.all():  # the usual case: candidates come in tie order, and one stable sort does
        return np.argsort(-scores, kind="stable")
    return np.lexsort((labels, anchors, -scores))


def _not_covered(
    boxes: NDArray[np.float32], groups: NDArray[np.int64], kept: Indices, fresh: Indices, threshold: np.float32
) -> Indices:
    """Those of `fresh` (sorted by group) that no kept box suppresses."""
    if not len(kept):
        return fresh
    members, wanted = groups[fresh], groups[kept]
    begins, ends = np.searchsorted(members, wanted, side="left"), np.searchsorted(members, wanted, side="right")
    _, hit = _overlapping(boxes[kept], boxes[fresh], begins, ends, threshold)
    alive = np.ones(len(fresh), np.bool_)
    alive[hit] = False
    return fresh[alive]


def _greedy(boxes: NDArray[np.float32], groups: NDArray[np.int64], ranks: Indices, threshold: np.float32) -> Indices:
    """Greedy suppression among boxes sorted by group, then rank; returns the kept ones of `ranks`."""
    ends = np.searchsorted(groups, groups, side="right")
    first, second = _overlapping(boxes, boxes, np.arange(1, len(boxes) + 1), ends, threshold)
    alive = np.ones(len(boxes), np.bool_)
    rows, starts = np.unique(first, return_index=True)
    stops = np.searchsorted(first, rows, side="right")
    for row, start, stop in zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True):
        if alive[row]:
            alive[second[start:stop]] = False
    return ranks[alive]


def _overlapping(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], begins: Indices, ends: Indices, threshold: np.float32
) -> tuple[Indices, Indices]:
    """Pairs (i, j), i ascending, j from begins[i] to before ends[i], whose IoU of ours[i] and theirs[j] exceeds `threshold`."""
    counts = ends - begins
    x1, y1, x2, y2 = np.ascontiguousarray(ours.T)
    u1, v1, u2, v2 = np.ascontiguousarray(theirs.T)
    second = np.arange(counts.sum()) + np.repeat(begins - np.cumsum(counts) + counts, counts)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        width = np.minimum(np.repeat(x2, counts), u2[second]) - np.maximum(np.repeat(x1, counts), u1[second])
        near = np.flatnonzero(width > 0)
        first, second, width = np.repeat(np.arange(len(ours)), counts)[near], second[near], width[near]
        height = np.minimum(y2[first], v2[second]) - np.maximum(y1[first], v1[second])
        overlap: NDArray[Any] = width * np.maximum(height, 0)
        areas = _areas(x1, y1, x2, y2)[first] + _areas(u1, v1, u2, v2)[second]
        above = overlap / (areas - overlap) > threshold
    return first[above], second[above]


def _areas(x1: Any, y1: Any, x2: Any, y2: Any) -> Any:
    return np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
