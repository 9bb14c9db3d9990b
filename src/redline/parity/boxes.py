"""Detections of a candidate paired with those of its reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from redline.records import BoxMatch, Detections

if TYPE_CHECKING:
    from numpy.typing import NDArray

MATCH_IOU = 0.5


def match_boxes(reference: Sequence[Detections], candidate: Sequence[Detections], floor: float = 0.05) -> BoxMatch:
    """Pair one to one, image by image, over scores above `floor`: the reference's boxes by descending score take the free
    candidate box of their label with the highest IoU, at least 0.5.

    Without a pair `lowest_iou` is 0 (1 if neither side has a box) and `largest_score_delta` 0.
    """
    matched = missing = extra = 0
    lowest, delta = 1.0, 0.0
    for ref, cand in zip(reference, candidate, strict=True):
        rows, columns = np.flatnonzero(ref.scores > floor), np.flatnonzero(cand.scores > floor)
        pairs = pairs_of(ref, cand, rows, columns)
        for row, column, overlap in pairs:
            lowest = min(lowest, overlap)
            delta = max(delta, abs(float(ref.scores[row]) - float(cand.scores[column])))
        matched += len(pairs)
        missing += len(rows) - len(pairs)
        extra += len(columns) - len(pairs)
    if not matched and missing + extra:
        lowest = 0.0
    return BoxMatch(floor=floor, matched=matched, missing=missing, extra=extra, lowest_iou=lowest, largest_score_delta=delta)


def divergence(reference: Sequence[Detections], candidate: Sequence[Detections], floor: float = 0.05) -> float:
    """How far two sets of detections of the same images are apart, without ground truth: 0 equal, 1 nothing in common.

    Over boxes with scores above `floor`, each counts by its score: a pair by what its IoU lacks and by the difference of the
    scores, a box without a partner in full. It moves with every box, where mAP on few images moves in steps.
    """
    lost = weight = 0.0
    for ref, cand in zip(reference, candidate, strict=True):
        rows, columns = np.flatnonzero(ref.scores > floor), np.flatnonzero(cand.scores > floor)
        total = float(ref.scores[rows].sum()) + float(cand.scores[columns].sum())
        agreed = 0.0
        for row, column, overlap in pairs_of(ref, cand, rows, columns):
            agreed += 2 * overlap * min(float(ref.scores[row]), float(cand.scores[column]))
        lost += total - agreed
        weight += total
    return lost / weight if weight else 0.0


def pairs_of(
    ref: Detections, cand: Detections, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> list[tuple[int, int, float]]:
    """(row, column, IoU) of the boxes `rows` and `columns` that are paired as `match_boxes` says."""
    if not rows.size or not columns.size:
        return []
    overlaps = _iou(ref.boxes[rows], cand.boxes[columns])
    overlaps[ref.labels[rows][:, None] != cand.labels[columns][None, :]] = 0.0
    pairs = []
    for row in np.argsort(-ref.scores[rows], kind="stable"):
        column = int(overlaps[row].argmax())
        if overlaps[row, column] >= MATCH_IOU:
            pairs.append((int(rows[row]), int(columns[column]), float(overlaps[row, column])))
            overlaps[:, column] = 0.0
    return pairs


def _iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """(K, M) IoU of corner boxes; 0 where a box is not finite or has no area."""
    a, b = one.astype(np.float64)[:, None], other.astype(np.float64)[None]
    with np.errstate(all="ignore"):
        sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
        shared = np.maximum(sides, 0.0).prod(axis=-1)
        areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b)]
        overlap = shared / (areas[0] + areas[1] - shared)
    return np.where(np.isfinite(overlap), overlap, 0.0)
