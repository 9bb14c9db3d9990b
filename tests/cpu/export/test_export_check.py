"""When two graphs count as the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from redline.errors import TrialError
from redline.export import check
from redline.records import Preprocess

SHAPE = (1, 3, 32, 32)


def final(scores: list[float], labels: list[int], shift: float = 0.0) -> list[np.ndarray[Any, Any]]:
    boxes = np.array([[10.0 * label, 0, 10.0 * label + 8, 8] for label in labels], np.float32) + np.float32(shift)
    return [boxes[None], np.array([scores], np.float32), np.array([labels], np.float32)]


def test_the_largest_difference_is_reported() -> None:
    reference = [np.array([[[1.0, -8.0]]], np.float32), np.zeros((1, 1, 4), np.float32)]
    got = [reference[0] + np.float32(0.01), reference[1]]
    assert check.compare(SHAPE, reference, got, "retinanet").max_abs == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(TrialError, match="computes something else") as caught:
        check.compare(SHAPE, reference, [reference[0] + np.float32(0.02), reference[1]], "retinanet")
    assert caught.value.code == "export-check"


def test_other_shapes_are_refused() -> None:
    with pytest.raises(TrialError, match="other shapes"):
        check.compare(SHAPE, [np.zeros((1, 3, 4))], [np.zeros((1, 4, 3))], "yolox")


@pytest.mark.parametrize(("value", "same"), [(np.nan, True), (np.inf, True), (0.0, False)])
def test_nan_and_infinity_must_be_in_the_same_places(value: float, same: bool) -> None:
    reference = [np.array([[np.nan if value != np.inf else np.inf, 1.0]], np.float32)]
    got = [np.array([[value, 1.0]], np.float32)]
    if same:
        assert check.compare(SHAPE, reference, got, "custom").max_abs == 0.0
    else:
        with pytest.raises(TrialError):
            check.compare(SHAPE, reference, got, "custom")


def test_final_rows_may_change_places_only_at_equal_scores() -> None:
    reference = final([0.9, 0.5, 0.4999, 0.1], [0, 1, 2, 3])
    swapped = final([0.9, 0.4999, 0.5, 0.1], [0, 2, 1, 3])
    assert check.compare(SHAPE, reference, swapped, "detections").max_abs == pytest.approx(0.0, abs=1e-6)
    cut = final([0.9, 0.5, 0.4999, 0.1], [0, 1, 2, 7])  # the last row is at the cut
    assert check.compare(SHAPE, reference, cut, "detections").max_abs == pytest.approx(0.0, abs=1e-6)
    for wrong in (final([0.9, 0.5, 0.4999, 0.1], [0, 1, 7, 3]), final([0.9, 0.5, 0.4999, 0.1], [0, 1, 2, 3], shift=1.0)):
        with pytest.raises(TrialError):
            check.compare(SHAPE, reference, wrong, "detections")


def test_shapes_cover_smallest_largest_non_square_and_batch() -> None:
    first, *rest = check.shapes((640, 864), 32)
    assert first == [(1, 3, 32, 32), (1, 3, 64, 64), (1, 3, 128, 128)]
    assert rest == [[(1, 3, 640, 864)], [(1, 3, 320, 864)], [(1, 3, 640, 448)], [(3, 3, 64, 128)]]


def test_pictures_are_deterministic_and_preprocessed() -> None:
    steps = Preprocess(scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.125))
    one = check.pictures(steps, (2, 3, 64, 96))
    np.testing.assert_array_equal(one, check.pictures(steps, (2, 3, 64, 96)))
    assert one.dtype == np.float32
    assert not np.array_equal(one[0], one[1])
    for channel, bound in enumerate((1.0, 2.0, 4.0)):
        assert 0.8 * bound < np.abs(one[:, channel]).max() <= bound * 1.0001
