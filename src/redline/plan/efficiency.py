"""What kernels reach of the roof: a small table from measured engines, and how to refit it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, TypeAlias

from redline.errors import BadInput
from redline.records.cost import EfficiencyTable, GroupTime, KernelFloor, KernelShare, ModelCosts, Roofline
from redline.records.device import Arithmetic
from redline.records.engine import LayerTime

Key: TypeAlias = "tuple[str, ...]"
Row: TypeAlias = "tuple[dict[Key, float], float, float]"
"""(What each unknown is multiplied with, measured us, weight)."""

BELIEF = 1.0
"""Measured kernels that the table a fit starts from counts as, in each of its numbers."""
STEP = 20.0
"""Kernels that a whole inference counts as: it is what is to be predicted."""
ROUNDS, SETTLED = 20_000, 1e-9
LEAST_US = 0.1
"""No floor is fitted below this: a number that starts at 0 could not be drawn towards itself."""
STEP_KEY, STREAM_KEY = ("step",), ("stream",)

PUBLISHED = EfficiencyTable(
    shares=(),
    default_share=0.5,
    floors=(),
    default_floor_us=1.2,
    launch_floor_us=1.2,
    stream_us=2.65,
    step_us=15.0,
    source="half the roof, as MLPerf RetinaNet submissions reach 48 to 63 % of it; smallest kernel in a CUDA graph "
    "1.1 to 1.3 us (pytorch issue 161104); enqueue 2.65 us a launch and 15 us for a graph (ahrefs/ocannl issue 488)",
)
"""What is known without a measurement of one's own: where a fit that must not have seen anything else starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """Groups of a prediction that were timed together."""

    groups: tuple[str, ...]
    launches: int
    """Kernels that the prediction should have counted: 1 where they ran as one."""
    us: float
    """Without what timing it costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A prediction of the fused convention and what was measured of it."""

    prediction: Roofline
    step_us: float
    """Median of an inference with resident input and output."""
    kernels: tuple[KernelTime, ...] = ()


def kernel_times(costs: ModelCosts, layers: Sequence[LayerTime], gpu_ms: float) -> tuple[KernelTime, ...]:
    """An engine's layers by the groups whose nodes they ran; layers that share a group are added up.

    Timing a layer costs it some microseconds: what all of them take beyond `gpu_ms`, the inference timed as a whole, spread
    evenly. Layers that name no node of the graph are copies for its concats.
    """
    timed = [layer for layer in layers if layer.ms > 0]
    cost_ms = max(0.0, math.fsum(layer.ms for layer in timed) - gpu_ms) / max(1, len(timed))
    group_of = {layer: group.name for group in costs.groups for layer in group.layers}
    joins = {group.name for group in costs.groups if group.kind == "concat"}
    gathered: list[tuple[set[str], float]] = [(set(joins), 0.0)] if joins else []
    for layer in timed:
        named = {group_of[node] for node in layer.nodes if node in group_of} or set(joins)
        touching = [entry for entry in gathered if entry[0] & named]
        gathered = [entry for entry in gathered if not entry[0] & named]
        us = 1000 * (layer.ms - cost_ms) + math.fsum(more for _, more in touching)
        gathered.append((named.union(*(names for names, _ in touching)), us))
    return tuple(
        KernelTime(groups=tuple(sorted(names)), launches=len(names) if names == joins else 1, us=us)
        for names, us in gathered
        if names and us > 0
    )


def shipped_table() -> EfficiencyTable:
    """The packaged one: `efficiency.json`, which says what it was fitted on."""
    return _read()


@functools.cache
def _read() -> EfficiencyTable:
    raw = json.loads(resources.files("redline.plan").joinpath("efficiency.json").read_text("utf-8"))
    return EfficiencyTable(
        **{
            **raw,
            "shares": tuple(KernelShare(**row) for row in raw["shares"]),
            "floors": tuple(KernelFloor(**row) for row in raw["floors"]),
        }
    )


