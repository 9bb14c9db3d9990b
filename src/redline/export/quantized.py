"""INT8 and FP8 as a property of the graph: QuantizeLinear and DequantizeLinear around what a table names (docs/int8.md)."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from redline.errors import BadInput, TrialError
from redline.export.adjusted import adjust
from redline.records import OnnxModel
from redline.records.quantize import Number, QuantTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS = 127
LARGEST: dict[Number, float] = {"int8": LEVELS, "fp8": 448.0}
"""What the largest magnitude becomes. 448 = 1.75 * 2^8 is E4M3's largest number: QuantizeLinear saturates there, and TensorRT
clips to -448 .. 448 (its developer guide, "Quantization Schemes")."""
KINDS: dict[Number, int] = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
HALF_OPSET = 19
"""The first in which scales, and what is rounded, may be float16, and zero points float8e4m3fn."""
LEAST_IR = 9
"""The first IR with float8e4m3fn."""


def structure_of(model: onnx.ModelProto) -> str:
    """sha256 of operators, wiring and weights' shapes in graph order, whatever tensors are called."""
    known: dict[str, str] = {weight.name: f"w{list(weight.dims)}" for weight in model.graph.initializer}
    known |= {value.name: f"i{place}" for place, value in enumerate(model.graph.input)} | {"": ""}
    digest = hashlib.sha256()
    for index, node in enumerate(model.graph.node):
        digest.update(f"{node.op_type}({','.join(known[name] for name in node.input)});".encode())
        known |= {name: f"{index}.{port}" for port, name in enumerate(node.output)}
    return digest.hexdigest()


def export_int8(network: OnnxModel, folder: Path, table: QuantTable, *, name: str = "network_int8") -> OnnxModel:
    """Write NAME.onnx to `folder`: `network`, in FP32 or FP16, with the table's points rounded to its numbers and back.

    An FP32 graph in INT8 keeps its opset and is what TensorRT 8.6 and ONNX Runtime take; an FP16 graph, and every one in FP8,
    becomes opset 19, for strongly typed TensorRT and ONNX Runtime. Weights stay floating point and are rounded in the graph,
    which every TensorRT folds: 8.6 takes no INT8 weights. The table's factors and biases come first. Raises BadInput:
    quantize.already, quantize.node, quantize.graph, quantize.scale, quantize.factors.
    """
    model = onnx.load(network.path)
    require_unquantised(model, network.path)
    table = matched(model, table)
    model = adjust(model, table.factors, table.biases)
    graph = model.graph
    half = any(weight.data_type == TensorProto.FLOAT16 for weight in graph.initializer)
    writer = _Writer(model, np.float16 if half else np.float32, table.number)
    scales = dict(table.scales)
    nodes = {node.name: node for node in graph.node}
    for point in table.points:
        writer.round_input(nodes[point.node], point.input, scales[point.tensor])
    for weighted in table.weights:
        writer.round_weight(nodes[weighted])
    writer.finish()
    if half or table.number == "fp8":
        _raise_opset(model)
    path = folder / f"{name}.onnx"
    data = model.SerializeToString(deterministic=True)
    path.write_bytes(data)
    note = f"{table.number} in {len(table.weights)} layers, {table.method} ranges of {len(table.calibration.images)} images"
    return replace(network, path=str(path), digest=hashlib.sha256(data).hexdigest(), notes=(*network.notes, note))


def require_unquantised(model: onnx.ModelProto, path: str) -> None:
    """Raises BadInput: quantize.already."""
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        fix = "give the graph as it was before it was quantised"
        raise BadInput("quantize.already", "The graph is quantised already", got=path, fix=fix)


def matched(model: onnx.ModelProto, table: QuantTable) -> QuantTable:
    """The table in this graph's names: as they are where all exist, by position where the structure is the same.

    Raises BadInput: quantize.graph naming a missing node and the nearest there is.
    """
    names = [node.name for node in model.graph.node]
    changed = {*(entry.node for entry in table.factors), *(entry.node for entry in table.biases)}
    wanted = {*(point.node for point in table.points), *table.weights, *changed}
    missing = wanted.difference(names)
    if not missing:
        return table
    if wanted.issubset(table.order) and structure_of(model) == table.structure:
        now = dict(zip(table.order, names, strict=True))
        points = tuple(replace(point, node=now[point.node]) for point in table.points)
        factors = tuple(replace(entry, node=now[entry.node]) for entry in table.factors)
        biases = tuple(replace(entry, node=now[entry.node]) for entry in table.biases)
        weights = tuple(now[name] for name in table.weights)
        read = {node.name: node.input for node in adjust(model, factors, biases).graph.node}
        here = {old.tensor: read[new.node][new.input] for old, new in zip(table.points, points, strict=True)}
        points = tuple(replace(point, tensor=here[point.tensor]) for point in points)
        scales = tuple((here.get(tensor, tensor), scale) for tensor, scale in table.scales)
        return replace(table, points=points, weights=weights, scales=scales, order=tuple(names), factors=factors, biases=biases)
    name = next((point.node for point in table.points if point.node in missing), min(missing))
    raise unknown_node(name, names, "quantize.graph", "The table is of another network: it names a node that is not there")


