"""The scene generator: same bytes from the same (seed, index), and scenes that are as varied and as hard as documented."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from redline.demo.scenes import CLASSES, MIN_BOX_PX, SIDE_PX, Scene, scene, write_dataset

DIGEST = """
import hashlib
from redline.demo.scenes import scene
digest = hashlib.sha256()
for index in (11, 3, 0, 7):
    made = scene(5, index)
    digest.update(made.image.tobytes() + made.boxes.tobytes() + made.labels.tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(42, index) for index in range(48)]


def test_same_bytes_in_this_process_in_any_order_and_in_another_process() -> None:
    made = {index: scene(5, index) for index in (0, 3, 7, 11)}
    digest = hashlib.sha256()
    for index in (11, 3, 0, 7):
        one = made[index]
        digest.update(one.image.tobytes() + one.boxes.tobytes() + one.labels.tobytes())
    other = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest.hexdigest()


def test_seed_and_index_both_matter() -> None:
    pictures = {scene(seed, index).image.tobytes() for seed in (1, 2) for index in (1, 2)}
    assert len(pictures) == 4


def test_every_class_appears_about_as_often(scenes: list[Scene]) -> None:
    counts = np.bincount(np.concatenate([one.labels for one in scenes]), minlength=len(CLASSES))
    share = counts / counts.sum()
    assert share.min() > 0.08
    assert share.max() < 0.3


def test_boxes_lie_inside_and_have_an_area(scenes: list[Scene]) -> None:
    for one in scenes:
        height, width = one.image.shape[:2]
        assert one.image.dtype == np.uint8
        assert one.boxes.dtype == np.float32
        assert one.labels.dtype == np.int64
        assert len(one.boxes) == len(one.labels)
        assert (one.boxes[:, :2] >= 0).all()
        assert (one.boxes[:, 2] <= width).all()
        assert (one.boxes[:, 3] <= height).all()
        assert ((one.boxes[:, 2:] - one.boxes[:, :2]) >= MIN_BOX_PX).all()


def test_part_and_image_sizes_vary(scenes: list[Scene]) -> None:
    sides = np.concatenate([(one.boxes[:, 2:] - one.boxes[:, :2]).max(axis=1) for one in scenes])
    assert np.quantile(sides, 0.1) < 30
    assert np.quantile(sides, 0.9) > 80
    shapes = [one.image.shape[:2] for one in scenes]
    assert all(SIDE_PX[0] <= side <= SIDE_PX[1] for shape in shapes for side in shape)
    assert len(set(shapes)) > 30
    assert sum(h > w for h, w in shapes) >= 8
    assert sum(h < w for h, w in shapes) >= 8


def test_parts_overlap_in_some_scenes(scenes: list[Scene]) -> None:
    touching = 0
    for one in scenes:
        low = np.maximum(one.boxes[:, None, :2], one.boxes[None, :, :2])
        high = np.minimum(one.boxes[:, None, 2:], one.boxes[None, :, 2:])
        overlap = np.clip(high - low, 0, None).prod(axis=-1)
        np.fill_diagonal(overlap, 0)
        touching += int((overlap > 30).any())
    assert touching >= 12


def test_backgrounds_are_textured(scenes: list[Scene]) -> None:
    spread = [cv2.Laplacian(cv2.cvtColor(one.image, cv2.COLOR_RGB2GRAY), cv2.CV_32F).std() for one in scenes]
    assert np.median(spread) > 4


def test_dataset_is_coco_and_repeats(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_dataset(tmp_path / "a", 3, 9, progress=lambda done, count: told.append((done, count)))
    write_dataset(tmp_path / "b", 3, 9)
    assert told == [(1, 3), (2, 3), (3, 3)]
    for name in ("instances.json", "images/000000.jpg", "images/000002.jpg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    document = json.loads((tmp_path / "a" / "instances.json").read_text())
    assert [category["name"] for category in document["categories"]] == list(CLASSES)
    made = [scene(9, index) for index in range(3)]
    assert len(document["annotations"]) == sum(len(one.labels) for one in made)
    for entry, one in zip(document["images"], made, strict=True):
        picture = cv2.imread(str(tmp_path / "a" / "images" / entry["file_name"]))
        assert picture.shape[:2] == (entry["height"], entry["width"]) == one.image.shape[:2]
        assert np.abs(picture[..., ::-1].astype(int) - one.image).mean() < 8
        rows = [row for row in document["annotations"] if row["image_id"] == entry["id"]]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]
        np.testing.assert_array_equal(np.asarray(corners, np.float32).reshape(-1, 4), one.boxes)
        assert [row["category_id"] - 1 for row in rows] == one.labels.tolist()
    assert len({row["id"] for row in document["annotations"]}) == len(document["annotations"])
