"""A sound `ServedPath` as the arrays of the event core, its luck drawn from a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from redline.plan.queueing import state as at
from redline.plan.queueing.state import Floats, Ints, Rules, World
from redline.records import LatencyCurve, Routing, ServedPath

POLICIES: dict[Routing, int] = {
    "shared": at.SHARED,
    "random": at.RANDOM,
    "round-robin": at.ROUND_ROBIN,
    "shortest": at.SHORTEST,
    "two-choices": at.TWO_CHOICES,
}


def prepared(path: ServedPath, requests: int, seed: int) -> tuple[World, Rules, Floats]:
    """The path at time 0, its rules and outages. Each kind of draw has a stream of its own: one knob leaves the rest's luck."""
    gaps, shapes, decodes, coins, services, away = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(6)
    )
    count = len(path.trace_s) or requests
    times, notes = np.full((count, 7), np.nan), np.full((count, 3), -1, np.int64)
    if path.trace_s:
        times[:, at.ARRIVES] = 1000.0 * np.asarray(path.trace_s, np.float64)
    else:
        times[:, at.ARRIVES] = 1000.0 / path.rate_per_s * np.cumsum(_exact(gaps.exponential(1.0, count)))
    shares = np.cumsum([shape.share for shape in path.shapes])
    which = np.searchsorted(shares / shares[-1], shapes.random(count), side="right").clip(max=len(shares) - 1)
    notes[:, at.SHAPE] = which
    decode = np.array([one.decode_ms for one in path.shapes])
    times[:, at.DECODES] = decode[which] * _lognormal(path.decode_cv, count, decodes)
    times[:, [at.NODE_COIN, at.QUEUE_COIN]] = coins.random((count, 2))
    rules = rules_of(path)
    ints, floats = _units(path, rules)
    factors = _factors([one.curve for one in path.shapes], count, services)
    rested = np.array(path.rested, np.float64).reshape(-1, 2).T.copy()
    world = World(
        ints=ints,
        floats=floats,
        times=times,
        notes=notes,
        table=_table(path),
        factors=factors,
        slow=slow_of(path),
        rested=rested,
    )
    return world, rules, _outages(path, rules, float(times[-1, at.ARRIVES]), away)


