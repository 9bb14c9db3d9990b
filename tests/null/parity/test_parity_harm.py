"""Where a candidate departs from its reference: scores of paired boxes, and the images whose detections are furthest apart."""

from __future__ import annotations

import numpy as np
import pytest

from redline.parity import divergence, score_shift, worst_images
from redline.records import Detections


def found(*scores: float, at: float = 0.0, label: int = 0) -> Detections:
    boxes = np.array([[20 * k + at, 0, 20 * k + 10 + at, 10] for k in range(len(scores))], np.float32).reshape(-1, 4)
    return Detections(boxes=boxes, scores=np.array(scores, np.float32), labels=np.full(len(scores), label, np.int64))


def test_scores_of_pairs_are_compared_candidate_less_reference() -> None:
    reference, candidate = [found(0.9, 0.5), found(0.8)], [found(0.8, 0.3), found(0.8)]
    low, middle, high = score_shift(reference, candidate) or (0, 0, 0)
    assert (low, middle, high) == (pytest.approx(-0.19), pytest.approx(-0.1), pytest.approx(-0.01))


def test_boxes_without_a_partner_or_below_the_floor_move_no_score() -> None:
    assert score_shift([found(0.9)], [found(0.9, label=1)]) is None
    assert score_shift([found(0.9)], [found(0.9, at=9)]) is None
    assert score_shift([found(0.04)], [found(0.03)]) is None
    assert score_shift([], []) is None


def test_the_furthest_image_comes_first_with_what_is_missing_and_extra() -> None:
    reference = [found(0.9), found(0.9, 0.8), found(0.7), found(0.9)]
    candidate = [found(0.9), found(0.9), found(0.7, at=9), found(0.8)]
    rows = worst_images(["same", "one gone", "elsewhere", "lower"], reference, candidate)
    assert [(row.path, row.missing, row.extra) for row in rows] == [("elsewhere", 1, 1), ("one gone", 1, 0), ("lower", 0, 0)]
    assert [row.divergence for row in rows] == [divergence([reference[k]], [candidate[k]]) for k in (2, 1, 3)]
    assert [row.path for row in worst_images(["a", "b", "c", "d"], reference, candidate, 1)] == ["c"]


def test_equal_detections_harm_nothing() -> None:
    assert worst_images(["a"], [found(0.9)], [found(0.9)]) == ()
