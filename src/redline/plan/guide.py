"""What a search may expect of candidates it has not measured: curves from its own closed loops and the plan, simulated."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from redline.errors import BadInput
from redline.plan.queueing.rate import capacity, highest_rate, path_of
from redline.plan.roofline import busy, roofline
from redline.records import (
    Arithmetic,
    Candidate,
    DeviceFacts,
    EfficiencyTable,
    Expected,
    LatencyCurve,
    ModelCosts,
    Objective,
    RateAnswer,
    ServedPath,
    ShapeLoad,
    Trial,
)

REQUESTS, SEED = 1_500, 1
"""Of a simulation: it ranks candidates, and what it leaves over is measured."""
MOST = 40
"""Simulated at a time, those of the highest bound first; the rest are left with their bound."""
P95_DEVIATIONS = 1.645
"""Standard deviations from the mean to P95, of a normal law."""
MOST_SPREAD = 1.0
Points = dict[tuple[int, int], float]
"""Milliseconds of a batch by (lanes of a device, batch), every lane full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """The plan's curve of a network before anything is measured: its shape counts, a measurement sets its height."""

    curve: LatencyCurve
    busy: float
    """See `roofline.busy`, of the smallest batch: a second lane gains only the rest."""


def prior(
    costs: ModelCosts,
    device: DeviceFacts,
    arithmetic: Arithmetic,
    size: tuple[int, int],
    batches: Sequence[int],
    table: EfficiencyTable,
    *,
    cuda_graph: bool = True,
) -> Prior | None:
    """At `size` (height, width), pixels. None where a peak is unknown or the graph does not take the size."""
    try:
        found = [roofline(costs, device, arithmetic, n, *size, cuda_graph=cuda_graph, table=table) for n in batches]
    except BadInput:
        return None
    points = tuple((n, one.expected_us / 1000) for n, one in zip(batches, found, strict=True))
    return Prior(curve=LatencyCurve(points=points), busy=busy(found[0], table))


