"""Waiting requests: which ones join into the next inference."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable

SameBatch = Callable[[int], Hashable]
"""Requests with equal keys may be joined into one inference (say, equal tensor shape)."""


class Backlog:
    """First come, first served by the oldest request; others that may join it go with it. Not locked."""

    def __init__(self, same_batch: SameBatch | None = None) -> None:
        self._same_batch = same_batch
        self._waiting: dict[Hashable, deque[int]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, requests: Iterable[int]) -> None:
        """Indices must ascend over all calls: they stand for the order of arrival."""
        for request in requests:
            key = self._same_batch(request) if self._same_batch is not None else None
            self._waiting.setdefault(key, deque()).append(request)
            self._size += 1

    def take(self, batch: int) -> tuple[int, ...]:
        """The oldest waiting request and up to `batch` - 1 younger ones of its key; empty if none waits."""
        if not self._waiting:
            return ()
        key = next(iter(self._waiting))
        if len(self._waiting) > 1:
            key = min(self._waiting, key=lambda each: self._waiting[each][0])
        queue = self._waiting[key]
        joined = tuple(queue.popleft() for _ in range(min(batch, len(queue))))
        if not queue:
            del self._waiting[key]
        self._size -= len(joined)
        return joined
