"""The frontier of a rounded network: which groups of layers stay in FP16, for each loss the least time.

Joins the rooms plan and quantize: losses are measured on each group alone, times are what the plan's roofline expects of the
group's kernels in both types, corrected by the efficiency that engines were measured to have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from redline.errors import BadInput
from redline.quantize.search import GroupCost, MixedSearch, best_within
from redline.records import Environment, OnnxModel, Spec
from redline.records.quantize import MixedPoint, Number, Sensitivity

if TYPE_CHECKING:
    from redline.records import DeviceFacts

LEFT = (1.0, 0.2, 0.05)
"""Shares of the whole loss that the candidates of a frontier may keep: all of it, and a fifth and a twentieth."""
BATCH = 8
"""Images at which times are compared: at one, most kernels of a small network last as long as their launch in either type."""

Mix = Callable[[OnnxModel, Sequence[Sensitivity], Number], "tuple[MixedPoint, ...]"]


def mixer(environment: Environment, runs: Path, spec: Spec) -> Mix | None:
    """None where the GPU is not in the device table: nothing says then what a layer takes."""
    from redline.plan.devices import known_device

    device = known_device(environment.gpus[0]) if environment.gpus else None
    if device is None:
        return None

    def mix(network: OnnxModel, sensitive: Sequence[Sensitivity], number: Number) -> tuple[MixedPoint, ...]:
        try:
            costs = group_costs(network, sensitive, number, device, runs, spec)
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
) -> tuple[GroupCost, ...]:
    """Loss, and microseconds for `BATCH` images at the network's whole input, of every group. Raises BadInput: plan.no-peak."""
    from redline.plan.costs.read import read_costs
    from redline.plan.roofline import roofline
    from redline.planning import efficiency_table, input_hw

    costs, table = read_costs(network.path), efficiency_table(runs)
    n, (h, w) = costs.size[0] or BATCH, input_hw(spec, costs)
    wide, narrow = (
        {group.name: group.expected_us for group in roofline(costs, device, arithmetic, n, h, w, table=table).groups}
        for arithmetic in ("fp16", number)
    )
    return tuple(
        GroupCost(
            name=one.group.name,
            loss=one.divergence,
            int8_us=sum(narrow[node] for node in one.group.nodes),
            fp16_us=sum(wide[node] for node in one.group.nodes),
        )
        for one in sensitive
    )


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
