"""Decoding: every kind of pixel, every orientation, and nothing but BadInput for hostile bytes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from redline import vision
from redline.errors import BadInput

RNG = np.random.default_rng(5)
COLOUR = RNG.integers(0, 256, (7, 11, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int, depth: int, colour: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_give_back_the_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(vision.decode(encoded(Image.fromarray(COLOUR), kind, **options), name="x"), COLOUR)


def test_jpeg_pixels_are_those_of_pillow() -> None:
    data = encoded(Image.fromarray(COLOUR), "JPEG", quality=90)
    assert np.array_equal(vision.decode(data, name="x"), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grayscale_is_repeated(kind: str) -> None:
    data = encoded(Image.fromarray(COLOUR[:, :, 0]), kind)
    pixels = vision.decode(data, name="x")
    assert np.array_equal(pixels, np.repeat(np.asarray(Image.open(io.BytesIO(data)))[:, :, None], 3, axis=2))


def test_alpha_is_dropped_and_hidden_colours_stay() -> None:
    alpha = RNG.integers(0, 256, (7, 11, 1), dtype=np.uint8)
    data = encoded(Image.fromarray(np.concatenate((COLOUR, alpha), axis=2)), "PNG")
    assert np.array_equal(vision.decode(data, name="x"), COLOUR)
    data = encoded(Image.fromarray(np.concatenate((COLOUR[:, :, :1], alpha), axis=2)), "PNG")
    assert np.array_equal(vision.decode(data, name="x"), np.repeat(COLOUR[:, :, :1], 3, axis=2))


@pytest.mark.filterwarnings("error")
def test_palette_with_transparency_is_looked_up_without_a_warning() -> None:
    indices = RNG.integers(0, 4, (5, 6), dtype=np.uint8)
    palette = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    assert np.array_equal(vision.decode(encoded(image, "PNG", transparency=b"\x00\x80\xff\x10"), name="x"), palette[indices])


def test_one_bit_becomes_black_and_white() -> None:
    bits = RNG.integers(0, 2, (5, 6), dtype=np.uint8)
    data = encoded(Image.fromarray(bits * 255).convert("1"), "PNG")
    assert np.array_equal(vision.decode(data, name="x")[:, :, 1], bits * 255)


def test_cmyk_without_profile() -> None:
    pixels = vision.decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), name="x")
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3  # JPEG loss


def test_sixteen_bit_gray_keeps_its_high_byte() -> None:
    levels = RNG.integers(0, 65536, (9, 4), dtype=np.uint16)
    pixels = vision.decode(encoded(Image.fromarray(levels), "PNG"), name="x")
    assert np.array_equal(pixels, np.repeat((levels >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    levels = RNG.integers(0, 65536, (3, 5, 3), dtype=np.uint16)
    lines = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in levels)
    data = png_chunks(png_header(5, 3, 16, 2), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    assert np.array_equal(vision.decode(data, name="x"), (levels >> 8).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_exif_orientations(orientation: int, kind: str, tmp_path: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(COLOUR), kind, exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    pixels = vision.decode(data, name="x")
    assert np.array_equal(pixels, np.asarray(upright.convert("RGB")))
    assert pixels.shape[:2] == ((11, 7) if orientation >= 5 else (7, 11))
    path = tmp_path / "image"  # type: ignore[operator]
    path.write_bytes(data)
    assert vision.image_size(path) == pixels.shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\x7f", b"Exif\x00\x00"])
def test_a_broken_exif_block_does_not_spoil_the_image(exif: bytes) -> None:
    assert vision.decode(encoded(Image.fromarray(COLOUR), "JPEG", exif=exif), name="x").shape == (7, 11, 3)


def test_one_pixel() -> None:
    assert vision.decode(encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), name="x").tolist() == [[[9, 8, 7]]]
    assert vision.decode(encoded(Image.new("L", (1, 1), 200), "JPEG"), name="x").tolist() == [[[200, 200, 200]]]


def test_8000_by_8000() -> None:
    pixels = vision.decode(encoded(Image.new("L", (8000, 8000), 77), "PNG", compress_level=1), name="x")
    assert pixels.shape == (8000, 8000, 3)
    assert pixels[7999, 7999].tolist() == [77, 77, 77]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9500, 15000, 2**31 - 1])
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    data = png_chunks(png_header(side, side, 8, 2), (b"IDAT", zlib.compress(b"\x00")), (b"IEND", b""))
    with pytest.raises(BadInput) as caught:
        vision.decode(data, name="huge.png")
    assert caught.value.code == "image-too-large"
    assert "huge.png" in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.8, 0.97])
def test_truncated(kind: str, share: float) -> None:
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    with pytest.raises(BadInput) as caught:
        vision.decode(data[: int(len(data) * share)], name="cut.img")
    assert caught.value.code == "image-truncated"


@pytest.mark.parametrize("data", [b"", b"not an image", b"GIF89a" + bytes(40), b"%PDF-1.4", bytes(100)])
def test_other_bytes(data: bytes) -> None:
    with pytest.raises(BadInput) as caught:
        vision.decode(data, name="x")
    assert caught.value.code == "image-unreadable"


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "BMP", "WEBP"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1)), max_size=4),
)
def test_corrupted_bytes_decode_or_raise_bad_input(kind: str, changes: list[tuple[float, bytes]]) -> None:
    data = bytearray(encoded(Image.fromarray(COLOUR), kind))
    for place, patch in changes:
        start = int(place * (len(data) - 1))
        data[start : start + len(patch)] = patch
    try:
        pixels = vision.decode(bytes(data), name="x")
    except BadInput:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3


def test_image_size_of_missing_and_broken_files(tmp_path: object) -> None:
    folder = tmp_path
    with pytest.raises(BadInput) as caught:
        vision.image_size(folder / "absent.jpg")  # type: ignore[operator]
    assert caught.value.code == "image-missing"
    broken = folder / "broken.jpg"  # type: ignore[operator]
    broken.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(BadInput) as caught:
        vision.image_size(broken)
    assert caught.value.code == "image-truncated"
