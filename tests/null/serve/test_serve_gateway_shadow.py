"""Agreement of two answers: counts of cases made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.serve.gateway.infer_answer import Found
from redline.serve.gateway.shadow import Shadows, alone, compare

Row = tuple[float, float, float, float, float, int]
A: Row = (0, 0, 10, 10, 0.9, 1)
B: Row = (100, 100, 140, 120, 0.8, 2)


def found(*rows: Row, error: str = "") -> Found:
    table = np.asarray(rows, np.float64).reshape(-1, 6)
    return Found(
        boxes=table[:, :4].astype(np.float32),
        scores=table[:, 4].astype(np.float32),
        labels=table[:, 5].astype(np.int32),
        error=error,
    )


@pytest.mark.parametrize(
    ("one", "other", "same", "differing"),
    [
        ((A, B), (B, A), 4, 0),
        ((A, B), (A,), 2, 1),
        ((), (A, B), 0, 2),
        ((), (), 1, 0),
        ((A,), ((0, 0, 10, 10, 0.9, 2),), 0, 2),  # another label
        ((A,), ((0, 0, 10, 10, 0.31, 1),), 2, 0),  # the score does not matter above 0.3
        ((A,), ((0, 0, 10, 10, 0.29, 1),), 0, 1),  # below it a box is not seen
        (((0, 0, 10, 10, 0.2, 1),), (), 1, 0),
        ((A,), ((0, 0, 10, 20, 0.9, 1),), 2, 0),  # IoU exactly 0.5
        ((A,), ((0, 0, 10, 20.1, 0.9, 1),), 0, 2),
        ((A,), (A, A), 2, 1),  # one to one
        ((A, (0, 0, 10, 9, 0.5, 1)), ((0, 0, 10, 9, 0.7, 1), A), 4, 0),
        (((5, 5, 5, 5, 0.9, 1),), ((5, 5, 5, 5, 0.9, 1),), 0, 2),  # without area nothing overlaps
    ],
)
def test_boxes_of_both_sides_are_counted(one: Sequence[Row], other: Sequence[Row], same: int, differing: int) -> None:
    assert compare([found(*one)], [found(*other)]) == (same, differing)
    assert compare([found(*other)], [found(*one)]) == (same, differing)


def test_images_of_a_batch_are_compared_one_by_one() -> None:
    assert compare([found(A), found(), found(B)], [found(A), found(), found(A)]) == (3, 2)


def test_a_refused_image_differs_from_an_empty_one_but_not_from_a_refused_one() -> None:
    assert compare([found(error="bad")], [found()]) == (0, 1)
    assert compare([found(error="bad")], [found(error="worse")]) == (1, 0)


def test_the_best_overlap_is_taken_by_the_highest_score() -> None:
    high, low = (0.0, 0.0, 10.0, 10.0, 0.9, 1), (0.0, 0.0, 10.0, 8.0, 0.8, 1)
    near, far = (0.0, 0.0, 10.0, 9.5, 0.5, 1), (0.0, 0.0, 10.0, 4.5, 0.6, 1)
    assert compare([found(low, high)], [found(far, near)]) == (4, 0)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 2)), max_size=8))
def test_every_answer_agrees_with_itself(corners: list[tuple[int, int, int]]) -> None:
    rows = [(x, y, x + 9, y + 9, 0.5 + index / 100, label) for index, (x, y, label) in enumerate(corners)]
    assert compare([found(*rows)], [found(*reversed(rows))]) == (max(1, 2 * len(rows)), 0)


def test_a_release_that_fails_differs_in_all_boxes_and_at_least_one() -> None:
    assert alone([found(A, B, (0, 0, 1, 1, 0.1, 1)), found()]) == 3


def test_more_than_the_limit_is_skipped_and_counted() -> None:
    async def scenario() -> tuple[list[tuple[int, int, int]], list[int]]:
        compared: list[tuple[int, int, int]] = []
        skipped: list[int] = []
        gate = asyncio.Event()

        async def ask() -> list[Found]:
            await gate.wait()
            return [found(A)]

        shadows = Shadows(2, compared=lambda *counts: compared.append(counts), skipped=skipped.append)
        for _ in range(5):
            shadows.start(3, [found(A)], ask)
        gate.set()
        await shadows.idle()
        return compared, skipped

    assert asyncio.run(scenario()) == ([(3, 2, 0)] * 2, [3, 3, 3])
