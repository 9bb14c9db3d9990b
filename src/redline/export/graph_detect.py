"""The `Head` and `Postprocess` records as ONNX operators. The first image of a batch of one is served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from redline.export.graph_builder import GraphBuilder
from redline.export.graph_prepare import GraphPlacement
from redline.records import GraphForm, Head, Postprocess
from redline.vision import LARGEST_LOG_RATIO, at_most, base_anchors

REJECTED = -1e30
"""A score no threshold lets through."""
PLUGINS = "trt.plugins"
"""The domain of operators that TensorRT finds among its plugins by their name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Candidates as tensor names: boxes (M, 4) float32 in network-input pixels, scores (M,), labels (M,) int64, and the
    flat (anchor, class) index (M,) int64 that breaks ties."""

    boxes: str
    scores: str
    labels: str
    order: str


def detect(
    g: GraphBuilder, outputs: Sequence[str], head: Head, post: Postprocess, placement: GraphPlacement, form: GraphForm
) -> list[str]:
    """Raw outputs -> boxes (K, 4) float32 in source pixels, scores (K,) float32, labels (K,) int64, by descending score.

    A fixed form has K = max_detections always, with 0, 0 and label -1 where nothing was found, and count (1,) int64 behind.
    """
    rows = [g.op("Squeeze", output, g.ints(0)) for output in outputs]
    if head.kind == "detections":
        found = _final(g, rows, head, post, placement)
    elif form.nms == "efficient":
        return _plugin(g, rows, head, post, placement)
    elif form.nms == "topk":
        found = _best(g, rows, head, post, placement)
        found = found if form.fixed else _real(g, found)
    elif form.fixed and post.class_aware and post.candidates_per_level is None:
        found = _all_suppressed(g, rows, head, post, placement)
    else:
        found = _suppressed(g, _candidates(g, rows, head, post, placement), rows, post)
    if form.fixed:
        return _fixed(g, found, post, placement)
    count = g.op("Min", g.op("Shape", found.scores), g.ints(post.max_detections))
    scores, best = g.ops("TopK", found.scores, count, count=2, axis=0, largest=1, sorted=1)
    boxes = _to_source(g, g.op("Gather", found.boxes, best, axis=0), placement)
    return [boxes, scores, g.op("Gather", found.labels, best, axis=0)]


def _fixed(g: GraphBuilder, found: Found, post: Postprocess, placement: GraphPlacement) -> list[str]:
    """As many rejected ones are put behind as there may be detections, so that TopK always finds enough."""
    spare = post.max_detections
    scores = g.op("Concat", found.scores, g.float([REJECTED] * spare), axis=0)
    boxes = g.op("Concat", found.boxes, g.float([[0.0] * 4] * spare), axis=0)
    labels = g.op("Concat", found.labels, g.ints(*[-1] * spare), axis=0)
    scores, best = g.ops("TopK", scores, g.ints(spare), count=2, axis=0, largest=1, sorted=1)
    real = g.op("Greater", scores, g.float(REJECTED / 2))
    rows = g.op("Unsqueeze", real, g.ints(1))
    boxes = _to_source(g, g.op("Gather", boxes, best, axis=0), placement)
    count = g.op("ReduceSum", g.cast(real, np.int64), keepdims=1)
    return [
        g.op("Where", rows, boxes, g.float(0)),
        g.op("Where", real, scores, g.float(0)),
        g.op("Gather", labels, best, axis=0),
        count,
    ]


def _candidates(g: GraphBuilder, rows: Sequence[str], head: Head, post: Postprocess, placement: GraphPlacement) -> Found:
    """Level by level: the scores that matter first, then the boxes of those alone."""
    scores, codes = _scores(g, rows[0], head), _codes(g, rows, head)
    classes = g.op("Gather", g.op("Shape", scores), g.ints(1))
    parts = []
    for level in _levels(g, head, placement):
        flat, kept = _select(g, g.op("Slice", scores, level.start, level.end, g.ints(0)), post)
        anchors = g.op("Div", flat, classes)
        picked = g.op("Gather", g.op("Slice", codes, level.start, level.end, g.ints(0)), anchors, axis=0)
        labels = g.op("Sub", flat, g.op("Mul", anchors, classes))
        order = g.op("Add", flat, g.op("Mul", level.start, classes))
        parts.append((_level_boxes(g, picked, anchors, level, placement), kept, labels, order))
    boxes, kept, labels, order = (g.op("Concat", *part, axis=0) for part in zip(*parts, strict=True))
    return Found(boxes=boxes, scores=_finite_only(g, boxes, kept), labels=labels, order=order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A pyramid level: `start` and `end` anchor and (rows, columns) of cells are int64 tensors of shape (1,)."""

    start: str
    end: str
    cells: tuple[str, str]
    stride: int
    bases: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None
    """Anchors of a cell about the origin; None: yolox."""


