"""Which images are chosen to calibrate on, how the choice compares, and which sets are refused."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from redline.data.calibration import LEAST, choose_calibration
from redline.errors import BadInput
from redline.records import Category, Dataset, ImageRef, Truth


def image(
    folder: Path, index: int, *, hw: tuple[int, int] = (48, 64), mean: float = 120.0, seed: int | None = None
) -> ImageRef:
    draw = np.random.default_rng(index if seed is None else seed)
    blotches = cv2.resize(draw.normal(mean, 20, (6, 8, 3)), hw[::-1], interpolation=cv2.INTER_NEAREST)
    path = folder / f"{index:03}.png"
    cv2.imwrite(str(path), np.clip(blotches, 0, 255).astype(np.uint8))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImageRef(id=index + 1, path=str(path), height=hw[0], width=hw[1], sha256=digest)


def truth(classes: list[int]) -> Truth:
    count = len(classes)
    box = (1.0, 1.0, 5.0, 5.0)
    return Truth(boxes=(box,) * count, category_ids=tuple(classes), areas=(25.0,) * count, crowd=(False,) * count)


def dataset(images: list[ImageRef], truths: list[Truth] | None = None) -> Dataset:
    kinds = tuple(Category(id=i, name=f"c{i}") for i in range(9))
    return Dataset(name="t", images=tuple(images), truths=tuple(truths) if truths else None, categories=kinds, digest="d")


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """120 images: the last 12 are tall, dark, crowded or of a rare class; a first-N or random choice misses most of them."""
    folder = tmp_path_factory.mktemp("skewed")
    images = [image(folder, i) for i in range(108)]
    truths = [truth([0] * (1 + i % 2)) for i in range(108)]
    for index in range(108, 120):
        kind = index % 4
        images.append(image(folder, index, hw=(96, 40) if kind == 0 else (48, 64), mean=30 if kind == 1 else 120))
        truths.append(truth([0] * 20 if kind == 2 else [5, 6] if kind == 3 else [0]))
    return dataset(images, truths)


def test_the_choice_shows_what_first_and_random_miss(skewed: Dataset) -> None:
    found = choose_calibration(skewed, 16)
    others = {other.selector: other for other in found.others}
    assert len(found.images) == 16
    assert found.coverage.share == 1.0
    assert others["first"].share < 0.8
    assert others["random"].share < 1.0
    assert {trait.trait: trait.strata for trait in found.coverage.traits}["class"] == 3
    rare = [i for i in found.images if i.id > 108]
    assert 4 <= len(rare) <= 10, "rare strata are shown, and common ones are not crowded out"


def test_the_same_seed_chooses_the_same_and_another_one_others(skewed: Dataset) -> None:
    once, again, other = (choose_calibration(skewed, 20, seed=seed) for seed in (3, 3, 4))
    assert once == again
    assert once.images != other.images
    assert other.coverage.share == 1.0
    drawn = choose_calibration(skewed, 20, selector="random", seed=3)
    assert {other.selector for other in drawn.others} == {"cover", "first"}


def test_more_than_there_are_takes_all_in_order(skewed: Dataset) -> None:
    found = choose_calibration(skewed, 1000)
    assert found.images == skewed.images
    assert all(trait.distance == pytest.approx(0) for trait in found.coverage.traits)


def test_where_all_are_taken_every_selector_shows_everything(skewed: Dataset) -> None:
    found = choose_calibration(skewed, len(skewed.images))
    assert found.coverage.share == 1.0
    assert [other.share for other in found.others] == [1.0, 1.0], "a mean of equal counts is that count"


def test_without_labels_objects_and_classes_are_no_traits(skewed: Dataset) -> None:
    found = choose_calibration(replace(skewed, truths=None), 16)
    assert [trait.trait for trait in found.coverage.traits] == ["shape", "brightness", "contrast"]


def test_few_images_and_alike_ones_are_warned_of(tmp_path: Path) -> None:
    one_scene = dataset([image(tmp_path, i, seed=7) for i in range(LEAST)])
    assert Counter("alike" in text for text in choose_calibration(one_scene, LEAST).warnings) == {True: 1}
    several = dataset([image(tmp_path, i) for i in range(LEAST)])
    assert choose_calibration(several, LEAST).warnings == ()
    (text,) = choose_calibration(several, LEAST - 1).warnings
    assert text.startswith(f"{LEAST - 1} calibration images are few")


def test_images_of_the_evaluation_set_are_refused_unless_forced(tmp_path: Path) -> None:
    images = [image(tmp_path, i) for i in range(LEAST)]
    calibrate, evaluate = dataset(images), dataset([replace(images[5], path="elsewhere/renamed.png")])
    with pytest.raises(BadInput) as caught:
        choose_calibration(calibrate, LEAST, evaluate=evaluate)
    assert caught.value.code == "quantize.evaluation"
    assert caught.value.got == images[5].path
    (text,) = choose_calibration(calibrate, LEAST, evaluate=evaluate, force=True).warnings
    assert "1 of 32 calibration images are among those that accuracy is measured on" in text
    assert choose_calibration(calibrate, LEAST, evaluate=dataset([image(tmp_path, 99)])).warnings == ()


def test_black_missing_and_corrupt_images_are_named(tmp_path: Path) -> None:
    def refused(*images: Any) -> BadInput:
        with pytest.raises(BadInput) as caught:
            choose_calibration(dataset(list(images)), 4)
        return caught.value

    good, black = image(tmp_path, 0), image(tmp_path, 1, mean=-200)
    error = refused(good, black)
    assert (error.code, error.got) == ("quantize.black", black.path)
    gone = replace(good, path=str(tmp_path / "gone.png"))
    assert "gone.png" in str(refused(good, gone).got)
    Path(good.path).write_bytes(Path(good.path).read_bytes()[:60])
    assert good.path in refused(good).text()
