"""COCO box mAP by faster-coco-eval, with what each image contributed kept in arrays so that image sets can be resampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from redline.errors import BadInput
from redline.parity.labels import to_category_ids
from redline.records import Accuracy, ClassAccuracy, Dataset, Detections, Truth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.records.spec import LabelMap

MAX_DETECTIONS = 100
"""COCO: this many highest-scored detections of an image and category count."""
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
_FAR_PX = 5e4
"""COCO ignores boxes larger than 1e5 x 1e5 or of negative area instead of counting them false; none such reaches it."""
Kind = Literal["map", "agreement"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CategoryMatches:
    """Detections of one category over all images, in COCO's order: descending score, ties by image, then as given."""

    scores: NDArray[np.float64]
    """(D,)"""
    image: NDArray[np.int32]
    """(D,) index of the image in the data set."""
    matched: NDArray[np.bool_]
    """(T, D) true positive at each of the 10 IoU thresholds."""
    ignored: NDArray[np.bool_]
    """(T, D) matched to a crowd region: neither true nor false positive."""
    truths: NDArray[np.int64]
    """(images,) ground-truth boxes that are not crowds."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """One system's detections against one ground truth. Only categories with ground truth are kept: no other counts."""

    images: int
    categories: tuple[CategoryMatches, ...]
    accuracy: Accuracy


def accuracy(evaluation: Evaluation) -> Accuracy:
    """faster-coco-eval's figures for all images."""
    return evaluation.accuracy