def _levels(g: GraphBuilder, head: Head, placement: GraphPlacement) -> Iterator[Level]:
    start = g.ints(0)
    for level, stride in enumerate(head.strides):
        bases = None if head.kind == "yolox" else base_anchors(head.anchor_sizes[level], head.aspect_ratios)
        grown, step = g.ints(stride - 1), g.ints(stride)
        cells = (
            g.op("Div", g.op("Add", placement.canvas[0], grown), step),
            g.op("Div", g.op("Add", placement.canvas[1], grown), step),
        )
        count = g.op("Mul", *cells)
        if bases is not None:
            count = g.op("Mul", count, g.ints(len(bases)))
        end = g.op("Add", start, count)
        yield Level(start=start, end=end, cells=cells, stride=stride, bases=bases)
        start = end


def _codes(g: GraphBuilder, rows: Sequence[str], head: Head) -> str:
    return g.columns(rows[0], 0, 1, 2, 3) if head.kind == "yolox" else rows[1]


def _level_boxes(g: GraphBuilder, codes: str, anchors: str, level: Level, placement: GraphPlacement) -> str:
    """Boxes (M, 4) of the codes of `anchors` (M,), counted from the level's first."""
    if level.bases is None:
        return _yolox_boxes(g, codes, anchors, level.cells[1], level.stride)
    return _retinanet_boxes(g, codes, anchors, level.cells, level.bases, placement)


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


def _finite_only(g: GraphBuilder, boxes: str, scores: str, *, keepdims: int = 0) -> str:
    """Scores, with those of boxes that have a NaN or an infinity rejected: x - x is 0 for finite x alone."""
    rest = g.op("ReduceSum", g.op("Abs", g.op("Sub", boxes, boxes)), g.ints(1), keepdims=keepdims)
    return g.op("Where", g.op("Equal", rest, g.float(0)), scores, g.float(REJECTED))


def _suppressed(g: GraphBuilder, found: Found, rows: Sequence[str], post: Postprocess) -> Found:
    """NonMaxSuppression sees every candidate as a box of its own with one score, that of its class."""
    scores = _table(g, found, rows[0]) if post.class_aware else g.op("Unsqueeze", found.scores, g.ints(0))
    chosen = _suppress(g, found.boxes, scores, post)
    return _in_order(g, _at(g, found, g.op("Squeeze", g.columns(chosen, 2), g.ints(1))))


def _all_suppressed(g: GraphBuilder, rows: Sequence[str], head: Head, post: Postprocess, placement: GraphPlacement) -> Found:
    """Every anchor goes to NonMaxSuppression, whose own threshold then makes the first shape that depends on data."""
    boxes, scores = _everything(g, rows, head, placement)
    chosen = _suppress(g, boxes, g.op("Transpose", scores, perm=[1, 0]), post)
    labels, anchors = (g.op("Squeeze", g.columns(chosen, column), g.ints(1)) for column in (1, 2))
    order = g.op("Add", g.op("Mul", anchors, g.op("Gather", g.op("Shape", scores), g.ints(1))), labels)
    kept = g.op("Gather", g.op("Reshape", scores, g.ints(-1)), order, axis=0)
    found = Found(boxes=g.op("Gather", boxes, anchors, axis=0), scores=kept, labels=labels, order=order)
    return _in_order(g, found)


def _suppress(g: GraphBuilder, boxes: str, scores: str, post: Postprocess) -> str:
    """Boxes (M, 4), scores (C, M) -> (K, 3) int64: image, class, box."""
    return g.op(
        "NonMaxSuppression",
        g.op("Unsqueeze", boxes, g.ints(0)),
        g.op("Unsqueeze", scores, g.ints(0)),
        g.ints(post.max_detections),
        g.float([min(max(float(at_most(post.iou)), 0.0), 1.0)]),
        g.float([at_most(post.score)]),
    )


