"""Preprocessing against a slow bilinear in float64 (half-pixel centres) written for the tests alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from redline import vision
from redline.errors import BadInput
from redline.records import Preprocess

FLOAT_TOLERANCE = 1e-3  # pixel levels
UINT8_TOLERANCE = 1.0


def noise(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def bilinear(image: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    result = image.astype(np.float64)
    for axis, (old, new) in enumerate(zip(image.shape[:2], size, strict=True)):
        lines = np.moveaxis(result, axis, 0)
        rows = []
        for index in range(new):
            centre = min(max((index + 0.5) * old / new - 0.5, 0), old - 1)
            first = int(centre)
            share = centre - first
            rows.append(lines[first] * (1 - share) + lines[min(first + 1, old - 1)] * share)
        result = np.moveaxis(np.stack(rows), 0, axis)
    return result


CASES = [((48, 64), (31, 41)), ((48, 64), (63, 85)), ((37, 53), (64, 91)), ((64, 64), (32, 32)), ((1, 9), (1, 40)),
         ((9, 1), (33, 1)), ((1, 1), (7, 5)), ((40, 30), (40, 30)), ((333, 500), (277, 416))]  # fmt: skip


@pytest.mark.parametrize(("source", "size"), CASES)
@pytest.mark.parametrize("rounded", [True, False])
def test_resize(source: tuple[int, int], size: tuple[int, int], rounded: bool) -> None:
    image = noise(*source)
    tensor, _ = vision.prepare(image, Preprocess(resize="stretch", size=size, round_to_uint8=rounded), "fixed")
    difference = np.abs(tensor.transpose(1, 2, 0) - bilinear(image, size)).max()
    assert difference <= (UINT8_TOLERANCE if rounded else FLOAT_TOLERANCE)
    if rounded:
        assert np.array_equal(tensor, np.rint(tensor))


def test_nearest_has_half_pixel_centres() -> None:
    image = noise(7, 10)
    tensor, _ = vision.prepare(image, Preprocess(resize="stretch", size=(3, 4), interpolation="nearest"), "fixed")
    rows, columns = [1, 3, 5], [1, 3, 6, 8]  # floor((i + 0.5) * 7 / 3), floor((i + 0.5) * 10 / 4)
    assert np.array_equal(tensor.transpose(1, 2, 0), image[rows][:, columns])


@pytest.mark.parametrize("rounded", [True, False])
def test_antialias_averages_over_all_pixels(rounded: bool) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[::2] = 200  # without antialiasing a factor of 4 samples rows 1 and 2 of each 4 only
    preprocess = Preprocess(resize="stretch", size=(2, 2), antialias=True, round_to_uint8=rounded)
    tensor, _ = vision.prepare(image, preprocess, "fixed")
    # Triangle of half-width 4 about rows 1.5 and 5.5 cut at the border: weights 5, 7, 7, 5, 3, 1 (over 28).
    first = 200 * (5 + 7 + 3) / 28
    expected = np.array([first, 200 - first])
    assert np.abs(tensor[0, :, 0] - expected).max() <= (UINT8_TOLERANCE if rounded else FLOAT_TOLERANCE)
    if rounded:
        assert np.array_equal(
            tensor.transpose(1, 2, 0), np.asarray(Image.fromarray(image).resize((2, 2), Image.Resampling.BILINEAR))
        )


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("anchor", ["top-left", "center"])
@pytest.mark.parametrize("rounded", [True, False])
def test_order_of_steps(channels: str, anchor: str, rounded: bool) -> None:
    """Channel order, scale, mean, std and fill by the formula of the record; mean, std and fill follow the channel order."""
    preprocess = Preprocess(
        size=(64, 96), channels=channels, anchor=anchor, round_to_uint8=rounded, fill=(114, 0, 255),  # type: ignore[arg-type]
        scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    image = noise(50, 60)  # 64 x 76
    tensor, placement = vision.prepare(image, preprocess, "fixed")
    canvas = np.full((64, 96, 3), preprocess.fill, np.float64)
    left = 10 if anchor == "center" else 0
    assert placement.offset_yx == (0, left)
    canvas[:, left : left + 76] = bilinear(image, (64, 76))[:, :, :: -1 if channels == "bgr" else 1]
    expected = (canvas / 255 - preprocess.mean) / preprocess.std
    levels = np.abs(tensor.transpose(1, 2, 0) - expected) * preprocess.std * 255
    assert levels.max() <= (UINT8_TOLERANCE if rounded else FLOAT_TOLERANCE)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert levels[:, :left].max(initial=0) <= FLOAT_TOLERANCE
    assert levels[:, left + 76 :].max() <= FLOAT_TOLERANCE


def test_no_normalisation_leaves_levels_exact() -> None:
    image = noise(32, 64)
    tensor, placement = vision.prepare(image, Preprocess(resize="none", channels="bgr"), "minimal")
    assert np.array_equal(tensor, image[:, :, ::-1].transpose(2, 0, 1))
    assert placement.scale_yx == (1.0, 1.0)


@pytest.mark.parametrize("preprocess", [Preprocess(size=(96, 96)), Preprocess(resize="shortest-side", size=(64, 96))])
def test_a_bucket_is_the_minimal_input_padded_by_hand_bit_for_bit(preprocess: Preprocess) -> None:
    preprocess = replace(preprocess, channels="bgr", fill=(114, 0, 255), scale=1 / 255, mean=(0.5, 0.4, 0.3))
    minimal, placement = vision.prepare(noise(50, 90), preprocess, "minimal")
    found, bucketed = vision.prepare(noise(50, 90), preprocess, ((64, 64), (128, 160)))
    assert placement.input_hw == (64, 96)
    canvas = np.empty((3, 128, 160), np.float32)
    canvas[:] = minimal[:, 63:, 95:]  # the image is 53 x 96: padding
    canvas[:, :64, :96] = minimal
    assert np.array_equal(found, canvas)
    assert replace(bucketed, input_hw=placement.input_hw) == placement


def test_out_is_written_whole_and_equal_bit_for_bit() -> None:
    preprocess = Preprocess(size=(64, 64), anchor="center", scale=1 / 255, mean=(0.5, 0.4, 0.3))
    image = noise(30, 50)
    fresh, _ = vision.prepare(image, preprocess, "fixed")
    out = np.full_like(fresh, np.nan)
    returned, _ = vision.prepare(image, preprocess, "fixed", out=out)
    assert returned is out
    assert out.tobytes() == fresh.tobytes()


def test_read_only_and_strided_images() -> None:
    image = noise(40, 40)
    view = image[::2, ::-1]
    frozen = np.ascontiguousarray(view)
    frozen.flags.writeable = False
    preprocess = Preprocess(size=(32, 32))
    assert np.array_equal(vision.prepare(view, preprocess, "fixed")[0], vision.prepare(frozen, preprocess, "fixed")[0])


@pytest.mark.parametrize(
    ("source", "rounded"),
    [((1, 1), True), ((1, 20000), True), ((20000, 1), True), ((8000, 8000), True), ((1, 20000), False), ((20000, 1), False)],
)
def test_extreme_sizes(source: tuple[int, int], rounded: bool) -> None:
    image = np.full((*source, 3), 77, np.uint8)
    tensor, placement = vision.prepare(image, Preprocess(size=(64, 64), round_to_uint8=rounded), "fixed")
    height, width = (round(side * scale) for side, scale in zip(source, placement.scale_yx, strict=True))
    assert (tensor[:, :height, :width] == 77).all()
    assert (tensor[:, height:] == 114).all()
    assert (tensor[:, :, width:] == 114).all()


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_arrays_that_are_no_images(image: np.ndarray[Any, Any]) -> None:
    with pytest.raises(BadInput) as caught:
        vision.prepare(image, Preprocess(), "fixed")
    assert caught.value.code == "image-array"
