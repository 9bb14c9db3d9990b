"""An ONNX graph's costs: its layers, the kernels a good compiler makes of them, and what is not known."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx

from redline.errors import BadInput
from redline.nodes import module_of
from redline.plan.costs.algebra import Expr, number, product, total
from redline.plan.costs.fuse import Group, Work, fused
from redline.plan.costs.operators import ALIASES, BODIES, FREE, MATRICES, MOVES, POINTWISE, POOLS, PRODUCTS, REDUCTIONS
from redline.plan.costs.rules import Shape
from redline.plan.costs.sizes import FLOATS, Sizes, read_sizes
from redline.records.cost import FusionGroup, Kind, LayerCost, ModelCosts, Size, UnknownOperator

WIDTHS = {"FLOAT": 4, "DOUBLE": 8, "INT64": 8, "UINT64": 8, "INT32": 4, "UINT32": 4, "INT16": 2, "UINT16": 2}
"""Bytes of an element; 1 for the rest."""
ASSUMED = "outputs of unknown size are taken to be no larger than all inputs together"
UNBOUNDED = "no bound for inputs of unknown size"
ONCE = "its body is not looked into"


def read_costs(path: str | Path) -> ModelCosts:
    """Costs of the ONNX file. N, H and W are the free sizes of its input that is a picture.

    Weights in files of their own are not opened, and a file with its weights inside is hashed with them.
    Raises BadInput: plan.costs-graph (no ONNX file), plan.costs-input (no picture among the inputs).
    """
    try:
        data = Path(path).read_bytes()
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's decode errors share no public base class
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput("plan.costs-graph", "The ONNX graph cannot be read", got=f"{path}: {text}") from error
    try:
        return _costs(model.graph, read_sizes(model), hashlib.sha256(data).hexdigest())
    except (LookupError, ValueError, TypeError) as error:
        what = "The ONNX graph has nodes that are not as their operators' should be"
        fix = "onnx.checker.check_model names the first of them"
        raise BadInput("plan.costs-graph", what, got=f"{path}: {error}", fix=fix) from error


def _costs(graph: onnx.GraphProto, sizes: Sizes, digest: str) -> ModelCosts:
    works: list[Work] = []
    layers: list[LayerCost] = []
    unsized: list[str] = []
    names: set[str] = set()
    for index, node in enumerate(graph.node):
        known = sizes.constants | sizes.values.keys()
        if node.op_type in FREE or all(name in known for name in node.output if name):
            continue
        name = node.name if node.name and node.name not in names else f"{node.name or node.op_type}_{index}"
        names.add(name)
        layer, missing = _layer(node, name, sizes)
        layers.append(layer)
        shape = sizes.shapes.get(layer.output)
        places = None if shape is None else product(shape)
        works.append(Work(layer, places, _moving(node.input, sizes), tuple(name for name in node.output if name)))
        if missing:
            unsized.append(layer.name)
    used = {name for node in graph.node for name in node.input}
    weights = (weight for weight in graph.initializer if weight.name in used and weight.data_type in FLOATS)
    groups = fused(works, _aliases(graph, sizes), {value.name for value in graph.output})
    return ModelCosts(
        graph_digest=digest,
        size=sizes.free,
        output_elements=_size(_elements((value.name for value in graph.output), sizes)),
        parameters=sum(math.prod(weight.dims) for weight in weights),
        layers=tuple(layers),
        groups=tuple(_group(group, layers, sizes) for group in groups),
        unknown=_unknown(works, sizes),
        unsized=tuple(unsized),
    )


def _layer(node: onnx.NodeProto, name: str, sizes: Sizes) -> tuple[LayerCost, bool]:
    """And whether the size of any of its tensors is missing."""
    inputs, outputs = _moving(node.input, sizes), tuple(name for name in node.output if name)
    held = [name for name in dict.fromkeys(node.input) if name in sizes.constants and sizes.types.get(name) in FLOATS]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    groups = int(attributes.get("group", 1))
    kind, shape = _kind(node.op_type), _shape(node.input[0], sizes) if node.input else None
    made, weight = _shape(outputs[0], sizes), _shape(node.input[1], sizes) if node.op_type in PRODUCTS else None
    channels: tuple[int, int] = (0, 0)
    kernel: tuple[int, ...] = ()
    if node.op_type in ("Conv", "ConvTranspose") and weight is not None and shape is not None and made is not None:
        channels, kernel = (shape[1].number or 0, made[1].number or 0), tuple(size.number or 0 for size in weight[2:])
        kind = "depthwise" if groups > 1 and groups == channels[0] else "conv"
    elif node.op_type in PRODUCTS and shape is not None and made is not None:
        channels = (shape[0 if attributes.get("transA") else -1].number or 0, made[-1].number or 0)
    missing = [name for name in (*inputs, *outputs) if name not in sizes.shapes]
    layer = LayerCost(
        name=name,
        operator=f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type,
        kind=kind if node.domain in ("", "ai.onnx") else "unknown",
        module=module_of(node),
        output=outputs[0],
        macs=_size(_macs(node, shape, made, weight, bool(attributes.get("transA")))),
        input_elements=_size(_elements(inputs, sizes)),
        output_elements=_size(_elements(outputs, sizes)),
        weight_elements=sum(product(sizes.shapes[name]).number or 0 for name in held if name in sizes.shapes),
        fixed_bytes=_size(_fixed((*inputs, *outputs), sizes)),
        channels_in=channels[0],
        channels_out=channels[1],
        kernel=kernel,
        groups=groups,
    )
    return layer, bool(missing)


def _macs(node: onnx.NodeProto, shape: Shape | None, made: Shape | None, weight: Shape | None, transposed: bool) -> Expr:
    """Of convolutions: output places x kernel x input channels of a group x output channels."""
    if node.op_type not in PRODUCTS or shape is None or made is None:
        return number(0)
    if node.op_type == "Conv":
        return product(made) * product(weight[1:]) if weight is not None else number(0)
    if node.op_type == "ConvTranspose":
        return product(shape) * product(weight[1:]) if weight is not None else number(0)
    return product(made) * shape[0 if transposed else -1]


def _group(group: Group, layers: Sequence[LayerCost], sizes: Sizes) -> FusionGroup:
    members = [layers[index] for index in group.members]
    head = layers[group.head]
    return FusionGroup(
        name=head.name,
        kind=head.kind,
        layers=tuple(layer.name for layer in members),
        macs=_sum(layer.macs for layer in members),
        input_elements=_size(_elements(group.inputs, sizes)),
        output_elements=_size(_elements(group.outputs, sizes)),
        weight_elements=sum(layer.weight_elements for layer in members),
        fixed_bytes=_size(_fixed((*group.inputs, *group.outputs), sizes)),
        unfused_elements=_sum(size for layer in members for size in (layer.input_elements, layer.output_elements)),
    )


def _unknown(works: Sequence[Work], sizes: Sizes) -> tuple[UnknownOperator, ...]:
    by_operator: dict[str, list[Work]] = {}
    for work in works:
        if work.layer.kind == "unknown":
            by_operator.setdefault(work.layer.operator, []).append(work)
    return tuple(_bounded(operator, by_operator[operator], sizes) for operator in sorted(by_operator))


def _bounded(operator: str, works: Sequence[Work], sizes: Sizes) -> UnknownOperator:
    elements, fixed, assumed = number(0), number(0), set()
    for work in works:
        known = [name for name in (*work.inputs, *work.outputs) if name in sizes.shapes]
        elements, fixed = elements + _elements(known, sizes), fixed + _fixed(known, sizes)
        if any(name not in sizes.shapes for name in work.inputs):
            assumed.add(UNBOUNDED)
        for name in (name for name in work.outputs if name not in sizes.shapes):
            assumed.add(ASSUMED)
            most = total(product(sizes.shapes[one]) for one in work.inputs if one in sizes.shapes)
            if sizes.types.get(name, 0) in (*FLOATS, 0):
                elements = elements + most
            else:
                fixed = fixed + most * _width(name, sizes)
    if operator in BODIES:
        assumed.add(ONCE)
    text = "; ".join(sorted(assumed))
    return UnknownOperator(
        operator=operator, count=len(works), elements=_size(elements), fixed_bytes=_size(fixed), assumed=text
    )


def _kind(operator: str) -> Kind:
    if operator in PRODUCTS:
        return "matmul" if operator in MATRICES else "conv"
    for kind, operators in (("pointwise", POINTWISE), ("pool", POOLS), ("move", MOVES), ("reduce", REDUCTIONS)):
        if operator in operators:
            return kind  # type: ignore[return-value]
    return "concat" if operator == "Concat" else "unknown"


def _aliases(graph: onnx.GraphProto, sizes: Sizes) -> dict[str, str]:
    """Tensor -> the one whose memory it is: a reshape moves nothing."""
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in ALIASES:
            found[node.output[0]] = found.get(node.input[0], node.input[0])
    return found


def _moving(names: Iterable[str], sizes: Sizes) -> tuple[str, ...]:
    """Inputs that change from picture to picture, each once; shapes on their way are no data."""
    return tuple(name for name in dict.fromkeys(names) if name and name not in sizes.constants and name not in sizes.values)


def _elements(names: Iterable[str], sizes: Sizes) -> Expr:
    wide = (name for name in names if name in sizes.shapes and sizes.types.get(name, 0) in (*FLOATS, 0))
    return total(product(sizes.shapes[name]) for name in wide)


def _fixed(names: Iterable[str], sizes: Sizes) -> Expr:
    narrow = (name for name in names if name in sizes.shapes and sizes.types.get(name, 0) not in (*FLOATS, 0))
    return total(product(sizes.shapes[name]) * _width(name, sizes) for name in narrow)


def _width(name: str, sizes: Sizes) -> int:
    return WIDTHS.get(onnx.TensorProto.DataType.Name(sizes.types.get(name, 0)), 1)


def _shape(name: str, sizes: Sizes) -> Shape | None:
    return sizes.shapes.get(name)


def _size(size: Expr) -> Size:
    return Size(str(size))


def _sum(parts: Iterable[Size]) -> Size:
    """Equal terms are counted, so that a group's text stays short."""
    counted: dict[str, int] = {}
    for part in parts:
        if part.text != "0":
            counted[part.text] = counted.get(part.text, 0) + 1
    texts = [text if count == 1 else f"{count}*({text})" for text, count in counted.items()]
    return Size(" + ".join(texts) or "0")
