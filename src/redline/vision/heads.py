"""Raw network outputs to candidate boxes, by the `Head` record. Knows nothing of NMS or of source images.

One decoder per head serves both the dense form (`decode_head`) and the fast one (`candidates`), which thresholds scores first
and decodes only the boxes that pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from redline.errors import BadInput
from redline.records import Head, Placement, Postprocess
from redline.vision.geometry import resized_size
from redline.vision.levels import (
    decode_deltas,
    decode_grid,
    level_anchors,
    retinanet_anchors,
    sigmoid,
    yolox_grid,
)
from redline.vision.suppression import at_most

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Boxes of one image above the score threshold, ascending (anchor, label); `boxes` (K, 4) xyxy in network-input pixels."""

    boxes: Floats
    scores: Floats
    labels: Ints
    anchors: Ints


def decode_head(outputs: Sequence[NDArray[Any]], head: Head, input_hw: tuple[int, int]) -> tuple[Floats, Floats]:
    """Every box: (N, A, 4) xyxy in network-input pixels, and scores (N, A, C) with the head's activation applied.

    For `detections` heads the scores are (N, A, 1): the labels are an output of the network and stay there.
    Boxes are not clipped. Raises BadInput: head-outputs, head-function.
    """
    arrays = checked(outputs, head, input_hw)
    if head.kind == "yolox":
        (raw,) = arrays
        grid, strides = yolox_grid(head.strides, input_hw)
        scores = raw[..., 5:] * raw[..., 4:5] if head.activation == "none" else sigmoid(raw[..., 5:]) * sigmoid(raw[..., 4:5])
        return decode_grid(raw[..., :4], grid, strides), scores
    if head.kind == "retinanet":
        logits, deltas = arrays
        anchors = retinanet_anchors(head, input_hw)
        return decode_deltas(deltas, anchors), sigmoid(logits) if head.activation == "sigmoid" else logits
    if head.kind == "detections":
        return _final_boxes(arrays[0], head, input_hw), arrays[1].astype(np.float32)[..., None]
    return arrays[0], arrays[1]


def candidates(
    outputs: Sequence[NDArray[Any]], index: int, head: Head, postprocess: Postprocess, placement: Placement
) -> Candidates:
    """Candidates of image `index` of a batch of `checked` outputs; RetinaNet boxes are clipped to the resized image."""
    threshold = at_most(postprocess.score)
    if head.kind == "detections":
        return _given(outputs, index, head, threshold, placement)
    if head.kind == "custom":
        boxes, scores = outputs[0][index], outputs[1][index]
        flat, found = _above(scores, threshold, postprocess.candidates_per_level, (len(scores),))
        anchors, labels = np.divmod(flat, scores.shape[1])
        return Candidates(boxes=boxes[anchors], scores=found, labels=labels, anchors=anchors)
    if head.kind == "yolox":
        return _yolox(outputs[0][index], head, postprocess, threshold, placement.input_hw)
    return _retinanet(outputs[0][index], outputs[1][index], head, postprocess, threshold, placement)


def checked(outputs: Sequence[NDArray[Any]], head: Head, input_hw: tuple[int, int]) -> list[NDArray[Any]]:
    """The outputs a head reads, shapes verified; a custom head's function is applied here. Raises BadInput."""
    if head.kind == "custom":
        from redline.vision.custom import apply_custom

        return list(apply_custom(head.function, outputs, input_hw))
    wanted = {"yolox": 1, "retinanet": 2, "detections": 3}[head.kind]
    shapes = [tuple(output.shape) for output in outputs]
    if len(shapes) < wanted:
        _misfit(head, shapes, f"{wanted} outputs")
    if head.kind == "detections":
        boxes, scores, labels = shapes[:3]
        if len(boxes) != 3 or boxes[2] != 4 or boxes[:2] != scores or scores != labels:
            _misfit(head, shapes, "boxes (N, K, 4), scores (N, K), labels (N, K)")
        return list(outputs[:3])
    if head.kind == "retinanet" and len(head.anchor_sizes) != len(head.strides):
        _misfit(head, shapes, f"one group of anchor sizes for each of the {len(head.strides)} strides")
    anchors = sum(level_anchors(head, input_hw))
    first = shapes[0]
    if head.kind == "yolox" and (len(first) != 3 or first[1] != anchors or first[2] < 6):
        _misfit(head, shapes, f"(N, {anchors}, 5 + classes) for an input of {input_hw[0]} x {input_hw[1]}")
    if head.kind == "retinanet" and (len(first) != 3 or first[1] != anchors or shapes[1] != (first[0], anchors, 4)):
        _misfit(head, shapes, f"(N, {anchors}, classes) and (N, {anchors}, 4) for an input of {input_hw[0]} x {input_hw[1]}")
    return list(outputs[:wanted])


def _misfit(head: Head, shapes: list[tuple[int, ...]], allowed: str) -> NoReturn:
    raise BadInput(
        "head-outputs",
        f"The network's outputs do not fit the head {head.kind!r}",
        got=shapes,
        allowed=allowed,
        fix="choose the head of this network, check its strides and anchors, or give a function of your own",
    )


