"""A `ServedPath` simulated: its arrays made from a seed, run through the event core, and summed up with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from redline.errors import BadInput
from redline.plan.queueing import core
from redline.plan.queueing import state as at
from redline.plan.queueing.build import prepared
from redline.plan.queueing.state import Floats, Rules, World
from redline.records import Estimate, LatencyCurve, ServedPath, Simulated

BATCHES = 20
"""Of the batch means: consecutive parts of the requests, each long against the memory of the queue."""
T_19 = 2.093
"""Student's t, 97.5 %, 19 degrees of freedom."""
WARM = 0.1
"""Share of the requests that fill an empty system and are not counted."""
FEWEST, FEWEST_ANSWERED = 100, 50
LARGEST_BATCH = 4096
LEAST_UP_S = 0.01
"""What fails more often is not served at all, and its outages would fill the memory."""


def simulate(path: ServedPath, *, requests: int = 200_000, seed: int = 0) -> Simulated:
    """Equal paths, requests and seeds give equal results; a trace has its own number of requests.

    Paths that differ in rate alone see the same gaps (scaled), shapes and service times: common random numbers.
    Raises BadInput: sim-path, sim-requests, sim-all-refused.
    """
    check(path, requests)
    return _summed(path, *trial(path, requests, seed), seed)


def trial(path: ServedPath, requests: int, seed: int) -> tuple[World, Rules]:
    """The world after all its requests; `path` is sound."""
    world, rules, outages = prepared(path, requests, seed)
    core.run(world, rules, outages)
    return world, rules


def check(path: ServedPath, requests: int) -> None:
    """Raises BadInput: sim-path, sim-requests."""
    for sound, what, got, allowed in _conditions(path):
        if not sound:
            raise BadInput("sim-path", f"a served path cannot be simulated: {what}", got=got, allowed=allowed)
    count = len(path.trace_s) or requests
    if count < FEWEST:
        raise BadInput("sim-requests", "too few requests for percentiles", got=count, allowed=f"at least {FEWEST}")


def _conditions(path: ServedPath) -> list[tuple[bool, str, object, str]]:
    times, shares = path.trace_s, [shape.share for shape in path.shapes]
    counts = (path.max_batch, path.instances, path.streams, path.gpus, path.gpus_per_link, path.slices, path.nodes)
    spans = (path.delay_ms, path.decode_cv, path.overhead_ms, path.mean_down_s)
    found: list[tuple[bool, str, object, str]] = [
        (bool(path.shapes), "it has no shapes", 0, "at least one"),
        (all(_positive(share) for share in shares), "shares", shares, "above 0"),
        (bool(times) or _positive(path.rate_per_s), "its rate", path.rate_per_s, "above 0 requests/s"),
        (all(0 <= time < math.inf for time in times), "its trace", "times that are none", "0 seconds or more"),
        (all(a <= b for a, b in pairwise(times)), "its trace", "times that go back", "ascending seconds"),
        (all(count >= 1 for count in counts), "its counts", counts, "1 or more of everything"),
        (path.max_batch <= LARGEST_BATCH, "its batch", path.max_batch, f"1 to {LARGEST_BATCH}"),
        (all(span >= 0 and math.isfinite(span) for span in spans), "its times", spans, "0 or more"),
        (path.decode_workers >= 0, "decode_workers", path.decode_workers, "0 or more"),
        (path.queue_limit is None or path.queue_limit >= 0, "queue_limit", path.queue_limit, "0 or more"),
        (path.link_gb_s is None or _positive(path.link_gb_s), "link_gb_s", path.link_gb_s, "above 0"),
        (_positive(path.slice_slowdown), "slice_slowdown", path.slice_slowdown, "above 0"),
        (all(_positive(one) for one in path.slowdown), "slowdown", path.slowdown, "above 0"),
        (_is_disturbed(path.disturbed), "disturbed", path.disturbed, "ascending batches from 1, each with a factor above 0"),
        (_is_rested(path.rested), "rested", path.rested, "ascending times of 0 ms or more, each with 0 ms or more"),
        (path.balancer != "shared", "its balancer", "shared", "every policy but shared"),
        (path.mean_up_s is None or path.mean_up_s >= LEAST_UP_S, "mean_up_s", path.mean_up_s, f"{LEAST_UP_S} s or more"),
        (
            all(1 <= size <= path.max_batch for size in path.preferred),
            "preferred sizes",
            path.preferred,
            f"1 to {path.max_batch}",
        ),
    ]
    found += [(_is_curve(shape.curve), f"the curve of {shape.name!r}", shape.curve.points, CURVE) for shape in path.shapes]
    units = {"instance": path.nodes * path.devices * path.instances, "gpu": path.nodes * path.gpus, "node": path.nodes}
    for one in path.outages:
        sound = 0 <= one.index < units[one.unit] and one.at_s >= 0 and one.seconds > 0
        found.append((sound, "an outage", one, f"{one.unit} 0 to {units[one.unit] - 1}, at 0 s or later, for more than 0 s"))
    return found


