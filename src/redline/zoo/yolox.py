"""YOLOX (Ge et al., 2021, arXiv:2107.08430): CSPDarknet, PAFPN and the decoupled head, with Megvii's checkpoint names.

Knows nothing of grids, anchors or images: the raw predictions are decoded elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redline.zoo.fold import fold_batchnorm, is_folded

STRIDES = (8, 16, 32)
PRIOR = 0.01
"""Initial probability of the objectness and class predictions (focal-loss prior, arXiv:1708.02002, section 4.1)."""


class BaseConv(nn.Module):
    """Convolution with "same" padding, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class DWConv(nn.Module):
    """Depthwise then pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.dconv = BaseConv(inputs, inputs, kernel, stride, groups=inputs)
        self.pconv = BaseConv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pconv(self.dconv(x))
        return out


def _conv(depthwise: bool, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return DWConv(inputs, outputs, kernel, stride) if depthwise else BaseConv(inputs, outputs, kernel, stride)


class Focus(nn.Module):
    """Space to depth by 2 (top-left, bottom-left, top-right, bottom-right), then a convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = BaseConv(4 * inputs, outputs, kernel)

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = x[:, :, ::2], x[:, :, 1::2]
        parts = (top[..., ::2], bottom[..., ::2], top[..., 1::2], bottom[..., 1::2])
        out: Tensor = self.conv(torch.cat(parts, dim=1))
        return out


class Bottleneck(nn.Module):
    def __init__(self, channels: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.conv1 = BaseConv(channels, channels, 1)
        self.conv2 = _conv(depthwise, channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out + x if self.shortcut else out


class SPPBottleneck(nn.Module):
    """Spatial pyramid pooling with windows 5, 9 and 13, computed as 5 o 5 o 5: the maxima are the same."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = inputs // 2
        self.conv1 = BaseConv(inputs, hidden, 1)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.conv2 = BaseConv(4 * hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        five = self.pool(x)
        nine = self.pool(five)
        out: Tensor = self.conv2(torch.cat((x, five, nine, self.pool(nine)), dim=1))
        return out


class CSPLayer(nn.Module):
    """Cross-stage partial block: half of the channels pass the bottlenecks, half go around them."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        hidden = outputs // 2
        self.conv1 = BaseConv(inputs, hidden, 1)
        self.conv2 = BaseConv(inputs, hidden, 1)
        self.conv3 = BaseConv(2 * hidden, outputs, 1)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut, depthwise) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), dim=1))
        return out


class CSPDarknet(nn.Module):
    """Features at strides 8, 16 and 32 with 4, 8 and 16 times `stem` channels."""

    def __init__(self, stem: int, blocks: int, depthwise: bool) -> None:
        super().__init__()
        self.stem = Focus(3, stem, 3)
        self.dark2 = self._stage(stem, blocks, depthwise)
        self.dark3 = self._stage(2 * stem, 3 * blocks, depthwise)
        self.dark4 = self._stage(4 * stem, 3 * blocks, depthwise)
        wide = 16 * stem
        self.dark5 = nn.Sequential(
            _conv(depthwise, 8 * stem, wide, 3, 2),
            SPPBottleneck(wide, wide),
            CSPLayer(wide, wide, blocks, shortcut=False, depthwise=depthwise),
        )

    @staticmethod
    def _stage(inputs: int, blocks: int, depthwise: bool) -> nn.Sequential:
        outputs = 2 * inputs
        down = _conv(depthwise, inputs, outputs, 3, 2)
        return nn.Sequential(down, CSPLayer(outputs, outputs, blocks, shortcut=True, depthwise=depthwise))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3 = self.dark3(self.dark2(self.stem(x)))
        c4 = self.dark4(c3)
        return c3, c4, self.dark5(c4)


