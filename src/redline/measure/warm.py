"""Warm-up: run until a target's times have settled."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from redline.measure.clock import Clock, SystemClock
from redline.measure.crew import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    runs: int
    """Calls of the target."""
    seconds: float
    steady: bool
    """False: the time was up first."""


def warm_up(
    target: Target,
    *,
    requests: Sequence[Sequence[int]] = ((0,),),
    window: int = 5,
    tolerance: float = 0.1,
    max_seconds: float = 30.0,
    clock: Clock | None = None,
) -> WarmUp:
    """Calls the target with each of `requests` in turn, again and again, so give one inference for every distinct shape.

    Steady: the median time of the last `window` rounds differs from that of the `window` before by at most `tolerance`
    of the latter. `max_seconds` counts from the end of the first round, which is always finished (engines compile in it).
    What the target raises is passed on. Raises ValueError for an empty `requests` or a window below 1.
    """
    if not requests or window < 1:
        raise ValueError("warm-up needs at least one inference and a window of at least 1")
    clock = clock if clock is not None else SystemClock()
    start = clock.now()
    first_end = start + _round(target, requests, clock)
    rounds: list[float] = []
    runs = len(requests)
    while clock.now() - first_end < max_seconds:
        rounds.append(_round(target, requests, clock))
        runs += len(requests)
        if len(rounds) >= 2 * window:
            before = statistics.median(rounds[-2 * window : -window])
            if abs(statistics.median(rounds[-window:]) - before) <= tolerance * before:
                return WarmUp(runs=runs, seconds=clock.now() - start, steady=True)
    return WarmUp(runs=runs, seconds=clock.now() - start, steady=False)


def _round(target: Target, requests: Sequence[Sequence[int]], clock: Clock) -> float:
    start = clock.now()
    for joined in requests:
        target(joined)
    return clock.now() - start
