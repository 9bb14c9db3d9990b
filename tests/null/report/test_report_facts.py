"""What the report claims about a run: choice, chain, front, outcomes and words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fixture import make_load, make_parity, make_record

from redline.records import Choice, Pruned, RunRecord, Served, Verdict
from redline.report import facts, render_html, words
from redline.report.chart_latency import curve
from redline.report.svg import Scale


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return make_record(tmp_path)


def test_the_chain_is_made_of_measured_trials_each_closer_to_the_choice(record: RunRecord) -> None:
    chain = facts.chain(record)
    assert [step.changes for step in chain] == [
        (),
        ("PyTorch eager → ONNX Runtime",),
        ("shapes fixed → minimal",),
        ("threads 2 → 1", "in flight 1 → 2"),
    ]
    assert chain[0].trial is record.baseline
    assert chain[-1].trial is facts.chosen(record)
    assert all(step.trial in (record.baseline, *record.trials) for step in chain)


def test_without_measured_steps_the_chain_is_baseline_and_choice(record: RunRecord) -> None:
    only = facts.chosen(record)
    assert only is not None
    chain = facts.chain(replace(record, trials=(only,)))
    assert [step.trial for step in chain] == [record.baseline, only]
    assert chain[1].changes == ("PyTorch eager → ONNX Runtime", "shapes fixed → minimal", "threads 2 → 1", "in flight 1 → 2")


def test_a_trial_that_fails_accuracy_is_no_step(record: RunRecord) -> None:
    wrong = replace(record.trials[1], parity=make_parity(0.3, 6.6, 0.4, "fail"))
    trials = tuple(wrong if trial.digest == wrong.digest else trial for trial in record.trials)
    assert wrong not in [step.trial for step in facts.chain(replace(record, trials=trials))]


def test_baseline_and_choice_measured_differently_have_no_chain(record: RunRecord) -> None:
    assert facts.chain(replace(record, baseline=replace(record.baseline, objective_load=None, screen=None))) == ()
    closed = replace(record, baseline=replace(record.baseline, objective_load=None))
    assert facts.shared_metric(closed.baseline, facts.chain(closed)[-1].trial) == "closed"


def test_the_baseline_can_be_the_choice(record: RunRecord) -> None:
    verdict = Verdict(answer="fail", reason="nothing was faster")
    choice = Choice(candidate=record.baseline.candidate, trial=record.baseline.digest, verdict=verdict)
    chain = facts.chain(replace(record, choice=choice))
    assert [step.trial for step in chain] == [record.baseline]


def test_accuracy_comes_before_latency(record: RunRecord) -> None:
    fast = record.trials[1]
    assert facts.outcome(fast)[0] == "pass"
    assert facts.outcome(replace(fast, parity=make_parity(0.3, 6.6, 0.4, "fail"))) == (
        "fail",
        "drop 6.60 %, the drop exceeds 0.5 %",
    )
    assert facts.outcome(replace(fast, latency=None))[0] == "screened"
    assert facts.outcome(record.trials[-1]) == ("error", "engine: Resize: antialias is not implemented for opset 17")


def test_a_load_of_errors_alone_is_no_measurement(record: RunRecord) -> None:
    load = make_load(50.0, 0.1)
    trial = replace(record.trials[0], objective_load=replace(load, errors=load.requests))
    assert facts.p95(trial) is None


POINTS = st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), max_size=30)


@given(POINTS)
def test_the_front_is_what_no_point_beats(points: list[tuple[float, float]]) -> None:
    def beaten(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] >= point[0] and other[1] <= point[1] for other in points)

    assert facts.front(points) == sorted({point for point in points if not beaten(point)})


def test_the_curve_is_the_histogram_s(record: RunRecord) -> None:
    load = make_load(100.0, 0.25, 5000)
    found = curve("Choice", "choice", load)
    assert found is not None
    points = dict(found.points)
    assert points[95.0] == pytest.approx(load.p95_ms, rel=1e-3)
    assert found.points[0] == (pytest.approx(50.0), pytest.approx(load.p50_ms, rel=1e-3))
    assert found.points[-1][0] == pytest.approx(99.9)


def test_a_curve_stops_where_its_requests_do() -> None:
    found = curve("Choice", "choice", make_load(100.0, 0.25, 200))
    assert found is not None
    assert found.points[-1][0] == pytest.approx(99.5)


@pytest.mark.parametrize(
    "text", ["", "not a histogram", "é", "HISTFAAAACB4nJNpmSzMwMDAxQAFzFCaEUoz2X+AsQA", make_load(1, 0.1).histogram[:-40]]
)
def test_a_histogram_that_cannot_be_read_has_no_curve(text: str) -> None:
    assert curve("Choice", "choice", replace(make_load(10.0, 0.1), histogram=text)) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (8213.4, "8,213"),
        (97.66, "97.7"),
        (3.14159, "3.14"),
        (-21.84, "−21.8"),
        (0.00123, "0.00123"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert words.number(value) == text


def test_a_rounded_zero_has_no_sign() -> None:
    assert words.fixed(-0.0004, 3) == "0.000"
    assert words.fixed(-0.0006, 3) == "−0.001"


def test_moment() -> None:
    assert words.moment("2025-03-14T10:26:53+01:00") == "14 March 2025, 09:26 UTC"
    assert words.moment("2025-03-14T09:26:53Z") == "14 March 2025, 09:26 UTC"
    assert words.moment("yesterday") == "yesterday"


def test_ticks_are_round_and_inside() -> None:
    assert Scale(0, 333, 0, 1).ticks(5) == [0, 100, 200, 300]
    assert Scale(-0.4, 0.9, 0, 1).ticks(5) == pytest.approx([0.0, 0.5])
    assert Scale(45, 2300, 0, 1, log=True).ticks() == [50, 100, 200, 500, 1000, 2000]


def test_what_the_simulation_left_out_is_counted_and_its_best_is_named(record: RunRecord) -> None:
    assert facts.left_out(record) == []
    one, two = record.trials[0].candidate, record.trials[1].candidate
    lost = [
        Pruned(candidate=c, what="screen", rate_per_s=rate, against="winner", against_per_s=50.0, reason="P95 9 ms")
        for c, rate in ((one, 20.0), (two, 45.0))
    ]
    (row,) = facts.left_out(replace(record, pruned=tuple(lost)))
    assert row[0] == "2 candidates in-process, not measured"
    assert row[1] == f"the simulation expects at most 45.0/s within the P95 limit ({two.name}), and 50.0/s of winner"
    knee = (replace(lost[0], what="knee"),)
    server = Served(server="triton", trials=(), choice=record.choice, in_process=None, pruned=knee)
    (row,) = facts.left_out(replace(record, served=server))
    assert row[0] == "1 candidate through the server, measured once, its highest rate not searched"
    assert row[1] in render_html(replace(record, served=server))