class PAFPN(nn.Module):
    """Path-aggregation feature pyramid over the backbone; channel counts of its outputs equal its inputs'."""

    def __init__(self, stem: int, blocks: int, depthwise: bool) -> None:
        super().__init__()
        c3, c4, c5 = 4 * stem, 8 * stem, 16 * stem

        def csp(inputs: int, outputs: int) -> CSPLayer:
            return CSPLayer(inputs, outputs, blocks, shortcut=False, depthwise=depthwise)

        self.backbone = CSPDarknet(stem, blocks, depthwise)
        self.lateral_conv0 = BaseConv(c5, c4, 1)
        self.C3_p4 = csp(2 * c4, c4)
        self.reduce_conv1 = BaseConv(c4, c3, 1)
        self.C3_p3 = csp(2 * c3, c3)
        self.bu_conv2 = _conv(depthwise, c3, c3, 3, 2)
        self.C3_n3 = csp(2 * c3, c4)
        self.bu_conv1 = _conv(depthwise, c4, c4, 3, 2)
        self.C3_n4 = csp(2 * c4, c5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3, c4, c5 = self.backbone(x)
        lateral5 = self.lateral_conv0(c5)
        mid = self.C3_p4(torch.cat((_double(lateral5), c4), dim=1))
        lateral4 = self.reduce_conv1(mid)
        p3 = self.C3_p3(torch.cat((_double(lateral4), c3), dim=1))
        p4 = self.C3_n3(torch.cat((self.bu_conv2(p3), lateral4), dim=1))
        p5 = self.C3_n4(torch.cat((self.bu_conv1(p4), lateral5), dim=1))
        return p3, p4, p5


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class YOLOXHead(nn.Module):
    """Per level: a 1x1 stem, then two convolutions for classes and two for box and objectness."""

    def __init__(self, channels: Sequence[int], hidden: int, num_classes: int, depthwise: bool) -> None:
        super().__init__()

        def branch() -> nn.Sequential:
            return nn.Sequential(_conv(depthwise, hidden, hidden, 3), _conv(depthwise, hidden, hidden, 3))

        def predict(outputs: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(hidden, outputs, 1) for _ in channels)

        self.cls_convs = nn.ModuleList(branch() for _ in channels)
        self.reg_convs = nn.ModuleList(branch() for _ in channels)
        self.cls_preds = predict(num_classes)
        self.reg_preds = predict(4)
        self.obj_preds = predict(1)
        self.stems = nn.ModuleList(BaseConv(inputs, hidden, 1) for inputs in channels)
        for conv in (*self.cls_preds, *self.obj_preds):
            nn.init.constant_(conv.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Box (N, 4, h, w), objectness logits (N, 1, h, w) and class logits (N, C, h, w) of each level."""
        levels = []
        for i, feature in enumerate(features):
            x = self.stems[i](feature)
            box = self.reg_convs[i](x)
            levels.append((self.reg_preds[i](box), self.obj_preds[i](box), self.cls_preds[i](self.cls_convs[i](x))))
        return levels


class YOLOX(nn.Module):
    """(N, 3, H, W) float32, H and W multiples of 32 -> raw predictions.

    Eval mode: one tensor (N, A, 5 + C), A = HW/64 + HW/256 + HW/1024: cx, cy, w, h not yet decoded, sigmoid(objectness),
    sigmoid(classes); levels of stride 8, 16, 32 one after another, each row by row.
    Train mode: a list of (N, 5 + C, h, w), one a level, without the sigmoids.
    """

    def __init__(self, *, stem: int, blocks: int, head: int, num_classes: int, depthwise: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = PAFPN(stem, blocks, depthwise)
        self.head = YOLOXHead((4 * stem, 8 * stem, 16 * stem), head, num_classes, depthwise)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        if images.device.type == "cpu":  # oneDNN rounds less in this layout (4.6e-4 of raw output instead of 8.8e-4), no slower
            images = images.contiguous(memory_format=torch.channels_last)
        levels = self.head(self.backbone(images))
        if self.training:
            return [torch.cat(level, dim=1) for level in levels]
        flat = [torch.cat((box, obj.sigmoid(), cls.sigmoid()), dim=1).flatten(2) for box, obj, cls in levels]
        return torch.cat(flat, dim=2).permute(0, 2, 1)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As nn.Module's; `{"model": ...}` is unwrapped, and a state with folded batch norms folds this network first."""
        inner = state_dict.get("model")
        state: Mapping[str, Any] = inner if isinstance(inner, Mapping) else state_dict
        if is_folded(self, state):
            fold_batchnorm(self)
        return super().load_state_dict(state, strict=strict, assign=assign)


def yolox(
    depth: float, width: float, num_classes: int = 80, *, depthwise: bool = False, head_channels: int | None = None
) -> YOLOX:
    """Build a YOLOX of any size.

    `depth` scales the 3 bottlenecks a block, `width` the 64 stem channels and the 256 of the head (`head_channels` overrides).
    """
    head = int(256 * width) if head_channels is None else head_channels
    blocks = max(round(3 * depth), 1)
    return YOLOX(stem=int(64 * width), blocks=blocks, head=head, num_classes=num_classes, depthwise=depthwise)


def yolox_nano(num_classes: int = 80) -> YOLOX:
    """0.91 M parameters with 80 classes."""
    return yolox(0.33, 0.25, num_classes, depthwise=True)


def yolox_tiny(num_classes: int = 80) -> YOLOX:
    """5.06 M parameters with 80 classes."""
    return yolox(0.33, 0.375, num_classes)


def yolox_s(num_classes: int = 80) -> YOLOX:
    """8.97 M parameters with 80 classes."""
    return yolox(0.33, 0.50, num_classes)


def yolox_m(num_classes: int = 80) -> YOLOX:
    """25.3 M parameters with 80 classes."""
    return yolox(0.67, 0.75, num_classes)


def yolox_l(num_classes: int = 80) -> YOLOX:
    """54.2 M parameters with 80 classes."""
    return yolox(1.0, 1.0, num_classes)


def yolox_x(num_classes: int = 80) -> YOLOX:
    """99.1 M parameters with 80 classes."""
    return yolox(1.33, 1.25, num_classes)
