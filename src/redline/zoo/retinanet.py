"""RetinaNet (Lin et al., 2017, arXiv:1708.02002) on ResNet-FPN, with torchvision's state-dict names.

Takes an already normalised batch and gives raw head outputs; knows nothing of images, anchors or decoding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Depth = Literal[18, 34, 50]
BLOCKS: dict[Depth, tuple[int, int, int, int]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
STRIDES = (8, 16, 32, 64, 128)
ANCHOR_SIZES = tuple((size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in (32, 64, 128, 256, 512))
"""Three sizes a level, truncated to whole pixels as torchvision does."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
ANCHORS = 9
FPN_CHANNELS = 256
PRIOR = 0.01
"""Initial class probability (focal-loss prior, section 4.1 of the paper)."""


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and 34)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu(out + kept)
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 to four times the width (ResNet-50)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        result: Tensor = self.relu(self.bn3(self.conv3(out)) + kept)
        return result


class ResNet(nn.Module):
    """ResNet without its classifier: features C3, C4, C5 at strides 8, 16, 32."""

    def __init__(self, depth: Depth) -> None:
        super().__init__()
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck if depth == 50 else BasicBlock
        self.conv1 = _conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs, stages = 64, []
        for i, blocks in enumerate(BLOCKS[depth]):
            width, layers = 64 * 2**i, []
            for j in range(blocks):
                layers.append(block(inputs, width, 2 if i > 0 and j == 0 else 1))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple(width * block.expansion for width in (128, 256, 512))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        c3 = self.layer2(x)
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)


class LastLevels(nn.Module):
    """P6 and P7. Their input is P5 when the widths agree (torchvision's builder passes 256, 256), not C5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(channels, channels, 3, 2, 1)
        self.p7 = nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, p5: Tensor) -> tuple[Tensor, Tensor]:
        p6 = self.p6(p5)
        return p6, self.p7(F.relu(p6))


class FPN(nn.Module):
    """Feature pyramid: C3, C4, C5 -> P3 .. P7, all of `FPN_CHANNELS` channels."""

    def __init__(self, inputs: Sequence[int]) -> None:
        super().__init__()
        width = FPN_CHANNELS
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(channels, width, 1)) for channels in inputs)
        self.layer_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 3, padding=1)) for _ in inputs)
        self.extra_blocks = LastLevels(width)
        for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(_bias(conv))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        top = self.inner_blocks[-1](features[-1])
        levels = [self.layer_blocks[-1](top)]
        for i in range(len(features) - 2, -1, -1):
            lateral = self.inner_blocks[i](features[i])
            top = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, self.layer_blocks[i](top))
        return [*levels, *self.extra_blocks(levels[-1])]


def _bias(conv: nn.Conv2d) -> Tensor:
    if conv.bias is None:
        raise ValueError("this convolution was built without a bias")
    return conv.bias


class Backbone(nn.Module):
    def __init__(self, depth: Depth) -> None:
        super().__init__()
        self.body = ResNet(depth)
        self.fpn = FPN(self.body.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.fpn(self.body(images))
        return levels


def _tower() -> nn.Sequential:
    width = FPN_CHANNELS
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(4)))


def _rows(level: Tensor, columns: int) -> Tensor:
    """(N, anchors * columns, h, w) -> (N, h * w * anchors, columns): row by row, then anchor by anchor."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, columns)


class ClassificationHead(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = _tower()
        self.cls_logits = nn.Conv2d(FPN_CHANNELS, ANCHORS * num_classes, 3, padding=1)
        self.num_classes = num_classes

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        return torch.cat([_rows(self.cls_logits(self.conv(level)), self.num_classes) for level in levels], dim=1)


class RegressionHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = _tower()
        self.bbox_reg = nn.Conv2d(FPN_CHANNELS, ANCHORS * 4, 3, padding=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        return torch.cat([_rows(self.bbox_reg(self.conv(level)), 4) for level in levels], dim=1)


class RetinaNetHead(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classification_head = ClassificationHead(num_classes)
        self.regression_head = RegressionHead()
        for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(_bias(conv))
        nn.init.constant_(_bias(self.classification_head.cls_logits), -math.log((1 - PRIOR) / PRIOR))

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return self.classification_head(levels), self.regression_head(levels)


class RetinaNet(nn.Module):
    """(N, 3, H, W) float32 -> class logits (N, A, C) and box deltas (N, A, 4).

    Levels P3 .. P7 (strides 8 to 128) one after another, each row by row, nine anchors a place. H and W of any size; the
    anchor count follows from them: ceil at every halving.
    """

    def __init__(self, depth: Depth, num_classes: int) -> None:
        super().__init__()
        self.backbone = Backbone(depth)
        self.head = RetinaNetHead(num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor] = self.head(self.backbone(images))
        return outputs


def retinanet(depth: Depth, num_classes: int = 91) -> RetinaNet:
    """Build a RetinaNet; `num_classes` counts the unused class 0, as torchvision does."""
    return RetinaNet(depth, num_classes)
