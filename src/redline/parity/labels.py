"""Class numbers of a network to category ids of a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from redline.errors import BadInput
from redline.records import Detections

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.records.spec import LabelMap

_SURE = 0.3
"""Under "category-id" numbering has gaps (COCO's 80 of 90, a background class 0): a score below this there is noise."""


def to_category_ids(detections: Detections, ids: NDArray[np.int64], labels: LabelMap, *, refuse: bool) -> NDArray[np.int64]:
    """(K,) category id of each detection, -1 where its label stands for none; `ids` ascend.

    Such a label is refused if `refuse`: under "index" always, under "category-id" with a score of 0.3 or more.
    Raises BadInput: labels-outside.
    """
    found = detections.labels.astype(np.int64)
    if labels == "index":
        known = (found >= 0) & (found < len(ids))
        mapped = np.where(known, ids[np.clip(found, 0, len(ids) - 1)], -1) if len(ids) else np.full(found.shape, -1, np.int64)
    else:
        known = np.isin(found, ids)
        mapped = np.where(known, found, -1)
    wrong = ~known if labels == "index" else ~known & (detections.scores >= _SURE)
    if refuse and wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        span = (
            f"0 to {len(ids) - 1} (class i is the i-th category)"
            if labels == "index"
            else "the category ids in the annotations"
        )
        raise BadInput(
            "labels-outside",
            f'the network found class {found[first]}, which no category of the data set stands for with labels = "{labels}"',
            got=f"class {found[first]} with score {float(detections.scores[first]):.3g}; {len(ids)} categories",
            allowed=span,
            fix='set model.labels to "category-id" if the network numbers classes by category id (torchvision does), or to '
            '"index" if it counts the categories from 0 (YOLO does); else the annotations belong to other classes',
        )
    return mapped
