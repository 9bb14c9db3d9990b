"""The `Head` and `Postprocess` records as ONNX operators. The first image of a batch of one is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redline.export.graph_builder import GraphBuilder
from redline.export.graph_prepare import GraphPlacement
from redline.records import Head, Postprocess
from redline.vision import LARGEST_LOG_RATIO, at_most, base_anchors

REJECTED = -1e30
"""A score no threshold lets through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Candidates as tensor names: boxes (M, 4) float32 in network-input pixels, scores (M,), labels (M,) int64, and the
    flat (anchor, class) index (M,) int64 that breaks ties."""

    boxes: str
    scores: str
    labels: str
    order: str


def detect(
    g: GraphBuilder, outputs: Sequence[str], head: Head, post: Postprocess, placement: GraphPlacement
) -> tuple[str, str, str]:
    """Raw outputs -> boxes (K, 4) float32 in source pixels, scores (K,) float32, labels (K,) int64."""
    rows = [g.op("Squeeze", output, g.ints(0)) for output in outputs]
    if head.kind == "detections":
        found = _final(g, rows, head, post, placement)
    else:
        found = _suppressed(g, _candidates(g, rows, head, post, placement), rows, post)
    count = g.op("Min", g.op("Shape", found.scores), g.ints(post.max_detections))
    scores, best = g.ops("TopK", found.scores, count, count=2, axis=0, largest=1, sorted=1)
    boxes = _to_source(g, g.op("Gather", found.boxes, best, axis=0), placement)
    return boxes, scores, g.op("Gather", found.labels, best, axis=0)


def _candidates(g: GraphBuilder, rows: Sequence[str], head: Head, post: Postprocess, placement: GraphPlacement) -> Found:
    """Level by level: the scores that matter first, then the boxes of those alone."""
    yolox = head.kind == "yolox"
    scores = _scores(g, rows[0], head)
    codes = g.columns(rows[0], 0, 1, 2, 3) if yolox else rows[1]
    classes = g.op("Gather", g.op("Shape", scores), g.ints(1))
    start, levels = g.ints(0), []
    for level, stride in enumerate(head.strides):
        bases = None if yolox else base_anchors(head.anchor_sizes[level], head.aspect_ratios)
        grown, step = g.ints(stride - 1), g.ints(stride)
        cells = (
            g.op("Div", g.op("Add", placement.canvas[0], grown), step),
            g.op("Div", g.op("Add", placement.canvas[1], grown), step),
        )
        count = g.op("Mul", *cells)
        if bases is not None:
            count = g.op("Mul", count, g.ints(len(bases)))
        end = g.op("Add", start, count)
        flat, kept = _select(g, g.op("Slice", scores, start, end, g.ints(0)), post)
        anchors = g.op("Div", flat, classes)
        picked = g.op("Gather", g.op("Slice", codes, start, end, g.ints(0)), anchors, axis=0)
        if bases is None:
            boxes = _yolox_boxes(g, picked, anchors, cells[1], stride)
        else:
            boxes = _retinanet_boxes(g, picked, anchors, cells, bases, placement)
        labels = g.op("Sub", flat, g.op("Mul", anchors, classes))
        levels.append((boxes, kept, labels, g.op("Add", flat, g.op("Mul", start, classes))))
        start = end
    boxes, kept, labels, order = (g.op("Concat", *parts, axis=0) for parts in zip(*levels, strict=True))
    return Found(boxes=boxes, scores=_finite_only(g, boxes, kept), labels=labels, order=order)


def _scores(g: GraphBuilder, raw: str, head: Head) -> str:
    """(A, C), activation applied."""
    if head.kind == "retinanet":
        return g.op("Sigmoid", raw) if head.activation == "sigmoid" else raw
    objectness = g.columns(raw, 4)
    classes = g.op("Slice", raw, g.ints(5), g.ints(2**31), g.ints(1))
    if head.activation == "sigmoid":
        objectness, classes = g.op("Sigmoid", objectness), g.op("Sigmoid", classes)
    return g.op("Mul", classes, objectness)


def _select(g: GraphBuilder, scores: str, post: Postprocess) -> tuple[str, str]:
    """Flat (anchor, class) indices within the level and their scores: the best ones, or all above the threshold."""
    flat = g.op("Reshape", scores, g.ints(-1))
    if post.candidates_per_level is not None:
        count = g.op("Min", g.op("Shape", flat), g.ints(post.candidates_per_level))
        kept, indices = g.ops("TopK", flat, count, count=2, axis=0, largest=1, sorted=1)
        return indices, kept
    above = g.op("Greater", flat, g.float(at_most(post.score)))
    indices = g.op("Squeeze", g.op("NonZero", above), g.ints(0))
    return indices, g.op("Gather", flat, indices, axis=0)


def _yolox_boxes(g: GraphBuilder, codes: str, cells: str, columns: str, stride: int) -> str:
    corner = g.cast(_xy(g, cells, columns), np.float32)
    step = g.float(stride)
    centre = g.op("Mul", g.op("Add", g.columns(codes, 0, 1), corner), step)
    half = g.op("Mul", g.op("Mul", g.op("Exp", g.columns(codes, 2, 3)), step), g.float(0.5))
    return g.op("Concat", g.op("Sub", centre, half), g.op("Add", centre, half), axis=1)


def _retinanet_boxes(
    g: GraphBuilder,
    deltas: str,
    anchors: str,
    cells: tuple[str, str],
    bases: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    placement: GraphPlacement,
) -> str:
    """Anchor step: canvas // cells; clipped to the resized image."""
    kinds = g.ints(len(bases))
    cell = g.op("Div", anchors, kinds)
    base = g.op("Gather", g.float(bases), g.op("Sub", anchors, g.op("Mul", cell, kinds)), axis=0)
    steps = g.op("Concat", g.op("Div", placement.canvas[1], cells[1]), g.op("Div", placement.canvas[0], cells[0]), axis=0)
    shift = g.cast(g.op("Mul", _xy(g, cell, cells[1]), steps), np.float32)
    low, high = g.columns(base, 0, 1), g.columns(base, 2, 3)
    half = g.float(0.5)
    size = g.op("Sub", high, low)
    centre = g.op("Add", g.op("Add", low, shift), g.op("Mul", half, size))
    middle = g.op("Add", g.op("Mul", g.columns(deltas, 0, 1), size), centre)
    ratio = g.op("Exp", g.op("Min", g.columns(deltas, 2, 3), g.float(LARGEST_LOG_RATIO)))
    reach = g.op("Mul", half, g.op("Mul", ratio, size))
    boxes = g.op("Concat", g.op("Sub", middle, reach), g.op("Add", middle, reach), axis=1)
    (top, left), (height, width) = placement.offset, placement.resized
    least = g.cast(g.op("Concat", left, top, left, top, axis=0), np.float32)
    most = g.op("Add", least, g.cast(g.op("Concat", width, height, width, height, axis=0), np.float32))
    return g.op("Min", g.op("Max", boxes, least), most)


