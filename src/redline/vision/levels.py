"""Anchors, grids and box codes of pyramid levels, float32.

Formulas: YOLOX (arXiv 2107.08430); RetinaNet (arXiv 1708.02002) with torchvision's rounding, strides and bounds.
"""

from __future__ import annotations

from functools import lru_cache
from math import log
from typing import TYPE_CHECKING

import numpy as np

from redline.records import Head

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

LARGEST_LOG_RATIO = log(1000.0 / 16)
"""Bound of a predicted log size ratio (torchvision's BoxCoder)."""


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), float32; NaN stays NaN."""
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-x))


def feature_sizes(strides: tuple[int, ...], input_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """(height, width) of each level's feature map: the input over the stride, rounded up as padded convolutions do."""
    return tuple((-(-input_hw[0] // stride), -(-input_hw[1] // stride)) for stride in strides)


def level_anchors(head: Head, input_hw: tuple[int, int]) -> tuple[int, ...]:
    """Number of anchors of each level of a yolox or retinanet head."""
    cells = [height * width for height, width in feature_sizes(head.strides, input_hw)]
    if head.kind == "yolox":
        return tuple(cells)
    ratios = len(head.aspect_ratios)
    return tuple(count * len(sizes) * ratios for count, sizes in zip(cells, head.anchor_sizes, strict=True))


@lru_cache(maxsize=64)
def yolox_grid(strides: tuple[int, ...], input_hw: tuple[int, int]) -> tuple[Floats, Floats]:
    """Cell corners (A, 2) as (x, y) in cells, and strides (A, 1); level by level, row by row."""
    grids, steps = [], []
    for stride, (height, width) in zip(strides, feature_sizes(strides, input_hw), strict=True):
        y, x = np.indices((height, width), np.float32)
        grids.append(np.stack((x, y), axis=-1).reshape(-1, 2))
        steps.append(np.full((height * width, 1), stride, np.float32))
    return _frozen(np.concatenate(grids)), _frozen(np.concatenate(steps))


def decode_grid(raw: Floats, grid: Floats, strides: Floats) -> Floats:
    """(..., A, 4) cx, cy, w, h codes -> (..., A, 4) xyxy in input pixels."""
    with np.errstate(over="ignore", invalid="ignore"):
        centre = (raw[..., :2] + grid) * strides
        half = np.exp(raw[..., 2:4]) * strides * np.float32(0.5)
        return np.concatenate((centre - half, centre + half), axis=-1)


@lru_cache(maxsize=64)
def _anchors(
    sizes: tuple[tuple[float, ...], ...], ratios: tuple[float, ...], strides: tuple[int, ...], input_hw: tuple[int, int]
) -> Floats:
    levels = []
    for level, (height, width) in zip(sizes, feature_sizes(strides, input_hw), strict=True):
        step_y, step_x = input_hw[0] // height, input_hw[1] // width
        y, x = np.indices((height, width), np.float32)
        shifts = np.stack((x * step_x, y * step_y, x * step_x, y * step_y), axis=-1).reshape(-1, 1, 4)
        levels.append((shifts + base_anchors(level, ratios)).reshape(-1, 4))
    return _frozen(np.concatenate(levels).astype(np.float32))


def retinanet_anchors(head: Head, input_hw: tuple[int, int]) -> Floats:
    """(A, 4) xyxy anchors of all levels: cells row by row, then ratios, then sizes. Steps are input // feature size."""
    return _anchors(head.anchor_sizes, head.aspect_ratios, head.strides, input_hw)


def base_anchors(sizes: tuple[float, ...], ratios: tuple[float, ...]) -> Floats:
    """(len(ratios) * len(sizes), 4) anchors about the origin, rounded half to even; ratio = height / width."""
    roots = np.sqrt(np.array(ratios, np.float32))
    scales = np.array(sizes, np.float32)
    widths = ((1 / roots)[:, None] * scales).reshape(-1)
    heights = (roots[:, None] * scales).reshape(-1)
    corners: Floats = np.stack((-widths, -heights, widths, heights), axis=1)
    rounded: Floats = np.rint(corners / np.float32(2))
    return rounded


def decode_deltas(deltas: Floats, anchors: Floats) -> Floats:
    """(..., A, 4) dx, dy, dw, dh (weights 1) relative to `anchors` (A, 4) xyxy -> (..., A, 4) xyxy."""
    size = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + np.float32(0.5) * size
    with np.errstate(over="ignore", invalid="ignore"):
        middle = deltas[..., :2] * size + centre
        half = np.float32(0.5) * (np.exp(np.minimum(deltas[..., 2:], np.float32(LARGEST_LOG_RATIO))) * size)
        return np.concatenate((middle - half, middle + half), axis=-1)


def _frozen(array: Floats) -> Floats:
    array.flags.writeable = False
    return array
