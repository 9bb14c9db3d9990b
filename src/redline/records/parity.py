"""What a candidate's outputs are beside its reference's: tensors, boxes, accuracy, and the images that suffer most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDelta:
    """Raw output of candidate against reference over the parity images; `max_rel` is relative to max(|reference|, 1)."""

    name: str
    max_abs: float
    max_rel: float
    mean_abs: float
    finite: bool
    tolerance: float
    """Bound on max_rel from the tolerance table of the candidate's precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxMatch:
    """Detections paired one to one by label and IoU >= 0.5, best scores first, over scores above `floor`."""

    floor: float
    matched: int
    missing: int
    """In the reference, not in the candidate."""
    extra: int
    lowest_iou: float
    largest_score_delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAccuracy:
    name: str
    ap: float | None
    """None: the class has no ground truth in the set."""
    truths: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """COCO box AP (fractions, 0..1). kind "agreement": ground truth is the reference's own detections (unlabelled data)."""

    kind: Literal["map", "agreement"]
    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    images: int
    per_class: tuple[ClassAccuracy, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapDrop:
    """Reference minus candidate, paired on the same images. Interval: percentile bootstrap over images, 95 %."""

    reference_ap: float
    candidate_ap: float
    absolute: float
    absolute_low: float
    absolute_high: float
    relative_pct: float
    relative_low_pct: float
    relative_high_pct: float
    images: int
    resamples: int
    seed: int
    images_to_decide: int | None
    """About how many images would decide; None if decided already or if no number of images would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Determinism:
    repeats: int
    identical: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHarm:
    """An image on which a candidate's detections are far from the reference's (`parity.divergence`)."""

    path: str
    divergence: float
    """0 equal, 1 nothing in common."""
    missing: int
    extra: int
