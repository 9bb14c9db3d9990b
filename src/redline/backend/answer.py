"""Detections as the fixed-size arrays that a server's model configuration can promise, and placements as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.errors import BadInput
from redline.records import Detections, Placement

PLACEMENT_NUMBERS = 8


def pack(found: Sequence[Detections | str], most: int) -> dict[str, NDArray[Any]]:
    """Of each image its detections, or in words why there are none.

    boxes (N, most, 4) float32, scores (N, most) float32, labels (N, most) int32, count (N, 1) int32, error (N, 1) object
    (bytes); rows beyond an image's count are 0.
    """
    rows = len(found)
    boxes, scores = np.zeros((rows, most, 4), np.float32), np.zeros((rows, most), np.float32)
    labels, count = np.zeros((rows, most), np.int32), np.zeros((rows, 1), np.int32)
    error = np.full((rows, 1), b"", np.object_)
    for row, one in enumerate(found):
        if isinstance(one, str):
            error[row, 0] = one.encode()
            continue
        number = len(one.scores)
        boxes[row, :number], scores[row, :number], labels[row, :number] = one.boxes, one.scores, one.labels
        count[row, 0] = number
    return {"boxes": boxes, "scores": scores, "labels": labels, "count": count, "error": error}


def unpack(arrays: dict[str, NDArray[Any]], row: int) -> Detections:
    """The detections of one image of an answer. Raises BadInput (image-failed) if that image failed alone."""
    error = arrays["error"][row, 0]
    if error:
        raise BadInput("image-failed", error.decode() if isinstance(error, bytes) else str(error))
    number = int(arrays["count"][row, 0])
    return Detections(
        boxes=arrays["boxes"][row, :number],
        scores=arrays["scores"][row, :number],
        labels=arrays["labels"][row, :number].astype(np.int64),
    )


def placement_numbers(placement: Placement) -> NDArray[np.float64]:
    """(8,): source height and width, input height and width, scale y and x, offset y and x."""
    return np.array([*placement.source_hw, *placement.input_hw, *placement.scale_yx, *placement.offset_yx], np.float64)


def placement_of(numbers: NDArray[Any], tensor_hw: tuple[int, int]) -> Placement:
    """The inverse of `placement_numbers`, checked. Raises BadInput (placement)."""
    values = [float(value) for value in numbers]
    allowed = f"positive sizes and scales, offsets >= 0, input size {tensor_hw[0]} x {tensor_hw[1]}"
    sound = (
        len(values) == PLACEMENT_NUMBERS
        and all(map(math.isfinite, values))
        and all(value >= 1 and value == int(value) for value in values[:4])
        and all(value > 0 for value in values[4:6])
        and all(value >= 0 and value == int(value) for value in values[6:])
        and (int(values[2]), int(values[3])) == tensor_hw
    )
    if not sound:
        raise BadInput("placement", "a placement does not fit its tensor", got=values, allowed=allowed)
    return Placement(
        source_hw=(int(values[0]), int(values[1])),
        input_hw=tensor_hw,
        scale_yx=(values[4], values[5]),
        offset_yx=(int(values[6]), int(values[7])),
    )
