"""Pass, fail or inconclusive, from figures alone: the one place where parity's limits are applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from redline.parity.bootstrap import images_to_decide
from redline.parity.evaluation import Kind
from redline.records import BoxMatch, Determinism, MapDrop, TensorDelta, Verdict

if TYPE_CHECKING:
    from redline.records.spec import MapEvidence

MIN_IMAGES = 10
"""A bootstrap over fewer images is too narrow to be called a 95 % interval."""
_ROUNDING_PCT = 1e-9


def judge(
    tensors: Sequence[TensorDelta],
    boxes: BoxMatch,
    drop: MapDrop,
    determinism: Determinism,
    *,
    budget_pct: float,
    evidence: MapEvidence,
    kind: Kind = "map",
) -> Verdict:
    """Fail: NaN or infinity in an output, or the point drop exceeds the budget (percent of the reference's AP).
    Pass: the point and the interval's upper end are within it; with evidence "point" the point alone, and the reason says so.
    Else inconclusive, naming how many images would decide. Outputs beyond their tolerance, unpaired boxes and
    outputs that differ between repeats are remarked on; the mAP decides.
    """
    broken = [tensor.name for tensor in tensors if not tensor.finite]
    if broken:
        return Verdict(answer="fail", reason=f"NaN or infinity in output {', '.join(broken)}")
    what = "mAP" if kind == "map" else "agreement"
    if drop.reference_ap <= 0:
        reason = (
            f"the reference's {what} on these {drop.images} images is 0, so no drop can be measured: check labels and weights"
        )
        return Verdict(answer="inconclusive", reason=reason)
    verdict = _judge_drop(drop, budget_pct, evidence, what)
    remarks = _remarks(tensors, boxes, determinism)
    return Verdict(answer=verdict.answer, reason="; ".join([verdict.reason, *remarks]))


def _judge_drop(drop: MapDrop, budget_pct: float, evidence: MapEvidence, what: str) -> Verdict:
    point, high, limit = drop.relative_pct, drop.relative_high_pct, budget_pct + _ROUNDING_PCT
    figures = f"{what} drop {point:.3g} % (95 % interval {drop.relative_low_pct:.3g} to {high:.3g} %, {drop.images} images)"
    if point > limit:
        return Verdict(answer="fail", reason=f"{figures} exceeds the budget of {budget_pct:g} %")
    unchanged = drop.absolute_low == drop.absolute == drop.absolute_high == 0.0
    if high <= limit and (drop.images >= MIN_IMAGES or unchanged):
        return Verdict(answer="pass", reason=f"{figures} is within the budget of {budget_pct:g} %")
    if high <= limit:
        doubt = f"an interval over fewer than {MIN_IMAGES} images says too little; at least {MIN_IMAGES} images would decide"
    else:
        images = images_to_decide(point, high, budget_pct, drop.images)
        needed = f"about {max(images, MIN_IMAGES):,} images would decide" if images else "no number of images would decide"
        doubt = f"the interval reaches beyond the budget of {budget_pct:g} %; {needed}"
    if evidence == "point":
        return Verdict(answer="pass", reason=f'{figures}: passed on the point alone, as map_evidence = "point" allows; {doubt}')
    return Verdict(answer="inconclusive", reason=f"{figures}: {doubt}")


def _remarks(tensors: Sequence[TensorDelta], boxes: BoxMatch, determinism: Determinism) -> list[str]:
    remarks = [
        f"output {tensor.name} differs by {tensor.max_rel:.2g} (tolerance {tensor.tolerance:g})"
        for tensor in tensors
        if tensor.max_rel > tensor.tolerance
    ]
    if boxes.missing or boxes.extra:
        total = boxes.matched + boxes.missing
        remarks.append(f"{boxes.missing} of {total} boxes above score {boxes.floor:g} missing, {boxes.extra} extra")
    if not determinism.identical:
        remarks.append(f"outputs differ between {determinism.repeats} repeats")
    return remarks