def rules_of(path: ServedPath) -> Rules:
    queues = 1 if path.queues == "shared" else path.devices
    places = path.devices // queues * path.lanes
    node_size = max(at.NODE_SIZE, path.decode_workers)
    queue_size, total = at.RING + 3 * 2 * places + places, path.nodes * queues
    devices = path.nodes * path.devices
    links = -(-path.gpus // path.gpus_per_link) * path.nodes
    after_queues = path.nodes * node_size + total * queue_size
    sums = after_queues + devices * at.DEVICE_SIZE + devices * path.lanes * at.LANE_SIZE + links * at.LINK_SIZE
    return Rules(
        nodes=path.nodes,
        queues=queues,
        lanes=path.lanes,
        places=places,
        workers=path.decode_workers,
        max_batch=path.max_batch,
        largest=max(path.preferred, default=path.max_batch),
        delay=float(path.delay_ms),
        at_once=0 if path.queue_limit is None else places * path.max_batch + path.queue_limit,
        equal=int(path.grouping == "equal"),
        balancer=POLICIES[path.balancer],
        routing=POLICIES[path.queues],
        duplex=int(path.duplex),
        shapes=len(path.shapes),
        node_size=node_size,
        queue_size=queue_size,
        queue_at=path.nodes * node_size,
        idle=at.RING + 3 * 2 * places,
        sums=sums,
        mixed=sums + 4,
    )


def lanes_of(path: ServedPath, rules: Rules) -> list[int]:
    """Addresses of all lanes, node after node, device after device."""
    count = path.nodes * path.devices
    first = rules.queue_at + path.nodes * rules.queues * rules.queue_size + count * at.DEVICE_SIZE
    return [first + lane * at.LANE_SIZE for lane in range(count * path.lanes)]


def _units(path: ServedPath, rules: Rules) -> tuple[Ints, Floats]:
    """Blocks of nodes, queues, devices, lanes, links, then the sums, then the scratch."""
    size = rules.mixed + len(path.shapes)
    ints, floats = np.zeros(size, np.int64), np.zeros(size)
    queues = range(rules.queue_at, rules.queue_at + path.nodes * rules.queues * rules.queue_size, rules.queue_size)
    lanes = lanes_of(path, rules)
    links = lanes[-1] + at.LANE_SIZE
    own = -(-path.gpus // path.gpus_per_link)
    of_queue = [list[int]() for _ in queues]
    for device in range(path.nodes * path.devices):
        block = queues.stop + device * at.DEVICE_SIZE
        node, within = divmod(device, path.devices)
        link = node * own + within // path.slices // path.gpus_per_link
        ints[block + at.OWN_LANES], ints[block + at.LINK] = lanes[device * path.lanes], links + link * at.LINK_SIZE
        queue = device * rules.queues // path.devices
        for lane in lanes[device * path.lanes : (device + 1) * path.lanes]:
            ints[lane + at.DEVICE], ints[lane + at.QUEUE] = block, queues[queue]
        of_queue[queue].append(device)
    for number, queue in enumerate(queues):
        node = number // rules.queues * rules.node_size
        ints[queue + at.NODE], ints[queue + at.TAIL], ints[queue + at.OPEN] = node, -1, at.NONE
        ints[queue + at.IDLE] = ints[queue + at.UP] = rules.places
        ints[node + at.UP] += rules.places
        # Devices take turns in the first round, so that a shared queue does not fill one of them before the others.
        turns = [lanes[device * path.lanes + lane] for lane in range(path.lanes) for device in of_queue[number]]
        ints[queue + rules.idle : queue + rules.idle + rules.places] = turns
    return ints, floats


def slow_of(path: ServedPath) -> Floats:
    """(lanes + 1, max_batch + 1): see `World.slow`."""
    batches = np.arange(path.max_batch + 1)
    more = np.ones(len(batches))
    if path.disturbed:
        more = np.interp(batches, [float(batch) for batch, _ in path.disturbed], [factor for _, factor in path.disturbed])
    found = np.ones((path.lanes + 1, len(batches)))
    for running in range(1, path.lanes + 1):
        found[running] = _slowdown(path.slowdown, running) * (more if running > 1 else 1.0)
    return found


def _slowdown(table: Sequence[float], running: int) -> float:
    if not table:
        return 1.0
    return table[running - 1] if running <= len(table) else table[-1] * running / len(table)


def _table(path: ServedPath) -> Floats:
    table = np.zeros((len(path.shapes) + 1, path.max_batch + 2))
    for row, shape in zip(table, path.shapes, strict=False):
        row[1:-1] = [path.slice_slowdown * shape.curve.ms(batch) for batch in range(1, path.max_batch + 1)]
        if path.link_gb_s is not None:
            row[0], row[-1] = shape.input_bytes / path.link_gb_s / 1e6, shape.output_bytes / path.link_gb_s / 1e6
    table[-1, list(path.preferred) or [path.max_batch]] = 1.0
    return table


def _exact(draws: Floats) -> Floats:
    """Of mean 1 exactly: rate and service time are given, and the luck of their sample would only add to the noise."""
    found: Floats = draws / draws.mean()
    return found


def _lognormal(cv: float, count: int, rng: np.random.Generator) -> Floats:
    """(count,) of mean 1."""
    variance = math.log1p(cv * cv)
    return _exact(rng.lognormal(-variance / 2, math.sqrt(variance), count)) if cv > 0 else np.ones(count)


def _factors(curves: Sequence[LatencyCurve], count: int, rng: np.random.Generator) -> Floats:
    """(shapes, count) of mean 1; one column where all times are constant."""
    if all(not curve.ratios and curve.cv == 0 for curve in curves):
        return np.ones((len(curves), 1))
    found = np.empty((len(curves), count))
    for row, curve in zip(found, curves, strict=True):
        if curve.ratios:
            row[:] = _exact(np.interp(rng.random(count), np.linspace(0.0, 1.0, len(curve.ratios)), curve.ratios))
        elif curve.law == "exponential":
            row[:] = _exact(rng.exponential(1.0, count))
        else:
            row[:] = _lognormal(curve.cv, count, rng)
    return found


def _outages(path: ServedPath, rules: Rules, end_ms: float, rng: np.random.Generator) -> Floats:
    """(n, 3): time, address of the lane, 1 as it goes and 0 as it comes back, ascending."""
    lanes = lanes_of(path, rules)
    of_unit = {"instance": path.streams, "gpu": path.slices * path.lanes, "node": path.devices * path.lanes}
    spans: list[tuple[float, float, int]] = []
    for one in path.outages:
        width = of_unit[one.unit]
        spans += [(one.at_s, one.at_s + one.seconds, lane) for lane in lanes[one.index * width : (one.index + 1) * width]]
    if path.mean_up_s is not None:
        for first in range(0, len(lanes), path.streams):
            time = float(rng.exponential(path.mean_up_s))
            while 1000 * time < end_ms:
                back = time + float(rng.exponential(path.mean_down_s))
                spans += [(time, back, lane) for lane in lanes[first : first + path.streams]]
                time = back + float(rng.exponential(path.mean_up_s))
    changes = [(1000 * begin, lane, 1) for begin, _, lane in spans] + [(1000 * end, lane, 0) for _, end, lane in spans]
    return np.array(sorted(changes), np.float64).reshape(-1, 3)
