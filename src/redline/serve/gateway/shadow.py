"""The same request to two releases, and how far their detections agree. Never in a client's way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.serve.gateway.infer_answer import Found
from redline.serve.gateway.refusal import Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_SCORE = 0.3
"""Boxes that a user would see; weaker ones come and go with every rounding."""
MATCH_IOU = 0.5
TRANSIENT = ("queue-full", "queue-timeout", "answer-late", "server-down", "server-lost", "release-unavailable")
"""Failures that say nothing about the release's detections: the comparison is skipped."""


def compare(one: Sequence[Found], other: Sequence[Found]) -> tuple[int, int]:
    """Boxes of both sides with a partner in the other's answer, and without.

    Boxes of score >= 0.3 are paired one to one within a label: those of `one` by descending score take the free box of the
    highest IoU, at least 0.5. Two answers without boxes count as one that is the same, or, if only one of them is an
    error, as one that differs.
    """
    same = differing = 0
    for mine, theirs in zip(one, other, strict=True):
        rows, columns = np.flatnonzero(mine.scores >= LEAST_SCORE), np.flatnonzero(theirs.scores >= LEAST_SCORE)
        if not rows.size and not columns.size:
            agreed = bool(mine.error) == bool(theirs.error)
            same, differing = same + agreed, differing + (not agreed)
            continue
        pairs = _pairs(mine, theirs, rows, columns)
        same += 2 * pairs
        differing += len(rows) + len(columns) - 2 * pairs
    return same, differing


def alone(found: Sequence[Found]) -> int:
    """Boxes that differ when the other release fails on the request: all of them, at least one an image."""
    return sum(max(1, int((image.scores >= LEAST_SCORE).sum())) for image in found)


class Shadows:
    """Runs comparisons beside the service. At most `limit` at once; the rest is skipped and counted."""

    def __init__(self, limit: int, *, compared: Callable[[int, int, int], None], skipped: Callable[[int], None]) -> None:
        """`compared(release, same, differing)` and `skipped(release)` are told of each request."""
        self._limit = limit
        self._compared = compared
        self._skipped = skipped
        self._running: set[asyncio.Task[None]] = set()

    def start(self, release: int, first: Sequence[Found], ask: Callable[[], Awaitable[Sequence[Found]]]) -> None:
        """Compare `first` with the answer that `ask` will get; `release` is the one on trial. Returns at once."""
        if len(self._running) >= self._limit:
            self._skipped(release)
            return
        task = asyncio.get_running_loop().create_task(self._run(release, first, ask))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def idle(self) -> None:
        """Until the comparisons of now are done."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, release: int, first: Sequence[Found], ask: Callable[[], Awaitable[Sequence[Found]]]) -> None:
        try:
            same, differing = compare(first, await ask())
        except Refused as refused:
            if refused.code in TRANSIENT:
                self._skipped(release)
                return
            same, differing = 0, alone(first)
        self._compared(release, same, differing)


def _pairs(mine: Found, theirs: Found, rows: NDArray[Any], columns: NDArray[Any]) -> int:
    if not rows.size or not columns.size:
        return 0
    overlaps = _iou(mine.boxes[rows], theirs.boxes[columns])
    overlaps[mine.labels[rows][:, None] != theirs.labels[columns][None, :]] = 0.0
    pairs = 0
    for row in np.argsort(-mine.scores[rows], kind="stable"):
        column = int(overlaps[row].argmax())
        if overlaps[row, column] >= MATCH_IOU:
            overlaps[:, column] = 0.0
            pairs += 1
    return pairs


def _iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """(K, M) IoU of corner boxes; 0 where a box has no area."""
    a, b = one.astype(np.float64)[:, None], other.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(sides, 0.0).prod(axis=-1)
    union = sum((box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b)) - shared
    found: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found
