"""RetinaNet variants for the GPU benchmark's moonshot: the same function, laid out for fewer launches and less traffic."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from redline.records import Detector, OnnxModel, TensorFact
from redline.zoo import retinanet as zoo

SIZES = (100, 50, 25, 13, 7)
"""Pyramid levels of an 800 x 800 input."""
CLOSED = -30000.0
"""Added before a ReLU in the gaps of a canvas: far below any activation, within float16."""
EIGHT = 8
"""Channels that TensorRT's HWC8 format stores together: a multiple of it needs no padding."""


class Variant(nn.Module):
    """`native`: outputs are the last convolutions' own, with channels padded to a multiple of 8; else RetinaNet's rows."""

    def __init__(self, network: nn.Module, *, native: bool) -> None:
        super().__init__()
        net: Any = network
        inner = net if hasattr(net, "backbone") else next(part for part in net.children() if hasattr(part, "backbone"))
        self.backbone, heads = inner.backbone, inner.head
        self.towers = nn.ModuleList([heads.classification_head.conv, heads.regression_head.conv])
        last = (heads.classification_head.cls_logits, heads.regression_head.bbox_reg)
        self.columns = tuple(conv.out_channels // zoo.ANCHORS for conv in last)
        self.last = nn.ModuleList([_widened(conv) if native else conv for conv in last])
        self.native = native

    def level(self, found: Tensor, columns: int) -> Tensor:
        return zoo._rows(found[:, : columns * zoo.ANCHORS], columns)


class Levels(Variant):
    """RetinaNet as it is, level by level."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels = self.backbone(images)
        found = [last(tower(level)) for tower, last in zip(self.towers, self.last, strict=True) for level in levels]
        return tuple(found) if self.native else self.rows(tuple(found))

    def rows(self, found: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        first, second = self.columns
        count = len(SIZES)
        return (
            torch.cat([self.level(x, first) for x in found[:count]], 1),
            torch.cat([self.level(x, second) for x in found[count:]], 1),
        )


class Packed(Variant):
    """The heads run once over one canvas of all pyramid levels, with a zero cell between neighbours.

    P3 lies on top; below it P4 to P7 side by side. The gaps are closed again in every convolution by a constant that is added
    before the ReLU, as a residual is, so that each level sees the zero padding that it would have alone. One shape only.
    """

    def __init__(self, network: nn.Module, *, native: bool) -> None:
        super().__init__(network, native=native)
        first, rest = SIZES[0], SIZES[1:]
        self.places = [(0, 0), *((first + 1, sum(rest[:i]) + i) for i in range(len(rest)))]
        gaps = torch.full((1, zoo.FPN_CHANNELS, first + 1 + rest[0], first), CLOSED)
        for size, (top, left) in zip(SIZES, self.places, strict=True):
            gaps[:, :, top : top + size, left : left + size] = 0
        self.register_buffer("gaps", gaps)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels, first, rest = self.backbone(images), SIZES[0], SIZES[1:]
        spare = first - sum(rest) - len(rest) + 1
        parts = [F.pad(x, (0, spare if i == len(rest) - 1 else 1, 0, rest[0] - x.shape[2])) for i, x in enumerate(levels[1:])]
        canvas = torch.cat([F.pad(levels[0], (0, 0, 0, 1)), torch.cat(parts, 3)], 2)
        found = tuple(self.head(canvas, tower, last) for tower, last in zip(self.towers, self.last, strict=True))
        return found if self.native else self.rows(found)

    def head(self, canvas: Tensor, tower: Any, last: Any) -> Tensor:
        for layer in tower:
            canvas = F.relu(layer[0](canvas) + self.gaps)
        result: Tensor = last(canvas)
        return result

    def rows(self, found: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        logits, deltas = (
            torch.cat(
                [self.level(x[:, :, t : t + s, w : w + s], columns) for s, (t, w) in zip(SIZES, self.places, strict=True)], 1
            )
            for x, columns in zip(found, self.columns, strict=True)
        )
        return logits, deltas


class Rows(Packed):
    """P3 by itself; P4 to P7 side by side on one canvas, whose gaps are closed by a product after each ReLU."""

    def __init__(self, network: nn.Module, *, native: bool) -> None:
        super().__init__(network, native=native)
        rest = SIZES[1:]
        self.places = [(0, sum(rest[:i]) + i) for i in range(len(rest))]
        mask = torch.zeros(1, 1, rest[0], sum(rest) + len(rest) - 1)
        for size, (top, left) in zip(rest, self.places, strict=True):
            mask[:, :, top : top + size, left : left + size] = 1
        self.gaps = mask

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels, rest = self.backbone(images), SIZES[1:]
        parts = [F.pad(x, (0, 1 if i < len(rest) - 1 else 0, 0, rest[0] - x.shape[2])) for i, x in enumerate(levels[1:])]
        canvas = torch.cat(parts, 3)
        pairs = list(zip(self.towers, self.last, strict=True))
        found = tuple(x for tower, last in pairs for x in (last(tower(levels[0])), self.head(canvas, tower, last)))
        return found if self.native else self.rows(found)

    def head(self, canvas: Tensor, tower: Any, last: Any) -> Tensor:
        for layer in tower:
            canvas = F.relu(layer[0](canvas)) * self.gaps
        result: Tensor = last(canvas)
        return result

    def rows(self, found: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        one, two = (
            torch.cat(
                [
                    self.level(found[2 * i], columns),
                    *(
                        self.level(found[2 * i + 1][:, :, t : t + s, w : w + s], columns)
                        for s, (t, w) in zip(SIZES[1:], self.places, strict=True)
                    ),
                ],
                1,
            )
            for i, columns in enumerate(self.columns)
        )
        return one, two


VARIANTS: dict[str, tuple[type[Variant], bool]] = {
    "packed": (Packed, False),
    "native": (Levels, True),
    "packed-native": (Packed, True),
    "rows-native": (Rows, True),
}
"""name -> (class, native outputs). Native ones read and write float16."""


def is_native(name: str) -> bool:
    return name in VARIANTS and VARIANTS[name][1]


def variant(name: str, source: Detector) -> Variant:
    kind, native = VARIANTS[name]
    made = kind(source.module, native=native).eval()
    assert isinstance(made, Variant)
    return made


def export_variant(name: str, source: Detector, folder: Path, shape: tuple[int, ...]) -> OnnxModel:
    """A variant's graph at one shape, compared with the original on random input."""
    from redline.export.exporters import quiet

    module, path, images = variant(name, source), folder / "network.onnx", torch.rand(shape)
    with torch.no_grad(), quiet():
        found = module(images)
        pairs = list(zip(source.module(images), module.rows(found) if module.native else found, strict=True))  # type: ignore[operator]
        worst = max(float((a - b).abs().max() / a.std()) for a, b in pairs)
        names = [f"head{i}" for i in range(len(found))] if module.native else [fact.name for fact in source.facts.outputs]
        how: dict[str, Any] = {"input_names": ["images"], "output_names": names, "opset_version": 18}
        torch.onnx.export(module, (images,), str(path), dynamo=True, external_data=False, **how)
    if worst > 0.02:  # rounding of logits around a bias that dwarfs their spread; a wrong layout gives about 1
        raise SystemExit(f"{name} does not compute what RetinaNet computes: {worst:.2g}")
    outputs = tuple(TensorFact(name=n, dtype="float32", shape=tuple(a.shape)) for n, a in zip(names, found, strict=True))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    image = TensorFact(name="images", dtype="float32", shape=shape)
    return OnnxModel(
        path=str(path), digest=digest, exporter="torch.export", opset=18, input=image, outputs=outputs, dynamic=False, checks=()
    )


def narrow_input(model: OnnxModel) -> OnnxModel:
    """The FP16 graph without the cast of its input: the caller hands in float16."""
    from dataclasses import replace

    graph = onnx.load(model.path)
    image = graph.graph.input[0]
    casts = [node for node in graph.graph.node if node.op_type == "Cast" and node.input[0] == image.name]
    renamed = {node.output[0]: image.name for node in casts}
    for node in casts:
        graph.graph.node.remove(node)
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    image.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    data = graph.SerializeToString(deterministic=True)
    Path(model.path).write_bytes(data)
    return replace(model, digest=hashlib.sha256(data).hexdigest(), input=replace(model.input, dtype="float16"))


def rows_of(name: str, source: Detector, found: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
    """RetinaNet's rows from what a native engine wrote: (N, C, h, w) arrays whose memory is (N, h, w, C)."""
    module: Any = variant(name, source)
    plain = [torch.from_numpy(np.ascontiguousarray(_from_hwc8(array)).astype(np.float32)) for array in found]
    return tuple(tensor.numpy() for tensor in module.rows(tuple(plain)))


def _from_hwc8(array: NDArray[Any]) -> NDArray[Any]:
    count, channels, height, width = array.shape
    return array.reshape(-1).reshape(count, height, width, channels).transpose(0, 3, 1, 2)


def _widened(conv: Any) -> nn.Conv2d:
    """The convolution with zero channels added up to a multiple of 8."""
    wide = nn.Conv2d(conv.in_channels, -(-conv.out_channels // EIGHT) * EIGHT, conv.kernel_size, padding=conv.padding)
    with torch.no_grad():
        for mine, given in ((wide.weight, conv.weight), (wide.bias, conv.bias)):
            assert mine is not None
            mine.zero_()
            mine[: given.shape[0]] = given
    return wide
