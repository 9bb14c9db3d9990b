"""The paired bootstrap of an mAP difference: exactly COCO's AP on every resampled image set, without evaluating it again.

A resample is a set in which image i occurs count[i] times. Its AP follows from the detections sorted once: only cumulative
sums of counts change. The precision envelope needs the precision at true positives alone, because it peaks there, and the
copies of one true positive stand side by side: precision rises along them, so the last copy decides for all.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from redline.parity.evaluation import IOU_THRESHOLDS, RECALL_THRESHOLDS, CategoryMatches, Evaluation
from redline.records import MapDrop

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 1 << 18
"""Elements of one work array: fits a core's cache."""


def map_drop(
    reference: Evaluation, candidate: Evaluation, *, resamples: int = 1000, seed: int = 0, budget_pct: float | None = None
) -> MapDrop:
    """Reference minus candidate AP on the same images with 95 % percentile intervals (images resampled with replacement).

    Relative figures are percent of the reference's AP, taken within each resample; 0 if that AP is 0. With `budget_pct`
    (relative percent) `images_to_decide` is filled in. Resamples without any ground truth are left out.
    """
    if reference.images != candidate.images or resamples < 1:
        raise ValueError(f"{reference.images} against {candidate.images} images, {resamples} resamples")
    counts = resample_counts(reference.images, resamples, seed)
    before, after = resampled_ap(reference, counts), resampled_ap(candidate, counts)
    absolute = before - after
    low, high = _interval(absolute)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(before > 0, 100.0 * absolute / before, np.nan)
    relative_low, relative_high = _interval(relative)
    base, point = reference.accuracy.ap, reference.accuracy.ap - candidate.accuracy.ap
    relative_point = 100.0 * point / base if base > 0 else 0.0
    decide = None
    if budget_pct is not None:
        decide = images_to_decide(relative_point, relative_high, budget_pct, reference.images)
    return MapDrop(
        reference_ap=base,
        candidate_ap=candidate.accuracy.ap,
        absolute=point,
        absolute_low=low,
        absolute_high=high,
        relative_pct=relative_point,
        relative_low_pct=relative_low,
        relative_high_pct=relative_high,
        images=reference.images,
        resamples=resamples,
        seed=seed,
        images_to_decide=decide,
    )


def images_to_decide(point_pct: float, high_pct: float, budget_pct: float, images: int) -> int | None:
    """About how many images would bring the interval's upper end down to the budget: its distance from the point shrinks
    as 1 / sqrt(images). None if decided already (point above the budget, or upper end within it) or if point == budget.
    """
    if point_pct >= budget_pct or high_pct <= budget_pct:
        return None
    return math.ceil(images * ((high_pct - point_pct) / (budget_pct - point_pct)) ** 2)