def bare(candidate: Candidate) -> Candidate:
    """The candidate without what a queue has: batch, lanes, number of GPUs, server."""
    return replace(candidate, device="cuda:0" if candidate.gpus else "cpu", batch=1, concurrency=1, serving=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """Expectations of a search. Pure: equal trials give equal answers, so a run that goes on decides as it did.

    In doubt it is optimistic, as an expectation that is too low would leave the best unmeasured: lanes and workers that were
    not measured are taken to disturb nobody, and what a pipeline loses against one process is charged to its workers alone.
    """

    objective: Objective
    priors: Mapping[Candidate, Prior]
    """By `bare` a candidate."""
    before: tuple[Trial, ...] = ()
    """Of an earlier search in-process: what a server's candidates are made of."""
    narrow: bool = False
    """Only contenders are measured at the objective's rate and up to their knee; nothing else is wanted of the search."""

    def expect(self, candidates: Sequence[Candidate], trials: Sequence[Trial]) -> tuple[Expected, ...]:
        """All candidates, the highest rate within the P95 first; those of which nothing is known have no rate and come last."""
        paths = {one: self._path(one, trials) for one in candidates}
        bounds = {one: capacity(path) for one, path in paths.items() if path is not None}
        found: dict[Candidate, Expected] = {}
        best, simulated = 0.0, set[ServedPath]()
        for one in sorted(bounds, key=lambda c: -bounds[c]):
            path = paths[one]
            assert path is not None
            if path in simulated or (bounds[one] > best and len(simulated) < MOST):
                simulated.add(path)
                answer = _rate(path, self.objective.p95_ms)
                best = max(best, answer.rate_per_s.value)
                rate = answer.rate_per_s.value
                found[one] = Expected(candidate=one, p95_ms=answer.p95_ms, rate_per_s=rate, reason=answer.reason)
            else:
                reason = f"full batches one after the other give at most {bounds[one]:.4g}/s"
                found[one] = Expected(candidate=one, p95_ms=None, rate_per_s=bounds[one], reason=reason)
        unknown = "no measurement of its network tells of it"
        rest = [Expected(candidate=one, p95_ms=None, rate_per_s=None, reason=unknown) for one in candidates if one not in found]
        return (*sorted(found.values(), key=lambda e: -(e.rate_per_s or 0.0)), *rest)

    def _path(self, candidate: Candidate, trials: Sequence[Trial]) -> ServedPath | None:
        """None where nothing is known."""
        alone = _points(self.before or trials, candidate, served=False)
        fused = _points(trials, candidate, served=True)
        served = candidate.serving is not None
        own = [one for one in trials if _alike(one, candidate)]
        exact = next((one for one in own if one.candidate == candidate), None)
        source = fused if len(fused) > len(alone) else alone
        network = _network(source, self.priors.get(bare(candidate)), candidate)
        if network is None and exact is not None:  # nothing but its own measurement, which is enough for itself
            network = _network({_place(candidate): _batch_ms(exact)}, None, candidate)
        if network is None:
            return None
        curve, slowdown = network
        curve = replace(curve, cv=_spread(self.before or trials, candidate))
        path = path_of(candidate, (ShapeLoad(curve=curve),), slowdown, self.objective.throughput)
        path = replace(path, decode_workers=0)
        if exact is not None:
            return _scaled(path, capacity(path) / _capacity(exact))
        if not served or not own:
            return None if served else path
        ratios = [capacity(self._of(path, one.candidate)) / _capacity(one) for one in own]
        pipeline = candidate.serving.pipeline if candidate.serving is not None else "fused"
        if pipeline == "fused":
            return _scaled(path, statistics.geometric_mean(ratios))
        return self._staged(path, candidate, own, min(ratios))

    def _of(self, path: ServedPath, other: Candidate) -> ServedPath:
        """The same network with another candidate's knobs."""
        lanes, _ = _place(other)
        return replace(path, max_batch=other.batch, instances=lanes, delay_ms=0.0, slowdown=_extended(path.slowdown, lanes))

    def _staged(self, path: ServedPath, candidate: Candidate, own: Sequence[Trial], ratio: float) -> ServedPath:
        """What was lost is the time of the workers' stage, on as many workers as there were."""
        serving = candidate.serving
        assert serving is not None
        if ratio <= 1:
            return path
        stage_ms = min(
            1000 * one.candidate.serving.workers / _capacity(one) for one in own if one.candidate.serving is not None
        )
        shapes = tuple(replace(shape, decode_ms=stage_ms) for shape in path.shapes)
        return replace(path, shapes=shapes, decode_workers=serving.workers)


@functools.lru_cache(maxsize=4096)
def _rate(path: ServedPath, p95_ms: float) -> RateAnswer:
    return highest_rate(path, p95_ms=p95_ms, requests=REQUESTS, replications=1, seed=SEED)


def _capacity(trial: Trial) -> float:
    return trial.screen.achieved_per_s if trial.screen is not None else 0.0


def _sound(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.failure is None and _capacity(trial) > 0]


def _alike(trial: Trial, candidate: Candidate) -> bool:
    """Measured, of one network, and joined in the same way."""
    ways = [None if one.serving is None else one.serving.pipeline for one in (trial.candidate, candidate)]
    return bool(_sound([trial])) and bare(trial.candidate) == bare(candidate) and ways[0] == ways[1]


def _points(trials: Sequence[Trial], candidate: Candidate, *, served: bool) -> Points:
    """In-process, or through a server in one process."""
    found: Points = {}
    for trial in _sound(trials):
        one = trial.candidate
        way = one.serving is not None and one.serving.pipeline == "fused" if served else one.serving is None
        if way and bare(one) == bare(candidate):
            found[_place(one)] = _batch_ms(trial)
    return found


def _place(candidate: Candidate) -> tuple[int, int]:
    """Lanes of a device, and the batch."""
    return max(1, candidate.concurrency // max(1, len(candidate.gpus))), candidate.batch


def _batch_ms(trial: Trial) -> float:
    """Of each lane, all being full."""
    return 1000 * trial.candidate.concurrency * trial.candidate.batch / _capacity(trial)


def _spread(trials: Sequence[Trial], candidate: Candidate) -> float:
    """Of the service times, from closed loops in-process, where latency is service and nothing waits."""
    loads = [one.screen for one in _sound(trials) if bare(one.candidate) == bare(candidate) and one.candidate.serving is None]
    spreads = [(load.p95_ms / load.mean_ms - 1) / P95_DEVIATIONS for load in loads if load is not None and load.mean_ms > 0]
    return min(MOST_SPREAD, max(0.0, statistics.median(spreads))) if spreads else 0.0


def _network(points: Points, known: Prior | None, candidate: Candidate) -> tuple[LatencyCurve, tuple[float, ...]] | None:
    """The curve at the lanes that most batches were measured with, and the slowdown of other lanes against it."""
    if not points:
        return None
    by_lanes = {lanes: sum(one == lanes for one, _ in points) for lanes, _ in points}
    first = max(by_lanes, key=lambda lanes: (by_lanes[lanes], -lanes))
    base = {batch: ms for (lanes, batch), ms in points.items() if lanes == first}
    if known is not None:
        height = statistics.geometric_mean([ms / known.curve.ms(batch) for batch, ms in base.items()])
        base = {batch: height * ms for batch, ms in known.curve.points} | base
    elif len(base) < 2 and candidate.batch not in base:
        return None
    rising, curve_points = 0.0, []
    for batch in sorted(base):
        rising = max(rising, base[batch])
        curve_points.append((batch, rising))
    curve = LatencyCurve(points=tuple(curve_points))
    lanes = max(first, _place(candidate)[0], *by_lanes)
    table, last = [], 1.0
    for count in range(1, lanes + 1):
        seen = [ms / curve.ms(batch) for (one, batch), ms in points.items() if one == count]
        expected = max(1.0, count * known.busy / max(1.0, first * known.busy)) if known is not None else last
        last = statistics.geometric_mean(seen) if seen else expected
        table.append(last)
    return curve, tuple(table)


def _extended(slowdown: tuple[float, ...], lanes: int) -> tuple[float, ...]:
    return (*slowdown, *(slowdown[-1:] or (1.0,)) * max(0, lanes - len(slowdown)))


def _scaled(path: ServedPath, factor: float) -> ServedPath:
    return replace(path, shapes=tuple(replace(shape, curve=shape.curve.scaled(factor)) for shape in path.shapes))
