"""Every tensor's shape as expressions in N, H and W, each one checked against ONNX's own shape inference at several sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from redline.errors import BadInput
from redline.plan.costs.algebra import Expr, evaluate, number, symbol
from redline.plan.costs.fit import fitted
from redline.plan.costs.rules import SHAPES, VALUES, Attributes

NAMES = ("N", "H", "W")
POINTS = ((1, 256, 384), (2, 640, 512), (3, 384, 896), (5, 1152, 256), (4, 512, 1280), (2, 250, 341), (3, 477, 333))
"""N, H, W at which expressions are checked and fitted. The last two are odd: networks that need multiples of a stride have
no shapes there, and are checked at the others."""
SMALL = 256
"""Elements of a constant that may say how something is shaped; larger ones are weights."""
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})


@dataclass(slots=True)
class Sizes:
    """What is known of a graph's tensors, by name."""

    free: tuple[int | None, int | None, int | None]
    """N, H, W that the graph fixes."""
    shapes: dict[str, tuple[Expr, ...]] = field(default_factory=dict)
    values: dict[str, tuple[Expr, ...]] = field(default_factory=dict)
    """Contents of short integer tensors: shapes on their way."""
    arrays: dict[str, Any] = field(default_factory=dict)
    """Small constants."""
    constants: set[str] = field(default_factory=set)
    """Weights, and what follows from them alone: a compiler computes it once."""
    types: dict[str, int] = field(default_factory=dict)
    fitted: set[str] = field(default_factory=set)
    """Tensors whose shape was fitted to numbers rather than derived."""


def read_sizes(model: onnx.ModelProto) -> Sizes:
    """Shapes of all tensors as far as they follow. Raises BadInput: plan.costs-input if the graph takes no image."""
    graph = model.graph
    weights = {weight.name for weight in graph.initializer}
    given = [value for value in graph.input if value.name not in weights]
    images = next((value for rank in (4, 3) for value in given if len(_dims(value)) == rank), None)
    if images is None:
        shapes = ", ".join(f"{value.name}: {len(_dims(value))} dimensions" for value in given)
        allowed = "N x C x H x W, N x H x W x C, C x H x W or H x W x C"
        raise BadInput(
            "plan.costs-input", "The graph has no input that is a picture", got=shapes or "no input", allowed=allowed
        )
    dims = _dims(images)
    axes = _axes(dims)
    fixed = {name: dims[axis] or None for name, axis in axes.items()}
    sizes = Sizes(free=(fixed.get("N", 1), fixed["H"], fixed["W"]))
    by_axis = {axis: name for name, axis in axes.items()}
    shape = tuple(number(size) if size or axis not in by_axis else symbol(by_axis[axis]) for axis, size in enumerate(dims))
    _keep_inputs(graph, sizes, images, shape, weights)
    points = _points(sizes.free)
    seen = [_inferred(model, images.name, axes, point) for point in points]
    for weight in graph.initializer:
        sizes.shapes[weight.name] = tuple(number(int(size)) for size in weight.dims)
        _keep(sizes, weight.name, weight)
    for node in graph.node:
        _walk(node, sizes, points, seen)
    return sizes


def _walk(node: onnx.NodeProto, sizes: Sizes, points: Sequence[Mapping[str, int]], seen: Sequence[dict[str, Any]]) -> None:
    attributes = Attributes(node)
    given = [name for name in node.input if name]
    inner = any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
    if not inner and all(name in sizes.constants for name in given) and not node.op_type.startswith("Random"):
        sizes.constants.update(node.output)
    if node.op_type == "Constant":
        _keep_constant(node, sizes)
    found = _by_rule(node, attributes, sizes)
    for index, name in enumerate(node.output):
        if not name:
            continue
        numeric = [values.get(name) for values in seen]
        kind = next((value[0] for value in numeric if value), TensorProto.UNDEFINED)
        sizes.types.setdefault(name, kind)
        known = [(point, value[1]) for point, value in zip(points, numeric, strict=True) if value and value[1] is not None]
        shape = found[index] if found is not None and index < len(found) else None
        if shape is not None and all(_numbers(shape, point) == value for point, value in known):
            sizes.shapes[name] = shape
        elif (by_numbers := fitted(known, len(points) == 1)) is not None:
            sizes.shapes[name] = by_numbers
            sizes.fitted.add(name)
    if node.op_type in VALUES and (value := VALUES[node.op_type](node, attributes, sizes)) is not None:
        sizes.values[node.output[0]] = value