def _plugin(g: GraphBuilder, rows: Sequence[str], head: Head, post: Postprocess, placement: GraphPlacement) -> list[str]:
    """TensorRT's EfficientNMS plugin (github.com/NVIDIA/TensorRT, plugin/efficientNMSPlugin): fixed outputs and a count.

    It takes boxes (1, M, 4) and scores (1, M, C): of the candidates where a limit fixes their number, else of all anchors.
    """
    if post.candidates_per_level is None:
        boxes, scores = _everything(g, rows, head, placement)
    else:
        found = _candidates(g, rows, head, post, placement)
        boxes, scores = found.boxes, g.op("Transpose", _table(g, found, rows[0]), perm=[1, 0])
    count, kept, found_scores, labels = g.ops(
        "EfficientNMS_TRT",
        g.op("Unsqueeze", boxes, g.ints(0)),
        g.op("Unsqueeze", scores, g.ints(0)),
        count=4,
        domain=PLUGINS,
        plugin_version="1",
        background_class=-1,
        box_coding=0,
        class_agnostic=int(not post.class_aware),
        iou_threshold=float(at_most(post.iou)),
        max_output_boxes=post.max_detections,
        score_activation=0,
        score_threshold=float(at_most(post.score)),
    )
    kept, found_scores, labels, count = (g.op("Squeeze", value, g.ints(0)) for value in (kept, found_scores, labels, count))
    real = g.op("Less", g.ints(*range(post.max_detections)), g.cast(count, np.int64))
    return [
        g.op("Where", g.op("Unsqueeze", real, g.ints(1)), _to_source(g, kept, placement), g.float(0)),
        g.op("Where", real, found_scores, g.float(0)),
        g.op("Where", real, g.cast(labels, np.int64), g.ints(-1)),
        g.cast(count, np.int64),
    ]


def _everything(g: GraphBuilder, rows: Sequence[str], head: Head, placement: GraphPlacement) -> tuple[str, str]:
    """Boxes (A, 4) and scores (A, C) of all anchors; the scores of boxes that are not finite are rejected."""
    codes, parts = _codes(g, rows, head), []
    for level in _levels(g, head, placement):
        count = g.op("Squeeze", g.op("Sub", level.end, level.start), g.ints(0))
        anchors = g.op("Range", g.const(0, np.int64), count, g.const(1, np.int64))
        part = g.op("Slice", codes, level.start, level.end, g.ints(0))
        parts.append(_level_boxes(g, part, anchors, level, placement))
    boxes = g.op("Concat", *parts, axis=0)
    return boxes, _finite_only(g, boxes, _scores(g, rows[0], head), keepdims=1)


def _table(g: GraphBuilder, found: Found, raw: str) -> str:
    """Scores (C, M): each candidate's in the row of its label, rejected ones elsewhere."""
    # The raw output's width is the number of classes or, for yolox, more: rows too many do no harm.
    classes = g.op("Gather", g.op("Shape", raw), g.ints(1))
    table = g.op("Expand", g.float(REJECTED), g.op("Concat", classes, g.op("Shape", found.scores), axis=0))
    labels, scores = g.op("Unsqueeze", found.labels, g.ints(0)), g.op("Unsqueeze", found.scores, g.ints(0))
    return g.op("ScatterElements", table, labels, scores, axis=0)


def _best(g: GraphBuilder, rows: Sequence[str], head: Head, post: Postprocess, placement: GraphPlacement) -> Found:
    """The highest scores without suppression: no level can give more than `max_detections`. What does not pass is rejected."""
    limit = min(post.candidates_per_level or post.max_detections, post.max_detections)
    found = _candidates(g, rows, head, replace(post, candidates_per_level=limit), placement)
    passed = g.op("Greater", found.scores, g.float(at_most(post.score)))
    return replace(found, scores=g.op("Where", passed, found.scores, g.float(REJECTED)))


def _real(g: GraphBuilder, found: Found) -> Found:
    """Those that are not rejected."""
    kept = g.op("Squeeze", g.op("NonZero", g.op("Greater", found.scores, g.float(REJECTED / 2))), g.ints(0))
    return _at(g, found, kept)


def _at(g: GraphBuilder, found: Found, kept: str) -> Found:
    values = (found.boxes, found.scores, found.labels, found.order)
    boxes, scores, labels, order = (g.op("Gather", value, kept, axis=0) for value in values)
    return Found(boxes=boxes, scores=scores, labels=labels, order=order)


def _in_order(g: GraphBuilder, found: Found) -> Found:
    """By ascending (anchor, class), so that a stable TopK breaks ties as the reference does."""
    _, ranks = g.ops("TopK", found.order, g.op("Shape", found.order), count=2, axis=0, largest=0, sorted=1)
    return _at(g, found, ranks)


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
