"""The table that the preprocessing kernels read: the reference's geometry, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest

from redline.errors import BadInput
from redline.kernels.table import MAX_SIDE, ROW_WORDS, constants, fill_rows
from redline.records import DeviceBatch, DeviceImage, Preprocess
from redline.vision import place

PREPROCESS = Preprocess(size=(640, 640), anchor="center")
BATCH = DeviceBatch(pointer=4096, shape=(4, 3, 640, 640), dtype="fp16")


def image(height: int = 480, width: int = 640, row_bytes: int | None = None, pointer: int = 1001) -> DeviceImage:
    return DeviceImage(pointer=pointer, height=height, width=width, row_bytes=3 * width if row_bytes is None else row_bytes)


def refused(*images: DeviceImage, batch: DeviceBatch = BATCH, preprocess: Preprocess = PREPROCESS) -> BadInput:
    rows = np.full((4, ROW_WORDS), 9, np.int64)
    with pytest.raises(BadInput) as caught:
        fill_rows(rows, images, preprocess, "fixed", batch)
    assert np.all(rows == 9), "a refused batch changes nothing"
    return caught.value


def test_rows_are_where_the_reference_places_the_images() -> None:
    rows = np.full((4, ROW_WORDS), 9, np.int64)
    placements = fill_rows(rows, [image(480, 640), image(1080, 400, row_bytes=1300)], PREPROCESS, "fixed", BATCH)
    assert placements == (place((480, 640), PREPROCESS, "fixed"), place((1080, 400), PREPROCESS, "fixed"))
    assert rows[0, :8].tolist() == [1001, 480, 640, 1920, 480, 640, 80, 0]
    assert rows[1, :8].tolist() == [1001, 1080, 400, 1300, 640, 237, 0, 201]
    steps = rows[:2, 8:].copy().view(np.float64)
    assert steps[0].tolist() == [1.0, 1.0]
    assert steps[1] == pytest.approx([1080 / 640, 400 / 237], rel=1e-15)
    assert not rows[2:].any(), "what is left of the batch is padding"


def test_constants_are_the_references_in_the_outputs_order() -> None:
    preprocess = Preprocess(channels="bgr", scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.5), fill=(0.0, 114.0, 255.0))
    found = constants(preprocess)
    assert (found.sampling, found.bgr) == ("linear-uint8", True)
    assert found.gain == pytest.approx([1 / 51, 4 / 255, 2 / 255], rel=1e-7)
    assert found.bias == pytest.approx([2.0, 2.0, 1.2], rel=1e-7)
    assert found.level == pytest.approx([-2.0, 114 * 4 / 255 - 2, 0.8], abs=1e-6)


@pytest.mark.parametrize(
    ("preprocess", "sampling"),
    [
        (Preprocess(interpolation="nearest", antialias=True), "nearest"),
        (Preprocess(round_to_uint8=False), "linear-float"),
        (Preprocess(antialias=True), "antialias-uint8"),
        (Preprocess(antialias=True, round_to_uint8=False), "antialias-float"),
    ],
)
def test_sampling_is_what_the_reference_would_do(preprocess: Preprocess, sampling: str) -> None:
    assert constants(preprocess).sampling == sampling


@pytest.mark.parametrize(("height", "width"), [(0, 640), (480, 0), (-1, 5), (480, 30_000), (MAX_SIDE + 1, 8)])
def test_a_size_that_no_kernel_takes_is_refused(height: int, width: int) -> None:
    error = refused(image(), image(height, width))
    assert error.code == "kernels.image-size"
    assert f"{height} x {width}" in error.text()
    assert "16,384" in error.text()


def test_more_images_than_the_batch_holds_are_refused() -> None:
    error = refused(*[image()] * 5)
    assert error.code == "kernels.capacity"
    assert "5 images" in error.text()
    small = DeviceBatch(pointer=4096, shape=(2, 3, 640, 640), dtype="fp32")
    assert refused(*[image()] * 3, batch=small).allowed == "at most 2"


def test_overlapping_rows_and_no_address_are_refused() -> None:
    assert refused(image(row_bytes=1919)).code == "kernels.row-bytes"
    assert refused(image(row_bytes=2**31 // 480 + 1)).code == "kernels.row-bytes"
    assert refused(image(pointer=0)).code == "kernels.row-bytes"


def test_an_image_of_another_network_input_is_refused() -> None:
    other = Preprocess(resize="shortest-side", size=(320, 640))
    error = refused(image(480, 640), preprocess=other)
    assert error.code == "kernels.input-size"
    assert "320 x 640" in error.text()
    assert "640 x 640" in error.text()
