"""`redline run` and `redline build` with everything real but the GPU: CUDA and TensorRT are the fakes of this folder.

Real: candidates, FP16 graph, lint, builder, store, proof, runner with lanes, CUDA graphs and two GPUs, anatomy, report.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
from blob_machine import SAYS, trials
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT

from redline import api
from redline.plan.devices import device
from redline.planning import efficiency_table
from redline.prepare import export_graphs, load_subject
from redline.progress import Progress
from redline.records import Candidate, PlanRecord, PredictionCheck, RunRecord
from redline.store import Journal, Store, load


def test_a_run_on_real_engines_code(
    machine: FakeTensorRT, cuda: FakeCuda, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redline.accounting.known_device", lambda name: device("h100"))
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    engines = trials(record)
    assert {(t.candidate.precision, t.candidate.profiles) for t in engines} >= {
        ("fp32", "exact"), ("tf32", "exact"), ("fp16", "exact"), ("fp16", "dynamic"),
    }  # fmt: skip
    for trial in engines:
        assert trial.failure is None, (trial.candidate.name, trial.failure)
        assert trial.parity is not None
        assert trial.parity.drop.relative_pct == pytest.approx(0.0, abs=0.5)
        assert trial.screen is None or trial.screen.errors == 0
        assert trial.expected_padding_pct == pytest.approx(trial.padding_pct, abs=1.0)
    assert record.choice.candidate is not None
    measured = [engine for engine in record.engines if engine.anatomy is not None]
    assert measured
    assert all(engine.layers for engine in measured)
    assert all(engine.build.proof.proved for engine in record.engines if engine.build.options.precision == "fp16")
    assert not cuda.memory
    assert not cuda.streams
    assert not cuda.graphs
    (html,) = [path.read_text() for path in (tmp_path / "runs").glob("*/report.html")]
    assert '<section id="engines">' in html
    assert_held_to_account(record, tmp_path / "runs")


def assert_held_to_account(record: RunRecord, runs: Path) -> None:
    """The run made its plan first, and its engines can be calibrated on."""
    folder = runs / record.id
    plan = load(PlanRecord, (folder / "plan.json").read_bytes())
    predicted = {step.key: step.p50_ms for step in plan.ladder}
    checks = load(tuple[PredictionCheck, ...], (folder / "predictions.json").read_bytes())
    assert {"fp32-eager", "cuda-graph"} <= {check.step for check in checks}
    measured = {trial.digest: trial.screen for trial in record.trials}
    for check in checks:
        screen = measured[check.trial]
        assert check.predicted == predicted[check.step]
        assert screen is not None
        assert check.measured == screen.p50_ms
    assert "## Held to account" in (folder / "plan.md").read_text()
    html = (folder / "report.html").read_text()
    assert '<section id="plan">' in html
    assert api.report(folder).read_text() == html
    table = api.calibrate([folder], runs=runs)
    assert record.id in table.source
    assert table == efficiency_table(runs)


def test_a_machine_whose_memory_holds_no_engine_still_finds_a_choice(
    machine: FakeTensorRT, cuda: FakeCuda, spec: Path, tmp_path: Path
) -> None:
    cuda.total = 1 << 10
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    failures = {trial.failure.code for trial in trials(record) if trial.failure is not None}
    assert failures == {"engine-memory"}
    assert not cuda.memory
    assert record.choice.candidate is not None
    assert record.choice.candidate.runner == "torch-eager"


def test_a_build_that_fails_is_a_failed_trial_with_tensorrts_words(machine: FakeTensorRT, spec: Path, tmp_path: Path) -> None:
    machine.build_error = "Could not find any implementation for node conv3."
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    for trial in trials(record):
        assert trial.failure is not None
        assert trial.failure.code == "engine-build"
        assert "conv3" in trial.failure.message
    assert record.choice.candidate is not None


def test_an_engine_that_fell_back_is_a_failed_trial_that_names_its_layers(
    machine: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, spec: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(fake_tensorrt.Engine, "create_engine_inspector", SAYS)
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    failures = {t.candidate.precision: t.failure for t in trials(record) if t.failure is not None}
    assert set(failures) == {"fp16"}
    assert failures["fp16"] is not None
    assert failures["fp16"].code == "engine-precision"
    assert "conv2d" in failures["fp16"].message
    assert record.choice.candidate is not None
    assert record.choice.candidate.precision != "fp16"
    built = api.build(spec, runs=tmp_path / "runs", precision="fp16", progress=False)
    assert built.verdict.answer == "fail"


def test_build_makes_the_engine_of_the_run_and_replay_compares_it(machine: FakeTensorRT, spec: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    built = api.build(spec, runs=runs, precision="fp16", progress=False)
    assert built.verdict.answer == "pass"
    assert built.build.timing_cache == "cold"
    record = api.run(spec, runs=runs, progress=False)
    assert built.build.digest in {trial.engine for trial in trials(record)}
    assert sum(engine.build.digest == built.build.digest for engine in record.engines) == 1
    other = api.build(spec, runs=runs, precision="tf32", progress=False)
    assert other.build.timing_cache in {"cold", "warm"}
    again = api.replay(built.build.digest[:10], runs=runs, progress=False)
    assert again.verdict.answer == "pass"
    machine.tactic = "tactic_b"
    changed = api.replay(built.build.digest[:10], runs=runs, progress=False)
    assert changed.verdict.answer == "fail"
    assert changed.found.changed


def test_several_inferences_on_two_gpus_answer_as_one(
    machine: FakeTensorRT, cuda: FakeCuda, spec: Path, tmp_path: Path
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from redline.doctor import inspect_machine
    from redline.gpus import open_gpus
    from redline.live import open_live, request_mix

    quiet, store = Progress(None), Store(tmp_path / "runs" / "store")
    log = Journal(tmp_path / "run" / "journal.jsonl")
    subject = load_subject(api.load_spec(spec), quiet)
    host, _ = open_gpus(subject.spec, inspect_machine(), store, log, quiet)
    assert host is not None
    graphs, mix = export_graphs(subject, store, log, quiet, for_gpu=True), request_mix(subject)
    one = Candidate(runner="tensorrt", precision="fp16", device="cuda:0", shapes="minimal", profiles="exact", cuda_graphs=True)
    answers = []
    for candidate in (one, replace(one, device="cuda:0,1", concurrency=4), replace(one, cuda_graphs=False)):
        live = open_live(subject, graphs, candidate, mix, host.foundry)

        def found(index: int, live: Any = live) -> Any:
            return live.predict.from_bytes([mix.at(index)])[0].boxes.tolist()

        with ThreadPoolExecutor(live.callers) as callers:
            answers.append(list(callers.map(found, range(24))))
        live.close()
    assert answers[0] == answers[1] == answers[2]
    assert not cuda.memory