def calibrate(
    runs: Sequence[Measured], start: EfficiencyTable | None = None, *, source: str, belief: float = BELIEF
) -> EfficiencyTable:
    """The table that explains the measurements best, by least squares of relative errors.

    Each number is drawn towards `start` (the shipped table), which counts as `belief` measured kernels: little data changes
    little, and what was not measured stays. Shares stay below 1, times above 0; measured
    kernels add up. Pure: no file is read but the shipped table.
    Raises BadInput: plan.calibrate where nothing was measured or a time is no positive number.
    """
    table = start or shipped_table()
    times = [run.step_us for run in runs] + [kernel.us for run in runs for kernel in run.kernels]
    if not times or not all(math.isfinite(us) and us > 0 for us in times):
        raise BadInput("plan.calibrate", "Nothing to calibrate on", got=f"{len(times)} times", allowed="positive times in us")
    rows = [row for run in runs for row in _rows(run)]
    keys = sorted({key for coefficients, _, _ in rows for key in coefficients})
    before = {key: max(LEAST_US, _known(table, key)) for key in keys}
    found = _solve(rows, before, belief)
    counts = _counts(runs)
    shares = {(row.kind, row.arithmetic, row.limit): row for row in table.shares}
    floors = {row.kind: row for row in table.floors}
    for key, value in found.items():
        points = counts.get(key, 0)
        if key[0] == "share":
            place: Any = key[1:]
            points += shares[place].points if place in shares else 0
            kind, arithmetic, limit = place
            shares[place] = KernelShare(kind=kind, arithmetic=arithmetic, limit=limit, share=1 / value, points=points)
        elif key[0] == "floor":
            group: Any = key[1]
            points += floors[group].points if group in floors else 0
            floors[group] = KernelFloor(kind=group, us=value, points=points)
    return replace(
        table,
        shares=tuple(sorted(shares.values(), key=lambda row: (row.kind, row.arithmetic, row.limit))),
        floors=tuple(sorted(floors.values(), key=lambda row: row.kind)),
        step_us=found.get(STEP_KEY, table.step_us),
        stream_us=found.get(STREAM_KEY, table.stream_us),
        source=source,
    )


def _rows(run: Measured) -> Iterable[Row]:
    arithmetic, groups = run.prediction.arithmetic, {group.name: group for group in run.prediction.groups}
    for kernel in run.kernels:
        members = [groups[name] for name in kernel.groups if name in groups]
        if members:
            yield _sum(members, arithmetic, members[: kernel.launches]), kernel.us, 1.0
    whole = _sum(run.prediction.groups, arithmetic, run.prediction.groups)
    whole[STEP_KEY] = 1.0
    if not run.prediction.cuda_graph:
        whole[STREAM_KEY] = float(len(run.prediction.groups))
    yield whole, run.step_us, STEP


def _sum(work: Sequence[GroupTime], arithmetic: Arithmetic, kernels: Sequence[GroupTime]) -> dict[Key, float]:
    """Work of all groups, and a floor for each kernel that they ran as."""
    found: dict[Key, float] = {}
    for group in work:
        key = _share_key(group, arithmetic)
        found[key] = found.get(key, 0.0) + group.work_us * group.waves
    for group in kernels:
        found["floor", group.kind] = found.get(("floor", group.kind), 0.0) + 1.0
    return found


def _share_key(group: GroupTime, arithmetic: Arithmetic) -> Key:
    return ("share", group.kind, arithmetic, group.limit)


def _known(table: EfficiencyTable, key: Key) -> float:
    if key == STEP_KEY:
        return table.step_us
    if key == STREAM_KEY:
        return table.stream_us
    if key[0] == "floor":
        return table.floor_us(key[1])  # type: ignore[arg-type]
    return 1 / table.share(key[1], key[2], key[3])[0]  # type: ignore[arg-type]


def _solve(rows: Sequence[Row], before: dict[Key, float], belief: float) -> dict[Key, float]:
    """Least squares within bounds by coordinate descent: the matrix is small and, with its ridge, positive definite."""
    keys = list(before)
    place = {key: index for index, key in enumerate(keys)}
    matrix = [[0.0] * len(keys) for _ in keys]
    side = [0.0] * len(keys)
    for coefficients, us, weight in rows:
        scaled = [(place[key], value / us) for key, value in coefficients.items()]
        for i, a in scaled:
            side[i] += weight * a
            for j, b in scaled:
                matrix[i][j] += weight * a * b
    for i, key in enumerate(keys):
        matrix[i][i] += belief / before[key] ** 2
        side[i] += belief / before[key]
    values = [before[key] for key in keys]
    for _ in range(ROUNDS):
        moved = 0.0
        for i, key in enumerate(keys):
            others = sum(a * x for j, (a, x) in enumerate(zip(matrix[i], values, strict=True)) if j != i)
            least = 1.0 if key[0] == "share" else LEAST_US
            new = max(least, (side[i] - others) / matrix[i][i])
            moved, values[i] = max(moved, abs(new - values[i]) / before[key]), new
        if moved < SETTLED:
            break
    return dict(zip(keys, values, strict=True))


def _counts(runs: Sequence[Measured]) -> dict[Key, int]:
    """Measured kernels behind each number; whole inferences behind the two that only they show."""
    found: dict[Key, int] = {}
    for run in runs:
        groups = {group.name: group for group in run.prediction.groups}
        for kernel in run.kernels:
            for group in (groups[name] for name in kernel.groups if name in groups):
                for key in (_share_key(group, run.prediction.arithmetic), ("floor", group.kind)):
                    found[key] = found.get(key, 0) + 1
    return found
