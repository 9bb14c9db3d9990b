"""Whether two ways of running one pipeline give the same answer for one image."""

from __future__ import annotations

import numpy as np

from redline.records import Detections

BOX_TOLERANCE_PX, SCORE_TOLERANCE = 0.05, 1e-4
"""Batches and threads may round differently, and a box by as much as its side is scaled; anything more is another answer."""


def differs(wanted: Detections, found: Detections) -> str | None:
    """How the answers differ, in words; None if they agree up to rounding: count, order, labels, boxes, scores."""
    if len(wanted.scores) != len(found.scores):
        return f"{len(found.scores)} detections instead of {len(wanted.scores)}"
    if not len(wanted.scores):
        return None
    if not np.array_equal(wanted.labels, found.labels):
        return "other labels, or another order"
    boxes = float(np.abs(wanted.boxes - found.boxes).max())
    scores = float(np.abs(wanted.scores - found.scores).max())
    # A NaN compares as false with everything, so it must be the agreement that is asked for.
    if boxes <= BOX_TOLERANCE_PX and scores <= SCORE_TOLERANCE:
        return None
    return f"boxes differ by up to {boxes:.3f} px, scores by {scores:.2g}"
