"""Search for the highest rate whose P95 meets the objective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from redline.measure.summary import merge_loads
from redline.measure.verdict import judge_latency
from redline.records import Knee, Load, Noise

GROWTH = 2.0
FASTEST = 4
"""How often the step is squared at the most."""
MAX_STEPS = 32


class _Search:
    """What is known of each rate. A rate is measured at most twice; the second time it is judged on both, without margin."""

    def __init__(self, measure_at: Callable[[float], Load], p95_ms: float, noise: Noise | None) -> None:
        self._measure_at, self._p95_ms, self._noise = measure_at, p95_ms, noise
        self._loads: dict[float, list[Load]] = {}
        self.steps: list[Load] = []
        self.passed: set[float] = set()
        self.failed: set[float] = set()

    def step(self, rate: float) -> None:
        """Measures once. A borderline rate stays undecided until its second measurement."""
        load = self._measure_at(rate)
        self.steps.append(load)
        loads = self._loads.setdefault(rate, [])
        loads.append(load)
        again = len(loads) > 1
        noise = None if again else self._noise
        answer = judge_latency(merge_loads(loads), p95_ms=self._p95_ms, noise=noise, rate=rate).answer
        self.failed.discard(rate)
        if answer == "pass":
            self.passed.add(rate)
        elif answer == "fail" or again:
            self.failed.add(rate)

    def undecided(self) -> float | None:
        return next((rate for rate in self._loads if rate not in self.passed and rate not in self.failed), None)

    def best(self) -> float:
        return max(self.passed, default=0.0)

    def ceiling(self) -> float:
        """Lowest failed rate above the best that passed; infinite if none is known."""
        return min((rate for rate in self.failed if rate > self.best()), default=math.inf)

    @property
    def rates(self) -> int:
        return len(self._loads)

    def measured_once(self, rate: float) -> bool:
        return len(self._loads.get(rate, ())) == 1


def find_knee(
    measure_at: Callable[[float], Load],
    *,
    p95_ms: float,
    start_rate: float,
    low: float,
    high: float,
    noise: Noise | None,
    deadline: float | None = None,
    resolution: float = 0.05,
    growth: float = GROWTH,
    now: Callable[[], float] = time.monotonic,
) -> Knee:
    """Highest rate in [`low`, `high`] measured to meet P95 <= `p95_ms`; 0.0 if none was.

    From `start_rate` up (or down) by a factor of `growth`, squared at each further step to two at the most, until a pass and a
    fail enclose the knee, then geometric bisection until they are within `resolution` of each other. A step within the noise
    of the objective is repeated once and judged on both together, without margin. So is, at the end, the failure that bounds
    the result: a passing disturbance must not hide a higher knee. At most 32 steps; none begins after `deadline`, a time of
    `now`.
    Raises ValueError for a range that is none.
    """
    if not (0 < low <= high and resolution > 0 and growth > 1):
        raise ValueError(f"no range to search: low {low}, high {high}, resolution {resolution}, growth {growth}")
    search = _Search(measure_at, p95_ms, noise)
    rate: float | None = min(max(start_rate, low), high)
    while rate is not None and len(search.steps) < MAX_STEPS and (deadline is None or now() < deadline):
        search.step(rate)
        rate = _next_rate(search, low, high, resolution, growth)
    return Knee(rate_per_s=search.best(), steps=tuple(search.steps))


def _next_rate(search: _Search, low: float, high: float, resolution: float, growth: float) -> float | None:
    undecided = search.undecided()
    if undecided is not None:
        return undecided
    best, ceiling = search.best(), search.ceiling()
    growth = min(GROWTH, growth**2.0 ** min(search.rates - 1, FASTEST))
    if best >= high:
        return None
    if math.isinf(ceiling):
        return min(best * growth, high)
    if best == 0.0 and ceiling > low:
        return max(ceiling / growth, low)
    if best and ceiling > best * (1 + resolution):
        return math.sqrt(best * ceiling)
    return ceiling if search.measured_once(ceiling) else None
