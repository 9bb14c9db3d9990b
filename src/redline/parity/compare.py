"""The whole comparison: ground truth once, each system observed once, candidates compared with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redline.parity.agreement import agreement_truths
from redline.parity.bootstrap import map_drop
from redline.parity.boxes import match_boxes
from redline.parity.evaluation import Evaluation, Kind, evaluate
from redline.parity.tensors import compare_tensors
from redline.parity.verdict import judge
from redline.records import Dataset, Detections, Determinism, ParityReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.records.spec import LabelMap, MapEvidence, Precision


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroundTruth:
    """What accuracy is measured against: the set's own labels, or the reference's detections where there are none."""

    dataset: Dataset
    labels: LabelMap
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """What one system made of the data set: detections of every image and raw outputs of the first few inputs."""

    detections: tuple[Detections, ...]
    outputs: tuple[tuple[NDArray[Any], ...], ...]
    """One tuple of raw outputs an input; empty where raw outputs cannot be compared (post-processing inside the graph)."""
    evaluation: Evaluation


def ground_truth(dataset: Dataset, reference: Sequence[Detections], labels: LabelMap) -> GroundTruth:
    """The labels of the data set, or, if it has none, agreement with the reference's detections."""
    if dataset.truths is not None:
        return GroundTruth(dataset=dataset, labels=labels, kind="map")
    return GroundTruth(dataset=agreement_truths(dataset, reference), labels="category-id", kind="agreement")


def observe(truth: GroundTruth, detections: Sequence[Detections], outputs: Sequence[Sequence[NDArray[Any]]] = ()) -> Observed:
    """Evaluate one system, detections in the data set's order. Raises BadInput: labels-outside."""
    return Observed(
        detections=tuple(detections),
        outputs=tuple(tuple(arrays) for arrays in outputs),
        evaluation=evaluate(truth.dataset, detections, truth.labels, kind=truth.kind),
    )


def compare(
    reference: Observed,
    candidate: Observed,
    *,
    names: Sequence[str],
    precision: Precision,
    determinism: Determinism,
    budget_pct: float,
    evidence: MapEvidence,
    resamples: int = 1000,
    seed: int = 0,
) -> ParityReport:
    """Tensors, then boxes, then mAP with its interval, then the verdict (`judge`).

    `names` are those of the raw outputs and `precision` that of the candidate; `budget_pct` is the largest drop in percent
    of the reference's AP. Raises TrialError (parity-outputs) if raw outputs do not correspond.
    """
    tensors = compare_tensors(names, reference.outputs, candidate.outputs, precision) if candidate.outputs else ()
    boxes = match_boxes(reference.detections, candidate.detections)
    drop = map_drop(reference.evaluation, candidate.evaluation, resamples=resamples, seed=seed, budget_pct=budget_pct)
    accuracy = candidate.evaluation.accuracy
    verdict = judge(tensors, boxes, drop, determinism, budget_pct=budget_pct, evidence=evidence, kind=accuracy.kind)
    return ParityReport(tensors=tensors, boxes=boxes, accuracy=accuracy, drop=drop, determinism=determinism, verdict=verdict)
