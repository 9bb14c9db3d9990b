"""The frontier of a rounded network: which groups of layers stay in FP16, for each loss the least time.

Joins the rooms plan and quantize: losses are measured on each group alone. Times are those of the layers of an engine that an
earlier run dissected, where there is one of this network on this GPU; else what the plan's roofline expects of the group's
kernels in both types, corrected by the efficiency that engines were measured to have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from redline.errors import BadInput, StoreError
from redline.quantize.search import GroupCost, MixedSearch, best_within
from redline.records import EngineRecord, Environment, OnnxModel, RunRecord, Spec
from redline.records.quantize import MixedPoint, Number, Sensitivity
from redline.store import load

if TYPE_CHECKING:
    from redline.records import DeviceFacts
    from redline.store import Journal, Store

LEFT = (1.0, 0.2, 0.05)
"""Shares of the whole loss that the candidates of a frontier may keep: all of it, and a fifth and a twentieth."""
BATCH = 8
"""Images at which times are compared: at one, most kernels of a small network last as long as their launch in either type."""

Mix = Callable[[OnnxModel, Sequence[Sensitivity], Number], "tuple[MixedPoint, ...]"]


def mixer(
    environment: Environment, runs: Path, spec: Spec, store: Store | None = None, journal: Journal | None = None
) -> Mix | None:
    """None where the GPU is not in the device table: nothing says then what a layer takes.

    In `store` a frontier is kept for its run, whose `journal` holds on to it: engines that are dissected later, its own among
    them, do not change what the same run tries again.
    """
    from redline.plan.devices import known_device
    from redline.prepare import run_id

    device = known_device(environment.gpus[0]) if environment.gpus else None
    if device is None:
        return None

    def mix(network: OnnxModel, sensitive: Sequence[Sensitivity], number: Number) -> tuple[MixedPoint, ...]:
        if store is None:
            return made(network, sensitive, number)
        losses = [(one.group.name, one.divergence) for one in sensitive]
        key = {"run": run_id(spec), "network": network.digest, "number": number, "losses": losses, "gpu": environment.gpus[0]}
        found: tuple[MixedPoint, ...] = store.once(
            stage="frontier", key=key, kind="frontier", type=tuple[MixedPoint, ...], parents=(),
            compute=lambda: made(network, sensitive, number), journal=journal,
        )  # fmt: skip
        return found

    def made(network: OnnxModel, sensitive: Sequence[Sensitivity], number: Number) -> tuple[MixedPoint, ...]:
        try:
            engines = dissected(runs, spec, environment.gpus[0])
            costs = group_costs(network, sensitive, number, device, runs, spec, engines)
        except BadInput:  # no peak of this type is known of the device
            return ()
        return MixedSearch(costs).frontier()

    return mix


def group_costs(
    network: OnnxModel,
    sensitive: Sequence[Sensitivity],
    number: Number,
    device: DeviceFacts,
    runs: Path,
    spec: Spec,
    engines: Mapping[str, EngineRecord],
) -> tuple[GroupCost, ...]:
    """Loss and microseconds of every group. Raises BadInput: plan.no-peak.

    For `BATCH` images at the network's whole input, or for those of the FP16 engine in `engines`, whose layers' times are taken
    then. What has no time in an INT8 engine of that shape takes the part of its FP16 time that the roofline expects.
    """
    from redline.plan.costs.read import read_costs
    from redline.plan.roofline import roofline
    from redline.planning import efficiency_table, input_hw

    costs, table = read_costs(network.path), efficiency_table(runs)
    n, (h, w) = costs.size[0] or BATCH, input_hw(spec, costs)
    measured = engines.get("fp16")
    if measured is not None and measured.shape is not None:
        n, _, h, w = measured.shape
    wide, narrow = (
        {group.name: group.expected_us for group in roofline(costs, device, arithmetic, n, h, w, table=table).groups}
        for arithmetic in ("fp16", number)
    )
    part = {node: narrow[node] / us for node, us in wide.items() if us}
    if measured is not None:
        wide |= layer_times(measured, wide)
        narrow = {node: us * part.get(node, 1.0) for node, us in wide.items()}
        other = engines.get(number)
        if other is not None and other.shape == measured.shape:
            narrow |= layer_times(other, narrow)
    return tuple(
        GroupCost(
            name=one.group.name,
            loss=one.divergence,
            int8_us=sum(narrow[node] for node in one.group.nodes),
            fp16_us=sum(wide[node] for node in one.group.nodes),
        )
        for one in sensitive
    )


def dissected(runs: Path, spec: Spec, gpu: str) -> dict[str, EngineRecord]:
    """By precision, the engine of the newest finished run of this network on this GPU whose layers were timed; of those in INT8
    or FP8 the one with most of its operations in it, and of equal ones that of the largest batch."""
    records = [record for path in runs.glob("*/run.json") if (record := _read(path)) is not None]
    for record in sorted(records, key=lambda record: record.started, reverse=True):
        found: dict[str, EngineRecord] = {}
        same = record.spec.model == spec.model and gpu in record.environment.gpus
        for engine in sorted(record.engines if same else (), key=_rank):
            if _complete(engine):
                found[engine.build.options.precision] = engine
        if "fp16" in found:
            return found
    return {}


def _read(path: Path) -> RunRecord | None:
    try:
        return load(RunRecord, path.read_bytes())
    except (OSError, StoreError):  # gone meanwhile, or of another version
        return None


def _rank(engine: EngineRecord) -> tuple[float, int]:
    share = dict(engine.build.proof.shares).get(engine.build.options.precision, 0.0)
    return share, engine.shape[0] if engine.shape is not None else 0


def _complete(engine: EngineRecord) -> bool:
    """All of its layers were timed, and not only the slowest: they last as long as the inference, or longer for being timed."""
    whole = engine.anatomy.gpu_ms if engine.anatomy is not None else 0.0
    return engine.shape is not None and 0 < whole <= sum(layer.ms for layer in engine.layers)


def layer_times(engine: EngineRecord, nodes: Collection[str]) -> dict[str, float]:
    """Microseconds of those of `nodes` that the engine's layers hold; a layer that holds several is split evenly.

    The profiler's own cost is taken out: layers last as long together as the inference did.
    """
    found: dict[str, float] = defaultdict(float)
    total = sum(layer.ms for layer in engine.layers)
    part = engine.anatomy.gpu_ms / total if engine.anatomy is not None and total else 1.0
    for layer in engine.layers:
        mine = [node for node in layer.nodes if node in nodes]
        for node in mine:
            found[node] += 1000 * part * layer.ms / len(mine)
    return dict(found)


def picked(points: Sequence[MixedPoint], sensitive: Sequence[Sensitivity]) -> tuple[tuple[str, ...], ...]:
    """Names of the layers that stay out, of the fastest point within each share of the loss; all rounded first."""
    whole = sum(one.divergence for one in sensitive)
    nodes = {one.group.name: one.group.nodes for one in sensitive}
    found: dict[tuple[str, ...], None] = {(): None}
    for share in LEFT:
        point = best_within(points, share * whole * (1 + 1e-9))
        if point is not None and len(point.kept) < len(nodes):
            found[tuple(sorted(node for name in point.kept for node in nodes[name]))] = None
    return tuple(found)