def _xy(g: GraphBuilder, cells: str, columns: str) -> str:
    """(M, 2) int64 column and row of each cell."""
    y = g.op("Div", cells, columns)
    x = g.op("Sub", cells, g.op("Mul", y, columns))
    return g.op("Concat", g.op("Unsqueeze", x, g.ints(1)), g.op("Unsqueeze", y, g.ints(1)), axis=1)


def _finite_only(g: GraphBuilder, boxes: str, scores: str) -> str:
    """Scores, with those of boxes that have a NaN or an infinity rejected: x - x is 0 for finite x alone."""
    rest = g.op("ReduceSum", g.op("Abs", g.op("Sub", boxes, boxes)), g.ints(1), keepdims=0)
    return g.op("Where", g.op("Equal", rest, g.float(0)), scores, g.float(REJECTED))


def _suppressed(g: GraphBuilder, found: Found, rows: Sequence[str], post: Postprocess) -> Found:
    """NonMaxSuppression sees every candidate as a box of its own with one score, that of its class."""
    scores = g.op("Unsqueeze", found.scores, g.ints(0))
    if post.class_aware:
        classes = g.op("Gather", g.op("Shape", rows[0]), g.ints(1))
        table = g.op("Expand", g.float(REJECTED), g.op("Concat", classes, g.op("Shape", found.scores), axis=0))
        scores = g.op("ScatterElements", table, g.op("Unsqueeze", found.labels, g.ints(0)), scores, axis=0)
    chosen = g.op(
        "NonMaxSuppression",
        g.op("Unsqueeze", found.boxes, g.ints(0)),
        g.op("Unsqueeze", scores, g.ints(0)),
        g.ints(post.max_detections),
        g.float([min(max(float(at_most(post.iou)), 0.0), 1.0)]),
        g.float([at_most(post.score)]),
    )
    kept = g.op("Squeeze", g.columns(chosen, 2), g.ints(1))
    order = g.op("Gather", found.order, kept, axis=0)
    _, ranks = g.ops("TopK", order, g.op("Shape", order), count=2, axis=0, largest=0, sorted=1)
    kept = g.op("Gather", kept, ranks, axis=0)
    boxes, scores, labels, order = (
        g.op("Gather", value, kept, axis=0) for value in (found.boxes, found.scores, found.labels, found.order)
    )
    return Found(boxes=boxes, scores=scores, labels=labels, order=order)


def _final(g: GraphBuilder, rows: Sequence[str], head: Head, post: Postprocess, placement: GraphPlacement) -> Found:
    """Detections the network has made final: thresholded and brought to xyxy pixels of the input."""
    boxes, scores, labels = rows[:3]
    if head.box_format == "cxcywh":
        centre, half = g.columns(boxes, 0, 1), g.op("Div", g.columns(boxes, 2, 3), g.float(2))
        boxes = g.op("Concat", g.op("Sub", centre, half), g.op("Add", centre, half), axis=1)
    if head.normalized:
        height, width = placement.canvas
        boxes = g.op("Mul", boxes, g.cast(g.op("Concat", width, height, width, height, axis=0), np.float32))
    sure = g.op("Greater", _finite_only(g, boxes, scores), g.float(at_most(post.score)))
    kept = g.op("Squeeze", g.op("NonZero", sure), g.ints(0))
    boxes, scores, labels = (g.op("Gather", value, kept, axis=0) for value in (boxes, scores, labels))
    return Found(boxes=boxes, scores=scores, labels=g.cast(labels, np.int64), order=kept)


def _to_source(g: GraphBuilder, boxes: str, placement: GraphPlacement) -> str:
    """`vision.to_source`, in float32, as engines have no float64: within three roundings of it."""

    def corners(pair: tuple[str, str]) -> str:
        return g.cast(g.op("Concat", pair[1], pair[0], pair[1], pair[0], axis=0), np.float32)

    offset = g.op("Sub", boxes, corners(placement.offset))
    mapped = g.op("Div", g.op("Mul", offset, corners(placement.source)), corners(placement.resized))
    return g.op("Min", g.op("Max", mapped, g.float(0)), corners(placement.source))
