"""The demo network, its targets and loss, the batches it is trained on, and that training learns."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from redline.demo import feed, loss
from redline.demo.feed import CANVAS, CHUNK, MOST_PARTS, Feed, Ring
from redline.demo.scenes import CLASSES, scene
from redline.demo.train import HELD_OUT_SEED, Options, Trainer, options, run
from redline.zoo.demo_net import NUM_CLASSES, demo

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _options(tmp_path: Path, *more: str) -> Options:
    return options(["--out", str(tmp_path), "--device", "cpu", "--workers", "1", *more])


def _chunk(seed: int, distinct: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    images = np.zeros((CHUNK, CANVAS, CANVAS, 3), np.uint8)
    sizes = np.zeros((CHUNK, 2), np.float32)
    boxes = np.zeros((CHUNK, MOST_PARTS, 4), np.float32)
    labels = np.full((CHUNK, MOST_PARTS), -1, np.int64)
    for k in range(CHUNK):
        made = scene(seed, k % distinct)
        height, width = made.image.shape[:2]
        images[k, :height, :width], sizes[k] = made.image, (height, width)
        boxes[k, : len(made.boxes)], labels[k, : len(made.labels)] = made.boxes, made.labels
    return images, sizes, boxes, labels


def test_network_is_small_plain_and_shape_free() -> None:
    network = demo(weights=False)
    assert sum(p.numel() for p in network.parameters()) <= 950_000
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(m.groups == 1 for m in convolutions)
    assert all(m.out_channels % 8 == 0 for m in convolutions if m.bias is None)
    assert len(CLASSES) == NUM_CLASSES
    with torch.inference_mode():
        for height, width in ((320, 320), (256, 416), (64, 32)):
            anchors = height * width * 21 // 1024
            assert network(torch.zeros(2, 3, height, width)).shape == (2, anchors, 5 + NUM_CLASSES)


def _reference_assign(raw: np.ndarray, grid: loss.Grid, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """SimOTA for one image, loop by loop: the box index of every anchor, -1 for none."""
    centre, stride = grid.centre.numpy().astype(float), grid.stride[:, 0].numpy().astype(float)
    predicted = loss.decode(torch.from_numpy(raw)[None], grid)[0].numpy().astype(float)
    sigmoid = 1 / (1 + np.exp(-raw.astype(float)))
    cost = np.full((len(boxes), len(raw)), np.inf)
    overlap = np.zeros_like(cost)
    for g, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        if label < 0:
            continue
        for a in range(len(raw)):
            x, y = centre[a]
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            reach = 2.5 * stride[a]
            near = abs(x - (box[0] + box[2]) / 2) < reach and abs(y - (box[1] + box[3]) / 2) < reach
            if not (inside or near):
                continue
            p = predicted[a]
            width, height = min(p[2], box[2]) - max(p[0], box[0]), min(p[3], box[3]) - max(p[1], box[1])
            common = max(width, 0) * max(height, 0)
            union = (p[2] - p[0]) * (p[3] - p[1]) + (box[2] - box[0]) * (box[3] - box[1]) - common
            overlap[g, a] = common / union
            joint = np.clip(np.sqrt(sigmoid[a, 5:] * sigmoid[a, 4]), 1e-6, 1 - 1e-6)
            wanted = np.arange(len(joint)) == label
            entropy = -np.where(wanted, np.log(joint), np.log(1 - joint)).sum()
            cost[g, a] = entropy - 3 * math.log(max(overlap[g, a], 1e-8)) + (0 if inside and near else 1e5)
    given = np.zeros_like(cost, bool)
    for g in range(len(boxes)):
        if np.isfinite(cost[g]).any():
            number = max(int(np.sort(overlap[g])[-10:].sum()), 1)
            chosen = np.argsort(cost[g], kind="stable")[:number]
            given[g, chosen[np.isfinite(cost[g, chosen])]] = True
    return np.where(given.any(0), np.where(given, cost, np.inf).argmin(0), -1)


def test_assignment_equals_the_loop_written_out() -> None:
    generator = torch.Generator().manual_seed(4)
    sizes = [(8, 12), (4, 6), (2, 3)]
    levels = [torch.randn(3, 5 + NUM_CLASSES, *size, generator=generator) for size in sizes]
    for level in levels:
        level[:, 2:4] += 1
    corner = torch.rand(3, 5, 2, generator=generator) * torch.tensor([70.0, 40.0])
    boxes = torch.cat([corner, corner + 6 + 40 * torch.rand(3, 5, 2, generator=generator)], dim=-1)
    labels = torch.randint(-1, NUM_CLASSES, (3, 5), generator=generator)
    labels[2] = -1
    raw, grid = loss.flatten(levels)
    index, positive = loss.assign(raw, grid, loss.Targets(boxes, labels))
    assert positive[:2].any(dim=1).all()
    for image in range(3):
        expected = _reference_assign(raw[image].numpy(), grid, boxes[image].numpy(), labels[image].numpy())
        found = torch.where(positive[image], index[image], -1).numpy()
        np.testing.assert_array_equal(found, expected)


def test_giou_of_known_boxes() -> None:
    first = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    second = torch.tensor([[1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 3.0, 1.0]])
    ratio, generalised = loss.iou(first, second)
    np.testing.assert_allclose(ratio, [1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(generalised, [1 / 3, -1 / 3], atol=1e-6)


def test_boxes_follow_the_pixels_through_random_geometry() -> None:
    images = torch.zeros(24, CANVAS, CANVAS, 3, dtype=torch.uint8)
    images[:, 90:190, 60:180] = 255
    sizes = torch.tensor([[300.0, 400.0], [420.0, 260.0]]).repeat(12, 1)
    boxes = torch.tensor([60.0, 90.0, 180.0, 190.0]).expand(24, 1, 4)
    frame = feed._frame(sizes, 320, exact=0.3)
    pixels = torch.where(frame.covered, feed._sample(images, frame, 320), 0.0)[:, 0]
    targets = feed._targets(boxes, torch.zeros(24, 1, dtype=torch.int64), frame, 320)
    assert (targets.labels >= 0).sum() >= 16
    for picture, box, label in zip(pixels, targets.boxes[:, 0], targets.labels[:, 0], strict=True):
        if label < 0:
            continue
        rows, columns = torch.where((picture > 127).any(1))[0], torch.where((picture > 127).any(0))[0]
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(box, torch.stack(seen), atol=1.0)  # half a pixel of threshold, half of rounding


def test_exact_frame_is_the_deployed_letterbox() -> None:
    frame = feed._frame(torch.tensor([[240.0, 480.0]]), 320, exact=1.0)
    covered = frame.covered[0, 0]
    assert covered[:160].all()
    assert not covered[160:].any()


def test_training_learns_eight_scenes(tmp_path: Path) -> None:
    ring = Ring(CHUNK, CPU)
    ring.add(*_chunk(3, 8))
    trainer = Trainer(_options(tmp_path, "--batch", "8", "--learning-rate", "3e-3", "--warmup", "5"), CPU)
    values = [trainer.step(ring, 128, 1.0, 0.0) for _ in range(30)]
    first, last = values[:3], values[-3:]
    assert all(torch.isfinite(one.total) for one in values)
    assert sum(one.total.item() for one in last) < 0.8 * sum(one.total.item() for one in first)
    assert sum(one.box.item() for one in last) < 0.9 * sum(one.box.item() for one in first)
    moved = [(a - b).abs().max() for a, b in zip(trainer.average.network.parameters(), demo(False).parameters(), strict=True)]
    assert max(moved) > 0


def test_feed_gives_the_scenes_of_the_series(tmp_path: Path) -> None:
    ring = Ring(4 * CHUNK, CPU)
    workers = Feed(1, 8)
    try:
        while ring.filled < CHUNK:
            workers.pour(ring, wait=True)
    finally:
        workers.close()
    made = scene(8, 5)
    height, width = made.image.shape[:2]
    assert ring.sizes[5].tolist() == [height, width]
    np.testing.assert_array_equal(ring.images[5, :height, :width], made.image)
    np.testing.assert_array_equal(ring.boxes[5, : len(made.boxes)], made.boxes)
    assert ring.labels[5].tolist() == made.labels.tolist() + [-1] * (MOST_PARTS - len(made.labels))


def test_training_on_the_held_out_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="held-out"):
        run(_options(tmp_path, "--seed", str(HELD_OUT_SEED)))
