"""Channels of unlike magnitude made alike before a tensor is rounded with one scale; exact in floating point.

Cross-layer equalisation (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.1): what a layer makes is divided by s for each channel, in its weights, and the layer that reads it multiplies. It
needs f(x / s) = f(x) / s of all that lies between, which SiLU and HardSwish lack. Before a depthwise layer the division can
stand in the graph instead, after any activation: its weights have a scale for each channel anyway, so that it costs no bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from redline.quantize.placement import ACTIVATIONS, HEAVY
from redline.records.quantize import ChannelFactors, Equalisation

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

HOMOGENEOUS = frozenset({"Identity", "Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize"})
"""f(x / s) = f(x) / s for a positive s of each channel; Resize with `_plain_resize`, PRelu for any slopes that are constant."""
SILU = ("Mul", "Sigmoid")
SHARED = "shared or computed weights"
LIMIT = 64.0
"""Largest factor either way: a channel's weights of 0.5 then still have an INT8 scale (0.5 / 64 / 127 = 6.2e-5) that float16
holds with all its bits."""
SWEEPS = 100
TOLERANCE = 1e-3
"""Of the last sweep's factors from 1: far below the step of a weight in INT8."""
ALIKE = 2.0
"""Channels whose peaks differ by less lose less than one bit to a common scale, and are not worth a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What `first` makes reaches `second` and nobody else; it is the channels from `offset` on of what that reads."""

    first: str
    second: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A depthwise layer and the tensor that it alone reads."""

    node: str
    tensor: str


class _Reading:
    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.maker = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.nodes:
            for port, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, port))

    def own_weights(self, node: onnx.NodeProto) -> bool:
        """A convolution whose weight and bias are constants that no other node reads."""
        names = [name for name in node.input[1:] if name]
        return node.op_type == "Conv" and all(name in self.weights and len(self.readers[name]) == 1 for name in names)

    def channels(self, tensor: str) -> int | None:
        node = self.maker.get(tensor)
        if node is None:
            return None
        if node.op_type == "Conv":
            return int(self.weights[node.input[1]].dims[0]) if node.input[1] in self.weights else None
        if node.op_type == "Concat" and _number(node, "axis") == 1:
            parts = [self.channels(name) for name in node.input]
            return None if None in parts else sum(part for part in parts if part is not None)
        if node.op_type in HOMOGENEOUS or node.op_type in ("Sigmoid", "HardSwish", "HardSigmoid", "Tanh", "Clip"):
            return self.channels(node.input[0])
        if node.op_type in ("Add", "Mul"):
            found = {self.channels(name) for name in node.input}
            return found.pop() if len(found) == 1 else None
        return None

    def sizes(self, name: str) -> NDArray[np.float64]:
        """(groups, made by each, read by each): largest magnitude of a convolution's weights over its kernel."""
        from onnx import numpy_helper

        node = next(node for node in self.nodes if node.name == name)
        weight: NDArray[np.float64] = np.abs(numpy_helper.to_array(self.weights[node.input[1]]).astype(np.float64))
        groups = _number(node, "group", 1)
        largest: NDArray[np.float64] = weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:]))).max(axis=3)
        return largest


def find_pairs(model: onnx.ModelProto) -> tuple[tuple[Pair, ...], tuple[tuple[str, int], ...]]:
    """The pairs of convolutions that can be equalised exactly; of all other convolutions, how many for which reason."""
    graph = _Reading(model)
    taken: list[Pair] = []
    passed = Counter[str]()
    for node in graph.nodes:
        if node.op_type == "Conv" and node.input[1] in graph.weights:
            found = _reader(graph, node)
            if isinstance(found, str):
                passed[found] += 1
            else:
                taken.append(found)
    return tuple(taken), tuple(passed.most_common())


def equalise(model: onnx.ModelProto, pairs: Sequence[Pair]) -> tuple[ChannelFactors, ...]:
    """Factors of the layers in `pairs`, swept over until they change no more.

    For a channel with largest weights r1 where it is made and r2 where it is read, s = sqrt(r1 / r2) makes both sqrt(r1 r2)
    (Nagel et al. 2019, equation 11). Channels with no weight on a side are left as they are.
    """
    graph = _Reading(model)
    sizes = {name: graph.sizes(name) for name in dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second))}
    made = {pair.first: np.ones(sizes[pair.first][..., 0].size) for pair in pairs}
    read = {pair.second: np.ones(sizes[pair.second][:, 0].size) for pair in pairs}
    for _ in range(SWEEPS):
        moved = 0.0
        for pair in pairs:
            one, two = sizes[pair.first], sizes[pair.second]
            place = slice(pair.offset, pair.offset + made[pair.first].size)
            r1, r2 = one.max(axis=2).reshape(-1), two.max(axis=1).reshape(-1)[place]
            some = (r1 > 0) & (r2 > 0)
            s = np.sqrt(np.divide(r1, r2, out=np.ones_like(r1), where=some))
            s = np.clip(made[pair.first] * s, 1 / LIMIT, LIMIT) / made[pair.first]
            every = np.ones(read[pair.second].size)
            every[place] = s
            one /= s.reshape(one.shape[:2])[..., None]
            two *= every.reshape(two.shape[0], 1, -1)
            made[pair.first] *= s
            read[pair.second] *= every
            moved = max(moved, float(np.abs(np.log(s)).max(initial=0.0)))
        if moved < TOLERANCE:
            break
    names = [node.name for node in graph.nodes if node.name in sizes]
    return tuple(ChannelFactors(node=name, made=_listed(made.get(name)), read=_listed(read.get(name))) for name in names)


