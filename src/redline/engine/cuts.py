"""Where a graph can be looked into without changing what a compiler makes of it, and the graphs that do so.

A *seam* is a tensor that lies in memory whatever is fused: some reader of it is no element-wise operator (a convolution, a
Concat, a Resize, ... reads its input from memory; only element-wise operators are computed inside the kernel before them), or
it is an output of the graph. Giving a seam out costs its copy and breaks no fusion. Tensors inside a fused group are looked at
only when the group itself is already under suspicion.

`choose_cuts` takes at most a stated number of seams: time and again the segment with most layers (nodes with weights) is cut at
the seam that leaves the smaller largest half. `split_graph` makes every segment read what it is given instead of what the
segment before it computed, so that each segment's error can be seen alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from redline.engine.graph_facts import infer

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
ELEMENTWISE = frozenset({
    "Abs", "Add", "BatchNormalization", "Cast", "Ceil", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu", "Where",
})  # fmt: skip
"""Operators that compilers compute inside the kernel that made their input."""
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU"})
SIZES = frozenset({"Shape", "Size"})
"""What they read matters by its shape alone: no error passes through."""
GIVEN = "__given"


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """Who makes and who reads each tensor of a graph, by index of the node; nodes are in topological order."""

    nodes: tuple[onnx.NodeProto, ...]
    maker: dict[str, int]
    readers: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    kinds: dict[str, int]
    """Element type of each tensor that inference knows."""
    layers: dict[int, int]
    """Nodes of `LAYERS` with weights of their own, what a segment's size is counted in; and the length of the sums in each."""

    @property
    def floats(self) -> tuple[str, ...]:
        """Floating-point tensors that nodes make from other tensors, in topological order."""
        return tuple(name for node in self.nodes if any(node.input) for name in node.output if self.kinds.get(name) in FLOATS)

    @property
    def seams(self) -> tuple[str, ...]:
        def is_seam(name: str) -> bool:
            read = [self.nodes[i].op_type for i in self.readers.get(name, ())]
            return name in self.outputs or any(kind not in ELEMENTWISE and kind not in SIZES for kind in read)

        return tuple(name for name in self.floats if is_seam(name))

    def segment(self, tensor: str, cuts: Collection[str]) -> frozenset[int]:
        """Nodes that `tensor` is computed by from `cuts` (itself aside), the graph's inputs and weights."""
        found: set[int] = set()
        waiting = [tensor]
        while waiting:
            name = waiting.pop()
            at = self.maker.get(name)
            if at is None or at in found or (name in cuts and name != tensor):
                continue
            found.add(at)
            if self.nodes[at].op_type not in SIZES:
                waiting.extend(self.nodes[at].input)
        return frozenset(found)

    def sources(self, tensor: str, cuts: Collection[str]) -> tuple[str, ...]:
        """The cuts that `tensor`'s segment reads."""
        inside = self.segment(tensor, cuts)
        read = {name for i in inside if self.nodes[i].op_type not in SIZES for name in self.nodes[i].input}
        return tuple(name for name in cuts if name in read and name != tensor)

    def weight(self, nodes: Collection[int]) -> tuple[int, int]:
        """(layers, nodes): what a segment's size is measured by."""
        return sum(index in self.layers for index in nodes), len(nodes)


def wire(model: onnx.ModelProto) -> Wiring:
    """Raises TrialError: engine-graph if its types cannot be inferred."""
    graph = model.graph
    values = {value.name: value for value in infer(model)}
    kinds = {name: value.type.tensor_type.elem_type for name, value in values.items()}
    weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(index)
    return Wiring(
        nodes=tuple(graph.node),
        maker={name: index for index, node in enumerate(graph.node) for name in node.output if name},
        readers={name: tuple(found) for name, found in readers.items()},
        outputs=tuple(value.name for value in graph.output),
        kinds=kinds,
        layers={i: length for i, node in enumerate(graph.node) if (length := _length(node, weights))},
    )