def resample_counts(images: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """(resamples, images) how often each image is drawn."""
    drawn = np.random.default_rng(seed).integers(0, images, (resamples, images))
    rows = np.arange(resamples)[:, None] * images
    return np.bincount((drawn + rows).ravel(), minlength=resamples * images).reshape(resamples, images)


def resampled_ap(evaluation: Evaluation, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R,) AP of each resampled set, as COCO gives it on the set with image i repeated counts[r, i] times, in image order.

    Classes without ground truth in a resample are left out of its mean; NaN if none has any.
    """
    total, present = np.zeros(len(counts)), np.zeros(len(counts))
    for category in evaluation.categories:
        positives = counts @ category.truths
        total += np.where(positives > 0, _category_ap(category, counts, positives), 0.0)
        present += positives > 0
    mean = np.full(len(counts), np.nan)
    np.divide(total, present, out=mean, where=present > 0)
    return mean


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 0.0
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _category_ap(category: CategoryMatches, counts: NDArray[np.int64], positives: NDArray[np.int64]) -> NDArray[np.float64]:
    entry, copy = _entries(category, int(counts.max(initial=0)))
    matched, ignored, image = category.matched[:, entry], category.ignored[:, entry], category.image[entry]
    ends = np.flatnonzero(matched.any(axis=0))
    if not ends.size:
        return np.zeros(len(counts))
    length = int(ends[-1]) + 1  # nothing after the last true positive can change the envelope
    image, copy = image[:length], copy[:length]
    groups = _groups(matched[:, :length], ignored[:, :length])
    split = copy >= 0
    offset, steps = _recall_steps(positives)
    ap = np.empty(len(counts))
    rows = max(1, _CHUNK // length)
    for start in range(0, len(counts), rows):
        part = slice(start, start + rows)
        weight = np.take(counts[part].astype(np.int32), image, axis=1)
        if split.any():
            weight[:, split] = weight[:, split] > copy[split]
        ap[part] = _weighted_ap(weight, groups, offset[part], steps)
    return ap


def _groups(matched: NDArray[np.bool_], ignored: NDArray[np.bool_]) -> list[tuple[NDArray[np.intp], list[NDArray[np.intp]]]]:
    """IoU thresholds that ignore the same detections share one cumulative sum: (detections that count, and for each threshold
    where among these its true positives stand). Thresholds without a true positive are left out.
    """
    places: dict[bytes, tuple[NDArray[np.intp], list[NDArray[np.intp]]]] = {}
    for hits, pattern in zip(matched, ignored, strict=True):
        kept, own = places.setdefault(pattern.tobytes(), (np.flatnonzero(~pattern), []))
        at = np.flatnonzero(hits[kept])
        if at.size:
            own.append(at)
    return [(kept, own) for kept, own in places.values() if own]


def _weighted_ap(
    weight: NDArray[np.int32],
    groups: list[tuple[NDArray[np.intp], list[NDArray[np.intp]]]],
    offset: NDArray[np.int64],
    steps: NDArray[np.int16],
) -> NDArray[np.float64]:
    """(R,) mean over IoU thresholds of the AP of detections that count weight[r, d] times each; see `_groups`."""
    total = np.zeros(len(weight))
    for kept, places in groups:
        seen = np.cumsum(weight if kept.size == weight.shape[1] else weight[:, kept], axis=1, dtype=np.int32)
        for at in places:
            hits = np.cumsum(np.take(weight, kept[at], axis=1), axis=1, dtype=np.int32)
            precision = hits / np.maximum(np.take(seen, at, axis=1), 1)
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = np.take(steps, hits + offset[:, None])
            gained = np.diff(reached, axis=1, prepend=np.int16(0))
            total += np.einsum("rp,rp->r", envelope, gained.astype(np.float64))
    return total / (len(IOU_THRESHOLDS) * len(RECALL_THRESHOLDS))


def _recall_steps(positives: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
    """(offset, steps): steps[offset[r] + hits] recall thresholds are reached by `hits` true positives of resample r.

    Compares as COCO does, in float64: hits / positives >= threshold.
    """
    distinct, which = np.unique(positives, return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(distinct + 1)[:-1]])
    tables = []
    for number in distinct.tolist():
        table = np.searchsorted(RECALL_THRESHOLDS, np.arange(number + 1) / max(number, 1), side="right")
        table[0] = 0  # recall 0 is read at the first detection, whose envelope is that of the first true positive
        tables.append(table.astype(np.int16))
    return starts[which.ravel()], np.concatenate(tables)


def _entries(category: CategoryMatches, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(index of the detection, copy) in the order of the repeated set; copy -1 stands for all copies of its image at once.

    Equal scores within one image are the one case where copies are not side by side: the order is a b, a b, not a a, b b. Where
    such neighbours differ in being matched or ignored, their copies are listed one by one, up to `most`.
    """
    size = category.scores.size
    everything = np.arange(size)
    same = np.zeros(size, bool)
    same[1:] = (category.scores[1:] == category.scores[:-1]) & (category.image[1:] == category.image[:-1])
    if most < 2 or not same.any():
        return everything, np.full(size, -1)
    block = np.cumsum(~same) - 1
    first = np.flatnonzero(~same)[block]
    flags = np.concatenate([category.matched, category.ignored])
    mixed = np.bincount(block, (flags != flags[:, first]).any(axis=0))[block] > 0
    listed = np.repeat(everything[mixed], most)
    entry = np.concatenate([everything[~mixed], listed])
    copy = np.concatenate([np.full(int((~mixed).sum()), -1), np.tile(np.arange(most), int(mixed.sum()))])
    order = np.lexsort((entry, copy, block[entry]))
    return entry[order], copy[order]
