"""The highest rate of a path within an objective, and the best setting of its knobs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from redline.errors import BadInput
from redline.plan.queueing.build import slow_of
from redline.plan.queueing.paths import check, simulate
from redline.records import (
    Candidate,
    Estimate,
    RateAnswer,
    ServedPath,
    Serving,
    ShapeLoad,
    Simulated,
)

SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01)
"""Of what the path could do at most, tried from above: with a delay P95 may fall before it rises, and the highest counts."""
STEPS = 6
RATE_TOLERANCE = 0.02
"""As `measure.verdict`: a rate is held if answers come at it but for so much."""
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % of Student's t, by replications."""
WORTH = 0.02
"""More of the rate, for a setting to be taken before one that is preferred: as much as a rate may be missed by."""


def highest_rate(
    path: ServedPath,
    *,
    p95_ms: float,
    error_pct: float = 0.0,
    requests: int = 100_000,
    replications: int = 5,
    seed: int = 0,
) -> RateAnswer:
    """The highest Poisson rate whose P95 is within `p95_ms`, with at most `error_pct` percent refused or lost.

    Bisection with common random numbers, once for each of `replications` seeds (1 to 10; 1: no interval). Raises BadInput:
    sim-objective, sim-path, sim-requests.
    """
    if not (p95_ms > 0 and math.isfinite(p95_ms) and 0 <= error_pct < 100 and 1 <= replications <= max(STUDENT)):
        got = f"p95_ms {p95_ms}, error_pct {error_pct}, replications {replications}"
        allowed = f"p95_ms above 0, error_pct 0 to 100, replications 1 to {max(STUDENT)}"
        raise BadInput("sim-objective", "an objective that a rate cannot be searched for", got=got, allowed=allowed)
    path = replace(path, trace_s=(), rate_per_s=1.0)
    check(path, requests)
    goal = _Goal(path, p95_ms, error_pct, requests)
    found = [goal.search(seed + replication) for replication in range(replications)]
    value = statistics.fmean(found)
    half = STUDENT[replications] * statistics.stdev(found) / math.sqrt(replications) if replications > 1 else 0.0
    at_it = goal.at(value or goal.most * SHARES[-1], seed)
    reason = f"P95 {at_it.p95_ms.value:.2f} ms of {p95_ms:g} ms at {value:.4g}/s, {100 * at_it.lane_busy:.0f} % busy"
    if value == 0:
        reason = f"P95 is {at_it.p95_ms.value:.2f} ms of {p95_ms:g} ms even at {goal.most * SHARES[-1]:.3g}/s"
    rate = Estimate(value=value, low=max(0.0, value - half), high=value + half)
    return RateAnswer(rate_per_s=rate, p95_ms=at_it.p95_ms.value, mean_batch=at_it.mean_batch, reason=reason)


@dataclass(frozen=True, slots=True)
class _Goal:
    path: ServedPath
    p95_ms: float
    error_pct: float
    requests: int

    @property
    def most(self) -> float:
        return capacity(self.path)

    def at(self, rate: float, seed: int) -> Simulated:
        return simulate(replace(self.path, rate_per_s=rate), requests=self.requests, seed=seed)

    def held(self, rate: float, seed: int) -> bool:
        try:
            found = self.at(rate, seed)
        except BadInput as error:
            if error.code == "sim-all-refused":
                return False
            raise
        errors = found.refused + found.failed
        served = found.achieved_per_s >= rate * (1 - RATE_TOLERANCE - errors)
        return served and found.p95_ms.value <= self.p95_ms and 100 * errors <= self.error_pct

    def search(self, seed: int) -> float:
        """0.0 if no share is held."""
        high = self.most
        for share in SHARES:
            low = share * self.most
            if self.held(low, seed):
                break
            high = low
        else:
            return 0.0
        for _ in range(STEPS if low < high else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if self.held(middle, seed) else (low, middle)
        return low


def capacity(path: ServedPath) -> float:
    """Requests/s that no path of these curves exceeds: every lane full of the batch with the least time an image."""
    together = np.arange(1, path.lanes + 1)[:, None] / slow_of(path)[1:, 1:]
    batches = range(1, path.max_batch + 1)
    images = max(together[:, n - 1].max() * n / shape.curve.ms(n) for shape in path.shapes for n in batches)
    rate = 1000 * float(images) * path.nodes * path.devices / path.slice_slowdown
    decode = statistics.fmean([s.decode_ms for s in path.shapes], [s.share for s in path.shapes])
    host = 1000 * path.decode_workers * path.nodes / decode if path.decode_workers and decode > 0 else math.inf
    return min(rate, host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Values of the knobs; what is not lawful of their product is left out."""

    batches: tuple[int, ...] = (1, 2, 4, 8)
    delays_ms: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0)
    instances: tuple[int, ...] = (1, 2)

    def lawful(self, path: ServedPath, p95_ms: float) -> Iterator[ServedPath]:
        """A batch of one waits for nobody; no delay takes the whole objective; as many instances as the slowdown tells of."""
        for batch, delay, instances in product(self.batches, self.delays_ms, self.instances):
            told = not path.slowdown or instances * path.streams <= len(path.slowdown)
            if told and delay < p95_ms and (batch > 1 or delay == 0):
                yield replace(path, max_batch=batch, preferred=(), delay_ms=delay, instances=instances)


def best(
    paths: Iterable[ServedPath],
    *,
    p95_ms: float,
    error_pct: float = 0.0,
    requests: int = 20_000,
    seed: int = 0,
) -> tuple[ServedPath, RateAnswer]:
    """The setting of the highest rate within the objective, among paths in order of preference, without an interval.

    A path is searched only if it holds more than the best before it, by `WORTH`: one simulation says so, the search takes a
    dozen. Raises BadInput: sim-grid (no path at all) and as `highest_rate`.
    """
    found: tuple[ServedPath, RateAnswer] | None = None
    for path in paths:
        if found is not None:
            least = found[1].rate_per_s.value * (1 + WORTH)
            goal = _Goal(replace(path, trace_s=(), rate_per_s=1.0), p95_ms, error_pct, requests)
            if least > 0 and (goal.most <= least or not goal.held(least, seed)):
                continue
        answer = highest_rate(path, p95_ms=p95_ms, error_pct=error_pct, requests=requests, replications=1, seed=seed)
        if found is None or answer.rate_per_s.value > found[1].rate_per_s.value:
            found = path, answer
    if found is None:
        raise BadInput("sim-grid", "no setting of the grid is lawful", fix="offer a batch of 1 without delay")
    return found


def path_of(candidate: Candidate, shapes: tuple[ShapeLoad, ...], slowdown: tuple[float, ...], rate: float) -> ServedPath:
    """The candidate as a served path. Fused processes decode within their curve, other pipelines on workers of their own
    (`decode_ms`: what comes before and after the network). That a bls worker is held while the network runs is not in it."""
    serving, gpus = candidate.serving or Serving(), max(1, len(candidate.gpus))
    return ServedPath(
        shapes=shapes,
        rate_per_s=rate,
        decode_workers=0 if serving.pipeline == "fused" else serving.workers,
        max_batch=candidate.batch,
        delay_ms=serving.queue_delay_us / 1000,
        queue_limit=None if candidate.serving is None else serving.queue_size,
        instances=max(1, candidate.concurrency // gpus),
        gpus=gpus,
        slowdown=slowdown,
    )