CURVE = "batches of 1 or more, ascending, each with a time above 0 ms that does not fall; cv and ratios of 0 or more"


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _is_disturbed(points: Sequence[tuple[int, float]]) -> bool:
    batches = [batch for batch, _ in points]
    return batches == sorted(set(batches)) and all(b >= 1 for b in batches) and all(_positive(more) for _, more in points)


def _is_rested(points: Sequence[tuple[float, float]]) -> bool:
    rising = all(a < b for (a, _), (b, _) in pairwise(points))
    return rising and all(0 <= value < math.inf for point in points for value in point)


def _is_curve(curve: LatencyCurve) -> bool:
    batches, times = [b for b, _ in curve.points], [t for _, t in curve.points]
    rising = all(a < b for a, b in pairwise(batches))
    slower = all(a <= b for a, b in pairwise(times))
    spread = curve.cv >= 0 and math.isfinite(curve.cv) and (not curve.ratios or _spread(curve.ratios))
    return bool(batches) and batches[0] >= 1 and rising and slower and all(map(_positive, times)) and spread


def _spread(ratios: Sequence[float]) -> bool:
    ascending = all(a <= b for a, b in pairwise(ratios))
    return len(ratios) >= 2 and ascending and ratios[0] >= 0 and _positive(ratios[-1])


def _summed(path: ServedPath, world: World, rules: Rules, seed: int) -> Simulated:
    count = len(world.times)
    warm = int(WARM * count)
    done, arrive = world.times[:, at.DONE], world.times[:, at.ARRIVES]
    kept = done[warm:][done[warm:] >= 0] - arrive[warm:][done[warm:] >= 0] + path.overhead_ms
    if len(kept) < FEWEST_ANSWERED:
        raise BadInput("sim-all-refused", "next to no request of a simulated path is answered", got=len(kept))
    span = float(arrive[-1] - arrive[warm])
    within = int(((done >= arrive[warm]) & (done <= arrive[-1])).sum())
    whole, sums, busy = float(done.max()), world.ints[rules.sums :], world.floats[rules.sums :]
    devices = path.nodes * path.devices
    p50, p95, p99 = _percentiles(kept)
    ways = path.nodes * -(-path.gpus // path.gpus_per_link) * (2 if path.duplex else 1)
    return Simulated(
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=float(kept.mean()),
        achieved_per_s=1000 * within / span if span > 0 else 0.0,
        mean_batch=float(sums[at.SERVED] / max(sums[at.BATCHES], 1)),
        host_busy=float(busy[at.HOST_BUSY] / whole / (path.nodes * max(path.decode_workers, 1))),
        lane_busy=float(busy[at.LANE_BUSY] / whole / (devices * path.lanes)),
        device_busy=float(busy[at.DEVICE_BUSY] / whole / devices),
        link_busy=float(busy[at.LINK_BUSY] / whole / ways),
        refused=float(np.mean(done == at.REFUSED)),
        failed=float(np.mean(done == at.FAILED)),
        requests=count,
        seed=seed,
    )


def _percentiles(latency: Floats) -> list[Estimate]:
    """P50, P95 and P99 of all, each with an interval by batch means: the percentile of each part, and Student's t."""
    levels = (50, 95, 99)
    values = np.percentile(latency, levels, method="inverted_cdf")
    parts = latency[: len(latency) // BATCHES * BATCHES].reshape(BATCHES, -1)
    spread = np.std(np.percentile(parts, levels, axis=1, method="inverted_cdf"), axis=1, ddof=1)
    halves = T_19 * spread / math.sqrt(BATCHES)
    return [Estimate(value=v, low=v - h, high=v + h) for v, h in zip(values.tolist(), halves.tolist(), strict=True)]
