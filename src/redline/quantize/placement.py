"""Where a graph is rounded to INT8 so that compilers fuse it (docs/int8.md).

Each quantised convolution reads INT8. An addition that ends a residual branch is computed in the convolution before it, if
the other branch arrives in INT8: that one is rounded, the convolution's own is not. What copies values (pooling by maximum,
Resize to the nearest, Concat) hands on INT8 if all its readers take it, and then input and output share a scale.

In FP8 the same without what copies values, and without layers that have no FP8 kernel: TensorRT's are for convolutions,
products and the addition after them (ModelOpt rounds no others: modelopt/onnx/quantization/fp8.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from redline.records.quantize import Number, Placement8, QuantPoint

if TYPE_CHECKING:
    import onnx

HEAVY = ("Conv", "Gemm", "MatMul")
ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Mul", "LeakyRelu", "HardSwish", "HardSigmoid", "Clip", "Tanh"})
COPIES = frozenset({"MaxPool", "Resize"})
MAKERS = frozenset({*HEAVY, *ACTIVATIONS, *COPIES, "Add", "Concat"})
"""Operators whose result can be written in INT8 by the kernel that computes it."""
FP8_CHANNELS, FP8_KERNEL = 16, 32
"""Least channels, in and out, and most places of a kernel of a convolution in FP8; beyond, and in groups, TensorRT computes in
FP16 or FP32 (release notes of 10.12 and 10.16, limitations; ModelOpt's find_nodes_from_convs_to_exclude)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    nodes: tuple[onnx.NodeProto, ...]
    maker: Mapping[str, int]
    readers: Mapping[str, tuple[tuple[int, int], ...]]
    """tensor -> (node, input) that read it."""
    weights: frozenset[str]
    outputs: frozenset[str]


def heavy_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes with weights that can be quantised, in graph order."""
    graph = _read(model)
    return tuple(node.name for node in graph.nodes if node.op_type in HEAVY and _weighted(graph, node))


def rounded_nodes(model: onnx.ModelProto, number: Number) -> tuple[str, ...]:
    """Names of the heavy nodes that are rounded to `number`: all to INT8, those with a kernel for it to FP8."""
    heavy = heavy_nodes(model)
    if number == "int8":
        return heavy
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    return tuple(name for name in heavy if _fits_fp8(nodes[name], shapes[nodes[name].input[1]]))


def _fits_fp8(node: onnx.NodeProto, shape: tuple[int, ...]) -> bool:
    grouped = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    return not grouped and len(shape) >= 2 and min(shape[:2]) >= FP8_CHANNELS and prod(shape[2:]) <= FP8_KERNEL


def place(model: onnx.ModelProto, quantised: Collection[str], *, share: bool = True, copies: bool = True) -> Placement8:
    """Points for the nodes named in `quantised`. `share`: one scale over a Concat's inputs and output.

    `copies`: what copies values hands on what its readers take.
    """
    graph = _read(model)
    points: dict[tuple[int, int], str] = {}
    chosen = [i for i, node in enumerate(graph.nodes) if node.name in quantised]
    for index in chosen:
        points[index, 0] = graph.nodes[index].input[0]
    _residuals(graph, points, set(chosen))
    if copies:
        _copies(graph, points, share)
    ordered = sorted(points)
    return Placement8(
        points=tuple(QuantPoint(node=graph.nodes[i].name, input=port, tensor=points[i, port]) for i, port in ordered),
        weights=tuple(graph.nodes[i].name for i in chosen),
        shared=_groups(graph, points, share),
    )


def roundable(model: onnx.ModelProto) -> tuple[str, ...]:
    """Every tensor that some choice of nodes rounds or shares a scale with, in graph order."""
    graph, placement = _read(model), place(model, heavy_nodes(model))
    names = {*(point.tensor for point in placement.points), *(name for group in placement.shared for name in group)}
    adds = [
        node for node in graph.nodes if node.op_type == "Add" and any(point.node == node.name for point in placement.points)
    ]
    names |= {name for node in adds for name in node.input}
    return tuple(sorted(names, key=lambda name: graph.maker.get(name, -1)))


def with_activations(model: onnx.ModelProto, names: Collection[str]) -> tuple[str, ...]:
    """The nodes called `names` and the activations that follow them before anything else, in graph order."""
    graph = _read(model)
    found = {index for index, node in enumerate(graph.nodes) if node.name in names}
    waiting = sorted(found)
    while waiting:
        for name in graph.nodes[waiting.pop()].output:
            after = {i for i, _ in graph.readers.get(name, ()) if graph.nodes[i].op_type in ACTIVATIONS} - found
            found |= after
            waiting += after
    return tuple(graph.nodes[index].name for index in sorted(found))


def _read(model: onnx.ModelProto) -> _Graph:
    nodes = tuple(model.graph.node)
    readers: dict[str, list[tuple[int, int]]] = {}
    for index, node in enumerate(nodes):
        for port, name in enumerate(node.input):
            if name:
                readers.setdefault(name, []).append((index, port))
    return _Graph(
        nodes=nodes,
        maker={name: index for index, node in enumerate(nodes) for name in node.output if name},
        readers={name: tuple(found) for name, found in readers.items()},
        weights=frozenset(weight.name for weight in model.graph.initializer),
        outputs=frozenset(value.name for value in model.graph.output),
    )


def _weighted(graph: _Graph, node: onnx.NodeProto) -> bool:
    return node.input[0] not in graph.weights and node.input[1] in graph.weights


def _residuals(graph: _Graph, points: dict[tuple[int, int], str], chosen: set[int]) -> None:
    """The branch of an addition that is not computed by the kernel before it, where its result is read in INT8."""
    for index, node in enumerate(graph.nodes):
        if node.op_type != "Add" or not graph.weights.isdisjoint(node.input):
            continue
        own = [port for port in (0, 1) if _layer_before(graph, node.input[port]) in chosen]
        if not own:
            continue
        # Of two convolutions the later one adds: the earlier one's result is in memory by then.
        kept = max(own, key=lambda port: graph.maker[node.input[port]])
        other = node.input[1 - kept]
        if graph.nodes[graph.maker[other]].op_type in MAKERS if other in graph.maker else False:
            points[index, 1 - kept] = other


def _layer_before(graph: _Graph, tensor: str) -> int | None:
    """The layer whose result reaches `tensor` through activations alone and goes nowhere else."""
    if len(graph.readers.get(tensor, ())) != 1 or tensor in graph.outputs:
        return None
    while tensor in graph.maker:
        index = graph.maker[tensor]
        node = graph.nodes[index]
        if node.op_type in HEAVY:
            return index
        if node.op_type not in ACTIVATIONS:
            return None
        tensor = node.input[0]
    return None


def _copies(graph: _Graph, points: dict[tuple[int, int], str], share: bool) -> None:
    kinds = COPIES | {"Concat"} if share else COPIES
    for index in reversed(range(len(graph.nodes))):
        node = graph.nodes[index]
        if node.op_type not in kinds or node.output[0] in graph.outputs or not _copies_values(node):
            continue
        readers = graph.readers.get(node.output[0], ())
        sources = node.input if node.op_type == "Concat" else node.input[:1]
        made = all(name in graph.maker and graph.nodes[graph.maker[name]].op_type in MAKERS for name in sources)
        if made and readers and all(reader in points for reader in readers):
            points.update({(index, port): name for port, name in enumerate(sources)})


def _copies_values(node: onnx.NodeProto) -> bool:
    """A Resize by anything but the nearest makes new values."""
    return (
        node.op_type != "Resize"
        or any(a.name == "mode" and a.s == b"nearest" for a in node.attribute)
        or not any(a.name == "mode" for a in node.attribute)
    )


def _groups(graph: _Graph, points: Mapping[tuple[int, int], str], share: bool) -> tuple[tuple[str, ...], ...]:
    """Tensors joined by the copies between them, in graph order; groups of one are left out."""
    joined: dict[str, set[str]] = {}
    for (index, _), tensor in sorted(points.items()):
        node = graph.nodes[index]
        if node.op_type in COPIES or (share and node.op_type == "Concat"):
            group = joined.setdefault(tensor, {tensor}) | joined.setdefault(node.output[0], {node.output[0]})
            for name in group:
                joined[name] = group
    kept: dict[int, set[str]] = {id(group): group for group in joined.values()}
    return tuple(sorted(tuple(sorted(group, key=lambda name: graph.maker.get(name, -1))) for group in kept.values()))