def equalised(model: onnx.ModelProto) -> Equalisation:
    pairs, passed = find_pairs(model)
    return Equalisation(factors=equalise(model, pairs), taken=len(pairs), passed=passed)


def scalable(model: onnx.ModelProto, factors: Sequence[ChannelFactors]) -> tuple[tuple[Edge, ...], tuple[tuple[str, int], ...]]:
    """Inputs of depthwise layers that can be divided in the graph; of the other depthwise layers, how many for which reason.

    The division is for a compiler to compute where the tensor is made: that must be in a layer or its activation, and for
    this reader alone. `factors`: whose inputs are in other units already is left out.
    """
    graph, done = _Reading(model), {entry.node for entry in factors if entry.read}
    edges: list[Edge] = []
    passed = Counter[str]()
    for node in graph.nodes:
        if node.op_type != "Conv" or node.input[1] not in graph.weights or not _depthwise(graph, node):
            continue
        tensor = node.input[0]
        maker = graph.maker.get(tensor)
        if node.name in done:
            passed["equalised with the layer before"] += 1
        elif len(graph.readers[tensor]) > 1 or tensor in graph.outputs:
            passed["others read its input"] += 1
        elif maker is None or maker.op_type not in ACTIVATIONS.union(HEAVY, ("Add",)):
            passed[f"reads {'the input' if maker is None else maker.op_type}"] += 1
        else:
            edges.append(Edge(node=node.name, tensor=tensor))
    return tuple(edges), tuple(passed.most_common())


def scaled_inputs(edges: Sequence[Edge], peaks: Mapping[str, NDArray[np.float64]]) -> tuple[ChannelFactors, ...]:
    """Factors that give all channels of each input the same peak, where they are not alike already.

    `peaks`: largest magnitude of each channel of the tensors. The geometric mean stays, so that neither the input nor the
    weights leave float16.
    """
    found = []
    for edge in edges:
        peak = np.asarray(peaks[edge.tensor], np.float64)
        alive = peak[peak > 0]
        if not alive.size or alive.max() < ALIKE * alive.min():
            continue
        mean = np.exp(np.log(alive).mean())
        read = np.clip(np.where(peak > 0, peak, mean) / mean, 1 / LIMIT, LIMIT)
        found.append(ChannelFactors(node=edge.node, read=_listed(read), divide=True))
    return tuple(found)


def joined(factors: Sequence[ChannelFactors], more: Sequence[ChannelFactors]) -> tuple[ChannelFactors, ...]:
    """`factors` with divided inputs as well; no layer has its input changed by both."""
    added = {entry.node: entry for entry in more}
    both = [replace(e, read=added[e.node].read, divide=True) if e.node in added else e for e in factors]
    return (*both, *(entry for name, entry in added.items() if name not in {e.node for e in factors}))


def _reader(graph: _Reading, first: onnx.NodeProto) -> Pair | str:
    """The pair that begins with `first`, or why there is none."""
    if not graph.own_weights(first):
        return SHARED
    tensor, offset = first.output[0], 0
    while tensor not in graph.outputs:
        readers = graph.readers.get(tensor, [])
        if tuple(sorted(node.op_type for node, _ in readers)) == SILU:
            return "SiLU"
        if len(readers) != 1:
            return "several readers"
        node, port = readers[0]
        if node.op_type == "Conv":
            pair = Pair(first=first.name, second=node.name, offset=offset)
            return pair if graph.own_weights(node) and not port else SHARED
        if node.op_type == "Concat":
            before = [graph.channels(name) for name in node.input[:port]]
            if _number(node, "axis") != 1 or None in before:
                return "Concat of unknown channels"
            offset += sum(part for part in before if part is not None)
        elif node.op_type not in HOMOGENEOUS or port or not _exact(graph, node):
            return str(node.op_type)
        tensor = node.output[0]
    return "an output of the network"


def _exact(graph: _Reading, node: onnx.NodeProto) -> bool:
    """Each channel by itself, times a constant: PRelu with constant slopes, Resize to the nearest that keeps channels."""
    if node.op_type == "PRelu":
        return node.input[1] in graph.weights
    if node.op_type != "Resize":
        return True
    from onnx import numpy_helper

    scales = graph.weights.get(node.input[2]) if len(node.input) > 2 else None
    nearest = all(a.s == b"nearest" for a in node.attribute if a.name == "mode")
    return nearest and scales is not None and bool(numpy_helper.to_array(scales)[1] == 1)


def _depthwise(graph: _Reading, node: onnx.NodeProto) -> bool:
    return _number(node, "group", 1) > 1 and graph.weights[node.input[1]].dims[1] == 1


def _number(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _listed(values: NDArray[np.float64] | None) -> tuple[float, ...]:
    return () if values is None else tuple(float(value) for value in values)