def evaluate(dataset: Dataset, detections: Sequence[Detections], labels: LabelMap, *, kind: Kind = "map") -> Evaluation:
    """COCO box AP (bbox, at most 100 detections an image and category) of `detections`, given in the data set's order.

    A detection with a NaN score is left out; one whose box is inverted or not finite counts as a false positive.
    kind "agreement": labels outside the categories are left out instead of refused (the reference found none of that class).
    A set without any ground truth has AP 0. Raises BadInput: data-unlabelled, labels-outside.
    """
    if dataset.truths is None:
        fix = "measure agreement with the reference instead"
        raise BadInput("data-unlabelled", f"{dataset.name} has no labels to measure mAP against", fix=fix)
    if len(detections) != len(dataset.images):
        raise ValueError(f"{len(detections)} detections for {len(dataset.images)} images")
    ids = np.array([category.id for category in dataset.categories], np.int64)
    found = [_found(one, to_category_ids(one, ids, labels, refuse=kind == "map")) for one in detections]
    evaluator = _run_coco(dataset, dataset.truths, found)
    categories = []
    for position, id in enumerate(ids.tolist()):
        own = [np.array([c == id for c in truth.category_ids], bool) for truth in dataset.truths]
        crowd = [np.array(truth.crowd, bool)[rows] for truth, rows in zip(dataset.truths, own, strict=True)]
        if any((~flags).any() for flags in crowd):
            categories.append((position, _matches(found, crowd, id, evaluator.ious)))
    result = Evaluation(
        images=len(dataset.images),
        categories=tuple(matches for _, matches in categories),
        accuracy=_accuracy(dataset, evaluator, kind, {position: int(m.truths.sum()) for position, m in categories}),
    )
    _check_matches(result)
    return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """One image's detections as COCO has them: (K, 4) x, y, width, height."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    categories: NDArray[np.int64]


def _found(detections: Detections, categories: NDArray[np.int64]) -> _Found:
    keep = (categories >= 0) & ~np.isnan(detections.scores)
    corners = detections.boxes[keep].astype(np.float64).reshape(-1, 4)
    corners[~(np.abs(corners) < _FAR_PX).all(axis=1)] = 0.0  # NaN too
    boxes = np.concatenate([corners[:, :2], np.maximum(corners[:, 2:] - corners[:, :2], 0.0)], axis=1)
    scores = np.nan_to_num(detections.scores[keep].astype(np.float64))
    return _Found(boxes=boxes, scores=scores, categories=categories[keep])


def _run_coco(dataset: Dataset, truths: Sequence[Truth], found: Sequence[_Found]) -> Any:
    """Image k of the set has COCO id k + 1; annotation ids start at 1 because 0 means unmatched."""
    from faster_coco_eval import COCO, COCOeval_faster

    annotations: list[dict[str, Any]] = []
    for number, truth in enumerate(truths, start=1):
        rows = zip(truth.boxes, truth.category_ids, truth.areas, truth.crowd, strict=True)
        for box, category, area, crowd in rows:
            entry = {"image_id": number, "category_id": category, "bbox": list(box), "area": area, "iscrowd": int(crowd)}
            annotations.append({**entry, "id": len(annotations) + 1})
    results = [
        {"image_id": number, "category_id": category, "bbox": box, "score": score}
        for number, one in enumerate(found, start=1)
        for box, score, category in zip(one.boxes.tolist(), one.scores.tolist(), one.categories.tolist(), strict=True)
    ]
    sizes = enumerate(dataset.images, start=1)
    document = {
        "images": [{"id": number, "height": image.height, "width": image.width} for number, image in sizes],
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in dataset.categories],
    }
    ground_truth = COCO(document)
    # loadRes refuses an empty list before release 1.8
    found_all = ground_truth.loadRes(results) if results else COCO({**document, "annotations": []})
    evaluator = COCOeval_faster(ground_truth, found_all, "bbox", print_function=_silent)
    evaluator.run()
    return evaluator


def _silent(*_: object) -> None:
    return None


def _matches(
    found: Sequence[_Found], crowd: Sequence[NDArray[np.bool_]], category: int, ious: dict[tuple[int, int], Any]
) -> CategoryMatches:
    scores, image, matched, ignored = [], [], [], []
    for index, one in enumerate(found):
        own = one.scores[one.categories == category]
        own = own[np.argsort(-own, kind="stable")][:MAX_DETECTIONS]
        overlaps = np.asarray(ious.get((index + 1, category), []), np.float64)
        hits, skips = match_image(overlaps, crowd[index], own.size)
        scores.append(own)
        image.append(np.full(own.size, index, np.int32))
        matched.append(hits)
        ignored.append(skips)
    all_scores = np.concatenate(scores)
    order = np.argsort(-all_scores, kind="stable")
    return CategoryMatches(
        scores=all_scores[order],
        image=np.concatenate(image)[order],
        matched=np.concatenate(matched, axis=1)[:, order],
        ignored=np.concatenate(ignored, axis=1)[:, order],
        truths=np.array([(~flags).sum() for flags in crowd], np.int64),
    )


def match_image(
    overlaps: NDArray[np.float64], crowd: NDArray[np.bool_], detections: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """COCO's greedy matching of one image and category: (matched, ignored), each (T, detections).

    `overlaps`: (detections by descending score, truths) IoU, with crowds intersection over the detection's area; may be
    empty if either side is. Each detection takes the free truth of highest IoU >= threshold, the last of equals; failing
    that, a crowd region (never used up) makes it ignored.
    """
    shape = (len(IOU_THRESHOLDS), detections)
    matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    if overlaps.size == 0:
        return matched, ignored
    needed = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    normal = overlaps[:, ~crowd][:, ::-1]
    free = np.ones((len(IOU_THRESHOLDS), normal.shape[1]), bool)
    rows = np.arange(len(IOU_THRESHOLDS))
    for detection in np.flatnonzero((overlaps >= IOU_THRESHOLDS[0]).any(axis=1)):
        if normal.shape[1]:
            reach = np.where(free & (normal[detection] >= needed), normal[detection], -1.0)
            best = reach.argmax(axis=1)
            hit = reach[rows, best] >= 0
            matched[:, detection] = hit
            free[rows[hit], best[hit]] = False
        ignored[:, detection] = ~matched[:, detection] & (overlaps[detection, crowd] >= needed).any(axis=1)
    return matched, ignored


def _accuracy(dataset: Dataset, evaluator: Any, kind: Kind, truths: dict[int, int]) -> Accuracy:
    ap, ap50, ap75, small, medium, large = (float(value) for value in evaluator.stats[:6])
    precision = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]
    per_class = [
        ClassAccuracy(
            name=category.name,
            ap=float(precision[:, :, position].mean()) if position in truths else None,
            truths=truths.get(position, 0),
        )
        for position, category in enumerate(dataset.categories)
    ]
    return Accuracy(
        kind=kind,
        ap=max(ap, 0.0),
        ap50=max(ap50, 0.0),
        ap75=max(ap75, 0.0),
        ap_small=None if small < 0 else small,
        ap_medium=None if medium < 0 else medium,
        ap_large=None if large < 0 else large,
        images=len(dataset.images),
        per_class=tuple(per_class),
    )


def _check_matches(evaluation: Evaluation) -> None:
    """The kept matches must give faster-coco-eval's AP again: guards against a release of it that matches differently."""
    from redline.parity.bootstrap import resampled_ap

    again = float(np.nan_to_num(resampled_ap(evaluation, np.ones((1, evaluation.images), np.int64))[0]))
    if abs(again - evaluation.accuracy.ap) > 1e-9:
        raise RuntimeError(
            f"per-image matches give AP {again!r}, faster-coco-eval {evaluation.accuracy.ap!r}: unsupported release"
        )
