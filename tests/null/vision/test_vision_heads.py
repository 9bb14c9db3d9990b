"""Heads and post-processing against scalar loops that follow the published formulas one box at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from redline import vision
from redline.errors import BadInput
from redline.records import Head, Placement, Postprocess, Preprocess

Array = np.ndarray[Any, Any]
YOLOX = Head(kind="yolox")
RETINANET = Head(
    kind="retinanet",
    strides=(8, 16, 32, 64, 128),
    activation="sigmoid",
    anchor_sizes=tuple((s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)) for s in (32.0, 64.0, 128.0, 256.0, 512.0)),
    aspect_ratios=(0.5, 1.0, 2.0),
)


def identity(height: int, width: int) -> Placement:
    return vision.place((height, width), Preprocess(resize="none", stride=1), "minimal")


def yolox_raw(height: int, width: int, classes: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    anchors = sum((height // s) * (width // s) for s in (8, 16, 32))
    raw = rng.normal(0, 1, (2, anchors, 5 + classes)).astype(np.float32)
    raw[..., 4:] = rng.beta(0.3, 3, (2, anchors, 1 + classes))
    return raw


def test_yolox_boxes_and_scores() -> None:
    raw = yolox_raw(64, 96, 3)
    boxes, scores = vision.decode_head([raw], YOLOX, (64, 96))
    index = 0
    for stride in (8, 16, 32):
        for y in range(64 // stride):
            for x in range(96 // stride):
                cx, cy, w, h, objectness, *classes = (float(value) for value in raw[1, index])
                cx, cy, w, h = (cx + x) * stride, (cy + y) * stride, math.exp(w) * stride, math.exp(h) * stride
                assert boxes[1, index] == pytest.approx([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], abs=1e-4)
                assert scores[1, index] == pytest.approx([objectness * value for value in classes], abs=1e-6)
                index += 1
    assert boxes.shape == (2, index, 4)


def test_yolox_sigmoid_is_applied_once() -> None:
    raw = yolox_raw(32, 32, 4)
    _, scores = vision.decode_head([raw], Head(kind="yolox", activation="sigmoid"), (32, 32))
    expected = 1 / (1 + np.exp(-raw[..., 4:5].astype(np.float64))) / (1 + np.exp(-raw[..., 5:].astype(np.float64)))
    assert np.abs(scores - expected).max() <= 1e-6


def anchors_by_hand(head: Head, height: int, width: int) -> list[list[float]]:
    found = []
    for stride, sizes in zip(head.strides, head.anchor_sizes, strict=True):
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        for y in range(rows):
            for x in range(columns):
                for ratio in head.aspect_ratios:
                    for size in sizes:
                        w, h = size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2
                        dx, dy = x * (width // columns), y * (height // rows)
                        found.append([dx - round(w), dy - round(h), dx + round(w), dy + round(h)])
    return found


def test_retinanet_anchors_of_640_by_864() -> None:
    """Zero deltas give the anchors: 103,635 of them, the last level's step 864 // 7 = 123 and not 128."""
    expected = np.array(anchors_by_hand(RETINANET, 640, 864))
    boxes, _ = vision.decode_head(
        [np.zeros((1, 103635, 2), np.float32), np.zeros((1, 103635, 4), np.float32)], RETINANET, (640, 864)
    )
    assert expected.shape == (103635, 4)
    assert np.abs(boxes[0] - expected).max() <= 1e-3
    assert boxes[0, -1, 0] - boxes[0, -10, 0] == pytest.approx(123, abs=1e-3)


