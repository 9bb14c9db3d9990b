"""Raw outputs of a batch to detections in source pixels: head, threshold, NMS, inverse placement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redline.records import Detections, Head, Placement, Postprocess
from redline.vision.geometry import to_source
from redline.vision.heads import candidates, checked
from redline.vision.suppression import nms

if TYPE_CHECKING:
    from numpy.typing import NDArray


def postprocess(
    outputs: Sequence[NDArray[Any]], head: Head, post: Postprocess, placements: Sequence[Placement]
) -> list[Detections]:
    """Detections of every image of a batch, by descending score, boxes clipped to the source image.

    `outputs` have one leading axis of len(placements); all placements share one `input_hw`. NMS runs in network-input pixels.
    `candidates_per_level` takes a custom head as one level. Ties, NaN and non-finite boxes: see `nms`.
    Raises BadInput: head-outputs, head-function.
    """
    if not placements:
        return []
    arrays = checked(outputs, head, placements[0].input_hw)
    return [_one(arrays, index, head, post, placement) for index, placement in enumerate(placements)]


def _one(outputs: Sequence[NDArray[Any]], index: int, head: Head, post: Postprocess, placement: Placement) -> Detections:
    found = candidates(outputs, index, head, post, placement)
    kept = nms(
        found.boxes,
        found.scores,
        found.labels,
        found.anchors,
        iou=1.0 if head.kind == "detections" else post.iou,
        max_detections=post.max_detections,
        class_aware=post.class_aware,
    )
    return Detections(boxes=to_source(found.boxes[kept], placement), scores=found.scores[kept], labels=found.labels[kept])
