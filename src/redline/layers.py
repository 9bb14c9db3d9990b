"""Per-layer parity that survives fusion: look into an engine at a few seams, find the segment that is wrong, name the node.

Joins the rooms engine (cuts, looks, segments) and parity (is an error explained). See docs/layers.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redline.engine.cuts import Wiring, choose_cuts, wire
from redline.engine.graph_facts import read_graph
from redline.engine.rounding import rounded_graph
from redline.engine.segments import Look, look_by_outputs, run_segments
from redline.nodes import module_of
from redline.parity.layers import LayerError, layer_error, roundings, total_error
from redline.records import LayerFault, LayerParity, LayerPoint, OnnxModel, Runner

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from redline.records.detect import Tensor
    from redline.records.spec import Precision

MOST = 48
"""Tensors a look adds to the outputs. A detector has some hundred seams: three looks tell them all apart."""
SUSPECTS = 4
"""Segments followed at once; of more, the worst, and then the first in graph order: one fault can spoil no other segment."""


@dataclass(frozen=True, slots=True)
class Region:
    """A suspect segment: what ends it and the tensors it may begin at."""

    end: str
    given: tuple[str, ...]
    point: LayerPoint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """Reference and asked-for graph with their wirings, and how to look into the engine."""

    reference: onnx.ModelProto
    wiring: Wiring
    visible: frozenset[str]
    """Tensors that the engine's graph has as well."""
    control: onnx.ModelProto | None
    """What the engine's graph computes in other arithmetic of its precision; None where it is the reference's own graph."""
    wiring_control: Wiring | None
    precision: Precision
    batch: Tensor
    look: Look
    threads: int

    @property
    def seams(self) -> tuple[str, ...]:
        return tuple(name for name in self.wiring.seams if name in self.visible)

    @property
    def inner(self) -> tuple[str, ...]:
        return tuple(name for name in self.wiring.floats if name in self.visible)


def compare_layers(
    reference: OnnxModel,
    asked: OnnxModel,
    build: Callable[[OnnxModel], Runner],
    batch: Tensor,
    precision: Precision,
    *,
    folder: Path,
    look: Look | None = None,
    most: int = MOST,
    threads: int = 0,
) -> LayerParity:
    """Where the engine that `build` makes of `asked` is wrong beyond what its precision explains.

    `reference`: the FP32 graph; `asked`: the graph in the engine's precision, the same one for FP32 and TF32. `build` is called
    with `asked` and a few more outputs, two or three times. `look`: another way into the engine, such as debug tensors, which
    replaces `build`. Raises TrialError: engine-graph, engine-cut, parity-outputs, and what `build` raises.
    """
    names: list[str] = []

    def named(model: OnnxModel) -> Runner:
        runner = build(model)
        names.append(runner.name)
        return runner

    one, other = read_graph(reference.path), read_graph(asked.path)
    wiring, wired = wire(one), wire(other)
    control = None
    if reference.digest != asked.digest:
        control = rounded_graph(one, wiring, other, wired) if precision == "fp16" else other
    case = Case(
        reference=one,
        wiring=wiring,
        visible=frozenset(wired.maker),
        control=control,
        wiring_control=None if control is None else wire(control),
        precision=precision,
        batch=batch,
        look=look or look_by_outputs(asked, other, wired, folder, named, batch),
        threads=threads,
    )
    ends = case.wiring.outputs
    cuts = choose_cuts(case.wiring, ends, (), case.seams, most)
    points = _points(case, (*cuts, *ends), cuts, totals=True)
    regions = [Region(p.tensor, cuts, p) for p in points if p.excess > 1]
    faults, unconfirmed, looks = _pursue(case, regions, most)
    return LayerParity(
        engine=names[0] if names else asked.path,
        precision=precision,
        shape=tuple(batch.shape),
        points=points,
        faults=faults,
        unconfirmed=unconfirmed,
        looks=looks + 1,
        most_cuts=most,
    )


