"""A load measurement without threads or sleep: the backlog's own order and joining, on simulated time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from redline.measure.backlog import Backlog
from redline.measure.load import Arrivals, intended_times
from redline.measure.summary import Samples, summarise
from redline.records import Load


def answer_times(
    due: NDArray[np.float64],
    service_s: Callable[[Sequence[int]], float],
    *,
    workers: int = 1,
    batch: int = 1,
    same_batch: Callable[[int], Hashable] | None = None,
) -> tuple[NDArray[np.float64], int]:
    """(n,) times of the answers and the number of inferences, for `workers` that take from one backlog."""
    backlog = Backlog(same_batch)
    ended = np.empty_like(due)
    free = [0.0] * workers
    arrived = inferences = 0
    while arrived < len(due) or len(backlog):
        now = heapq.heappop(free)
        if not len(backlog):
            now = max(now, float(due[arrived]))
        while arrived < len(due) and due[arrived] <= now:
            backlog.put([arrived])
            arrived += 1
        joined = backlog.take(batch)
        inferences += 1
        now += service_s(joined)
        ended[list(joined)] = now
        heapq.heappush(free, now)
    return ended, inferences


def simulated_load(
    service_s: Callable[[Sequence[int]], float],
    *,
    rate: float,
    seconds: float,
    mode: Arrivals = "poisson",
    workers: int = 1,
    batch: int = 1,
    seed: int = 0,
    slip_s: float = 0.0,
) -> Load:
    due = intended_times(mode, rate_per_s=rate, seconds=seconds, seed=seed)
    ended, inferences = answer_times(due, service_s, workers=workers, batch=batch)
    samples = Samples(due=due, sent=due + slip_s, ended=ended, inferences=inferences, errors=0, unfinished=0, first_error=None)
    return summarise(samples, mode=mode, offered_per_s=rate, window_s=seconds)
