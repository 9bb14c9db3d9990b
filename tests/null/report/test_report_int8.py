"""The section of INT8: what it gained and lost, why it does not pay, what it was calibrated on; nothing of it without INT8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_fixture import make_parity, make_record, make_trial
from test_report_engines import build

from redline.records import Candidate, EngineRecord, ImageRef, LayerTime, Noise, RunRecord, Trial
from redline.records.quantize import (
    CalibrationChoice,
    CalibrationSet,
    CalibratorLoss,
    Coverage,
    Int8Record,
    LayerGroup,
    Sensitivity,
    TraitCoverage,
)
from redline.report import render_html, rounding
from redline.report.text import summary

INT8 = Candidate(runner="onnxruntime", precision="int8", shapes="minimal", threads=2)


def coverage(selector: str, covered: int, distance: float) -> Coverage:
    trait = TraitCoverage(trait="brightness", covered=covered, strata=5, distance=distance)
    return Coverage(selector=selector, traits=(trait,))  # type: ignore[arg-type]


CALIBRATED = Int8Record(
    choice=CalibrationChoice(
        images=(ImageRef(id=1, path="a.jpg", height=4, width=6, sha256="ab"),),
        seed=0,
        coverage=coverage("cover", 5, 0.1),
        others=(coverage("first", 2, 0.625),),
        warnings=("only 1 image",),
    ),
    calibration=CalibrationSet(images=("ab",), preprocess="p", selector="cover", seed=0, input_shapes=((320, 320),)),
    losses=(CalibratorLoss(method="percentile", divergence=0.0625), CalibratorLoss(method="max", divergence=0.5)),
    sensitivities=(
        Sensitivity(group=LayerGroup(name="stem", nodes=("c0",)), divergence=0.01),
        Sensitivity(group=LayerGroup(name="backbone, depthwise", nodes=("c1", "c2")), divergence=0.04),
    ),
)


def with_int8(record: RunRecord, trial: Trial) -> RunRecord:
    return replace(record, trials=(*record.trials, trial), int8=CALIBRATED, noise=Noise(p95_ms=(1.0, 1.0), relative=0.02))


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return make_record(tmp_path)


def test_a_run_without_int8_has_no_such_section(record: RunRecord) -> None:
    assert rounding.rows(record) == []
    assert 'id="int8"' not in render_html(record)


def test_int8_that_pays_says_by_how_much_and_what_it_loses(record: RunRecord) -> None:
    record = with_int8(record, make_trial(INT8, None, 64.8, parity=make_parity(0.3205, 0.28, 0.1)))
    (row,) = rounding.rows(record)
    # The fastest that is not INT8 has 32.4/s, in buckets.
    assert (row.word, row.style) == ("pays", "pass")
    assert row.times.startswith("2.00× the capacity of ONNX Runtime, FP32, 2 buckets")
    assert row.drop == "0.28 % [0.18, 0.38]"
    page = render_html(record)
    for text in ('href="#int8"', "1 calibration images", "brightness", "0.62", "only 1 image", "backbone, depthwise", "0.0625"):
        assert text in page, text
    groups = rounding.group_rows(CALIBRATED)
    assert [name for name, _, _ in groups] == ["backbone, depthwise", "stem"], "the most first"


def test_int8_that_loses_too_much_names_the_loss_and_the_limit(record: RunRecord) -> None:
    record = with_int8(record, make_trial(INT8, None, 64.8, parity=make_parity(0.30, 6.7, 0.9, "fail")))
    (row,) = rounding.rows(record)
    assert (row.word, row.style) == ("too much is lost", "fail")
    assert row.why == "it loses 6.70 % [5.80, 7.60] of the accuracy, 0.5 % is allowed"
    assert any("too much is lost" in str(part.renderable) for part in summary(record, 120, None) if hasattr(part, "renderable"))


def test_an_undecided_loss_says_how_many_images_would_decide(record: RunRecord) -> None:
    record = with_int8(record, make_trial(INT8, None, 64.8, parity=make_parity(0.3206, 0.25, 0.62, "inconclusive")))
    assert rounding.rows(record)[0].why.endswith("about 340 images would decide")


def test_int8_that_is_not_faster_says_why_by_its_engine_s_profile(record: RunRecord) -> None:
    slow = Candidate(runner="tensorrt", precision="int8", device="cuda:0", profiles="exact", cuda_graphs=True)
    layers = (
        LayerTime(name="conv", ms=0.04, nodes=("c0",)),
        LayerTime(name="Reformatting CopyNode for Input Tensor 0", ms=0.03, nodes=()),
        LayerTime(name="depth", ms=0.02, nodes=("c1", "act")),
        LayerTime(name="q", ms=0.01, nodes=("x_int8_QuantizeLinear",)),
        LayerTime(name="tiny", ms=0.002, nodes=("c3",)),
    )
    made = build("e" * 64)
    made = replace(made, proof=replace(made.proof, asked="int8", shares=(("int8", 0.7), ("fp16", 0.3))))
    engine = EngineRecord(build=made, shape=(1, 3, 64, 64), layers=layers)
    trial = make_trial(slow, None, 30.0, engine="e" * 64)
    record = replace(with_int8(record, trial), engines=(engine,))
    (row,) = rounding.rows(record)
    assert row.word == "does not pay"
    assert row.why == (
        "29 % of the time in 1 layers that only change type or layout; "
        "20 % of the time in 1 depthwise layers, which INT8 seldom makes faster; "
        "30 % of the operations are not in INT8"
    )


def test_a_profile_of_short_layers_is_bound_by_launches() -> None:
    made = build("e" * 64)
    made = replace(made, proof=replace(made.proof, shares=(("int8", 1.0),)))
    layers = tuple(LayerTime(name=f"l{i}", ms=0.003, nodes=(f"c{i}",)) for i in range(9))
    (reason,) = rounding.reasons(EngineRecord(build=made, shape=(1, 3, 64, 64), layers=layers))
    assert reason == "100 % of the time in 9 layers below 5 µs, which are bound by their launch"


def test_without_a_profile_it_says_so(record: RunRecord) -> None:
    record = with_int8(record, make_trial(INT8, None, 20.0))
    (row,) = rounding.rows(record)
    assert (row.word, row.why) == ("does not pay", "no profile of its layers says why")
