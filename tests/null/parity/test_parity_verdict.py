"""The verdict's rules, one by one: point, interval, evidence, NaN, no reference."""

import pytest

from redline import parity
from redline.records import BoxMatch, Determinism, MapDrop, TensorDelta

SAME = Determinism(repeats=3, identical=True)
ALL = BoxMatch(floor=0.05, matched=10, missing=0, extra=0, lowest_iou=1.0, largest_score_delta=0.0)
GOOD = TensorDelta(name="out", max_abs=0, max_rel=0, mean_abs=0, finite=True, tolerance=1e-3)


def drop(low, point, high, images=61, reference_ap=0.4):
    return MapDrop(
        reference_ap=reference_ap, candidate_ap=reference_ap * (1 - point / 100),
        absolute=reference_ap * point / 100, absolute_low=reference_ap * low / 100, absolute_high=reference_ap * high / 100,
        relative_pct=point, relative_low_pct=low, relative_high_pct=high,
        images=images, resamples=1000, seed=0, images_to_decide=None,
    )  # fmt: skip


def judge(figures, evidence="interval", tensors=(GOOD,), boxes=ALL, determinism=SAME, kind="map"):
    return parity.judge(tensors, boxes, figures, determinism, budget_pct=0.5, evidence=evidence, kind=kind)


@pytest.mark.parametrize(
    ("figures", "interval", "point"),
    [
        (drop(0, 0, 0), "pass", "pass"),
        (drop(-0.4, 0.1, 0.45), "pass", "pass"),
        (drop(-0.4, 0.1, 0.5), "pass", "pass"),
        (drop(-0.4, 0.1, 0.9), "inconclusive", "pass"),
        (drop(-0.4, 0.5, 0.9), "inconclusive", "pass"),
        (drop(0.2, 0.6, 0.9), "fail", "fail"),
        (drop(-2, -1, -0.5), "pass", "pass"),
    ],
)
def test_answers(figures, interval, point):
    assert judge(figures).answer == interval
    assert judge(figures, "point").answer == point


def test_inconclusive_names_the_images_that_would_decide():
    assert "about 244 images would decide" in judge(drop(-0.4, 0.1, 0.9)).reason
    assert "no number of images would decide" in judge(drop(-0.4, 0.5, 0.9)).reason


def test_point_evidence_is_recorded():
    assert 'map_evidence = "point"' in judge(drop(-0.4, 0.1, 0.9), "point").reason
    assert "map_evidence" not in judge(drop(-0.4, 0.1, 0.4), "point").reason


@pytest.mark.parametrize("evidence", ["interval", "point"])
def test_nan_fails_and_names_the_tensor(evidence):
    bad = TensorDelta(name="boxes", max_abs=0, max_rel=0, mean_abs=0, finite=False, tolerance=1e-3)
    verdict = judge(drop(0, 0, 0), evidence, (GOOD, bad))
    assert verdict.answer == "fail"
    assert "boxes" in verdict.reason
    assert "out" not in verdict.reason.split()[-1]


def test_reference_that_finds_nothing_is_inconclusive():
    verdict = judge(drop(0, 0, 0, reference_ap=0.0))
    assert (verdict.answer, "reference's mAP" in verdict.reason) == ("inconclusive", True)


def test_few_images_give_no_interval_unless_nothing_changed():
    verdict = judge(drop(0.1, 0.1, 0.1, images=1))
    assert verdict.answer == "inconclusive"
    assert "at least 10 images" in verdict.reason
    assert judge(drop(0.1, 0.1, 0.1, images=1), "point").answer == "pass"
    assert judge(drop(0, 0, 0, images=1)).answer == "pass"


def test_remarks_do_not_decide():
    far = TensorDelta(name="logits", max_abs=1, max_rel=0.25, mean_abs=0.1, finite=True, tolerance=1e-3)
    apart = BoxMatch(floor=0.05, matched=8, missing=2, extra=1, lowest_iou=0.6, largest_score_delta=0.1)
    verdict = judge(drop(0, 0, 0), tensors=(far,), boxes=apart, determinism=Determinism(repeats=3, identical=False))
    assert verdict.answer == "pass"
    assert "logits differs by 0.25 (tolerance 0.001)" in verdict.reason
    assert "2 of 10 boxes" in verdict.reason
    assert "outputs differ between 3 repeats" in verdict.reason


def test_agreement_is_called_agreement():
    assert "agreement drop" in judge(drop(0, 0.1, 0.2), kind="agreement").reason


def test_old_figures_can_be_judged_by_a_new_budget():
    figures = drop(0.2, 0.6, 0.9)
    assert parity.judge((), ALL, figures, SAME, budget_pct=1.0, evidence="interval").answer == "pass"
