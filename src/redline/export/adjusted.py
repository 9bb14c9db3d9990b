"""A graph before it is rounded: channels in other units, which changes no result, and biases that make up for rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from redline.errors import BadInput
from redline.records.quantize import ChannelFactors, LayerBias

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIX = "calibrate again, on the graph that is rounded"


def adjust(model: onnx.ModelProto, factors: Sequence[ChannelFactors], biases: Sequence[LayerBias] = ()) -> onnx.ModelProto:
    """A copy with `factors` and then `biases` applied, in the type that each weight has; the model itself if there are none.

    An input that is to be divided is multiplied by the inverse in a node of its own, named NODE_divide, which makes the tensor
    NODE_divided. Raises BadInput: quantize.factors if one does not fit the node, is not finite, or is no positive factor.
    """
    if not factors and not biases:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    editor = _Editor(copy.graph)
    for entry in factors:
        editor.rescale(entry)
    for bias in biases:
        editor.add_bias(bias)
    editor.finish()
    return copy


class _Editor:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph.node}
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.divisions: dict[str, onnx.NodeProto] = {}
        """By the node that reads what each makes."""
        self.reads: dict[str, int] = {}
        for name in (name for node in graph.node for name in node.input):
            self.reads[name] = self.reads.get(name, 0) + 1

    def rescale(self, entry: ChannelFactors) -> None:
        node, weight = self._layer(entry.node)
        if entry.made:
            made = _checked(entry.made, weight.shape[0], entry.node)
            weight /= made.reshape(-1, *[1] * (weight.ndim - 1))
            if len(node.input) > 2 and node.input[2]:
                self._write(node, 2, self._values(node, 2) / made)
        if entry.read:
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            read = _checked(entry.read, groups * weight.shape[1], entry.node)
            parts = weight.reshape(groups, -1, *weight.shape[1:])
            weight = (parts * read.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
            if entry.divide:
                self._divide(node, read)
        self._write(node, 1, weight)

    def add_bias(self, entry: LayerBias) -> None:
        node, weight = self._layer(entry.node)
        added = _checked(entry.added, weight.shape[0], entry.node, positive=False)
        if len(node.input) > 2 and node.input[2]:
            self._write(node, 2, self._values(node, 2) + added)
            return
        kind = numpy_helper.to_array(self.weights[node.input[1]]).dtype
        name = f"{entry.node}_added_bias"
        self.graph.initializer.append(numpy_helper.from_array(_narrowed(added, kind, entry.node), name))
        del node.input[2:]
        node.input.append(name)

    def finish(self) -> None:
        """Divisions before the nodes that read what they make."""
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            if node.name in self.divisions:
                nodes.append(self.divisions[node.name])
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _layer(self, name: str) -> tuple[onnx.NodeProto, NDArray[np.float64]]:
        node = self.nodes.get(name)
        if node is None or node.op_type != "Conv":
            got = f"{name}, {'which is not there' if node is None else node.op_type}"
            raise BadInput(
                "quantize.factors", "The table changes the channels of a node that is no convolution", got=got, fix=FIX
            )
        return node, self._values(node, 1)

    def _values(self, node: onnx.NodeProto, port: int) -> NDArray[np.float64]:
        if node.input[port] not in self.weights:
            got = f"input {port} of node {node.name}"
            raise BadInput("quantize.factors", "The table changes a weight that is no constant", got=got, fix=FIX)
        values: NDArray[np.float64] = numpy_helper.to_array(self.weights[node.input[port]]).astype(np.float64)
        return values

    def _write(self, node: onnx.NodeProto, port: int, values: NDArray[np.float64]) -> None:
        """In place where no other node reads it, so that names, which say where a weight came from, stay."""
        name = node.input[port]
        kind = numpy_helper.to_array(self.weights[name]).dtype
        array = _narrowed(values, kind, node.name)
        if self.reads[name] == 1:
            self.weights[name].CopyFrom(numpy_helper.from_array(array, name))
            return
        self.reads[name] -= 1
        own = f"{name}_of_{node.name}"
        self.graph.initializer.append(numpy_helper.from_array(array, own))
        self.weights[own], self.reads[own] = self.graph.initializer[-1], 1
        node.input[port] = own

    def _divide(self, node: onnx.NodeProto, read: NDArray[np.float64]) -> None:
        kind = numpy_helper.to_array(self.weights[node.input[1]]).dtype
        rank = len(self.weights[node.input[1]].dims)
        inverse = _narrowed(1 / read, kind, node.name).reshape(-1, *[1] * (rank - 2))
        label = f"{node.name}_divide"
        self.graph.initializer.append(numpy_helper.from_array(inverse, f"{label}_by"))
        self.divisions[node.name] = helper.make_node("Mul", [node.input[0], f"{label}_by"], [f"{label}d"], name=label)
        node.input[0] = f"{label}d"


def _checked(values: Sequence[float], size: int, node: str, *, positive: bool = True) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    what = "The table does not fit this graph's channels"
    if array.size != size:
        got = f"{array.size} values for the {size} channels of node {node}"
        raise BadInput("quantize.factors", what, got=got, fix=FIX)
    if not np.isfinite(array).all() or (positive and (array <= 0).any()):
        bad = array[~np.isfinite(array) | (array <= 0 if positive else False)][0]
        allowed = "finite, above 0" if positive else "finite"
        raise BadInput("quantize.factors", what, got=f"{bad} for a channel of node {node}", allowed=allowed, fix=FIX)
    return array


def _narrowed(values: NDArray[np.float64], kind: Any, node: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        array: NDArray[Any] = values.astype(kind)
    if not np.isfinite(array).all():
        got = f"{np.abs(values).max():g} in node {node}"
        raise BadInput("quantize.factors", f"A weight with the table's factors does not fit {kind}", got=got, fix=FIX)
    return array
