"""What a network costs, symbolic in its input's size, and what a device makes of it: the roofline's records."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from redline.records.device import Arithmetic

Kind = Literal["conv", "depthwise", "matmul", "pointwise", "pool", "move", "concat", "reduce", "unknown"]
"""What a kernel does: move copies or resizes, reduce sums or normalises over an axis; a concat mostly vanishes, as its inputs
are written in place."""
Bound = Literal["compute", "memory", "launch"]
Limit = Literal["compute", "memory"]
Convention = Literal["fused", "layers"]

LONGEST = 20_000
"""Characters of a size."""
RELATIVE: dict[Kind, Kind] = {"depthwise": "conv", "matmul": "conv"}
"""Kinds that take another's efficiency while nobody measured theirs."""
FALLBACK: Arithmetic = "fp16"
ALIGNMENT: dict[Arithmetic, int] = {"fp16": 8, "int8": 16, "fp8": 16, "tf32": 4}
"""Channels that tensor cores take at once: 16 bytes of each."""
WIDTH: dict[Arithmetic, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "int8": 1, "fp8": 1}
"""Bytes of an element as it lies in memory."""


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """An integer expression in N (images), H and W (pixels of the network's input).

    Integers, N, H, W, + - * //, parentheses, max(...) and min(...). Raises ValueError for anything else.
    """

    text: str

    def __post_init__(self) -> None:
        _parsed(self.text)

    def at(self, n: int, h: int, w: int) -> int:
        """Raises ValueError where the expression divides by zero."""
        try:
            return _evaluated(self.text, n, h, w)
        except ZeroDivisionError:
            raise ValueError(f"{self.text} divides by zero at N={n}, H={h}, W={w}") from None


@lru_cache(maxsize=4096)
def _parsed(text: str) -> ast.expr:
    if len(text) > LONGEST:
        raise ValueError(f"a size has at most {LONGEST} characters, not {len(text)}")
    try:
        tree = ast.parse(text, mode="eval").body
        _check(tree)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a size in N, H and W: {text[:80]!r}") from error
    return tree


@lru_cache(maxsize=65536)
def _evaluated(text: str, n: int, h: int, w: int) -> int:
    """A plan asks for the same sizes on every device of the table."""
    return _value(_parsed(text), {"N": n, "H": h, "W": w})


def _check(tree: ast.expr) -> None:
    inner: list[ast.expr] = []
    match tree:
        case ast.Constant(value=value) if type(value) is int:
            pass
        case ast.Name(id="N" | "H" | "W"):
            pass
        case ast.UnaryOp(op=ast.USub(), operand=one):
            inner = [one]
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.FloorDiv(), right=right):
            inner = [left, right]
        case ast.Call(func=ast.Name(id="max" | "min"), args=[_, _, *_] as given, keywords=[]):
            inner = given
        case _:
            raise ValueError(f"not allowed in a size: {ast.unparse(tree)[:80]!r}")
    for part in inner:
        _check(part)