def _yolox(raw: Floats, head: Head, postprocess: Postprocess, threshold: np.float32, input_hw: tuple[int, int]) -> Candidates:
    classes = raw.shape[1] - 5
    if head.activation == "none":
        scores = raw[:, 5:] * raw[:, 4:5]
    else:  # a class score is at most 1 after its sigmoid, so objectness alone rules most rows out
        objectness = sigmoid(raw[:, 4])
        rows = np.flatnonzero(objectness > threshold)
        scores = np.zeros((len(raw), classes), np.float32)
        scores[rows] = sigmoid(raw[rows, 5:]) * objectness[rows, None]
    flat, found = _above(scores, threshold, postprocess.candidates_per_level, level_anchors(head, input_hw))
    anchors, labels = np.divmod(flat, classes)
    grid, strides = yolox_grid(head.strides, input_hw)
    boxes = decode_grid(raw[anchors, :4], grid[anchors], strides[anchors])
    return Candidates(boxes=boxes, scores=found, labels=labels, anchors=anchors)


def _retinanet(
    logits: Floats, deltas: Floats, head: Head, postprocess: Postprocess, threshold: np.float32, placement: Placement
) -> Candidates:
    levels = level_anchors(head, placement.input_hw)
    if head.activation == "none":
        flat, scores = _above(logits, threshold, postprocess.candidates_per_level, levels)
    else:
        flat, scores = _above_logits(logits, postprocess, threshold, levels)
    anchors, labels = np.divmod(flat, logits.shape[1])
    boxes = decode_deltas(deltas[anchors], retinanet_anchors(head, placement.input_hw)[anchors])
    top, left = placement.offset_yx
    height, width = resized_size(placement)
    low = np.array((left, top, left, top), np.float32)
    np.clip(boxes, low, low + np.array((width, height, width, height), np.float32), out=boxes)
    return Candidates(boxes=boxes, scores=scores, labels=labels, anchors=anchors)


def _above_logits(
    logits: Floats, postprocess: Postprocess, threshold: np.float32, levels: Sequence[int]
) -> tuple[Ints, Floats]:
    """`_above` of sigmoid(logits), applying the sigmoid only where it can matter."""
    flat = logits.reshape(-1)
    chance = min(max(postprocess.score, 1e-30), 1 - 1e-7)
    bound = np.float32(np.log(chance / (1 - chance)) - 0.1)  # 0.1: far more than float32 rounding of the sigmoid
    likely = np.flatnonzero(flat > bound)
    scores = sigmoid(flat[likely])
    passed = scores > threshold
    likely, scores = likely[passed], scores[passed]
    return _top_of_levels(likely, scores, postprocess.candidates_per_level, levels, logits.shape[1])


def _above(scores: Floats, threshold: np.float32, limit: int | None, levels: Sequence[int]) -> tuple[Ints, Floats]:
    """Ascending flat (anchor, class) indices of the scores above `threshold`, at most `limit` a level, and those scores."""
    everything = np.ascontiguousarray(scores).reshape(-1)
    flat = np.flatnonzero(everything > threshold)
    return _top_of_levels(flat, everything[flat], limit, levels, scores.shape[1])


def _top_of_levels(flat: Ints, scores: Floats, limit: int | None, levels: Sequence[int], classes: int) -> tuple[Ints, Floats]:
    if limit is None or len(flat) <= limit:
        return flat, scores
    ends = np.searchsorted(flat, np.cumsum(levels) * classes)
    starts = (0, *ends[:-1].tolist())
    keep = np.concatenate([start + _top(scores[start:end], limit) for start, end in zip(starts, ends.tolist(), strict=True)])
    return flat[keep], scores[keep]


def _top(scores: Floats, limit: int) -> NDArray[np.intp]:
    """Ascending indices of the `limit` highest scores; of equal ones the first."""
    if len(scores) <= limit:
        return np.arange(len(scores))
    lowest = np.partition(scores, len(scores) - limit)[len(scores) - limit]
    above = np.flatnonzero(scores > lowest)
    ties = np.flatnonzero(scores == lowest)[: limit - len(above)]
    return np.sort(np.concatenate((above, ties)))


def _given(outputs: Sequence[NDArray[Any]], index: int, head: Head, threshold: np.float32, placement: Placement) -> Candidates:
    """Final detections of the network: thresholded, not suppressed."""
    scores = outputs[1][index].astype(np.float32)
    labels = outputs[2][index]
    rows = np.flatnonzero((scores > threshold) & np.isfinite(labels))
    boxes = _final_boxes(outputs[0][index][rows], head, placement.input_hw)
    return Candidates(boxes=boxes, scores=scores[rows], labels=labels[rows].astype(np.int64), anchors=rows)


def _final_boxes(boxes: NDArray[Any], head: Head, input_hw: tuple[int, int]) -> Floats:
    boxes = boxes.astype(np.float32)
    if head.box_format == "cxcywh":
        half = boxes[..., 2:] / 2
        boxes = np.concatenate((boxes[..., :2] - half, boxes[..., :2] + half), axis=-1)
    if head.normalized:
        height, width = input_hw
        boxes = boxes * np.array((width, height, width, height), np.float32)
    return boxes
