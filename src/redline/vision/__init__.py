"""The reference pre- and post-processing in numpy: bytes to network input, raw outputs to detections.

Reproducible bit for bit on one machine. Knows nothing of networks, runners, files of a run or torch.
"""

from redline.vision.detections import postprocess
from redline.vision.geometry import input_size, padding_pct, pixels, place, to_network, to_source
from redline.vision.heads import decode_head
from redline.vision.image import PIXEL_LIMIT, decode, image_size
from redline.vision.levels import LARGEST_LOG_RATIO, base_anchors
from redline.vision.preparation import normalisation, prepare
from redline.vision.suppression import at_most, nms

__all__ = [
    "LARGEST_LOG_RATIO",
    "PIXEL_LIMIT",
    "at_most",
    "base_anchors",
    "decode",
    "decode_head",
    "image_size",
    "input_size",
    "nms",
    "normalisation",
    "padding_pct",
    "pixels",
    "place",
    "postprocess",
    "prepare",
    "to_network",
    "to_source",
]
