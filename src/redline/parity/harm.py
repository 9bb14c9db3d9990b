"""Where a candidate departs from its reference: how its scores moved, and on which images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from redline.parity.boxes import divergence, match_boxes, pairs_of
from redline.records import Detections, ImageHarm

SHIFTS = (5, 50, 95)
WORST = 5


def score_shift(
    reference: Sequence[Detections], candidate: Sequence[Detections], floor: float = 0.05
) -> tuple[float, float, float] | None:
    """5th, 50th and 95th percentile of the paired boxes' scores, candidate less reference; None without a pair."""
    moved = []
    for ref, cand in zip(reference, candidate, strict=True):
        rows, columns = np.flatnonzero(ref.scores > floor), np.flatnonzero(cand.scores > floor)
        moved += [float(cand.scores[b]) - float(ref.scores[a]) for a, b, _ in pairs_of(ref, cand, rows, columns)]
    if not moved:
        return None
    low, middle, high = np.percentile(moved, SHIFTS)
    return float(low), float(middle), float(high)


def worst_images(
    paths: Sequence[str], reference: Sequence[Detections], candidate: Sequence[Detections], count: int = WORST
) -> tuple[ImageHarm, ...]:
    """At most `count` images of those that differ, by the divergence of their detections."""
    apart = [divergence([ref], [cand]) for ref, cand in zip(reference, candidate, strict=True)]
    order = sorted((index for index, far in enumerate(apart) if far > 0), key=lambda index: -apart[index])[:count]
    return tuple(_harm(paths[index], apart[index], reference[index], candidate[index]) for index in order)


def _harm(path: str, far: float, reference: Detections, candidate: Detections) -> ImageHarm:
    boxes = match_boxes([reference], [candidate])
    return ImageHarm(path=path, divergence=far, missing=boxes.missing, extra=boxes.extra)
