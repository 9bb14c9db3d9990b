"""Go or no-go: how many of which GPU the objective needs, at what price, and which assumption the answer rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from redline.errors import BadInput
from redline.plan.ladder import Image, step_facts
from redline.plan.queueing.paths import simulate
from redline.plan.queueing.rate import Grid, best, capacity
from redline.plan.roofline import busy, roofline
from redline.records import (
    Arithmetic,
    Assumption,
    Decision,
    DeviceAnswer,
    DeviceFacts,
    EfficiencyTable,
    LatencyCurve,
    ModelCosts,
    NodeLimits,
    Objective,
    RateAnswer,
    ServedPath,
    ShapeLoad,
)

BATCHES = (1, 2, 4, 8, 16, 32)
REQUESTS, FEWER = 8_000, 4_000
"""Of a simulation, of the device asked for and of the others: P95 to some 4 and 6 % below the knee."""
SEED = 1
DELAYS, INSTANCES = (0.0, 0.1, 0.25), (1, 2)
"""Queue delays tried, shares of the P95, and instances of each GPU."""
ARITHMETICS: tuple[Arithmetic, ...] = ("fp16", "int8")
NOTE = {"fp16": "", "int8": "if calibration keeps the mAP"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One GPU by batch: service time, and the share of it that leaves no room for another inference."""

    curve: LatencyCurve
    busy: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the answer depends on; an assumption changed is a `replace` of this."""

    costs: ModelCosts
    device: DeviceFacts
    image: Image
    objective: Objective
    arithmetic: Arithmetic = "fp16"
    table: EfficiencyTable
    slower: float = 1.0
    """Factor on all times of the network."""
    batches: tuple[int, ...] = BATCHES
    requests: int = REQUESTS

    def curve(self) -> LatencyCurve:
        """Service time by batch: the network as expected, under a CUDA graph. Raises BadInput where a peak is unknown."""
        return self.served().curve

    def served(self) -> Served:
        """The same with how full the device is. Raises BadInput as `curve`."""
        size = self.image.height, self.image.width
        found = {n: roofline(self.costs, self.device, self.arithmetic, n, *size, table=self.table) for n in self._lawful()}
        points = tuple((batch, self.slower * one.expected_us / 1000) for batch, one in found.items())
        tail = step_facts().tail["graph"]
        # A lognormal law whose 95th percentile over its mean is the tail measured at rest: 1.645 standard deviations.
        curve = LatencyCurve(points=points, cv=(tail - 1) / 1.645)
        return Served(curve=curve, busy={batch: busy(one, self.table) for batch, one in found.items()})

    def _lawful(self) -> tuple[int, ...]:
        fixed = self.costs.size[0]
        return self.batches if fixed is None else (fixed,)


def decide(
    case: Case, others: Sequence[DeviceFacts], limits: Callable[[DeviceFacts, int, float], NodeLimits], *, most: int
) -> Decision:
    """Whether `case.device`, at most `most` of them in a node, meets the objective; the same question for `others`.

    `limits` gives a node's limits from (device, GPUs, what full batches give on one GPU).
    """
    answers = [
        answer
        for device in (case.device, *(other for other in others if other.name != case.device.name))
        for arithmetic in ARITHMETICS
        if (answer := _of_device(_with(case, device, arithmetic))) is not None
    ]
    own = [answer for answer in answers if answer.device == case.device.name]
    main = next((answer for answer in own if answer.arithmetic == "fp16"), None)
    cheapest = sorted(answers, key=lambda answer: (answer.gpus is None, answer.usd_per_million or math.inf, answer.gpus or 0))
    if main is None:
        reason = f"a peak or the bandwidth of {case.device.title} is unknown: nothing can be computed"
        return Decision(answer="unknown", reason=reason, devices=tuple(cheapest), assumptions=(), advice=())
    known = limits(case.device, main.gpus or most, main.full_per_gpu).known if main.full_per_gpu else ()
    wanted = case.objective.throughput
    short = next((limit for limit in known if limit.resource != "network" and (limit.per_s or 0.0) < wanted), None)
    enough = main.gpus is not None and main.gpus <= most
    assumptions = _assumptions(case, main)
    if enough and short is None:
        reason = f"{main.gpus} x {main.title} in FP16: {main.reason}"
        return Decision(answer="go", reason=reason, devices=tuple(cheapest), assumptions=assumptions, advice=())
    if short is not None:
        reason = f"{short.title} ends at {short.per_s:,.0f}/s: {short.formula}"
    elif main.gpus is None:
        reason = f"{main.title} in FP16: {main.reason}"
    else:
        reason = f"{main.gpus} x {main.title} in FP16 would be needed, a node has {most}"
    return Decision(
        answer="no-go",
        reason=reason,
        devices=tuple(cheapest),
        assumptions=assumptions,
        advice=_advice(case, own, cheapest, assumptions, most),
    )


def _with(case: Case, device: DeviceFacts, arithmetic: Arithmetic) -> Case:
    requests = case.requests if device.name == case.device.name else FEWER
    return replace(case, device=device, arithmetic=arithmetic, requests=requests)


def _of_device(case: Case) -> DeviceAnswer | None:
    """None where a peak is unknown."""
    try:
        served = case.served()
    except BadInput as error:
        if error.code == "plan.size":
            raise
        return None
    objective = case.objective
    path, one = _best(served, case)
    rate, note = one.rate_per_s.value, NOTE[case.arithmetic]
    if rate <= 0:
        reason = f"one image alone takes {served.curve.ms(1):.3g} ms, its P95 {one.p95_ms:.3g} of {objective.p95_ms:g} ms"
        return _answer(case, path, None, None, None, one.p95_ms, reason)
    gpus, p95 = _gpus(path, case, rate)
    reason = f"{_knobs(path)}, {rate:,.0f}/s each within the P95, together P95 {p95:.3g} of {objective.p95_ms:g} ms "
    reason += f"at {objective.throughput:,.0f}/s"
    return _answer(case, path, gpus, rate, capacity(path), p95, f"{reason}; {note}" if note else reason)


def node_path(case: Case, answer: DeviceAnswer, gpus: int) -> ServedPath:
    """A node of `gpus` behind one queue, each set as in the answer for the device of `case`."""
    served = case.served()
    return ServedPath(
        shapes=(ShapeLoad(curve=served.curve),),
        max_batch=answer.batch,
        delay_ms=answer.delay_ms,
        instances=answer.instances,
        gpus=gpus,
        slowdown=_slowdown(served.busy[answer.batch], answer.instances),
        rate_per_s=1.0,
    )


def _knobs(path: ServedPath) -> str:
    delay = f" waiting {path.delay_ms:g} ms" if path.delay_ms else ""
    return f"batch {path.max_batch}{delay}" + (f" on {path.instances} instances" if path.instances > 1 else "")


def _best(
    served: Served, case: Case, delays: Sequence[float] = DELAYS, instances: tuple[int, ...] = INSTANCES
) -> tuple[ServedPath, RateAnswer]:
    """The largest batch of which two fit the P95 (one runs while the next fills) or the one below, a queue delay and
    instances: what gives one GPU the highest rate. The plainest first: less has to be worth it."""
    p95_ms, curve, batches = case.objective.p95_ms, served.curve, list(served.busy)
    fitting = [batch for batch in batches if 2 * curve.ms(batch) <= p95_ms] or batches[:1]
    grid = Grid(batches=tuple(fitting[-2:]), delays_ms=tuple(share * p95_ms for share in delays), instances=instances)
    path = ServedPath(shapes=(ShapeLoad(curve=curve),), rate_per_s=1.0)
    paths = sorted(grid.lawful(path, p95_ms), key=lambda one: (one.instances, one.delay_ms, one.max_batch))
    shared = [replace(one, slowdown=_slowdown(served.busy[one.max_batch], one.instances)) for one in paths]
    return best(shared, p95_ms=p95_ms, requests=case.requests, seed=SEED)


def _slowdown(busy: float, instances: int) -> tuple[float, ...]:
    return tuple(max(1.0, count * busy) for count in range(1, instances + 1)) if instances > 1 else ()


def _gpus(path: ServedPath, case: Case, rate: float) -> tuple[int, float]:
    """The fewest that hold the P95 behind one queue: what one holds alone is a bound that pooling betters."""
    few, many = 0, math.ceil(case.objective.throughput / rate)
    found = _p95(path, case, many)
    while many - few > 1:
        middle = (few + many) // 2
        p95 = _p95(path, case, middle)
        few, many, found = (few, middle, p95) if p95 <= case.objective.p95_ms else (middle, many, found)
    return many, found


def _p95(path: ServedPath, case: Case, gpus: int) -> float:
    together = replace(path, gpus=gpus, rate_per_s=case.objective.throughput)
    if capacity(together) <= case.objective.throughput:  # overloaded: the queue only grows
        return math.inf
    return simulate(together, requests=case.requests, seed=SEED).p95_ms.value


def _answer(
    case: Case,
    path: ServedPath,
    gpus: int | None,
    rate: float | None,
    full: float | None,
    p95_ms: float | None,
    reason: str,
) -> DeviceAnswer:
    price = min((price.usd_per_hour for price in case.device.prices), default=None)
    hourly = None if price is None or gpus is None else price * gpus
    return DeviceAnswer(
        device=case.device.name,
        title=case.device.title,
        gpus=gpus,
        arithmetic=case.arithmetic,
        batch=path.max_batch,
        delay_ms=path.delay_ms,
        instances=path.instances,
        rate_per_gpu=rate,
        full_per_gpu=full,
        p95_ms=p95_ms,
        usd_per_hour=hourly,
        usd_per_million=None if hourly is None else hourly / (3600 * case.objective.throughput) * 1e6,
        reason=reason,
    )


def _assumptions(case: Case, main: DeviceAnswer) -> tuple[Assumption, ...]:
    """Each number changed alone, by what that does to the GPUs needed (in fractions, so that small effects show)."""
    image, objective = case.image, case.objective
    smaller = replace(image, height=_four_fifths(image.height), width=_four_fifths(image.width))
    changes: list[tuple[str, str, str, Case]] = [
        ("speed of the kernels", "as the efficiency table has it", "all 30 % slower", replace(case, slower=1.3)),
        ("speed of the kernels", "as the efficiency table has it", "all 30 % faster", replace(case, slower=1 / 1.3)),
        ("precision", "FP16", "INT8", replace(case, arithmetic="int8")),
        ("batching", f"up to {main.batch}", "none", replace(case, batches=(1,))),
        (
            "objective",
            f"P95 {objective.p95_ms:g} ms",
            f"{objective.p95_ms / 2:g} ms",
            replace(case, objective=_half(objective)),
        ),
    ]
    if case.costs.size[1:] == (None, None):
        sizes = f"{image.height} x {image.width}", f"{smaller.height} x {smaller.width}"
        changes.append(("input size", *sizes, replace(case, image=smaller)))
    before = None if main.rate_per_gpu is None else objective.throughput / main.rate_per_gpu
    found = [_assumption(name, taken, changed, before, other, main) for name, taken, changed, other in changes]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: -one.weight))


def _assumption(name: str, taken: str, changed: str, before: float | None, case: Case, main: DeviceAnswer) -> Assumption | None:
    """At the delay and the instances of the answer, with the batch that then is best."""
    try:
        _, answer = _best(case.served(), case, (main.delay_ms / case.objective.p95_ms,), (main.instances,))
    except BadInput:
        return None
    rate = answer.rate_per_s.value
    gpus = case.objective.throughput / rate if rate > 0 else None
    # Infinite where the change makes the answer possible or impossible; a change that leaves it impossible weighs nothing.
    one_sided = 0.0 if before is gpus else math.inf
    weight = one_sided if before is None or gpus is None else abs(gpus / before - 1)
    was, now = ("no number" if value is None else f"{value:.2f}" for value in (before, gpus))
    effect = f"{was} -> {now} GPUs"
    return Assumption(name=name, taken=taken, changed=changed, effect=effect, gpus=gpus, weight=weight)


def _advice(
    case: Case, own: Sequence[DeviceAnswer], cheapest: Sequence[DeviceAnswer], assumptions: Sequence[Assumption], most: int
) -> tuple[str, ...]:
    found = []
    int8 = next((answer for answer in own if answer.arithmetic == "int8"), None)
    if int8 is not None and int8.gpus is not None and int8.gpus <= most:
        found.append(f"INT8: {int8.gpus} of the same GPU are enough {NOTE['int8']}")
    other = next((a for a in cheapest if a.device != case.device.name and a.gpus is not None and a.gpus <= most), None)
    if other is not None:
        price = "" if other.usd_per_million is None else f", {other.usd_per_million:.2f} USD per million images"
        found.append(f"another GPU: {other.gpus} x {other.title} in {other.arithmetic.upper()}{price}")
    size = next((one for one in assumptions if one.name == "input size" and one.gpus is not None), None)
    if size is not None:
        found.append(f"a smaller input, {size.changed}: {size.effect}")
    if (main := next((answer for answer in own if answer.arithmetic == "fp16"), None)) is not None:
        if main.gpus is None and main.p95_ms is not None:
            found.append(f"a P95 above {main.p95_ms:.3g} ms")
        elif main.rate_per_gpu is not None:
            found.append(f"a rate of {most * main.rate_per_gpu:,.0f}/s a node, or more nodes")
    return tuple(found)


def _half(objective: Objective) -> Objective:
    return replace(objective, p95_ms=objective.p95_ms / 2)


def _four_fifths(side: int) -> int:
    return max(32, round(side * 0.8 / 32) * 32)