def retinanet_by_hand(
    logits: Array, deltas: Array, post: Postprocess, hw: tuple[int, int], resized: tuple[int, int]
) -> list[Any]:
    """torchvision's steps: threshold, top candidates and clipping a level, then NMS a class over all levels."""
    head, anchors, start, pool = RETINANET, anchors_by_hand(RETINANET, *hw), 0, []
    for stride, sizes in zip(head.strides, head.anchor_sizes, strict=True):
        count = math.ceil(hw[0] / stride) * math.ceil(hw[1] / stride) * len(sizes) * 3
        level = []
        for index in range(start, start + count):
            for label, logit in enumerate(logits[index].tolist()):
                score = 1 / (1 + math.exp(-logit))
                if score > post.score:
                    x1, y1, x2, y2 = anchors[index]
                    dx, dy, dw, dh = deltas[index].tolist()
                    w, h = (x2 - x1) * math.exp(min(dw, math.log(62.5))), (y2 - y1) * math.exp(min(dh, math.log(62.5)))
                    cx, cy = dx * (x2 - x1) + (x1 + x2) / 2, dy * (y2 - y1) + (y1 + y2) / 2
                    box = [
                        min(max(v, 0), resized[1 - i % 2])
                        for i, v in enumerate((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
                    ]
                    level.append((-score, index, label, box))
        pool += sorted(level)[: post.candidates_per_level]
        start += count
    kept: list[Any] = []
    for entry in sorted(pool):
        if all(entry[2] != other[2] or iou(entry[3], other[3]) <= post.iou for other in kept):
            kept.append(entry)
    return kept[: post.max_detections]


def iou(a: list[float], b: list[float]) -> float:
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


@pytest.mark.parametrize("limit", [20, 1000])
def test_retinanet_postprocess_follows_torchvision(limit: int) -> None:
    rng = np.random.default_rng(3)
    placement = vision.place((120, 150), Preprocess(resize="none", stride=32), "minimal")
    assert placement.input_hw == (128, 160)
    total = len(anchors_by_hand(RETINANET, 128, 160))
    logits = rng.normal(-4, 1.5, (1, total, 3)).astype(np.float32)
    deltas = rng.normal(0, 0.5, (1, total, 4)).astype(np.float32)
    deltas[0, :50, 2:] = 9  # beyond the clamp
    post = Postprocess(score=0.05, iou=0.5, max_detections=100, candidates_per_level=limit)
    (found,) = vision.postprocess([logits, deltas], RETINANET, post, [placement])
    expected = retinanet_by_hand(logits[0], deltas[0], post, (128, 160), (120, 150))
    assert len(expected) == 100 if limit == 1000 else len(expected) > 20
    assert found.labels.tolist() == [entry[2] for entry in expected]
    assert np.abs(found.scores + [entry[0] for entry in expected]).max() <= 1e-6
    assert np.abs(found.boxes - np.array([entry[3] for entry in expected])).max() <= 1e-3


@pytest.mark.parametrize("activation", ["none", "sigmoid"])
@pytest.mark.parametrize("head_kind", ["yolox", "retinanet"])
def test_fast_path_equals_dense_decoding(head_kind: str, activation: str) -> None:
    """Thresholding first must give what decoding everything first gives."""
    head = Head(kind=head_kind, activation=activation, strides=(8, 16, 32), anchor_sizes=((16.0,), (32.0,), (64.0,)),
                aspect_ratios=(1.0,))  # type: ignore[arg-type] # fmt: skip
    raw = yolox_raw(64, 64, 5, seed=4)
    if activation == "sigmoid":
        raw[..., 4:] = np.random.default_rng(1).normal(-1, 1.5, raw[..., 4:].shape)
    outputs = [raw] if head_kind == "yolox" else [raw[..., 5:], raw[..., :4]]
    post = Postprocess(score=0.01, iou=1.0, max_detections=10**6)
    boxes, scores = vision.decode_head(outputs, head, (64, 64))
    placements = [identity(64, 64)] * 2
    for image, found in enumerate(vision.postprocess(outputs, head, post, placements)):
        anchors, labels = np.nonzero(scores[image] > 0.01)
        order = np.lexsort((labels, anchors, -scores[image][anchors, labels]))
        assert len(order) > 20
        assert found.labels.tolist() == labels[order].tolist()
        assert np.abs(found.scores - scores[image][anchors, labels][order]).max() <= 1e-6
        assert np.abs(found.boxes - np.clip(boxes[image][anchors[order]], 0, 64)).max() <= 1e-4


def test_candidates_per_level_keeps_the_first_of_equal_scores() -> None:
    raw = np.zeros((1, 21, 7), np.float32)  # 16 + 4 + 1 anchors, 2 classes
    raw[..., 4:] = 0.5
    post = Postprocess(score=0.1, iou=1.0, candidates_per_level=3)
    (found,) = vision.postprocess([raw], YOLOX, post, [identity(32, 32)])
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    assert found.labels.tolist() == [0, 1, 0, 0, 1, 0, 0, 1]
    assert len(centres) == 8


def test_score_threshold_is_strict_in_float64() -> None:
    raw = np.zeros((1, 21, 6), np.float32)
    raw[0, :, 4] = 1
    raw[0, :3, 5] = [np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(0)), np.float32(0.1)]
    (found,) = vision.postprocess([raw], YOLOX, Postprocess(score=0.1, iou=1.0), [identity(32, 32)])
    assert len(found.scores) == 2  # float32(0.1) is above 0.1, its predecessor is not
    (found,) = vision.postprocess([raw], YOLOX, Postprocess(score=float(np.float32(0.1)), iou=1.0), [identity(32, 32)])
    assert len(found.scores) == 0


def test_nan_and_infinite_outputs_are_dropped() -> None:
    raw = yolox_raw(32, 32, 3)[:1]
    raw[0, 0], raw[0, 1, 5], raw[0, 2, 2], raw[0, 3, 0] = np.nan, np.inf, 1e4, -np.inf
    raw[0, :4, 4] = 1
    raw[0, 2:4, 5:] = 1
    (found,) = vision.postprocess([raw], YOLOX, Postprocess(), [identity(32, 32)])
    assert np.isfinite(found.boxes).all()
    assert np.isfinite(found.scores).all()
    (nothing,) = vision.postprocess([np.full_like(raw, np.nan)], YOLOX, Postprocess(), [identity(32, 32)])
    assert nothing.boxes.shape == (0, 4)


def test_detections_head_is_only_mapped_back() -> None:
    head = Head(kind="detections", box_format="cxcywh", normalized=True)
    placement = vision.place((200, 400), Preprocess(resize="stretch", size=(100, 100)), "fixed")
    boxes = np.array([[[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.2, 0.4], [0.9, 0.1, 0.4, 0.4]]], np.float32)
    scores = np.array([[0.3, 0.9, 0.0005]], np.float32)
    (found,) = vision.postprocess([boxes, scores, np.array([[7.0, 7.0, 1.0]], np.float32)], head, Postprocess(), [placement])
    assert found.labels.tolist() == [7, 7]
    assert found.labels.dtype == np.int64
    assert found.scores.tolist() == pytest.approx([0.9, 0.3])
    assert found.boxes == pytest.approx(np.array([[160, 60, 240, 140]] * 2), abs=1e-3)


def half_boxes(outputs: list[Array], input_hw: tuple[int, int]) -> tuple[Array, Array]:
    return outputs[0] * np.float32(input_hw[1]), outputs[1]


def bad_boxes(outputs: list[Array], input_hw: tuple[int, int]) -> tuple[Array, Array]:
    return outputs[0][0], outputs[1]


def raising(outputs: list[Array], input_hw: tuple[int, int]) -> tuple[Array, Array]:
    raise ZeroDivisionError("no")


def test_custom_head() -> None:
    outputs = [np.array([[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]], np.float32), np.array([[[0.1, 0.8], [0.9, 0.0]]], np.float32)]
    head = Head(kind="custom", function=f"{__name__}:half_boxes")
    (found,) = vision.postprocess(outputs, head, Postprocess(), [identity(32, 32)])
    assert found.labels.tolist() == [0, 1, 0]
    assert found.boxes.tolist() == [[16, 16, 32, 32], [0, 0, 16, 16], [0, 0, 16, 16]]


@pytest.mark.parametrize(
    "function",
    ["nowhere:f", f"{__name__}:absent", f"{__name__}:YOLOX", "nocolon", None, f"{__name__}:bad_boxes", f"{__name__}:raising"],
)
def test_custom_head_that_does_not_work(function: str | None) -> None:
    outputs = [np.zeros((1, 2, 4), np.float32), np.zeros((1, 2, 2), np.float32)]
    with pytest.raises(BadInput) as caught:
        vision.postprocess(outputs, Head(kind="custom", function=function), Postprocess(), [identity(32, 32)])
    assert caught.value.code == "head-function"


@pytest.mark.parametrize(
    ("head", "shapes"),
    [
        (YOLOX, [(1, 20, 85)]),
        (YOLOX, [(1, 21, 5)]),
        (YOLOX, [(21, 85)]),
        (YOLOX, []),
        (RETINANET, [(1, 189, 4)]),
        (RETINANET, [(1, 189, 4), (1, 188, 4)]),
        (Head(kind="retinanet"), [(1, 21, 4), (1, 21, 4)]),
        (Head(kind="detections"), [(1, 5, 4), (1, 5), (1, 6)]),
    ],
)
def test_outputs_that_fit_no_head(head: Head, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(BadInput) as caught:
        vision.postprocess([np.zeros(shape, np.float32) for shape in shapes], head, Postprocess(), [identity(32, 32)])
    assert caught.value.code == "head-outputs"


def test_bit_for_bit_repeatable() -> None:
    raw = yolox_raw(128, 128, 8)
    placements = [vision.place((300, 200), Preprocess(size=(128, 128)), "fixed")] * 2
    first, second = (vision.postprocess([raw.copy()], YOLOX, Postprocess(), placements) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.boxes.tobytes() == b.boxes.tobytes()
        assert a.scores.tobytes() == b.scores.tobytes()
