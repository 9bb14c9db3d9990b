"""From what two systems found to a report; labelled and unlabelled."""

from dataclasses import replace

import numpy as np
import pytest
from parity_cases import invented_detections, invented_set, make

from redline import parity
from redline.records import Determinism

SAME = Determinism(repeats=2, identical=True)


def compared(dataset, before, after, outputs=((), ()), labels="index", **changes):
    truth = parity.ground_truth(dataset, before, labels)
    reference, candidate = parity.observe(truth, before, outputs[0]), parity.observe(truth, after, outputs[1])
    settings = {"names": ["out"], "precision": "fp32", "determinism": SAME, "budget_pct": 0.5, "evidence": "interval"}
    return parity.compare(reference, candidate, resamples=200, **{**settings, **changes})


def test_identical_system_passes_with_everything_zero():
    dataset = invented_set(1)
    found = invented_detections(dataset, 2)
    raw = [(np.arange(6.0).reshape(1, 2, 3),)]
    report = compared(dataset, found, found, (raw, raw))
    assert report.verdict.answer == "pass"
    assert (report.drop.absolute_high, report.tensors[0].max_abs, report.boxes.missing) == (0, 0, 0)
    assert report.accuracy.kind == "map"
    assert report.accuracy.ap == report.drop.reference_ap


def test_broken_system_fails():
    dataset = invented_set(1, images=30)
    found = invented_detections(dataset, 2)
    shifted = [replace(one, boxes=one.boxes + np.float32(15)) for one in found]
    report = compared(dataset, found, shifted)
    assert report.verdict.answer == "fail"
    assert report.tensors == ()
    assert report.drop.relative_pct > 50


def test_nan_weights_fail_without_a_crash():
    dataset = invented_set(1)
    found = invented_detections(dataset, 2)
    nothing = [make([[np.nan] * 4], [np.nan], [0]) for _ in found]
    report = compared(dataset, found, nothing, ([(np.zeros((1, 3)),)], [(np.full((1, 3), np.nan),)]))
    assert (report.verdict.answer, "out" in report.verdict.reason) == ("fail", True)
    report = compared(dataset, nothing, nothing)
    assert report.verdict.answer == "inconclusive"


def unlabelled(dataset):
    return replace(dataset, truths=None, categories=())


def test_unlabelled_data_measures_agreement_with_the_reference():
    dataset = unlabelled(invented_set(1, images=30))
    found = invented_detections(invented_set(1, images=30), 2, levels=None)
    same = compared(dataset, found, found)
    assert (same.accuracy.kind, same.accuracy.ap, same.verdict.answer) == ("agreement", pytest.approx(1.0), "pass")
    moved = [replace(one, boxes=one.boxes + np.float32(2)) for one in found]
    further = [replace(one, boxes=one.boxes + np.float32(5)) for one in found]
    values = [compared(dataset, found, other).accuracy.ap for other in (found, moved, further)]
    assert values[0] > values[1] + 0.01 > values[2] + 0.02


def test_agreement_ignores_classes_that_the_reference_is_not_sure_of():
    dataset = unlabelled(invented_set(1, images=2))
    reference = [make([[0, 0, 10, 10], [50, 50, 90, 90]], [0.31, 0.29], [4, 9]), make([], [], [])]
    candidate = [make([[0, 0, 10, 10], [50, 50, 90, 90]], [0.31, 0.95], [4, 11]), make([], [], [])]
    truths = parity.agreement_truths(dataset, reference)
    assert [(c.id, c.name) for c in truths.categories] == [(4, "class 4")]
    assert truths.truths[0].boxes == ((0.0, 0.0, 10.0, 10.0),)
    assert compared(dataset, reference, candidate, labels="category-id").accuracy.ap == 1.0


def test_agreement_with_a_reference_that_finds_nothing_is_inconclusive():
    dataset = unlabelled(invented_set(1, images=3))
    nothing = [make([], [], []) for _ in dataset.images]
    report = compared(dataset, nothing, nothing)
    assert (report.verdict.answer, report.accuracy.ap) == ("inconclusive", 0.0)
