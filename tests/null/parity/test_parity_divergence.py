"""Divergence of detections: what it counts, and that it grows with the harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from redline.parity import divergence
from redline.records import Detections


def found(rows: list[tuple[float, float, float, float, float, int]]) -> Detections:
    array = np.array(rows, np.float64).reshape(-1, 6)
    array = array[np.argsort(-array[:, 4])]
    return Detections(
        boxes=array[:, :4].astype(np.float32), scores=array[:, 4].astype(np.float32), labels=array[:, 5].astype(np.int64)
    )


BOX = (0, 0, 10, 10, 0.8, 1)
FAR = (50, 50, 60, 60, 0.4, 1)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([BOX, FAR], 0.0),
        ([FAR], 0.8 / 1.6),  # 0.8 lost of 1.2 + 0.4
        ([BOX, FAR, (80, 80, 90, 90, 0.6, 2)], 0.6 / 3.0),
        ([(0, 0, 10, 10, 0.6, 1), FAR], (0.8 - 0.6) / 2.2),
        ([(0, 0, 10, 8, 0.8, 1), FAR], 2 * 0.8 * 0.2 / 2.4),  # IoU 0.8
        ([(0, 0, 10, 10, 0.8, 2), FAR], 1.6 / 2.4),  # another class is another object
        ([(0, 0, 10, 10, 0.04, 1), FAR], 0.8 / 1.6),  # below the floor it is not there
        ([], 1.0),
    ],
)
def test_each_kind_of_harm_counts_by_score(other: Any, expected: float) -> None:
    assert divergence([found([BOX, FAR])], [found(other)]) == pytest.approx(expected, abs=1e-6)


def test_images_count_by_what_is_on_them_and_nothing_is_nothing() -> None:
    assert divergence([found([BOX]), found([])], [found([BOX]), found([])]) == 0.0
    assert divergence([found([])], [found([])]) == 0.0
    assert divergence([found([BOX]), found([FAR])], [found([BOX]), found([])]) == pytest.approx(0.4 / 2.0)


def test_it_grows_with_noise() -> None:
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 400, (40, 2))
    rows = np.concatenate([corners, corners + draw.uniform(20, 80, (40, 2)), draw.uniform(0.1, 1, (40, 1))], 1)
    truth = found([(*row, 0) for row in rows.tolist()])
    noise = draw.normal(0, 1, truth.boxes.shape).astype(np.float32)
    seen = []
    for size in (0.1, 0.5, 2, 8, 30):
        moved = Detections(boxes=truth.boxes + size * noise, scores=truth.scores, labels=truth.labels)
        seen.append(divergence([truth], [moved]))
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.02
    assert seen[-1] > 0.4