def _pursue(case: Case, regions: list[Region], most: int) -> tuple[tuple[LayerFault, ...], tuple[str, ...], int]:
    """Look into suspect regions, several at once, until each is one node or cannot be divided."""
    faults: dict[str, LayerFault] = {}
    unconfirmed: list[str] = []
    cleared: list[Region] = []
    looks = 0
    waiting = list(regions)
    while waiting:
        chosen = sorted(waiting, key=lambda region: -region.point.excess)[:SUSPECTS]
        waiting = [region for region in waiting if region not in chosen]
        inner = {region.end: _divide(case, region, max(1, most // len(chosen))) for region in chosen}
        whole = [region for region in chosen if not inner[region.end]]
        parted = [region for region in chosen if inner[region.end]]
        for region in whole:
            _name(case, region, faults, unconfirmed)
        if not parted:
            continue
        looks += 1
        found = _look_into(case, parted, inner)
        for region in parted:
            suspects = [part for part in found[region.end] if part.point.excess > 1]
            waiting += suspects
            if not suspects:
                cleared.append(region)
    known = {name for fault in faults.values() for name in fault.nodes}
    for region in cleared:
        # Segments of branches share nodes: what was found in one of them explains the others.
        inside = case.wiring.segment(region.end, region.given)
        if known.intersection(case.wiring.nodes[i].name for i in inside):
            continue
        if _seams(case, region, 1):  # no fused group, so nothing that only its parts together could do
            unconfirmed.append(region.end)
        else:
            _name(case, region, faults, unconfirmed)
    order = {name: index for index, name in enumerate(case.wiring.floats)}
    ordered = sorted(faults.values(), key=lambda fault: order[fault.tensor])
    return tuple(ordered), tuple(dict.fromkeys(unconfirmed)), looks


def _divide(case: Case, region: Region, most: int) -> tuple[str, ...]:
    """Seams inside the region; inside a fused group, which has none, its other tensors."""
    return _seams(case, region, most) or choose_cuts(case.wiring, (region.end,), region.given, case.inner, most)


def _seams(case: Case, region: Region, most: int) -> tuple[str, ...]:
    return choose_cuts(case.wiring, (region.end,), region.given, case.seams, most)


def _look_into(case: Case, regions: Sequence[Region], inner: Mapping[str, tuple[str, ...]]) -> dict[str, list[Region]]:
    """One look for all the regions: the parts of each, with their errors."""
    ends: list[str] = []
    given: list[str] = []
    for region in regions:
        begins = case.wiring.sources(region.end, region.given)
        ends += [*inner[region.end], region.end]
        given += [*begins, *inner[region.end]]
    points = {p.tensor: p for p in _points(case, tuple(dict.fromkeys(ends)), tuple(dict.fromkeys(given)))}
    return {
        region.end: [Region(end, (*region.given, *inner[region.end]), points[end]) for end in (*inner[region.end], region.end)]
        for region in regions
    }


def _name(case: Case, region: Region, faults: dict[str, LayerFault], unconfirmed: list[str]) -> None:
    """A region that cannot be divided, or whose parts are right, is at fault if long narrow sums do not explain it either."""
    inside = case.wiring.segment(region.end, region.given)
    point = region.point
    longest = math.sqrt(sum(roundings(case.wiring.layers[i]) ** 2 for i in inside if i in case.wiring.layers))
    widened = point.explained * max(1.0, longest / roundings(0))
    if point.local <= widened:
        unconfirmed.append(region.end)
        return
    nodes = [
        case.wiring.nodes[i] for i in sorted(inside) if any(name in case.wiring.floats for name in case.wiring.nodes[i].output)
    ]
    maker = case.wiring.nodes[case.wiring.maker[region.end]]
    faults[region.end] = LayerFault(
        nodes=tuple(node.name for node in nodes),
        operators=tuple(node.op_type for node in nodes),
        module=next((module for node in nodes if (module := module_of(node))), module_of(maker)),
        tensor=region.end,
        local=point.local,
        explained=widened,
        finite=point.finite,
    )


def _points(case: Case, ends: Sequence[str], given: Sequence[str], *, totals: bool = False) -> tuple[LayerPoint, ...]:
    """The engine looked into at `ends` and `given`, each end judged from the nearest of `given`; in graph order."""
    seen = case.look(tuple(dict.fromkeys((*given, *ends))))
    fed = {name: seen[name] for name in given}
    reference = run_segments(case.reference, case.wiring, ends, fed, case.batch, threads=case.threads)
    control: Mapping[str, NDArray[Any]] = {}
    if case.control is not None and case.wiring_control is not None:
        control = run_segments(case.control, case.wiring_control, ends, fed, case.batch, threads=case.threads)
    own = run_segments(case.reference, case.wiring, ends, {}, case.batch, threads=case.threads) if totals else {}
    order = {name: index for index, name in enumerate(case.wiring.floats)}
    found = []
    for end in sorted(ends, key=lambda name: order.get(name, len(order))):
        error = layer_error(reference[end], seen[end], control.get(end), case.precision)
        found.append(_point(case, end, given, error, total_error(own[end], seen[end]) if totals else 0.0))
    return tuple(found)


def _point(case: Case, end: str, given: Sequence[str], error: LayerError, total: float) -> LayerPoint:
    inside = case.wiring.segment(end, given)
    node = case.wiring.nodes[case.wiring.maker[end]]
    layers, nodes = case.wiring.weight(inside)
    return LayerPoint(
        tensor=end,
        node=node.name,
        operator=node.op_type,
        module=module_of(node),
        layers=layers,
        nodes=nodes,
        total=total,
        local=error.local,
        explained=error.explained,
        finite=error.finite,
    )