def _value(tree: ast.expr, names: dict[str, int]) -> int:
    match tree:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.UnaryOp(operand=inner):
            return -_value(inner, names)
        case ast.BinOp(left=left, op=operation, right=right):
            a, b = _value(left, names), _value(right, names)
            match operation:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
            return a // b
        case ast.Call(func=ast.Name(id=name), args=given):
            values = [_value(part, names) for part in given]
            return max(values) if name == "max" else min(values)
    raise AssertionError("unreachable: _check lets nothing else through")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One node of the graph that does work. Elements are floating-point values, whose width follows the precision."""

    name: str
    operator: str
    kind: Kind
    module: str
    """Where it came from in the source module ("backbone.body.conv1"), "" if the graph does not say."""
    output: str
    """Name of its first output tensor."""
    macs: Size
    """Multiply-adds of convolutions and products, 0 for the rest. FLOPs are twice as many."""
    input_elements: Size
    output_elements: Size
    weight_elements: int
    fixed_bytes: Size
    """Read and written in types whose width no precision changes: integers, booleans."""
    channels_in: int = 0
    """0 where the notion does not apply or the size is unknown."""
    channels_out: int = 0
    kernel: tuple[int, ...] = ()
    groups: int = 1

    def no_tensor_core(self, arithmetic: Arithmetic) -> str:
        """Why tensor cores cannot take it as it is; "" if they can.

        Libraries pad misaligned channels, at a cost; depthwise convolutions run on ordinary cores.
        """
        if self.kind not in ("conv", "depthwise", "matmul"):
            return f"a {self.operator} multiplies no matrices"
        if arithmetic == "fp32":
            return "FP32 runs on ordinary cores"
        if self.kind == "depthwise":
            return "depthwise: one channel a group is no matrix product"
        unit = ALIGNMENT[arithmetic]
        sides = (("input", self.channels_in // self.groups), ("output", self.channels_out // self.groups))
        for side, channels in sides:
            if channels % unit:
                each = " of a group" if self.groups > 1 else ""
                return f"{channels} {side} channels{each}, not a multiple of {unit}"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionGroup:
    """Layers that a good compiler makes one kernel: a convolution with bias, activation and residual; a pointwise chain.

    Inputs and outputs are what crosses the group's border, each tensor once.
    """

    name: str
    """Of the layer that gives it its kind."""
    kind: Kind
    layers: tuple[str, ...]
    macs: Size
    input_elements: Size
    output_elements: Size
    weight_elements: int
    fixed_bytes: Size
    unfused_elements: Size
    """Read and written, weights apart, if every layer were a kernel of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownOperator:
    """Operators whose cost is not known, apart from what they read and write."""

    operator: str
    count: int
    elements: Size
    """Upper bound of floating-point values read and written by all of them."""
    fixed_bytes: Size
    """The same of other types, in bytes."""
    assumed: str
    """What the bound takes for granted, or why it is none; "" if it holds as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCosts:
    """Facts of a network that a plan needs, saved so that neither the graph nor the device has to be there."""

    graph_digest: str
    """sha256, hex, of the ONNX file."""
    size: tuple[int | None, int | None, int | None]
    """N, H, W that the graph fixes; None where it is free."""
    output_elements: Size
    """Floating-point values of its outputs."""
    parameters: int
    """Floating-point weights, each once however often it is used."""
    layers: tuple[LayerCost, ...]
    groups: tuple[FusionGroup, ...]
    unknown: tuple[UnknownOperator, ...]
    unsized: tuple[str, ...]
    """Layers for which some tensor's size did not follow: it is counted as 0."""

    def macs(self, n: int, h: int, w: int) -> int:
        return sum(layer.macs.at(n, h, w) for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShare:
    """Part of the roof that kernels of a kind reach."""

    kind: Kind
    arithmetic: Arithmetic
    limit: Limit
    share: float
    points: int
    """Measured kernels behind it; 0: a default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFloor:
    """Time that a kernel of a kind takes however little it does, its gap to the next one included, under a CUDA graph."""

    kind: Kind
    us: float
    points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyTable:
    """From the roof to what is expected: a kernel takes floor + whole waves of its roof / share."""

    shares: tuple[KernelShare, ...]
    default_share: float
    """For kinds, arithmetics and bounds without a row."""
    floors: tuple[KernelFloor, ...]
    default_floor_us: float
    launch_floor_us: float
    """Least time of any kernel under a CUDA graph: the roof's own floor."""
    stream_us: float
    """More for each kernel that the host launches one by one."""
    step_us: float
    """Fixed time of an inference: its launch and the wait for its end."""
    source: str

    def share(self, kind: Kind, arithmetic: Arithmetic, limit: Limit) -> tuple[float, int]:
        """KernelShare and the measured points behind it.

        Without a row of its own a kind takes its nearest relative's, an arithmetic on tensor cores takes FP16's, and the rest
        the default.
        """
        rows = {(row.kind, row.arithmetic, row.limit): row for row in self.shares}
        for relative in (kind, RELATIVE.get(kind, kind)):
            for wanted in (arithmetic,) if arithmetic == "fp32" else (arithmetic, FALLBACK):
                if row := rows.get((relative, wanted, limit)):
                    return row.share, row.points if (relative, wanted) == (kind, arithmetic) else 0
        return self.default_share, 0

    def floor_us(self, kind: Kind) -> float:
        rows = {row.kind: row.us for row in self.floors}
        return rows.get(kind, rows.get(RELATIVE.get(kind, kind), self.default_floor_us))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTime:
    """One kernel at the roof and as expected."""

    name: str
    kind: Kind
    bound: Bound
    limit: Limit
    """The larger of its two times, launch apart."""
    flops: int
    bytes: int
    intensity: float
    """FLOPs per byte; 0 where nothing moves."""
    roof_us: float
    """The largest of operations / dense peak, bytes / bandwidth and the launch floor."""
    work_us: float
    """The same without the launch floor."""
    waves: float
    """Time of whole waves of blocks over that of the work itself: the last wave, or the only one, leaves part of the device
    idle, which batches fill. 1 where nothing is known of the blocks."""
    expected_us: float
    no_tensor_core: str
    """Why its products do not suit tensor cores; "" if they do, or if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """A network on a device at one size. Layers one after another, none overlapping."""

    graph_digest: str
    device: str
    arithmetic: Arithmetic
    size: tuple[int, int, int]
    """N, H, W."""
    convention: Convention
    cuda_graph: bool
    groups: tuple[GroupTime, ...]
    flops: int
    bytes: int
    """In this convention."""
    unfused_bytes: int
    """If every node were a kernel of its own."""
    compute_us: float
    """All operations at the dense peaks, nothing else."""
    memory_us: float
    roof_us: float
    expected_us: float
    """With the fixed time of an inference."""
    notes: tuple[str, ...] = ()
