"""Post-processing kernels against `vision.postprocess`: run by test_kernels_postprocess.py with TRITON_INTERPRET=1."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from redline import vision
from redline.errors import TrialError
from redline.records import Detections, Head, Placement, Postprocess, Preprocess
from redline.vision.heads import candidates, checked
from redline.vision.levels import level_anchors, sigmoid

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in Triton's interpreter alone", allow_module_level=True)

from redline.kernels.postprocess import Capacity, PostprocessKernels, Tiles, logit_bound

HW = (48, 64)
CLASSES = 3
YOLOX = Head(kind="yolox", activation="sigmoid")
RETINANET = Head(
    kind="retinanet",
    strides=(16, 32),
    activation="sigmoid",
    anchor_sizes=((16.0, 20.0), (32.0, 40.0)),
    aspect_ratios=(0.5, 1.0, 2.0),
)
HEADS = pytest.mark.parametrize("head", [YOLOX, RETINANET], ids=["yolox", "retinanet"])
POST = Postprocess(score=0.05, iou=0.5, max_detections=30)
LEVELS = dataclasses.replace(POST, candidates_per_level=15)
TILES = Tiles(filter=256, listed=256, programs=1, ranked=32, ranked_against=64, overlapped=32, suppressed=32)
PREPROCESSES = [Preprocess(size=HW), Preprocess(size=HW, anchor="center"), Preprocess(resize="stretch", size=HW)]
SOURCES = [(100, 150), (30, 70), (480, 31)]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """0 / 0 of two boxes without area is NaN on purpose."""
    with np.errstate(all="ignore"):
        yield


def placements(count: int) -> list[Placement]:
    return [vision.place(SOURCES[i % 3], PREPROCESSES[i % 3], "fixed") for i in range(count)]


def raw(head: Head, images: int, dtype: Any = np.float32, mean: float = -1.5, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    anchors = sum(level_anchors(head, HW))
    scores, boxes = rng.normal(mean, 1.5, (images, anchors, CLASSES)), rng.normal(0, 0.4, (images, anchors, 4))
    if head.kind == "retinanet":
        return [scores.astype(dtype), boxes.astype(dtype)]
    boxes[..., 2:] += 1  # boxes larger than their cells overlap
    return [np.concatenate((boxes, rng.normal(1, 1, (images, anchors, 1)), scores), axis=-1).astype(dtype)]


def kernels(head: Head, post: Postprocess, images: int, tiles: Tiles = TILES, **capacity: Any) -> PostprocessKernels:
    return PostprocessKernels(head, post, HW, CLASSES, Capacity(images=images, **capacity), device="cpu", tiles=tiles)


def run(made: PostprocessKernels, outputs: Sequence[Any], places: Sequence[Placement]) -> list[Detections]:
    made.place(places)
    made.launch([torch.from_numpy(output) for output in outputs])
    return made.detections(len(outputs[0]))


def reference(head: Head, post: Postprocess, outputs: Sequence[Any], places: Sequence[Placement]) -> list[Detections]:
    return vision.postprocess([output.astype(np.float32) for output in outputs], head, post, places)


def agree(found: Sequence[Detections], wanted: Sequence[Detections]) -> int:
    """The same detections in the same order; returns how many."""
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert np.array_equal(ours.scores, theirs.scores)
        assert np.abs(ours.boxes - theirs.boxes).max(initial=0) <= 1e-4
    return sum(len(one.scores) for one in wanted)


def compare(head: Head, post: Postprocess, outputs: Sequence[Any], tiles: Tiles = TILES, **capacity: Any) -> int:
    places = placements(len(outputs[0]))
    made = kernels(head, post, len(outputs[0]), tiles, **capacity)
    return agree(run(made, outputs, places), reference(head, post, outputs, places))


@HEADS
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("post", [POST, LEVELS], ids=["all", "levels"])
def test_random(head: Head, dtype: Any, post: Postprocess) -> None:
    """Enough places that suppression goes through all blocks of ranks."""
    assert compare(head, dataclasses.replace(post, max_detections=300), raw(head, 2, dtype)) > 40


@HEADS
def test_a_list_too_short_for_the_survivors(head: Head) -> None:
    """Scores above and below the threshold are then read again."""
    assert compare(head, LEVELS, raw(head, 2), survivors=0.001) > 20


@HEADS
@pytest.mark.parametrize(
    "change",
    [
        {"class_aware": False},
        {"iou": 1.0},
        {"iou": 0.0},
        {"max_detections": 1},
        {"score": 0.0, "max_detections": 300},
        {"score": 0.5},
    ],
    ids=lambda change: "-".join(change),
)
def test_settings(head: Head, change: dict[str, Any]) -> None:
    assert compare(head, dataclasses.replace(LEVELS, **change), raw(head, 1)) > 0


@HEADS
def test_scores_that_are_no_logits(head: Head) -> None:
    plain = dataclasses.replace(head, activation="none")
    outputs = raw(head, 2)
    first = outputs[0][..., 4:] if head.kind == "yolox" else outputs[0]
    first[...] = np.round(sigmoid(first) * 32) / 32  # ties, and scores exactly at the threshold
    assert compare(plain, dataclasses.replace(LEVELS, score=0.25), outputs) > 10


@HEADS
def test_nothing_found(head: Head) -> None:
    made = kernels(head, LEVELS, 2)
    run(made, raw(head, 2, mean=1.0), placements(2))
    empty = raw(head, 2, mean=-50.0)
    assert compare(head, LEVELS, empty) == 0
    found = run(made, empty, placements(2))  # nothing of the batch before is left
    assert [len(one.scores) for one in found] == [0, 0]
    assert made.found.sum() == 0
    assert (made.boxes == 0).all()
    assert (made.scores == 0).all()
    assert (made.labels == -1).all()


@HEADS
@pytest.mark.parametrize("post", [POST, LEVELS], ids=["all", "levels"])
def test_everything_found(head: Head, post: Postprocess) -> None:
    """More survivors than the list holds: the scores are read again instead."""
    outputs = raw(head, 2, mean=3.0)
    outputs[0] = np.clip(outputs[0], -2.5, 4)
    places = placements(2)
    made = kernels(head, post, 2, survivors=0.01, candidates=64)
    found = run(made, outputs, places)
    if post.candidates_per_level is not None:
        assert agree(found, reference(head, post, outputs, places)) > 10
    passing = sigmoid(outputs[0][..., 5:]) * sigmoid(outputs[0][..., 4:5]) if head.kind == "yolox" else sigmoid(outputs[0])
    assert made.found.sum() == (passing > np.float32(0.05)).sum()


@HEADS
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_ties_go_to_the_first(head: Head, dtype: Any) -> None:
    """Three different scores only: the limit of every level lies among equal ones."""
    outputs = raw(head, 2, dtype)
    first = outputs[0][..., 4:] if head.kind == "yolox" else outputs[0]
    first[...] = np.clip(np.round(first), -1, 1)
    assert compare(head, dataclasses.replace(LEVELS, iou=0.9), outputs) > 20
    assert compare(head, dataclasses.replace(LEVELS, iou=0.9), outputs, survivors=0.01) > 20


@HEADS
def test_all_scores_equal(head: Head) -> None:
    outputs = raw(head, 1)
    first = outputs[0][..., 4:] if head.kind == "yolox" else outputs[0]
    first[...] = 1
    assert compare(head, dataclasses.replace(LEVELS, iou=0.9), outputs, survivors=0.01) > 10


@HEADS
def test_numbers_that_are_none(head: Head) -> None:
    """NaN scores never pass; boxes with a NaN, or an infinity that no clipping removes, never stay, but count in a level."""
    outputs = raw(head, 2, mean=0.0)
    rng = np.random.default_rng(5)
    for output in outputs:
        for value in (np.nan, np.inf, -np.inf):
            output.reshape(-1)[rng.choice(output.size, output.size // 20, replace=False)] = value
    assert compare(head, LEVELS, outputs) > 10
    assert compare(head, dataclasses.replace(LEVELS, class_aware=False), outputs) > 10
    outputs[0][...] = np.nan
    assert compare(head, LEVELS, outputs) == 0


@HEADS
def test_over_capacity_the_highest_scores_stay(head: Head) -> None:
    outputs, places = raw(head, 2), placements(2)
    made = kernels(head, POST, 2, candidates=20)
    found = run(made, outputs, places)
    arrays = checked(outputs, head, HW)
    for image, place in enumerate(places):
        every = candidates(arrays, image, head, POST, place)
        assert int(made.found[image].sum()) == len(every.scores) > 20
        best = np.lexsort((every.labels, every.anchors, -every.scores))[:20]
        boxes, scores, labels = every.boxes[best], every.scores[best], every.labels[best]
        kept = vision.nms(boxes, scores, labels, every.anchors[best], iou=0.5, max_detections=30, class_aware=True)
        wanted = Detections(boxes=vision.to_source(boxes[kept], place), scores=scores[kept], labels=labels[kept])
        agree(found[image : image + 1], [wanted])


@pytest.mark.parametrize("score", [0.0, 0.001, 0.05, 0.3, 0.5, 0.9, 0.999])
def test_the_bound_on_logits_is_the_threshold_on_scores(score: float) -> None:
    threshold = vision.at_most(score)
    bound = np.float32(logit_bound(threshold))
    assert sigmoid(np.array([bound]))[0] <= threshold
    assert sigmoid(np.array([np.nextafter(bound, np.float32(np.inf))]))[0] > threshold


def test_a_score_at_the_threshold_does_not_pass() -> None:
    anchors = sum(level_anchors(RETINANET, HW))
    bound = np.float32(logit_bound(vision.at_most(0.3)))
    logits = np.full((1, anchors, CLASSES), bound, np.float32)
    logits[0, 7, 1] = np.nextafter(bound, np.float32(np.inf))
    outputs = [logits, np.zeros((1, anchors, 4), np.float32)]
    post = dataclasses.replace(POST, score=0.3)
    made = kernels(RETINANET, post, 1)
    found = run(made, outputs, placements(1))
    assert made.found.tolist() == [[1]]
    assert agree(found, reference(RETINANET, post, outputs, placements(1))) == 1


def test_no_score_above_one() -> None:
    assert logit_bound(np.float32(1)) == np.inf
    assert compare(RETINANET, dataclasses.replace(POST, score=1.0), raw(RETINANET, 1, mean=30.0)) == 0


def test_chains_of_suppression() -> None:
    """Each box suppresses the next alone, so that every second one of a row stays, through all blocks of ranks."""
    anchors = sum(level_anchors(YOLOX, HW))
    rows = min(anchors, 60)
    outputs = np.full((1, anchors, 5 + CLASSES), -50, np.float32)
    grid = np.array([(x, y) for y in range(HW[0] // 8) for x in range(HW[1] // 8)], np.float32)[:rows]
    # 40 pixels wide, 10 apart: overlap of 30 / 50, two steps 20 / 60.
    line = np.stack((np.arange(rows) * 10, np.full(rows, 20.0)), axis=1)
    cells = len(grid)
    outputs[0, :cells, :2] = line[:cells] / 8 - grid
    outputs[0, :cells, 2:4] = np.log(np.array([5.0, 2.0]))
    outputs[0, :cells, 4] = 20
    outputs[0, :cells, 6] = np.linspace(3, 0, cells)
    post = dataclasses.replace(POST, iou=0.5, max_detections=60)
    for block in (32, 64):
        count = compare(YOLOX, post, [outputs], dataclasses.replace(TILES, suppressed=block))
        assert count == -(-cells // 2)


@HEADS
def test_tiles_change_nothing(head: Head) -> None:
    outputs = raw(head, 2, np.float16)
    places = placements(2)
    wanted = reference(head, LEVELS, outputs, places)
    agree(run(kernels(head, LEVELS, 2, Tiles(programs=1)), outputs, places), wanted)
    small = Tiles(filter=64, listed=32, programs=24, ranked=16, ranked_against=16, overlapped=16, words=1, suppressed=16)
    agree(run(kernels(head, LEVELS, 2, small), outputs, places), wanted)


@HEADS
def test_fewer_images_than_the_capacity_and_repeats(head: Head) -> None:
    made = kernels(head, LEVELS, 3)
    places = placements(2)
    for seed in (1, 2):
        outputs = raw(head, 2, seed=seed)
        found = run(made, outputs, places)
        assert agree(found, reference(head, LEVELS, outputs, places)) > 10
        again = run(made, outputs, places)
        for one, other in zip(found, again, strict=True):
            assert np.array_equal(one.boxes, other.boxes)
            assert np.array_equal(one.scores, other.scores)


def test_what_does_not_fit_is_refused() -> None:
    made = kernels(RETINANET, POST, 1)
    logits, deltas = (torch.from_numpy(output) for output in raw(RETINANET, 1))
    two = [torch.from_numpy(output) for output in raw(RETINANET, 2)]
    for outputs in ([logits], [deltas, logits], [logits.double(), deltas], two, [logits.mT.contiguous().mT, deltas], []):
        with pytest.raises(TrialError) as caught:
            made.launch(outputs)
        assert caught.value.code == "kernel-inputs"
    for places in (placements(2), [vision.place((9, 9), Preprocess(size=(32, 32)), "fixed")]):
        with pytest.raises(TrialError) as caught:
            made.place(places)
        assert caught.value.code == "kernel-inputs"


@pytest.mark.parametrize(
    ("head", "post", "capacity"),
    [
        (Head(kind="custom", function="a:b"), POST, Capacity(images=1)),
        (Head(kind="detections"), POST, Capacity(images=1)),
        (YOLOX, dataclasses.replace(POST, score=-0.5), Capacity(images=1)),
        (YOLOX, POST, Capacity(images=2**24)),
    ],
)
def test_what_has_no_kernel_form_is_refused(head: Head, post: Postprocess, capacity: Capacity) -> None:
    with pytest.raises(TrialError) as caught:
        PostprocessKernels(head, post, HW, CLASSES, capacity, device="cpu")
    assert caught.value.code == "no-kernel-form"