def _by_rule(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> Sequence[tuple[Expr, ...] | None] | None:
    try:
        return SHAPES[node.op_type](node, attributes, sizes)
    except (LookupError, ValueError, TypeError):  # no rule, or a node that is not as its operator's should be
        return None


def _numbers(shape: Sequence[Expr], point: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(size, point) for size in shape)


def _axes(dims: Sequence[int]) -> dict[str, int]:
    first = len(dims) - 3
    last = dims[-1] in (1, 3, 4) and dims[first] not in (1, 3, 4)
    axes = {"H": first, "W": first + 1} if last else {"H": first + 1, "W": first + 2}
    return axes if len(dims) == 3 else {"N": 0, **axes}


def _points(free: tuple[int | None, int | None, int | None]) -> list[dict[str, int]]:
    """Those sizes that differ where the graph leaves N, H and W free."""
    found = []
    for point in POINTS:
        chosen = {name: size or given for name, size, given in zip(NAMES, free, point, strict=True)}
        if chosen not in found:
            found.append(chosen)
    return found


def _inferred(
    model: onnx.ModelProto, images: str, axes: Mapping[str, int], point: Mapping[str, int]
) -> dict[str, tuple[int, tuple[int, ...] | None]]:
    """Type and, if it follows, shape of each tensor for an input of this size. Weights give their shapes alone."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = bare.graph
    graph.name = "sized"
    graph.node.extend(model.graph.node)
    for weight in model.graph.initializer:
        if math.prod(weight.dims) <= SMALL:
            graph.initializer.append(weight)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    held = {value.name for value in graph.input} | {weight.name for weight in graph.initializer}
    graph.input.extend(value for value in model.graph.input if value.name not in held)
    image = next(value for value in graph.input if value.name == images)
    for name, axis in axes.items():
        image.type.tensor_type.shape.dim[axis].dim_value = point[name]
    for value in model.graph.output:
        out = graph.output.add(name=value.name)
        out.type.tensor_type.elem_type = value.type.tensor_type.elem_type
    try:
        known = shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception:  # a size that the network cannot take; onnx's errors share no public base class
        return {}
    return {value.name: _known(value) for value in (*known.value_info, *known.output)}


def _known(value: onnx.ValueInfoProto) -> tuple[int, tuple[int, ...] | None]:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return tensor.elem_type, None
    return tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim)


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    """0 for what the graph leaves free."""
    return [max(0, dim.dim_value) for dim in value.type.tensor_type.shape.dim]


def _keep_inputs(
    graph: onnx.GraphProto, sizes: Sizes, images: onnx.ValueInfoProto, shape: tuple[Expr, ...], weights: set[str]
) -> None:
    """Of the pictures, and of other inputs whose sizes are fixed or named as the pictures' are."""
    named = {dim.dim_param: size for dim, size in zip(images.type.tensor_type.shape.dim, shape, strict=True) if dim.dim_param}
    for value in graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        sizes.types[value.name] = tensor.elem_type
        known = [number(dim.dim_value) if dim.dim_value > 0 else named.get(dim.dim_param) for dim in tensor.shape.dim]
        if value.name == images.name:
            sizes.shapes[value.name] = shape
        elif None not in known:
            sizes.shapes[value.name] = tuple(size for size in known if size is not None)


def _keep(sizes: Sizes, name: str, tensor: onnx.TensorProto) -> None:
    sizes.constants.add(name)
    sizes.types[name] = tensor.data_type
    if math.prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
        array = numpy_helper.to_array(tensor)
        sizes.arrays[name] = array
        if array.dtype.kind in "iu" and array.ndim <= 1:
            sizes.values[name] = tuple(number(int(value)) for value in array.reshape(-1))


def _keep_constant(node: onnx.NodeProto, sizes: Sizes) -> None:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value))
    if tensor.data_type == TensorProto.DOUBLE and attribute.name.startswith("value_float"):
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32))
    sizes.shapes[node.output[0]] = tuple(number(int(size)) for size in tensor.dims)
    _keep(sizes, node.output[0], tensor)
