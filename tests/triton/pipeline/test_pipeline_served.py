"""`redline run` through a real server: the search, its record, its report, and what it says where there is no server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import blob_case
import pytest

from redline import api, pipeline, workbench
from redline.records import Load, RunRecord, Spec, Trial
from redline.serve import environment as module
from redline.serve.environment import ServerEnvironment
from redline.store import Journal


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Loads of a second: what is tested is the way, not the figures."""
    short = {"SCREEN_S": 0.3, "SHORTEST_S": 1.1, "OBJECTIVE_REQUESTS": 80, "STEP_REQUESTS": 80, "WARM_UP_S": 0.2}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in short.items():
            patch.setattr(workbench, name, value)
        yield


@pytest.fixture(scope="module")
def served(environment: ServerEnvironment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, RunRecord, Path]:
    folder = tmp_path_factory.mktemp("served")
    spec = blob_case.project(folder, serve="[budget]\nminutes = 0.1", p95_ms=1000, throughput=75)
    runs = folder / "runs"
    return spec, pipeline.run(spec, runs=runs, fresh=False, console=None), runs


def untimed(trial: Trial) -> Trial:
    """Without how long this run took to have it."""
    return replace(trial, seconds=0.0)


def test_every_pipeline_and_shape_policy_was_tried_through_the_server(served: tuple[Spec, RunRecord, Path]) -> None:
    record = served[1].served
    assert record is not None
    assert record.server.startswith("tritonserver 2.51.0")
    pipelines = {trial.candidate.serving.pipeline for trial in record.trials if trial.candidate.serving is not None}
    assert pipelines == {"fused", "bls", "ensemble"}
    failed = [trial.failure.message for trial in record.trials if trial.failure is not None]
    assert failed == []
    assert all(trial.screen is not None and trial.screen.errors == 0 for trial in record.trials)


def test_the_choice_is_served_and_stands_beside_the_in_process_one(served: tuple[Spec, RunRecord, Path]) -> None:
    whole = served[1]
    record = whole.served
    assert record is not None
    assert record.choice.verdict.answer == "pass", record.choice.verdict.reason
    assert record.choice.candidate is not None
    assert record.choice.candidate.serving is not None
    assert whole.choice.candidate is not None
    assert whole.choice.candidate.serving is None
    assert isinstance(record.in_process, Load)
    chosen = next(trial for trial in record.trials if trial.digest == record.choice.trial)
    assert chosen.confirmation is not None
    assert chosen.confirmation.errors == 0
    # A request through the server cannot be faster than its own network: 25 requests/s for some seconds are all answered.
    assert chosen.confirmation.requests >= 72


def test_the_report_shows_both(served: tuple[Spec, RunRecord, Path]) -> None:
    _, record, runs = served
    page = (runs / record.id / "report.html").read_text(encoding="utf-8")
    assert 'id="served"' in page
    assert "through the server" in page
    saved = json.loads((runs / record.id / "run.json").read_bytes())
    assert saved["served"]["choice"]["candidate"]["serving"]["pipeline"] in ("fused", "bls", "ensemble")


def test_a_second_run_measures_nothing_again(served: tuple[Spec, RunRecord, Path]) -> None:
    spec, record, runs = served
    before = len(Journal(runs / record.id / "journal.jsonl").read())
    again = pipeline.run(spec, runs=runs, fresh=False, console=None)
    lines = Journal(runs / record.id / "journal.jsonl").read()[before:]
    assert {line.outcome for line in lines} == {"reused"}
    assert again.served is not None
    assert record.served is not None
    assert again.served.choice == record.served.choice
    assert [untimed(trial) for trial in again.served.trials] == [untimed(trial) for trial in record.served.trials]


def test_the_served_choice_can_be_released(served: tuple[Spec, RunRecord, Path]) -> None:
    spec, _, runs = served
    try:
        outcome = api.release(spec.path, runs=runs, progress=False)
        assert outcome.verdict.answer == "pass", outcome.verdict.reason
        status = api.service_status(spec.path, runs=runs)
        assert status.state.routes.active == outcome.release
    finally:
        api.stop_service(spec.path, runs=runs)


def test_a_wrong_answer_of_the_server_is_a_failed_trial(
    environment: ServerEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release that is loaded has another preprocessing than the one that was checked in-process."""
    from redline import served as join

    real: Callable[..., object] = join._release

    def wrong(*arguments: object) -> object:
        release = real(*arguments)
        return replace(release, preprocess=replace(release.preprocess, scale=0.5))  # type: ignore[type-var, attr-defined]

    monkeypatch.setattr(join, "_release", wrong)
    spec = blob_case.project(tmp_path, serve="[budget]\nminutes = 0.02", p95_ms=1000, throughput=75)
    record = pipeline.run(spec, runs=tmp_path / "runs", fresh=False, console=None)
    assert record.served is not None
    assert {trial.failure.code for trial in record.served.trials if trial.failure is not None} == {"serve-differs"}
    assert record.served.choice.verdict.answer == "fail"
    assert record.choice.verdict.answer == "pass"


def test_without_a_server_the_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "server_home", lambda: tmp_path / "nothing")
    spec = blob_case.project(tmp_path, serve="[budget]\nminutes = 0.02", p95_ms=1000, throughput=75)
    record = pipeline.run(spec, runs=tmp_path / "runs", fresh=False, console=None)
    assert record.served is None
    reasons = {refusal.what: refusal.reason for refusal in record.refusals}
    assert "redline serve --install" in reasons["serving through Triton"]