def choose_cuts(
    wiring: Wiring, ends: Sequence[str], given: Collection[str], among: Sequence[str], most: int
) -> tuple[str, ...]:
    """At most `most` of the tensors `among` that divide the segments which end in `ends` and begin at `given`, in graph order.

    Greedy: the heaviest segment is cut where the heavier of the two parts is lightest, until no cut is left or none divides.
    """
    cuts: list[str] = []
    whole = {end: wiring.segment(end, {*given, *ends}) for end in ends}
    while len(cuts) < most:
        known = {*given, *ends, *cuts}
        best: tuple[tuple[int, int], str] | None = None
        for end in sorted(whole, key=lambda name: wiring.weight(whole[name]), reverse=True):
            size = wiring.weight(whole[end])
            for name in among:
                if name in known or wiring.maker[name] not in whole[end]:
                    continue
                inner = wiring.segment(name, known | {name})
                rest = wiring.segment(end, known | {name})
                worst = max(wiring.weight(inner), wiring.weight(rest))
                if worst < size and (best is None or worst < best[0]):
                    best = (worst, name)
            if best is not None:
                break
        if best is None:
            break
        cuts.append(best[1])
        known.add(best[1])
        whole = {end: wiring.segment(end, known) for end in (*ends, *cuts)}
    order = {name: index for index, name in enumerate(wiring.floats)}
    return tuple(sorted(cuts, key=lambda name: order[name]))


def cut_graph(model: onnx.ModelProto, wiring: Wiring, cuts: Sequence[str]) -> onnx.ModelProto:
    """The same graph with `cuts` as further outputs, after its own and in this order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    for name in cuts:
        if name not in known:
            copy.graph.output.append(helper.make_tensor_value_info(name, wiring.kinds[name], None))
    return copy


def split_graph(model: onnx.ModelProto, wiring: Wiring, ends: Sequence[str], given: Sequence[str]) -> onnx.ModelProto:
    """Outputs `ends`; whoever reads a tensor of `given` reads the input of that name (+ `GIVEN`) instead.

    Nodes that no end needs are left out. Inputs: the graph's own where still read, then those of `given` that are read.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    renamed = {name: name + GIVEN for name in given}
    for node in copy.graph.node:
        for place, name in enumerate(node.input):
            if name in renamed:
                node.input[place] = renamed[name]
    needed = _needed(copy.graph, ends)
    nodes = [node for index, node in enumerate(copy.graph.node) if index in needed]
    read = {name for node in nodes for name in node.input}
    inputs = [value for value in copy.graph.input if value.name in read]
    inputs += [helper.make_tensor_value_info(renamed[n], wiring.kinds[n], None) for n in given if renamed[n] in read]
    outputs = [helper.make_tensor_value_info(name, wiring.kinds[name], None) for name in ends]
    weights = [weight for weight in copy.graph.initializer if weight.name in read]
    graph = helper.make_graph(nodes, "split", inputs, outputs, weights)
    result: onnx.ModelProto = helper.make_model(graph, opset_imports=copy.opset_import, ir_version=copy.ir_version)
    return result


def _length(node: onnx.NodeProto, weights: dict[str, tuple[int, ...]]) -> int:
    """How many products each value of a layer sums; 0 for a node that is none."""
    shapes = [weights[name] for name in node.input if name in weights]
    if node.op_type not in LAYERS or not shapes:
        return 0
    kernel = max(shapes, key=math.prod)
    if node.op_type in ("MatMul", "ConvTranspose"):
        return max(1, math.prod(kernel) // kernel[-1 if node.op_type == "MatMul" else 1])
    return max(1, math.prod(kernel[1:]))


def _needed(graph: onnx.GraphProto, ends: Sequence[str]) -> set[int]:
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    found: set[int] = set()
    waiting = list(ends)
    while waiting:
        at = maker.get(waiting.pop())
        if at is not None and at not in found:
            found.add(at)
            waiting.extend(graph.node[at].input)
    return found
