"""Which layers a good compiler makes one kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from redline.plan.costs.algebra import Expr
from redline.records.cost import LayerCost

TAKES = ("conv", "depthwise", "matmul", "pointwise")
"""Kinds of kernels whose results a pointwise layer can take from registers."""
CURVES = ("Sigmoid", "Tanh", "Erf", "Exp", "Softplus", "HardSigmoid", "HardSwish", "Mish", "Gelu")
"""What no depthwise convolution takes: TensorRT 8.6 joined none of YOLOX-Nano's 30 to its SiLU, but 54 of the other 72
(benchmarks/results/2026-11-29-h200-tensorrt-yolox-nano-exact.json).
"""


@dataclass(frozen=True, slots=True)
class Work:
    layer: LayerCost
    places: Expr | None
    """Elements of its first output, whatever their type; None if its size is unknown."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(slots=True)
class Group:
    head: int
    """Place of the layer that gives the kernel its kind."""
    members: list[int] = field(default_factory=list)
    needs: set[int] = field(default_factory=set)
    """Groups whose results it reads."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def fused(works: Sequence[Work], aliases: Mapping[str, str], results: Set[str]) -> list[Group]:
    """Groups in order of their first layers. `results`: outputs of the graph.

    A pointwise layer joins the kernel that computed one of its inputs, if its output is as large and no other input waits for
    that kernel: a bias, an activation, a residual. A sigmoid and the product it gates become one, as x feeds both.
    A depthwise convolution takes no curve (`CURVES`). Kernels of unknown size stay alone.
    """
    groups: list[Group] = []
    maker: dict[str, int] = {}
    for place, work in enumerate(works):
        sources = {maker[root] for name in work.inputs if (root := aliases.get(name, name)) in maker}
        chosen = _host(work, sources, groups, works) if work.layer.kind == "pointwise" else None
        if chosen is None:
            chosen = len(groups)
            groups.append(Group(place))
        group = groups[chosen]
        group.members.append(place)
        group.needs |= sources - {chosen}
        maker.update(dict.fromkeys(work.outputs, chosen))
    _borders(groups, works, aliases, results)
    return groups


def _host(work: Work, sources: Set[int], groups: Sequence[Group], works: Sequence[Work]) -> int | None:
    for index in sorted(sources, reverse=True):
        head = works[groups[index].head]
        same = work.places is not None and head.places == work.places
        alone = head.layer.kind == "depthwise" and work.layer.operator in CURVES
        if same and not alone and head.layer.kind in TAKES and not _waits(sources - {index}, index, groups):
            return index
    return None


def _waits(starts: Set[int], target: int, groups: Sequence[Group]) -> bool:
    """Whether any of the groups needs the target's result, however indirectly."""
    left, seen = list(starts), set(starts)
    while left:
        index = left.pop()
        if index == target:
            return True
        new = groups[index].needs - seen
        seen |= new
        left.extend(new)
    return False


def _borders(groups: Sequence[Group], works: Sequence[Work], aliases: Mapping[str, str], results: Set[str]) -> None:
    """Tensors that cross each group's border: read once, written once if anyone outside wants them."""
    readers: dict[str, set[int]] = {}
    for index, group in enumerate(groups):
        for place in group.members:
            for name in works[place].inputs:
                readers.setdefault(aliases.get(name, name), set()).add(index)
    wanted = {aliases.get(name, name) for name in results}
    for index, group in enumerate(groups):
        made = [name for place in group.members for name in works[place].outputs]
        read = dict.fromkeys(aliases.get(name, name) for place in group.members for name in works[place].inputs)
        group.inputs = tuple(name for name in read if name not in made)
        group.outputs = tuple(name for name in made if name in wanted or readers.get(name, set()) - {index})
