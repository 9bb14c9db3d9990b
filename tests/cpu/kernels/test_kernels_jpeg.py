"""Batches of JPEG files through nvImageCodec's host decoders: the reference's pixels, and failures of one image alone."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec decodes")

from redline.errors import BadInput, TrialError
from redline.kernels.jpeg import HOST, JpegDecoder
from redline.records import DecodedImage, DeviceImage
from redline.vision import decode

RNG = np.random.default_rng(3)
SHARED = Path(__file__).parents[3].parent / "shared"
PHOTOGRAPHS = sorted((SHARED / "data" / "coco_val61" / "images").glob("*.jpg"))


def picture(height: int, width: int) -> Image.Image:
    """Smooth with some noise, as photographs are."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(y / (7 + c) + c) * np.cos(x / (11 - c)) for c in range(3)]
    return Image.fromarray(np.clip(np.stack(waves, -1) + RNG.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def pixels(image: DeviceImage | None) -> NDArray[np.uint8]:
    assert image is not None
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * (image.row_bytes * image.height)).from_address(image.pointer))
    shape, strides = (image.height, image.width, 3), (image.row_bytes, 3, 1)
    return np.lib.stride_tricks.as_strided(memory, shape, strides).copy()


@pytest.fixture(scope="module")
def decoder() -> Iterator[JpegDecoder]:
    made = JpegDecoder(HOST, engines=("host",))
    yield made
    made.close()


def check(data: bytes, result: DecodedImage, by: str) -> None:
    assert result.failure is None
    assert result.by == by
    assert np.array_equal(pixels(result.image), decode(data, name="x"))


def test_a_batch_of_every_kind_has_the_references_pixels(decoder: JpegDecoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[bytes, str]] = [
        (encoded(picture(48, 64), subsampling=2), "device"),
        (encoded(picture(33, 17), subsampling=1), "device"),
        (encoded(picture(40, 31), subsampling=0, quality=95), "device"),
        (encoded(picture(64, 80), progressive=True), "device"),
        (encoded(picture(50, 70).convert("L")), "device"),
        (encoded(picture(30, 90), exif=exif), "device"),
        (encoded(picture(1, 1)), "device"),
        (encoded(picture(20, 30).convert("CMYK")), "host"),
    ]
    for (data, by), result in zip(kinds, decoder.decode([data for data, _ in kinds]), strict=True):
        check(data, result, by)


def test_formats_other_than_jpeg_are_the_hosts(decoder: JpegDecoder) -> None:
    stream = io.BytesIO()
    picture(20, 30).save(stream, "PNG")
    check(stream.getvalue(), decoder.decode([stream.getvalue()])[0], "host")


def test_a_corrupted_file_fails_alone(decoder: JpegDecoder) -> None:
    good = [encoded(picture(60, 40 + index)) for index in range(4)]
    broken = [good[0][: len(good[0]) // 2], b"", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff" + bytes(400) + b"\xff\xd9"]
    files = [file for pair in zip(good, broken, strict=True) for file in pair]
    results = decoder.decode(files, names=[f"file {index}" for index in range(8)])
    for index, result in enumerate(results):
        if index % 2 == 0:
            check(files[index], result, "device")
        else:
            assert result.image is None
            assert isinstance(result.failure, BadInput)
            assert result.failure.code in ("image-truncated", "image-unreadable")
            assert f"file {index}" in result.failure.what
    check(good[0], decoder.decode([good[0]])[0], "device")


def test_memory_of_the_batch_before_is_used_again(decoder: JpegDecoder) -> None:
    first, second = ([encoded(picture(60, 40)) for _ in range(3)] for _ in range(2))
    before = [result.image.pointer for result in decoder.decode(first) if result.image]
    results = decoder.decode(second)
    assert [result.image.pointer for result in results if result.image] == before
    for data, result in zip(second, results, strict=True):
        check(data, result, "device")
    check(first[0], decoder.decode(first[:1])[0], "device")


def test_an_empty_batch_is_no_batch(decoder: JpegDecoder) -> None:
    assert decoder.decode([]) == ()


@pytest.mark.skipif(not PHOTOGRAPHS, reason="no photographs here")
def test_photographs_have_the_references_pixels(decoder: JpegDecoder) -> None:
    files = [path.read_bytes() for path in PHOTOGRAPHS]
    for data, result in zip(files, decoder.decode(files), strict=True):
        check(data, result, "device")


def test_a_device_that_is_not_there_is_a_trials_error() -> None:
    with pytest.raises(TrialError) as caught:
        JpegDecoder(77)
    assert caught.value.code == "kernels.jpeg"
