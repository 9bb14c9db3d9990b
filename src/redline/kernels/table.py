"""The table that a preprocessing kernel reads: where each image lies, and where in the network input it goes.

Positions come from `vision.place`, as the reference's do, so that the two cannot diverge. The table lives in device memory:
a captured kernel takes images of other sizes when the table is copied anew. No GPU is needed to fill it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from redline.errors import BadInput
from redline.records import DeviceBatch, DeviceImage, Placement, Preprocess, ShapePolicy
from redline.vision.geometry import place, resized_size
from redline.vision.preparation import normalisation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]

ROW_WORDS = 10
"""64-bit words of a row: address, source height, width, row bytes, resized height, width, top, left, and as float64 bits the
source rows and columns for one resized row and column. A row of zeros makes an input of padding alone."""
MAX_SIDE = 16_384
"""Pixels of a source image's side. OpenCV's uint8 resize, the reference, has float32 coordinates: further out they lose the
last bit of its 11-bit interpolation weights."""
MAX_BYTES = 2**31
"""Of an image with its rows' padding: the kernels count an image's bytes in 32 bits."""

Sampling = Literal["nearest", "linear-uint8", "linear-float", "antialias-uint8", "antialias-float"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What a kernel needs of a `Preprocess` beside the table: a pixel becomes ``pixel * gain - bias``, padding is `level`."""

    sampling: Sampling
    bgr: bool
    gain: tuple[float, float, float]
    bias: tuple[float, float, float]
    level: tuple[float, float, float]
    """All three by output channel, float32 values as the reference rounds them."""


def constants(preprocess: Preprocess) -> Constants:
    """The same constants as `vision.prepare` uses."""
    gains, biases = normalisation(preprocess)
    levels = np.array(preprocess.fill, np.float32) * gains - biases
    rounding = "uint8" if preprocess.round_to_uint8 else "float"
    sampling = "nearest" if preprocess.interpolation == "nearest" else f"{_filter(preprocess)}-{rounding}"
    gain, bias, level = ((float(row[0]), float(row[1]), float(row[2])) for row in (gains, biases, levels))
    return Constants(sampling=sampling, bgr=preprocess.channels == "bgr", gain=gain, bias=bias, level=level)  # type: ignore[arg-type]


def fill_rows(
    rows: Rows, images: Sequence[DeviceImage], preprocess: Preprocess, shapes: ShapePolicy, batch: DeviceBatch
) -> tuple[Placement, ...]:
    """Write `rows`, (capacity, ROW_WORDS) int64 in host memory, for `images`; the rest of the rows are zeroed.

    Raises BadInput: kernels.capacity (more images than rows or batch), kernels.image-size (empty, or a side over MAX_SIDE),
    kernels.row-bytes (rows overlap), kernels.input-size (an image's network input is not the batch's), shape-bucket.
    """
    capacity = min(len(rows), batch.shape[0])
    if len(images) > capacity:
        raise BadInput(
            "kernels.capacity",
            "More images than the preprocessing kernel was set up for",
            got=f"{len(images)} images",
            allowed=f"at most {capacity}",
            fix="send fewer at a time, or set it up for a larger batch",
        )
    placements = tuple(_placed(image, preprocess, shapes, batch) for image in images)
    for row, image, placement in zip(rows, images, placements, strict=False):
        height, width = resized_size(placement)
        row[:8] = image.pointer, image.height, image.width, image.row_bytes, height, width, *placement.offset_yx
        row[8:].view(np.float64)[:] = _steps(placement, preprocess)
    rows[len(images) :] = 0
    return placements


def _placed(image: DeviceImage, preprocess: Preprocess, shapes: ShapePolicy, batch: DeviceBatch) -> Placement:
    size = f"{image.height} x {image.width}"
    if not (1 <= image.height <= MAX_SIDE and 1 <= image.width <= MAX_SIDE):
        raise BadInput(
            "kernels.image-size",
            "The preprocessing kernel cannot take an image of this size",
            got=f"{size} pixels",
            allowed=f"1 to {MAX_SIDE:,} pixels a side",
            fix="cut the image into tiles, or prepare it on the host",
        )
    if image.row_bytes < 3 * image.width or image.row_bytes * image.height >= MAX_BYTES or image.pointer <= 0:
        raise BadInput(
            "kernels.row-bytes",
            "An image in device memory has an address, and rows that do not overlap",
            got=f"address {image.pointer:#x}, {image.row_bytes} bytes a row of {image.width} pixels",
            allowed=f"at least {3 * image.width} bytes a row, less than {MAX_BYTES:,} bytes in all",
        )
    placement = place((image.height, image.width), preprocess, shapes)
    if placement.input_hw != batch.shape[2:]:
        raise BadInput(
            "kernels.input-size",
            "An image needs another network input than its batch has",
            got=f"{size} pixels, which become {placement.input_hw[0]} x {placement.input_hw[1]}",
            allowed=f"{batch.shape[2]} x {batch.shape[3]}",
            fix="batch images of equal network input",
        )
    return placement


def _steps(placement: Placement, preprocess: Preprocess) -> tuple[float, float]:
    """Source pixels for one resized pixel, (y, x), in float64 as the reference's library computes them."""
    if preprocess.antialias:  # Pillow divides the sizes
        sizes = zip(placement.source_hw, resized_size(placement), strict=True)
        step_y, step_x = (source / resized for source, resized in sizes)
        return step_y, step_x
    return 1 / placement.scale_yx[0], 1 / placement.scale_yx[1]  # OpenCV inverts the scale


def _filter(preprocess: Preprocess) -> str:
    return "antialias" if preprocess.antialias else "linear"
