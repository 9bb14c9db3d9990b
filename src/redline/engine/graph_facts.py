"""What an ONNX graph says of itself: operations of each node, the type each node computes in, where its weights come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, shape_inference

from redline.errors import TrialError
from redline.nodes import module_of

TYPES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}
FREE = frozenset({"Cast", "Constant", "Identity", "Shape", "Reshape", "Concat", "Slice", "Gather", "Unsqueeze", "Squeeze"})
"""Operators that move or describe data: their type follows their neighbours'."""


@dataclass(frozen=True, slots=True)
class NodeFact:
    name: str
    operator: str
    type: str
    """Of the first output: fp32, fp16 ..., "unknown" if shape inference does not say; int8 and fp8 of a layer whose data
    and weight were both rounded to that type and back."""
    flop: float
    module: str
    """Where it came from in the source module ("backbone.body.conv1"), "" if the graph does not say."""
    output: str
    """Name of the first output tensor."""


def read_graph(path: str | Path) -> onnx.ModelProto:
    """Raises TrialError: engine-graph if it is no ONNX file."""
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's decode errors share no public base class
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrialError("engine-graph", "The ONNX graph cannot be read", got=text) from error


def node_facts(model: onnx.ModelProto, shape: tuple[int, ...]) -> tuple[NodeFact, ...]:
    """Every node in order, for an input of `shape` (N, 3, H, W). A multiply-add counts as two operations."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    del sized.graph.value_info[:]  # a converter's symbolic sizes would win over the inferred ones
    for dim, size in zip(sized.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    for value in sized.graph.output:  # their symbolic sizes would contradict the fixed input
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    values = {value.name: value for value in infer(sized)}
    weights = {weight.name: weight for weight in sized.graph.initializer}
    fp8 = {weight.name for weight in sized.graph.initializer if weight.data_type == TensorProto.FLOAT8E4M3FN}
    back = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    rounded = {node.output[0]: "int8" if fp8.isdisjoint(node.input[2:]) else "fp8" for node in back}
    return tuple(_fact(node, index, values, weights, rounded) for index, node in enumerate(model.graph.node))


def infer(model: onnx.ModelProto) -> tuple[onnx.ValueInfoProto, ...]:
    """Types, and shapes as far as they follow, of inputs, outputs and what lies between."""
    found = shape_inference.infer_shapes(model, data_prop=True).graph
    return (*found.input, *found.output, *found.value_info)


def total_flop(facts: tuple[NodeFact, ...]) -> float:
    return math.fsum(fact.flop for fact in facts)


def wide_nodes(facts: tuple[NodeFact, ...]) -> frozenset[str]:
    """Names of the nodes that a mixed graph computes in FP32 although others are narrower; empty for an FP32 graph."""
    if not any(fact.type in ("fp16", "bf16") for fact in facts):
        return frozenset()
    return frozenset(fact.name for fact in facts if fact.type == "fp32" and fact.operator not in FREE)


def narrow_nodes(facts: tuple[NodeFact, ...]) -> frozenset[str]:
    """Names of the nodes that carry a graph's operations and compute in FP16."""
    return frozenset(fact.name for fact in facts if fact.type == "fp16" and fact.flop)


def _fact(node: Any, index: int, values: dict[str, Any], weights: dict[str, Any], rounded: dict[str, str]) -> NodeFact:
    output = values.get(node.output[0])
    kind = output.type.tensor_type.elem_type if output is not None else 0
    flop = _flop(node, values, weights)
    read = {rounded.get(name) for name in node.input[:2]} if flop else set()
    number = read.pop() if len(read) == 1 else None
    return NodeFact(
        name=node.name or f"{node.op_type}_{index}",
        operator=node.op_type,
        type=number or TYPES.get(kind, "unknown"),
        flop=flop,
        module=module_of(node),
        output=node.output[0],
    )


def _flop(node: Any, values: dict[str, Any], weights: dict[str, Any]) -> float:
    shapes = [_shape(name, values, weights) for name in (*node.input, node.output[0])]
    first, output = shapes[0], shapes[-1]
    if node.op_type in ("Conv", "ConvTranspose") and output and first and (kernel := shapes[1]):
        places = output if node.op_type == "Conv" else first
        return 2.0 * places[0] * math.prod(places[2:]) * math.prod(kernel)
    if node.op_type in ("MatMul", "Gemm") and output and first:
        inner = first[0] if any(a.name == "transA" and a.i for a in node.attribute) else first[-1]
        return 2.0 * math.prod(output) * inner
    return 0.0


def _shape(name: str, values: dict[str, Any], weights: dict[str, Any]) -> tuple[int, ...] | None:
    if name in weights:
        return tuple(weights[name].dims)
    if name not in values:
        return None
    dims = values[name].type.tensor_type.shape.dim
    sizes = tuple(dim.dim_value for dim in dims)
    return sizes if sizes and all(sizes) else None
