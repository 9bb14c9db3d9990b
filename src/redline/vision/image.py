"""Encoded images to upright RGB arrays, and nothing but clear errors for the rest. Knows nothing of networks."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from redline.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.records import detect

PIXEL_LIMIT = 89_478_485
"""Most pixels of an image: Pillow's own guard against decompression bombs, so that one limit holds everywhere."""

FORMATS = tuple(plugin.format for plugin in (JpegImagePlugin.JpegImageFile, PngImagePlugin.PngImageFile,
                                             BmpImagePlugin.BmpImageFile, WebPImagePlugin.WebPImageFile))  # fmt: skip

_ORIENTATION = 0x0112
_SIGNATURES = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}
"""First bytes of a format -> what its last bytes contain when the file is complete."""

# What Pillow's decoders raise on hostile bytes, found by fuzzing and by reading them.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode(data: bytes, *, name: str) -> detect.Image:
    """Decode JPEG, PNG, BMP or WebP bytes to (H, W, 3) uint8 RGB, upright by EXIF; the array may be read-only.

    Grayscale is repeated, palettes are looked up, CMYK is converted without a colour profile, 16 bits become their high byte
    (``>> 8``), alpha is dropped (the stored colours stay as they are), of an animation the first frame is taken.
    `name` is for messages.
    Raises BadInput: image-truncated, image-unreadable, image-too-large.
    """
    image = _open(BytesIO(data), data, name)
    orientation = _orientation(image)
    try:
        pixels = _rgb(image)
    except _DECODER_ERRORS as exc:
        raise _unreadable(data, name, exc) from exc
    return _upright(pixels, orientation)


def image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of the upright image, read from the file's header alone.

    Raises BadInput: image-missing, image-truncated, image-unreadable, image-too-large.
    """
    name = str(path)
    try:
        with Path(path).open("rb") as stream:
            image = _open(stream, None, name)
            width, height = image.size
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as exc:
        raise BadInput("image-missing", f"Cannot read the image {name}", got=exc.strerror, fix="check the path") from exc


def _open(stream: BinaryIO, data: bytes | None, name: str) -> Image.Image:
    try:
        image = Image.open(stream, formats=FORMATS)
    except _BOMBS as exc:
        raise _too_large(name, str(exc)) from exc
    except _DECODER_ERRORS as exc:
        if data is None:
            stream.seek(0)
            data = stream.read()
        raise _unreadable(data, name, exc) from exc
    if image.width * image.height > PIXEL_LIMIT:
        raise _too_large(name, f"{image.height} x {image.width} pixels")
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. A PNG's is looked for before its pixels only, as the standard asks, so that headers suffice."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        value: Any = image.getexif().get(_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1  # a broken EXIF block does not spoil the pixels
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> detect.Image:
    if image.mode.startswith("I"):  # 16-bit grayscale: "I;16", "I;16B"; "I" in Pillow < 11
        levels = np.clip(np.asarray(image).astype(np.int32), 0, 65535) >> 8
        return np.repeat(levels.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "RGB":
        return np.asarray(image)
    image.load()
    image.info.pop("transparency", None)  # Pillow warns of it when it converts
    return np.asarray(image.convert("RGB"))


def _upright(pixels: detect.Image, orientation: int) -> detect.Image:
    if orientation == 1:
        return pixels
    turned: NDArray[np.uint8] = pixels.transpose(1, 0, 2) if orientation >= 5 else pixels
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def _unreadable(data: bytes, name: str, exc: Exception) -> BadInput:
    ending = next((end for start, end in _SIGNATURES.items() if data.startswith(start)), None)
    if (ending is not None and ending not in data[-64:]) or "truncated" in str(exc).lower():
        return BadInput(
            "image-truncated",
            f"The image {name} ends before its pixels do",
            got=f"{len(data)} bytes",
            fix="copy or download the file again",
        )
    return BadInput(
        "image-unreadable",
        f"Cannot decode the image {name}",
        got=str(exc) if data else "0 bytes",
        allowed=", ".join(name for name in FORMATS if name),
        fix="convert the image to one of these formats",
    )


def _too_large(name: str, got: str) -> BadInput:
    return BadInput(
        "image-too-large",
        f"The image {name} has too many pixels",
        got=got,
        allowed=f"at most {PIXEL_LIMIT:,} pixels",
        fix="scale the image down or cut it into tiles",
    )
