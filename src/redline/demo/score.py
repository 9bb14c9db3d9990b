"""Held-out accuracy of the demo detector, measured as it is deployed.

JPEG files, the reference pre- and post-processing, mAP by faster-coco-eval. Knows nothing of training.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from redline import vision
from redline.demo.scenes import CLASSES
from redline.records import Detections, Head, Postprocess, Preprocess

PREPROCESS = Preprocess(size=(320, 320))
HEAD = Head(kind="yolox")
POSTPROCESS = Postprocess()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """COCO box AP (fractions) over the first `scenes` images of a written set."""

    ap: float
    ap50: float
    ap75: float
    per_class: dict[str, float]
    scenes: int
    boxes: int


def detect(network: nn.Module, folder: Path, names: Sequence[str], device: torch.device, batch: int = 32) -> list[Detections]:
    """Detections of the named images of `folder`/images. `network` must be in eval mode on `device`."""
    found: list[Detections] = []
    for start in range(0, len(names), batch):
        part = names[start : start + batch]
        images = [vision.decode((folder / "images" / name).read_bytes(), name=name) for name in part]
        prepared = [vision.prepare(image, PREPROCESS, "fixed") for image in images]
        with torch.inference_mode():
            raw = network(torch.from_numpy(np.stack([tensor for tensor, _ in prepared])).to(device))
        outputs = [raw.float().cpu().numpy()]
        found += vision.postprocess(outputs, HEAD, POSTPROCESS, [placement for _, placement in prepared])
    return found


def evaluate(network: nn.Module, folder: Path, device: torch.device, *, limit: int | None = None) -> HeldOut:
    """mAP@[.5:.95] by faster-coco-eval over the first `limit` images of a set that `write_dataset` wrote."""
    document = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    document["images"] = document["images"][:limit]
    ids = [image["id"] for image in document["images"]]
    wanted = set(ids)
    document["annotations"] = [row for row in document["annotations"] if row["image_id"] in wanted]
    found = detect(network, folder, [image["file_name"] for image in document["images"]], device)
    rows = [row for image_id, one in zip(ids, found, strict=True) for row in _coco_rows(image_id, one)]
    stats, per_class = _coco_eval(document, rows) if rows else (np.zeros(3), dict.fromkeys(CLASSES, 0.0))
    return HeldOut(
        ap=float(stats[0]),
        ap50=float(stats[1]),
        ap75=float(stats[2]),
        per_class=per_class,
        scenes=len(ids),
        boxes=len(document["annotations"]),
    )


def _coco_rows(image_id: int, found: Detections) -> list[dict[str, Any]]:
    sides = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
    return [
        {"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score}
        for box, score, label in zip(sides.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    ]


def _coco_eval(document: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[Any, dict[str, float]]:
    from faster_coco_eval import COCO, COCOeval_faster

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(document)
        judge = COCOeval_faster(truth, truth.loadRes(rows), iouType="bbox", print_function=lambda *_: None)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    precision = judge.eval["precision"]  # (IoU thresholds, recalls, classes, areas, limits); -1 where undefined
    per_class = {}
    for k, name in enumerate(CLASSES):
        known = precision[:, :, k, 0, -1]
        known = known[known > -1]
        per_class[name] = float(known.mean()) if known.size else 0.0
    return np.asarray(judge.stats, np.float64), per_class
