"""Training targets and loss of a YOLOX network: SimOTA (arXiv:2107.08430, section 2.1) for a whole batch at once.

No loop over images and no transfer to the host, so that a GPU never waits. Knows nothing of scenes or schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

STRIDES = (8, 16, 32)
CENTRE_CELLS = 2.5
"""An anchor cell whose centre is this near (in cells, per axis) to a box's centre may be given to it."""
CANDIDATES = 10
"""A box gets as many anchors as the sum of its so many best IoUs, at least one."""
IOU_COST = 3.0
OUTSIDE_COST = 1e5
BOX_WEIGHT = 5.0
NEVER = 1e9


@dataclass(frozen=True, slots=True)
class Targets:
    """Padded ground truth: `boxes` (N, M, 4) xyxy in input pixels; `labels` (N, M) int64, -1 where there is none."""

    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    total: Tensor
    box: Tensor
    objectness: Tensor
    classes: Tensor
    positives: Tensor
    """Anchors given to a box, per box."""


@dataclass(frozen=True, slots=True)
class Grid:
    """`cell` (A, 2): column and row; `stride` (A, 1)."""

    cell: Tensor
    stride: Tensor

    @property
    def centre(self) -> Tensor:
        return (self.cell + 0.5) * self.stride


def flatten(levels: Sequence[Tensor]) -> tuple[Tensor, Grid]:
    """Per-level logits (N, 5 + C, h, w) to float32 (N, A, 5 + C) and their grid."""
    cells, strides = [], []
    for level, stride in zip(levels, STRIDES, strict=True):
        rows, columns = level.shape[2:]
        y, x = torch.meshgrid(
            torch.arange(rows, device=level.device), torch.arange(columns, device=level.device), indexing="ij"
        )
        cells.append(torch.stack([x, y], dim=-1).reshape(-1, 2).float())
        strides.append(torch.full((rows * columns, 1), float(stride), device=level.device))
    raw = torch.cat([level.flatten(2) for level in levels], dim=2).float().permute(0, 2, 1)
    return raw, Grid(torch.cat(cells), torch.cat(strides))


def decode(raw: Tensor, grid: Grid) -> Tensor:
    """(N, A, >= 4) cx, cy, w, h to xyxy in input pixels."""
    centre = (raw[..., :2] + grid.cell) * grid.stride
    half = 0.5 * raw[..., 2:4].clamp(max=8.0).exp() * grid.stride
    return torch.cat([centre - half, centre + half], dim=-1)


def iou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (arXiv:1902.09630) of boxes (..., 4) xyxy that broadcast."""
    x1, y1, x2, y2 = first.unbind(-1)
    u1, v1, u2, v2 = second.unbind(-1)
    overlap = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    overlap = overlap * (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap + 1e-7
    hull = (torch.maximum(x2, u2) - torch.minimum(x1, u1)) * (torch.maximum(y2, v2) - torch.minimum(y1, v1)) + 1e-7
    ratio = overlap / union
    return ratio, ratio - (hull - union) / hull


@torch.no_grad()
def assign(raw: Tensor, grid: Grid, targets: Targets) -> tuple[Tensor, Tensor]:
    """Which box each anchor is to predict: index (N, A) into the targets, and whether it has one (N, A) bool."""
    real = targets.labels >= 0
    centre = grid.centre
    x, y = centre[:, 0], centre[:, 1]
    boxes = targets.boxes[:, :, None]
    left, top, right, bottom = boxes.unbind(-1)
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    reach = CENTRE_CELLS * grid.stride[:, 0]
    near = ((x - 0.5 * (left + right)).abs() < reach) & ((y - 0.5 * (top + bottom)).abs() < reach)
    allowed = (inside | near) & real[:, :, None]

    overlap, _ = iou(boxes, decode(raw, grid)[:, None])
    overlap = overlap * allowed
    probability = (raw[..., 5:].sigmoid() * raw[..., 4:5].sigmoid()).sqrt().clamp(1e-6, 1 - 1e-6)
    negative = -torch.log1p(-probability)
    own = (negative + probability.log()).transpose(1, 2)
    chosen = targets.labels.clamp(min=0)[:, :, None].expand(-1, -1, own.shape[2])
    cost = negative.sum(-1)[:, None] - own.gather(1, chosen)
    cost = cost - IOU_COST * overlap.clamp(min=1e-8).log() + OUTSIDE_COST * ~(inside & near)
    cost = cost.masked_fill(~allowed, NEVER)

    count = min(CANDIDATES, cost.shape[2])
    wanted = overlap.topk(count, dim=2).values.sum(2).int().clamp(min=1)
    lowest = cost.topk(count, dim=2, largest=False)
    taken = (torch.arange(count, device=raw.device) < wanted[:, :, None]) & (lowest.values < NEVER)
    given = torch.zeros_like(allowed).scatter_(2, lowest.indices, taken)
    index = cost.masked_fill(~given, 2 * NEVER).argmin(1)
    return index, given.any(1)


def loss(levels: Sequence[Tensor], targets: Targets) -> Losses:
    """Box: 1 - GIoU; objectness and classes: binary cross-entropy, the class target being the box's IoU. Means per positive."""
    raw, grid = flatten(levels)
    index, positive = assign(raw, grid, targets)
    weight = positive.float()
    number = weight.sum().clamp(min=1)
    truth = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    label = targets.labels.gather(1, index).clamp(min=0)
    overlap, generalised = iou(decode(raw, grid), truth)
    box = ((1 - generalised) * weight).sum() / number
    objectness = F.binary_cross_entropy_with_logits(raw[..., 4], weight, reduction="sum") / number
    wanted = F.one_hot(label, raw.shape[-1] - 5) * overlap.detach()[..., None].clamp(0, 1)
    entropy = F.binary_cross_entropy_with_logits(raw[..., 5:], wanted, reduction="none")
    classes = (entropy * weight[..., None]).sum() / number
    total = BOX_WEIGHT * box + objectness + classes
    return Losses(total, box, objectness, classes, number / (targets.labels >= 0).sum().clamp(min=1))
