"""Resizing as ONNX operators that agree with OpenCV and Pillow, which resize on the host."""

from __future__ import annotations

import numpy as np

from redline.export.graph_builder import GraphBuilder
from redline.records import Preprocess

LEVELS = 2048
"""OpenCV's fixed point for uint8 bilinear resizing: weights are multiples of 1 / 2048."""


def resize(g: GraphBuilder, image: str, source: tuple[str, str], target: tuple[str, str], preprocess: Preprocess) -> str:
    """(H, W, 3) uint8 -> (1, 3, h, w) float32. `source` and `target` are (height, width), int64 tensors of shape (1,)."""
    if preprocess.interpolation == "bilinear" and preprocess.round_to_uint8 and not preprocess.antialias:
        return _planes(g, _fixed_point(g, image, source, target))
    sizes = g.op("Concat", g.ints(1), g.ints(3), *target, axis=0)
    if preprocess.interpolation == "nearest":
        return _resize(g, _planes(g, image), sizes, mode="nearest", nearest_mode="round_prefer_ceil")
    if preprocess.antialias:  # exclude_outside: weights beyond the border are dropped, as Pillow does
        # Resize rounds to the type that it is given, which may be a float by now.
        pixels = g.cast(image, np.uint8) if preprocess.round_to_uint8 else image
        planes = _planes(g, pixels, cast=not preprocess.round_to_uint8)
        resized = _resize(g, planes, sizes, mode="linear", antialias=1, exclude_outside=1)
        return g.cast(resized, np.float32) if preprocess.round_to_uint8 else resized
    return _resize(g, _planes(g, image), sizes, mode="linear")


def _resize(g: GraphBuilder, planes: str, sizes: str, **attributes: object) -> str:
    return g.op("Resize", planes, "", "", sizes, coordinate_transformation_mode="half_pixel", **attributes)


def _planes(g: GraphBuilder, image: str, *, cast: bool = True) -> str:
    planes = g.op("Unsqueeze", g.op("Transpose", image, perm=[2, 0, 1]), g.ints(0))
    return g.cast(planes, np.float32) if cast else planes


def _fixed_point(g: GraphBuilder, image: str, source: tuple[str, str], target: tuple[str, str]) -> str:
    """OpenCV's uint8 bilinear resize (INTER_LINEAR), level for level: (H, W, 3) uint8 -> (h, w, 3) float32 of whole numbers.

    Horizontal sums are exact in float32 and lose 4 bits; vertical products lose 16 bits each, and stay below 2**27: int32.
    Arithmetic runs on whole lines, (h, 3 w): a broadcast over an inner axis of 3 would be several times slower.
    """
    rows, row_weights = _taps(g, source[0], target[0], clamp_weights=False)
    columns, column_weights = _taps(g, source[1], target[1], clamp_weights=True)
    pixel, flat = g.op("Concat", target[1], g.ints(3), axis=0), g.ints(1, -1)
    column_weights = [g.op("Reshape", g.op("Expand", weight, pixel), flat) for weight in column_weights]
    lines = g.op("Concat", target[0], g.ints(-1), axis=0)
    total = None
    for row, row_weight in zip(rows, row_weights, strict=True):
        line = g.op("Gather", image, row, axis=0)
        parts = [
            g.op("Mul", g.cast(g.op("Reshape", g.op("Gather", line, column, axis=1), lines), np.float32), weight)
            for column, weight in zip(columns, column_weights, strict=True)
        ]
        across = g.op("Floor", g.op("Mul", g.op("Add", *parts), g.float(1 / 16)))
        product = g.op("Mul", g.cast(across, np.int32), g.cast(row_weight, np.int32))
        down = g.op("Div", product, g.const(65536, np.int32))
        total = down if total is None else g.op("Add", total, down)
    levels = g.cast(g.op("Div", g.op("Add", str(total), g.const(2, np.int32)), g.const(4, np.int32)), np.float32)
    return g.op("Reshape", levels, g.op("Concat", *target, g.ints(3), axis=0))


def _taps(g: GraphBuilder, source: str, target: str, *, clamp_weights: bool) -> tuple[list[str], list[str]]:
    """Both source indices of each target pixel, int64 (n,), and their weights times 2048, float32 (n, 1).

    At the border OpenCV gives a column's whole weight to the one pixel inside; of rows it repeats the border and keeps both
    weights. The centre of pixel i in the source, (i + 1/2) source / target - 1/2, is a quotient of whole numbers, rounded once
    to float32 as OpenCV rounds its float64: engines have no float64.
    """
    scalar, twice = g.op("Squeeze", target, g.ints(0)), g.op("Mul", target, g.ints(2))
    index = g.op("Range", g.const(0, np.int64), scalar, g.const(1, np.int64))
    odd = g.op("Add", g.op("Mul", index, g.ints(2)), g.ints(1))
    over = g.op("Sub", g.op("Mul", odd, source), target)
    # Div rounds towards 0: one is added so that nothing is negative.
    below = g.op("Sub", g.op("Div", g.op("Add", over, twice), twice), g.ints(1))
    rest = g.op("Sub", over, g.op("Mul", below, twice))
    centre = g.op("Add", g.cast(below, np.float32), g.op("Div", g.cast(rest, np.float32), g.cast(twice, np.float32)))
    whole = g.op("Floor", centre)
    fraction = g.op("Sub", centre, whole)
    first = g.cast(whole, np.int64)
    last = g.op("Sub", source, g.ints(1))
    if clamp_weights:
        inside = g.op("And", g.op("GreaterOrEqual", first, g.ints(0)), g.op("Less", first, last))
        fraction = g.op("Where", inside, fraction, g.float(0))
    near = g.op("Min", g.op("Max", first, g.ints(0)), last)
    far = g.op("Min", g.op("Max", g.op("Add", first, g.ints(1)), g.ints(0)), last)
    weights = (g.op("Sub", g.float(1), fraction), fraction)
    rounded = [g.op("Round", g.op("Mul", weight, g.float(LEVELS))) for weight in weights]
    return [near, far], [g.op("Unsqueeze", weight, g.ints(1)) for weight in rounded]
