"""Rules by which operators shape their outputs, and by which shapes are computed inside a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx

from redline.plan.costs.algebra import Expr, number, product, total
from redline.plan.costs.operators import BROADCAST, ELEMENTWISE, NORMS, PLANES, SCATTERS, SUMS, WINDOWS

if TYPE_CHECKING:
    from redline.plan.costs.sizes import Sizes

Shape: TypeAlias = "tuple[Expr, ...]"
Rule: TypeAlias = "Callable[[onnx.NodeProto, Attributes, Sizes], list[Shape | None] | None]"
ENDLESS = 2**31 - 1
"""A slice's end from here on means the end of the axis."""


class Attributes(dict[str, Any]):
    def __init__(self, node: onnx.NodeProto) -> None:
        super().__init__({a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        return list(self.get(name, default))


def _in(node: onnx.NodeProto, sizes: Sizes, index: int) -> Shape | None:
    return sizes.shapes.get(node.input[index]) if index < len(node.input) else None


def _value(node: onnx.NodeProto, sizes: Sizes, index: int) -> Shape | None:
    return sizes.values.get(node.input[index]) if index < len(node.input) and node.input[index] else None


def _ints(node: onnx.NodeProto, sizes: Sizes, index: int) -> list[int] | None:
    """Contents of a constant integer input."""
    value = _value(node, sizes, index)
    known = [one.number for one in value] if value is not None else [None]
    return None if None in known else [one for one in known if one is not None]


def same(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    return [_in(node, sizes, 0)]


def broadcast(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shapes = [_in(node, sizes, index) for index in range(len(node.input))]
    return [None if None in shapes else joined([shape for shape in shapes if shape is not None])]


def joined(shapes: Sequence[Shape]) -> Shape:
    """Of dimensions that differ and are not 1 the first counts: at sizes that the network takes they are equal."""
    rank = max(map(len, shapes))
    columns = zip(*((number(1),) * (rank - len(shape)) + shape for shape in shapes), strict=True)
    return tuple(next((size for size in column if size.number != 1), number(1)) for column in columns)


def window(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    """Convolutions and pools."""
    shape, weight = _in(node, sizes, 0), _in(node, sizes, 1)
    if shape is None or (node.op_type == "Conv" and weight is None):
        return [None]
    rank = len(shape) - 2
    kernel = [size.number or 0 for size in weight[2:]] if weight is not None else attributes.ints("kernel_shape", [])
    stride, wide = attributes.ints("strides", [1] * rank), attributes.ints("dilations", [1] * rank)
    pads, auto = attributes.ints("pads", [0] * 2 * rank), attributes.get("auto_pad", b"NOTSET")
    spatial = []
    for i, size in enumerate(shape[2:]):
        reach = wide[i] * (kernel[i] - 1)
        if auto in (b"SAME_UPPER", b"SAME_LOWER"):
            spatial.append((size + (stride[i] - 1)) // stride[i])
            continue
        room = size - reach - 1 + (0 if auto == b"VALID" else pads[i] + pads[i + rank])
        spatial.append((room + (stride[i] - 1 if attributes.get("ceil_mode") else 0)) // stride[i] + 1)
    channels = weight[0] if weight is not None else shape[1]
    return [(shape[0], channels, *spatial)] * len(node.output)


def transposed(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape, weight = _in(node, sizes, 0), _in(node, sizes, 1)
    if shape is None or weight is None or "output_shape" in attributes or "auto_pad" in attributes:
        return [None]
    rank = len(shape) - 2
    stride, wide = attributes.ints("strides", [1] * rank), attributes.ints("dilations", [1] * rank)
    pads, more = attributes.ints("pads", [0] * 2 * rank), attributes.ints("output_padding", [0] * rank)
    spatial = (
        (size - 1) * stride[i] + more[i] + wide[i] * ((weight[2 + i].number or 0) - 1) + 1 - pads[i] - pads[i + rank]
        for i, size in enumerate(shape[2:])
    )
    return [(shape[0], weight[1] * int(attributes.get("group", 1)), *spatial)]


def everywhere(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    """Pools over the whole plane."""
    shape = _in(node, sizes, 0)
    return [None if shape is None else (*shape[:2], *[number(1)] * (len(shape) - 2))]


def concat(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shapes = [_in(node, sizes, index) for index in range(len(node.input))]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return [None]
    axis = attributes["axis"] % len(known[0])
    return [tuple(total(shape[i] for shape in known) if i == axis else size for i, size in enumerate(known[0]))]


def reshape(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape, wanted = _in(node, sizes, 0), _value(node, sizes, 1)
    if shape is None or wanted is None:
        return [None]
    copies = not attributes.get("allowzero", 0)
    made = [shape[i] if copies and size.number == 0 and i < len(shape) else size for i, size in enumerate(wanted)]
    open_ = [i for i, size in enumerate(made) if size.number == -1]
    if open_:
        rest = product(shape).over(product(size for i, size in enumerate(made) if i != open_[0]))
        if rest is None:
            return [None]
        made[open_[0]] = rest
    return [tuple(made)]


def flatten(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape, axis = _in(node, sizes, 0), int(attributes.get("axis", 1))
    return [None if shape is None else (product(shape[:axis]), product(shape[axis:]))]


def squeeze(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape = _in(node, sizes, 0)
    axes = attributes.get("axes") if len(node.input) < 2 else _ints(node, sizes, 1)
    if shape is not None and len(node.input) < 2 and axes is None:
        axes = [i for i, size in enumerate(shape) if size.number == 1]
    if shape is None or axes is None:
        return [None]
    if node.op_type == "Squeeze":
        gone = {axis % len(shape) for axis in axes}
        return [tuple(size for i, size in enumerate(shape) if i not in gone)]
    rank = len(shape) + len(axes)
    new, rest = {axis % rank for axis in axes}, iter(shape)
    return [tuple(number(1) if i in new else next(rest) for i in range(rank))]


def transpose(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape = _in(node, sizes, 0)
    order = attributes.get("perm") or list(range(len(shape or ())))[::-1]
    return [None if shape is None else tuple(shape[axis] for axis in order)]


def slice_(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape = _in(node, sizes, 0)
    starts, ends = _value(node, sizes, 1), _value(node, sizes, 2)
    if shape is None or starts is None or ends is None:
        return [None]
    axes = _ints(node, sizes, 3) if len(node.input) > 3 and node.input[3] else list(range(len(starts)))
    steps = _ints(node, sizes, 4) if len(node.input) > 4 and node.input[4] else [1] * len(starts)
    if axes is None or steps is None or min(steps) < 1:
        return [None]
    made = list(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = made[axis]
        low, high = _place(start, size), _place(end, size)
        if low is None or high is None:
            return [None]
        made[axis] = (high - low + (step - 1)) // step
    return [tuple(made)]


def _place(index: Expr, size: Expr) -> Expr | None:
    """Where an index of an axis lies; None if it may lie beyond the end, which depends on the sizes."""
    place, length = index.number, size.number
    if place is None:
        return index
    if place >= ENDLESS:
        return size
    if place < 0:
        return size + place
    if length is not None:
        return number(min(place, length))
    return index if place <= 1 else None


def gather(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape, index = _in(node, sizes, 0), _in(node, sizes, 1)
    if shape is None or index is None:
        return [None]
    axis = int(attributes.get("axis", 0)) % len(shape)
    return [(*shape[:axis], *index, *shape[axis + 1 :])]


def like_indices(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    return [_in(node, sizes, 1)]


def topk(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape, kept = _in(node, sizes, 0), _value(node, sizes, 1)
    if shape is None or kept is None:
        return [None, None]
    axis = int(attributes.get("axis", -1)) % len(shape)
    return [(*shape[:axis], kept[0], *shape[axis + 1 :])] * 2


def tile(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape, times = _in(node, sizes, 0), _value(node, sizes, 1)
    return [None if shape is None or times is None else tuple(a * b for a, b in zip(shape, times, strict=True))]


def expand(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape, wanted = _in(node, sizes, 0), _value(node, sizes, 1)
    return [None if shape is None or wanted is None else joined([shape, wanted])]


def filled(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    return [_value(node, sizes, 0)]


def pad(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape, pads = _in(node, sizes, 0), _value(node, sizes, 1)
    if shape is None or pads is None or len(pads) != 2 * len(shape):
        return [None]
    return [tuple(size + pads[i] + pads[i + len(shape)] for i, size in enumerate(shape))]


def resize(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape = _in(node, sizes, 0)
    if shape is None:
        return [None]
    wanted = _value(node, sizes, 3)
    if wanted is not None and len(wanted) == len(shape):
        return [wanted]
    scales = sizes.arrays.get(node.input[1 if node.op_type == "Upsample" else 2]) if len(node.input) > 1 else None
    if scales is None or len(scales) != len(shape):
        return [None]
    made = []
    for size, scale in zip(shape, scales.tolist(), strict=True):
        if scale >= 1 and scale == int(scale):
            made.append(size * int(scale))
        elif (1 / scale) == int(1 / scale):
            made.append(size // int(1 / scale))
        else:
            return [None]
    return [tuple(made)]


def matmul(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    a, b = _in(node, sizes, 0), _in(node, sizes, 1)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return [None]
    return [(*joined([a[:-2], b[:-2]]), a[-2], b[-1])]


def gemm(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    a, b = _in(node, sizes, 0), _in(node, sizes, 1)
    if a is None or b is None:
        return [None]
    return [(a[1] if attributes.get("transA") else a[0], b[0] if attributes.get("transB") else b[1])]


def reduce(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape = _in(node, sizes, 0)
    axes = attributes.get("axes") if len(node.input) < 2 else _ints(node, sizes, 1)
    if node.op_type.startswith("Arg"):
        axes = [attributes.get("axis", 0)]
    if shape is None or (axes is None and len(node.input) > 1):
        return [None]
    gone = {axis % len(shape) for axis in axes} if axes is not None else set(range(len(shape)))
    kept = attributes.get("keepdims", 1)
    return [tuple(number(1) if i in gone else size for i, size in enumerate(shape) if kept or i not in gone)]


def split(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    shape, count = _in(node, sizes, 0), len(node.output)
    if shape is None:
        return [None] * count
    axis = int(attributes.get("axis", 0)) % len(shape)
    parts = attributes.get("split") or _ints(node, sizes, 1)
    whole = shape[axis].number
    if parts is None and whole is not None and whole % count == 0:
        parts = [whole // count] * count
    if parts is None:
        return [None] * count
    return [(*shape[:axis], number(part), *shape[axis + 1 :]) for part in parts]


def shape_of(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> list[Shape | None]:
    found = shape_value(node, attributes, sizes)
    return [None if found is None else (number(len(found)),)]


def shape_value(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> Shape | None:
    shape = _in(node, sizes, 0)
    return None if shape is None else shape[attributes.get("start", 0) : attributes.get("end", len(shape))]


def as_is(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> Shape | None:
    return _value(node, sizes, 0)


def cast_value(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> Shape | None:
    """To an integer type: a fraction is no size."""
    return _value(node, sizes, 0) if attributes.get("to") in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) else None


def concat_value(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> Shape | None:
    parts = [_value(node, sizes, index) for index in range(len(node.input))]
    return None if None in parts else tuple(one for part in parts if part is not None for one in part)


def gather_value(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> Shape | None:
    value, index = _value(node, sizes, 0), _ints(node, sizes, 1)
    return None if value is None or index is None else tuple(value[i] for i in index)


def slice_value(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> Shape | None:
    value, starts, ends = _value(node, sizes, 0), _ints(node, sizes, 1), _ints(node, sizes, 2)
    steps = _ints(node, sizes, 4) if len(node.input) > 4 else [1]
    if value is None or not starts or not ends or not steps:
        return None
    return value[starts[0] : ends[0] : steps[0]]


def arithmetic(node: onnx.NodeProto, attributes: Attributes, sizes: Sizes) -> Shape | None:
    a, b = _value(node, sizes, 0), _value(node, sizes, 1)
    if a is None or b is None or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return None
    count = max(len(a), len(b))
    pairs = list(zip(a * (count // len(a)), b * (count // len(b)), strict=True)) if a and b else []
    if node.op_type == "Div":
        whole = [_quotient(left, right) for left, right in pairs]
        return None if None in whole else tuple(one for one in whole if one is not None)
    operations: dict[str, Callable[[Expr, Expr], Expr]] = {
        "Add": lambda x, y: x + y,
        "Sub": lambda x, y: x - y,
        "Mul": lambda x, y: x * y,
    }
    return tuple(operations[node.op_type](left, right) for left, right in pairs)


def _quotient(left: Expr, right: Expr) -> Expr | None:
    by = right.number
    return left // by if by is not None and by > 0 else left.over(right)


SHAPES: dict[str, Rule] = {
    **dict.fromkeys((*ELEMENTWISE, *NORMS, *SCATTERS, "Identity", "Dropout"), same),
    **dict.fromkeys(BROADCAST, broadcast),
    **dict.fromkeys(SUMS, reduce),
    **dict.fromkeys((*WINDOWS, "Conv"), window),
    **dict.fromkeys(PLANES, everywhere),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), squeeze),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "ConvTranspose": transposed,
    "Concat": concat,
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Slice": slice_,
    "Gather": gather,
    "GatherElements": like_indices,
    "TopK": topk,
    "Tile": tile,
    "Expand": expand,
    "ConstantOfShape": filled,
    "Pad": pad,
    "MatMul": matmul,
    "Gemm": gemm,
    "Split": split,
    "Shape": shape_of,
}
VALUES: dict[str, Callable[[onnx.NodeProto, Attributes, Sizes], Shape | None]] = {
    **dict.fromkeys(("Identity", "Squeeze", "Unsqueeze", "Reshape"), as_is),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), arithmetic),
    "Cast": cast_value,
    "Shape": shape_value,
    "Concat": concat_value,
    "Gather": gather_value,
    "Slice": slice_value,
}
