"""Bad releases that somebody means well by: each is refused before a client sees it, and the good one serves on."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blob_case
import pytest
from service_case import CUSTOM, Case, Stream, promoted, serving

from redline.cli import main
from redline.parity import differs
from redline.records import Routes
from redline.releasing import Outcome
from redline.serve import repository
from redline.store import load

LATE = 'head = { kind = "custom", function = "planted_heads:late" }'
OBJECTIVE = {"p95_ms": 40.0, "throughput": 10.0}
"""`planted_heads:late` adds 50 ms: beyond the objective on any machine, and at this rate slow without being overloaded. Nothing
else here comes as far as the load."""


@pytest.fixture(scope="module")
def case(environment, tmp_path_factory) -> Case:
    """A service with a good release, unverified: only what replaces it is tried here."""
    case = Case(tmp_path_factory.mktemp("good"), **OBJECTIVE)
    case.add()
    return case


@pytest.fixture(scope="module")
def service(case):
    with serving(case) as service:
        promoted(service, 1)
        yield service


def tamper(change: Callable[[dict[str, Any]], None]) -> Callable[..., Any]:
    """`write_repository`, and then somebody edits what it wrote."""
    write = repository.write_repository

    def written(folder: Path, release: Any, *rest: Any, **more: Any) -> Any:
        models = write(folder, release, *rest, **more)
        path = folder / f"detector_r{release.number}" / str(release.number) / "release.json"
        record = json.loads(path.read_bytes())
        change(record)
        path.write_text(json.dumps(record))
        return models

    return written


PLANTS = {
    "another scale": ({"preprocess": "scale = 0.00392156862745098"}, "accuracy against the active release", "% less"),
    "another channel order": ({"preprocess": 'channels = "bgr"'}, "accuracy against the active release", "% less"),
    "another mean": ({"preprocess": "mean = [220.0, 220.0, 220.0]"}, "accuracy against the active release", "% less"),
    "50 ms of latency": ({"head": LATE}, "load at the objective", "objective 40 ms"),
    # The warm-up has the golden images, so it does not even load.
    "NaN weights": ({"poison": True}, None, "NaN"),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_bad_release_is_refused_before_it_is_promoted(case, service, tmp_path, plant) -> None:
    changes, check, reason = PLANTS[plant]
    spec = blob_case.project(tmp_path, **OBJECTIVE, **changes)
    blob_case.finished_run(spec, case.runs)
    refused(case, service, spec.path, check, reason)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["preprocess"].update(scale=0.5),
        lambda record: record["preprocess"].update(channels="bgr"),
        lambda record: record["postprocess"].update(score=0.9999),
    ],
)
def test_a_release_that_was_edited_on_the_disk_does_not_answer_as_it_was_verified(case, service, monkeypatch, change) -> None:
    monkeypatch.setattr(repository, "write_repository", tamper(change))
    refused(case, service, case.spec.path, "golden detections", "")


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_release_that_was_broken_on_the_disk_does_not_load(case, service, monkeypatch, text) -> None:
    write = repository.write_repository

    def written(folder: Path, release: Any, *rest: Any, **more: Any) -> Any:
        models = write(folder, release, *rest, **more)
        (folder / f"detector_r{release.number}" / str(release.number) / "release.json").write_text(text)
        return models

    monkeypatch.setattr(repository, "write_repository", written)
    refused(case, service, case.spec.path, None, "Release")


def refused(case: Case, service: Any, spec: str, check: str | None, reason: str) -> None:
    before = service.status().state
    out = io.StringIO()
    with (
        Stream(service.info.gateway_port, case.images, 10) as stream,
        contextlib.redirect_stdout(out),
        pytest.raises(SystemExit) as stopped,
    ):
        main(["release", spec, "--runs", str(case.runs), "--json", "--quiet"])
    assert stopped.value.code == 3, out.getvalue()
    outcome = load(Outcome, out.getvalue().encode())
    assert outcome.verdict.answer == "fail"
    assert outcome.switches == ()
    if check is None:
        assert outcome.verification is None
        assert reason in outcome.verdict.reason
    else:
        assert outcome.verification is not None
        assert [one.name for one in outcome.verification.checks if one.verdict.answer == "fail"] == [check], outcome
        assert reason in outcome.verification.checks[-1].verdict.reason
    after = service.status().state
    assert after.routes == Routes(active=1)
    assert after.switches == before.switches
    assert after.failed == (*before.failed, outcome.release)
    # Whoever asked meanwhile was answered by the good one, and rightly.
    assert not stream.failures
    assert {answer.release for answer in stream.answers} == {1}
    assert all(differs(case.expected.detections[answer.image], answer.detections()) is None for answer in stream.answers)


@pytest.mark.parametrize(
    ("order", "reason"), [("tardy", "took longer than"), ("fail", "requests failed"), ("shift", "boxes differ")]
)
def test_a_release_that_turns_bad_on_probation_is_rolled_back_within_ten_seconds(probation, order, reason) -> None:
    case, service = probation
    number = case.add()
    promoted(service, number, hold_s=120.0)
    with Stream(service.info.gateway_port, case.images, 15) as stream:
        time.sleep(1.5)
        case.order(number, order)
        began = time.monotonic()
        while (state := service.status().state).routes.active == number:
            assert time.monotonic() - began < 10, f"not rolled back: {service.status().observation}"
            time.sleep(0.05)
        seconds = time.monotonic() - began
        time.sleep(1.5)
    assert state.routes.active == 1
    last = state.switches[-1]
    assert (last.source, last.to, last.cause) == (number, 1, "automatic"), f"after {seconds:.1f} s"
    assert reason in last.reason
    assert number in state.failed
    # Answers come as they end: the last may be one that waited at the slow release since long before the switch.
    end = [answer for answer in stream.answers if answer.at_s > max(one.at_s for one in stream.answers) - 1]
    assert {answer.status for answer in end} == {200}
    assert {answer.release for answer in end} == {1}
    assert all(differs(case.expected.detections[answer.image], answer.detections()) is None for answer in end)


@pytest.fixture(scope="module")
def probation(environment, tmp_path_factory):
    case = Case(tmp_path_factory.mktemp("probation"), head=CUSTOM, p95_ms=120.0, throughput=30.0)
    case.add()
    with serving(case) as service:
        promoted(service, 1)
        yield case, service