def unknown_node(name: str, names: Sequence[str], code: str, what: str) -> BadInput:
    near = difflib.get_close_matches(name, names, 1)
    return BadInput(code, what, got=name, fix=f"did you mean {near[0]}?" if near else "see the graph's node names")


class _Writer:
    """Adds pairs to a graph, one for each tensor and scale, however many nodes read it."""

    def __init__(self, model: onnx.ModelProto, kind: Any, number: Number) -> None:
        self.graph, self.kind, self.number = model.graph, kind, number
        self.weights: Mapping[str, onnx.TensorProto] = {weight.name: weight for weight in model.graph.initializer}
        self.pairs: dict[tuple[str, float], str] = {}
        self.added: list[onnx.NodeProto] = []
        self.zeros: dict[int, str] = {}

    def round_input(self, node: onnx.NodeProto, port: int, scale: float) -> None:
        if not np.isfinite(scale) or scale <= 0:
            got = f"{scale} for input {port} of node {node.name}"
            raise BadInput("quantize.scale", "A scale is no positive number", got=got, fix="calibrate again")
        tensor = node.input[port]
        if (tensor, scale) not in self.pairs:
            count = sum(known == tensor for known, _ in self.pairs)
            label = f"{tensor}_{self.number}" + (f"_{count}" if count else "")
            self.pairs[tensor, scale] = self._pair(tensor, label, np.asarray(scale, self.kind))
        node.input[port] = self.pairs[tensor, scale]

    def round_weight(self, node: onnx.NodeProto) -> None:
        """One scale for each output channel, by its largest weight; a pair for each reader, which compilers fold into it.

        In FP8 too: TensorRT's quantize layer takes a 1-D scale for any type, ModelOpt writes convolutions so for TensorRT
        (modelopt/onnx/quantization/fp8.py: per_channel), and TensorRT-RTX 1.7 builds them.
        """
        name = node.input[1]
        if name not in self.weights:
            raise BadInput("quantize.node", "This node has no constant weight to round", got=node.name, fix="leave it out")
        axis = 0 if node.op_type == "Conv" or _transposed(node) else -1
        values = numpy_helper.to_array(self.weights[name]).astype(np.float32)
        axis %= values.ndim
        peak = np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != axis))
        scale = np.maximum(peak / LARGEST[self.number], _TINY[self.kind]).astype(self.kind)
        node.input[1] = self._pair(name, f"{node.name}_weight", scale, axis)

    def finish(self) -> None:
        """Nodes in an order in which each follows what it reads."""
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.graph.node]
        waiting: dict[str, list[onnx.NodeProto]] = {}
        by_output = {node.output[0]: node for node in self.added}
        for node in self.added:
            if node.op_type == "QuantizeLinear":
                waiting.setdefault(node.input[0], []).append(node)
        ordered: list[onnx.NodeProto] = []

        def release(name: str) -> None:
            for quantize in waiting.pop(name, ()):
                ordered.extend((quantize, by_output[f"{quantize.output[0]}_back"]))

        for name in [*self.weights, *(value.name for value in self.graph.input)]:
            release(name)
        for node in copies:
            ordered.append(node)
            for name in node.output:
                release(name)
        if waiting:
            raise TrialError("export-int8", "A rounded tensor is made nowhere", got=next(iter(waiting)))
        del self.graph.node[:]
        self.graph.node.extend(ordered)

    def _pair(self, tensor: str, label: str, scale: NDArray[Any], axis: int | None = None) -> str:
        names = [f"{label}_scale", self._zero(scale.size if scale.ndim else 0)]
        self.graph.initializer.append(numpy_helper.from_array(scale, names[0]))
        how: dict[str, Any] = {} if axis is None else {"axis": axis}
        for kind, source, result in (
            ("QuantizeLinear", tensor, label),
            ("DequantizeLinear", label, f"{label}_back"),
        ):
            self.added.append(helper.make_node(kind, [source, *names], [result], name=f"{label}_{kind}", **how))
        return f"{label}_back"

    def _zero(self, size: int) -> str:
        """The zero point 0, one for each number of channels; 0: a scalar."""
        if size not in self.zeros:
            name = self.zeros[size] = f"{self.number}_zero" + (f"_{size}" if size else "")
            shape = [size] if size else []
            self.graph.initializer.append(helper.make_tensor(name, KINDS[self.number], shape, bytes(size or 1), raw=True))
        return self.zeros[size]


_TINY: dict[Any, float] = {np.float32: 1e-12, np.float16: 6.2e-5}
"""Least scale: of float16, the least number that keeps all its bits, so that an all but empty channel divides by no zero."""


def _transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _raise_opset(model: onnx.ModelProto) -> None:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, HALF_OPSET)
    model.ir_version = max(model.ir_version, LEAST_IR)
