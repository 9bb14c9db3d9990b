"""The `Preprocess` record as ONNX operators. Sizes are int64 tensors of one element, so that images of any size are served."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redline.export.graph_builder import GraphBuilder
from redline.export.graph_resize import resize
from redline.records import Preprocess, ShapePolicy
from redline.vision import normalisation


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlacement:
    """`records.Placement` as tensor names: (height, width) pairs, each an int64 tensor of shape (1,)."""

    source: tuple[str, str]
    resized: tuple[str, str]
    canvas: tuple[str, str]
    offset: tuple[str, str]


def place(g: GraphBuilder, image: str, preprocess: Preprocess, shapes: ShapePolicy) -> GraphPlacement:
    """The arithmetic of `vision.place`, in the same integer and float64 operations."""
    shape = g.op("Shape", image)
    source = (g.op("Gather", shape, g.ints(0)), g.op("Gather", shape, g.ints(1)))
    resized = _resized(g, source, preprocess)
    canvas = _canvas(g, source, resized, preprocess, shapes)
    offset = (g.ints(0), g.ints(0))
    if preprocess.anchor == "center":
        two = g.ints(2)
        offset = (
            g.op("Div", g.op("Sub", canvas[0], resized[0]), two),
            g.op("Div", g.op("Sub", canvas[1], resized[1]), two),
        )
    return GraphPlacement(source=source, resized=resized, canvas=canvas, offset=offset)


def prepare(g: GraphBuilder, image: str, preprocess: Preprocess, placement: GraphPlacement) -> str:
    """(H, W, 3) uint8 -> (1, 3, H', W') float32, as `vision.prepare`."""
    if preprocess.resize == "none":
        planes = g.cast(g.op("Unsqueeze", g.op("Transpose", image, perm=[2, 0, 1]), g.ints(0)), np.float32)
    else:
        planes = resize(g, image, placement.source, placement.resized, preprocess)
    if preprocess.channels == "bgr":
        planes = g.op("Gather", planes, g.ints(2, 1, 0), axis=1)
    planes = _pad(g, planes, preprocess, placement)
    gain, bias = normalisation(preprocess)
    if (gain != 1).any():
        planes = g.op("Mul", planes, g.float(gain.reshape(1, 3, 1, 1)))
    if (bias != 0).any():
        planes = g.op("Sub", planes, g.float(bias.reshape(1, 3, 1, 1)))
    return planes


def _resized(g: GraphBuilder, source: tuple[str, str], preprocess: Preprocess) -> tuple[str, str]:
    if preprocess.resize == "none":
        return source
    first, second = preprocess.size
    height, width = source
    one = g.ints(1)
    if preprocess.resize == "stretch":
        return g.ints(first), g.ints(second)
    if preprocess.resize == "letterbox":
        tall, wide = g.ints(first), g.ints(second)
        fitted = (g.op("Div", g.op("Mul", height, wide), width), g.op("Div", g.op("Mul", width, tall), height))
        return g.op("Max", one, g.op("Min", tall, fitted[0])), g.op("Max", one, g.op("Min", wide, fitted[1]))
    exact = (g.cast(height, np.float64), g.cast(width, np.float64))
    scale = g.op(
        "Min",
        g.op("Div", g.const([first], np.float64), g.op("Min", *exact)),
        g.op("Div", g.const([second], np.float64), g.op("Max", *exact)),
    )
    tall, wide = (g.cast(g.op("Mul", side, scale), np.int64) for side in exact)
    return g.op("Max", one, tall), g.op("Max", one, wide)


def _canvas(
    g: GraphBuilder, source: tuple[str, str], resized: tuple[str, str], preprocess: Preprocess, shapes: ShapePolicy
) -> tuple[str, str]:
    if preprocess.resize == "stretch" or (preprocess.resize == "letterbox" and shapes == "fixed"):
        return g.ints(preprocess.size[0]), g.ints(preprocess.size[1])
    extent = resized
    if preprocess.resize == "shortest-side" and shapes == "fixed":
        short, cap = g.ints(preprocess.size[0]), g.ints(max(preprocess.size))
        landscape = g.op("LessOrEqual", *source)
        extent = (g.op("Where", landscape, short, cap), g.op("Where", landscape, cap, short))
    stride, slack = g.ints(preprocess.stride), g.ints(preprocess.stride - 1)
    tall, wide = (g.op("Mul", g.op("Div", g.op("Add", side, slack), stride), stride) for side in extent)
    return tall, wide


def _pad(g: GraphBuilder, planes: str, preprocess: Preprocess, placement: GraphPlacement) -> str:
    """To the canvas, before normalisation, in pixel units. Pad takes one number; channels that differ take a mask."""
    after = [
        g.op("Sub", g.op("Sub", whole, part), before)
        for whole, part, before in zip(placement.canvas, placement.resized, placement.offset, strict=True)
    ]
    pads = g.op("Concat", g.ints(0, 0), *placement.offset, g.ints(0, 0), *after, axis=0)
    fill = preprocess.fill
    if len(set(fill)) == 1:
        return g.op("Pad", planes, pads, g.float(fill[0]), mode="constant")
    inside = g.op("Expand", g.float(1), g.op("Concat", g.ints(1), g.ints(1), *placement.resized, axis=0))
    inside = g.cast(g.op("Pad", inside, pads, g.float(0), mode="constant"), np.bool_)
    padded = g.op("Pad", planes, pads, g.float(0), mode="constant")
    return g.op("Where", inside, padded, g.float(np.reshape(fill, (1, 3, 1, 1))))
