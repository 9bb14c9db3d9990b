"""A decoded image to a float32 network input. Knows nothing of what the network makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import BadInput
from redline.records import Placement, Preprocess, ShapePolicy
from redline.vision.geometry import place, resized_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.records import detect


def prepare(
    image: detect.Image, preprocess: Preprocess, shapes: ShapePolicy, *, out: detect.Tensor | None = None
) -> tuple[detect.Tensor, Placement]:
    """(H, W, 3) uint8 RGB -> (3, H', W') float32, C-contiguous, and where the image lies in it.

    The steps are those of `Preprocess`. `out`, of the right shape, is written and returned instead of a new array.
    Normalisation is ``pixel * (scale / std) - mean / std`` with both constants rounded to float32.
    Raises BadInput: image-array (not an (H, W, 3) uint8 array, or empty).
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise BadInput(
            "image-array", "An image must be RGB", got=f"{image.dtype} {image.shape}", allowed="uint8 (H, W, 3), H, W >= 1"
        )
    placement = place((image.shape[0], image.shape[1]), preprocess, shapes)
    height, width = resized_size(placement)
    planes = _planes(image, (height, width), preprocess)
    if out is None:
        out = np.empty((3, *placement.input_hw), np.float32)
    top, left = placement.offset_yx
    gains, biases = normalisation(preprocess)
    order = (2, 1, 0) if preprocess.channels == "bgr" else (0, 1, 2)
    for channel, source in enumerate(order):
        gain, bias = gains[channel], biases[channel]
        target = out[channel, top : top + height, left : left + width]
        if gain == 1:
            np.copyto(target, planes[source])
        else:
            np.multiply(planes[source], gain, out=target, dtype=np.float32)
        if bias != 0:
            np.subtract(target, bias, out=target)
        level = np.float32(preprocess.fill[channel]) * gain - bias
        out[channel, :top] = level
        out[channel, top + height :] = level
        out[channel, top : top + height, :left] = level
        out[channel, top : top + height, left + width :] = level
    return out, placement


def normalisation(preprocess: Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(gain, bias), float32 (3,) each: normalised = pixel * gain - bias."""
    std = np.array(preprocess.std, np.float64)
    return (preprocess.scale / std).astype(np.float32), (np.array(preprocess.mean, np.float64) / std).astype(np.float32)


def _planes(image: detect.Image, size_hw: tuple[int, int], preprocess: Preprocess) -> Any:
    """Three (h, w) planes, R G B, uint8 or float32."""
    import cv2

    if image.shape[:2] == size_hw:
        return cv2.split(image)
    size = size_hw[::-1]
    if preprocess.interpolation == "nearest":
        return cv2.split(cv2.resize(image, size, interpolation=cv2.INTER_NEAREST_EXACT))
    if preprocess.antialias:
        return _antialiased(image, size, preprocess.round_to_uint8)
    linear = cv2.INTER_LINEAR
    if preprocess.round_to_uint8:
        return cv2.split(cv2.resize(image, size, interpolation=linear))
    if size_hw[0] * size_hw[1] > image.shape[0] * image.shape[1]:  # same values; enlarging is faster plane by plane
        return [cv2.resize(plane.astype(np.float32), size, interpolation=linear) for plane in cv2.split(image)]
    return cv2.split(cv2.resize(image.astype(np.float32), size, interpolation=linear))


def _antialiased(image: detect.Image, size: tuple[int, int], round_to_uint8: bool) -> Any:
    from PIL import Image

    bilinear = Image.Resampling.BILINEAR
    if round_to_uint8:
        return np.asarray(Image.fromarray(image).resize(size, bilinear)).transpose(2, 0, 1)
    planes = (Image.fromarray(image[:, :, channel].astype(np.float32)) for channel in range(3))
    return [np.asarray(plane.resize(size, bilinear)) for plane in planes]
