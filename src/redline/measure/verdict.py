"""Judging a load measurement against an objective. Running and judging are apart: old loads can be judged anew."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from redline.records import Load, Noise, Verdict

MAX_SLIP = 0.1
"""Largest share of the objective that the generator's own lateness (P99) may have."""
RATE_TOLERANCE = 0.02
CONFIDENCE = 0.95


def requests_needed(percent: float = 95.0, confidence: float = CONFIDENCE) -> int:
    """Fewest requests whose largest latency bounds the percentile from above: percent/100 ** n <= (1 - confidence) / 2.

    That is, the two-sided binomial (order statistic) interval of the percentile lies within the sample: 72 for P95.
    """
    return math.ceil(math.log((1 - confidence) / 2) / math.log(percent / 100))


def noise_pilot(measure: Callable[[], Load], repeats: int = 3) -> Noise:
    """A/A: the same measurement on the same target, `repeats` times. Raises ValueError for fewer than two."""
    if repeats < 2:
        raise ValueError(f"noise needs at least 2 repeats, got {repeats}")
    p95 = tuple(measure().p95_ms for _ in range(repeats))
    return Noise(p95_ms=p95, relative=(max(p95) - min(p95)) / 2 / statistics.fmean(p95))


def judge_latency(
    load: Load, *, p95_ms: float, noise: Noise | None, rate: float, rate_tolerance: float = RATE_TOLERANCE
) -> Verdict:
    """Does the load meet P95 <= `p95_ms` at `rate` requests/s? The reason holds the figures.

    No verdict (inconclusive) where the load cannot tell: closed loop, a lower rate offered, late generator, a throttled GPU,
    too few requests. Then: any error fails; P95 * (1 - noise) above the objective fails; P95 * (1 + noise) within it passes if
    the rate was reached as well; all else is inconclusive. `noise` None: no margin.
    """
    unfit = _unfit(load, p95_ms, rate, rate_tolerance)
    if unfit is not None:
        return Verdict(answer="inconclusive", reason=unfit)
    if load.errors:
        first = f", the first: {load.first_error}" if load.first_error else ""
        return Verdict(answer="fail", reason=f"{load.errors} of {load.requests} requests failed{first}")
    margin = noise.relative if noise is not None else 0.0
    figures = f"P95 {load.p95_ms:.2f} ms +- {margin:.1%} (noise), objective {p95_ms:g} ms, {load.requests} requests"
    if load.p95_ms * (1 - margin) > p95_ms:
        return Verdict(answer="fail", reason=f"too slow: {figures}")
    # The last requests may be answered up to the objective after the window, which the achieved rate includes.
    least = rate * (1 - rate_tolerance) * (1 - p95_ms / 1000 / load.seconds)
    if load.achieved_per_s < least:
        reason = (
            f"achieved {load.achieved_per_s:.2f}/s of {rate:g}/s (at least {least:.2f}/s needed), {load.unfinished} unfinished"
        )
        return Verdict(answer="fail", reason=f"{reason}; {figures}")
    if load.p95_ms * (1 + margin) <= p95_ms:
        return Verdict(answer="pass", reason=f"achieved {load.achieved_per_s:.2f}/s of {rate:g}/s; {figures}")
    return Verdict(answer="inconclusive", reason=f"within the noise of the objective: {figures}")


def on_time(load: Load, p95_ms: float) -> bool:
    """Whether the generator sent its requests when it meant to, closely enough for a verdict on `p95_ms`."""
    return load.slip_p99_ms <= MAX_SLIP * p95_ms


def _unfit(load: Load, p95_ms: float, rate: float, rate_tolerance: float) -> str | None:
    """Why the load says nothing about the objective."""
    if load.offered_per_s is None:
        return "a closed loop hides waiting time; the objective is judged on open-loop load"
    if load.offered_per_s < rate * (1 - rate_tolerance):
        return f"offered {load.offered_per_s:g}/s, the objective is {rate:g}/s"
    if not on_time(load, p95_ms):
        return (
            f"the load generator was late: slip P99 {load.slip_p99_ms:.2f} ms is more than {MAX_SLIP:.0%}"
            f" of the objective of {p95_ms:g} ms"
        )
    if load.throttled:
        return f"the GPU was throttled meanwhile ({', '.join(load.throttled)}): what it would do unthrottled is not known"
    needed = requests_needed()
    if load.requests < needed and not load.errors:
        return f"{load.requests} requests are too few for a P95 with a {CONFIDENCE:.0%} interval: {needed} needed"
    return None
