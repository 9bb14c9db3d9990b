"""Where an image lies in the network input, and boxes there and back: pure arithmetic, no pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import BadInput
from redline.records import Placement, Preprocess, ShapePolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray


def input_size(source_hw: tuple[int, int], preprocess: Preprocess, shapes: ShapePolicy) -> tuple[int, int]:
    """(H, W) of the network input, pixels, for a source image of `source_hw`; see `place`."""
    return place(source_hw, preprocess, shapes).input_hw


def place(source_hw: tuple[int, int], preprocess: Preprocess, shapes: ShapePolicy) -> Placement:
    """Size and position of the resized image in the network input.

    letterbox: the largest extent of the source's aspect ratio that fits `size`, sides rounded down, at least 1 pixel.
    shortest-side: `size` is (shortest side, cap): scale = min(shortest / min(h, w), cap / max(h, w)), sides rounded down, in
    float64 as torchvision's GeneralizedRCNNTransform has it. stretch: exactly `size`. none: no resize.
    The canvas is the resized extent rounded up to `stride`; with "fixed" it is `size` for letterbox, and (shortest, cap) in the
    image's orientation rounded up to `stride` for shortest-side. With buckets the canvas of "minimal" is padded further, to the
    bucket of smallest area that holds it; of equal areas the lower one. A stretched image always fills `size` exactly.
    Raises BadInput: shape-bucket (none holds it).
    """
    resized = _resized(source_hw, preprocess)
    height, width = _canvas(source_hw, resized, preprocess, shapes)
    centred = preprocess.anchor == "center"
    return Placement(
        source_hw=source_hw,
        input_hw=(height, width),
        scale_yx=(resized[0] / source_hw[0], resized[1] / source_hw[1]),
        offset_yx=((height - resized[0]) // 2, (width - resized[1]) // 2) if centred else (0, 0),
    )


def resized_size(placement: Placement) -> tuple[int, int]:
    """(height, width) of the resized image inside the network input, pixels."""
    (height, width), (scale_y, scale_x) = placement.source_hw, placement.scale_yx
    return round(height * scale_y), round(width * scale_x)


def padding_pct(sources: Iterable[tuple[int, int]], preprocess: Preprocess, shapes: ShapePolicy) -> float:
    """Percent of the network's input pixels that are padding when images of these sizes, (height, width), go through it.

    Each image counts once; 0 for no images. Raises BadInput: shape-bucket.
    """
    needed = padded = 0
    for source_hw in sources:
        own, whole = pixels(source_hw, preprocess, shapes)
        needed, padded = needed + own, padded + whole
    return 100 * (padded - needed) / padded if padded else 0.0


def pixels(source_hw: tuple[int, int], preprocess: Preprocess, shapes: ShapePolicy) -> tuple[int, int]:
    """Pixels of the resized image alone, and of the network input that it lies in."""
    placement = place(source_hw, preprocess, shapes)
    (height, width), (whole_height, whole_width) = resized_size(placement), placement.input_hw
    return height * width, whole_height * whole_width


def to_network(boxes: NDArray[Any], placement: Placement) -> NDArray[np.float32]:
    """(K, 4) xyxy in source pixels -> (K, 4) xyxy in network-input pixels."""
    scale, offset = _affine(placement)
    return (boxes.astype(np.float64) * scale + offset).astype(np.float32)


def to_source(boxes: NDArray[Any], placement: Placement) -> NDArray[np.float32]:
    """(K, 4) xyxy in network-input pixels -> (K, 4) xyxy in source pixels, clipped to the image."""
    scale, offset = _affine(placement)
    height, width = placement.source_hw
    mapped = (boxes.astype(np.float64) - offset) / scale
    return np.clip(mapped, 0.0, (width, height, width, height)).astype(np.float32)


def _affine(placement: Placement) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    (scale_y, scale_x), (top, left) = placement.scale_yx, placement.offset_yx
    return np.array((scale_x, scale_y, scale_x, scale_y)), np.array((left, top, left, top), np.float64)


def _resized(source_hw: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    height, width = source_hw
    if preprocess.resize == "none":
        return source_hw
    first, second = preprocess.size
    if preprocess.resize == "stretch":
        return first, second
    if preprocess.resize == "letterbox":
        return max(1, min(first, height * second // width)), max(1, min(second, width * first // height))
    scale = min(first / min(height, width), second / max(height, width))
    return max(1, int(height * scale)), max(1, int(width * scale))


def _canvas(
    source_hw: tuple[int, int], resized: tuple[int, int], preprocess: Preprocess, shapes: ShapePolicy
) -> tuple[int, int]:
    if preprocess.resize == "stretch" or (preprocess.resize == "letterbox" and shapes == "fixed"):
        return preprocess.size
    extent = resized
    if preprocess.resize == "shortest-side" and shapes == "fixed":
        short, cap = preprocess.size
        extent = (short, max(short, cap)) if source_hw[0] <= source_hw[1] else (max(short, cap), short)
    stride = preprocess.stride
    canvas = (-(-extent[0] // stride) * stride, -(-extent[1] // stride) * stride)
    return canvas if isinstance(shapes, str) else _bucket(source_hw, canvas, shapes)


def _bucket(source_hw: tuple[int, int], canvas: tuple[int, int], buckets: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    holding = [bucket for bucket in buckets if bucket[0] >= canvas[0] and bucket[1] >= canvas[1]]
    if not holding:
        raise BadInput(
            "shape-bucket",
            "No shape bucket holds this image",
            got=f"{source_hw[0]} x {source_hw[1]}, which needs a network input of {canvas[0]} x {canvas[1]}",
            allowed="inside one of " + (", ".join(f"{height} x {width}" for height, width in buckets) or "no buckets"),
            fix=f"add a bucket of at least {canvas[0]} x {canvas[1]}",
        )
    return min(holding, key=lambda bucket: (bucket[0] * bucket[1], bucket))
