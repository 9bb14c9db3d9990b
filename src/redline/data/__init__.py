"""Image sets in COCO format, the traffic's shape histogram and a request order that follows it.

Knows nothing of models: boxes and sizes are checked here, once, so that no later room has to.
"""

from redline.data.coco import load_dataset, read_bytes
from redline.data.traffic import load_traffic, request_order, unseen_shapes

__all__ = ["load_dataset", "load_traffic", "read_bytes", "request_order", "unseen_shapes"]
