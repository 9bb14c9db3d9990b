"""Releases in trouble: another one under way, a network gone, a server killed, an impatient user, a full disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from service_case import Case, Stream, promoted, serving

from redline import api
from redline.errors import BadInput, RedlineError, StoreError
from redline.records import Routes
from redline.releasing import KEPT_RELEASES, Outcome
from redline.serve.repository import releases_in
from redline.serve.state import LOCK
from redline.store import Store
from redline.store.disk import flocked


class Releasing(threading.Thread):
    """`redline release` in a thread of the test's."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case
        self.outcome: Outcome | None = None
        self.error: RedlineError | None = None

    def run(self) -> None:
        try:
            self.outcome = api.release(self._case.spec.path, runs=self._case.runs, hold=False, progress=False)
        except RedlineError as error:
            self.error = error


@pytest.fixture(scope="module")
def case(environment, tmp_path_factory) -> Case:
    """Release 1 is active and unverified; the load of a release takes seconds, so that something can happen meanwhile."""
    case = Case(tmp_path_factory.mktemp("faults"), throughput=60.0)
    case.add()
    return case


@pytest.fixture(scope="module")
def service(case):
    with serving(case) as service:
        promoted(service, 1)
        yield service


def staged(case: Case, known: int) -> int:
    """Waits for a release beyond the first `known` events; its number."""
    number = case.event("staged", 30, after=known).release
    assert number is not None
    return number


def serves_alone(case: Case, service: Any, release: int = 1) -> None:
    assert service.status().state.routes == Routes(active=release)
    with Stream(service.info.gateway_port, case.images, 20) as stream:
        time.sleep(0.5)
    assert not stream.failures
    assert {answer.release for answer in stream.answers} == {release}


def test_two_releases_at_once(case, service) -> None:
    known, first = len(case.events()), Releasing(case)
    first.start()
    staged(case, known)
    known = len(case.events())
    with pytest.raises(BadInput, match="under way") as caught:
        api.release(case.spec.path, runs=case.runs, progress=False)
    assert caught.value.code == "release.busy"
    os.kill(service.status().server_pid, signal.SIGKILL)  # ends the first sooner, and is a case of its own
    first.join(60)
    assert first.outcome is not None, first.error
    assert first.outcome.verdict.answer == "fail"
    assert "(503)" in first.outcome.verdict.reason or "errors" in first.outcome.verdict.reason, first.outcome.verdict
    case.event("server-restarted", 15, after=known)
    assert first.outcome.release in service.status().state.failed
    serves_alone(case, service)


def test_a_lock_whose_holder_died_blocks_nobody(case, service) -> None:
    holder = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    command = [sys.executable, "-c", holder, str(case.folder / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BadInput) as caught:
            api.release(case.spec.path, runs=case.runs, progress=False)
        assert caught.value.code == "release.busy"
        process.kill()
        process.wait()
    with flocked(case.folder / LOCK, wait=False) as free:
        assert free


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_release_that_is_interrupted_leaves_nothing_behind(case, service, number) -> None:
    known = len(case.events())
    command = [sys.executable, "-m", "redline.cli", "release", case.spec.path, "--runs", str(case.runs), "--quiet"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        release = staged(case, known)
        time.sleep(0.05)  # its verification has begun, and takes longer than that
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in error
    event = case.event("withdrawn", 5, after=known)
    assert event.release == release
    assert ("did not finish" if number == signal.SIGINT else "has ended") in event.text
    assert release in service.status().state.failed
    serves_alone(case, service)


def test_a_network_that_has_vanished_is_named(case, service) -> None:
    assert case.record.onnx is not None
    path = Store(case.runs / "store").path(case.record.onnx.digest)
    away = path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(BadInput, match="redline run makes it again") as caught:
            api.release(case.spec.path, runs=case.runs, progress=False)
    finally:
        away.rename(path)
    assert caught.value.code == "release.engine"
    serves_alone(case, service)


def test_releases_that_nobody_needs_are_removed(case, service) -> None:
    added = [case.add() for _ in range(KEPT_RELEASES + 2)]
    outcome = api.release(case.spec.path, runs=case.runs, hold=False, progress=False)
    assert outcome.verdict.answer == "inconclusive", outcome.verdict
    there = releases_in(case.repository, "detector")
    kept = range(outcome.release - KEPT_RELEASES, outcome.release + 1)
    assert there == (1, *kept)
    models = {path.name for path in case.repository.iterdir() if path.name.startswith("detector_r")}
    assert models == {f"detector_r{number}{role}" for number in there for role in ("", "_tensor")}
    assert not [path for path in case.folder.rglob("*") if path.name.startswith((".scratch-", "golden-"))]
    assert added[0] not in there
    with pytest.raises(BadInput, match=f"there is no release {added[0]}"):
        service.rollback(to=added[0], reason="test")
    service.rollback(to=None, reason="test")
    serves_alone(case, service)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 24 MB at the service's folder; yields what fills it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "redline-test", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave_bytes: int) -> Path:
    """A file that takes all of a file system but `leave_bytes`."""
    path = folder / "filler"
    with path.open("wb") as file:
        file.write(b"\0" * max(shutil.disk_usage(folder).free - leave_bytes, 0))
    return path


@pytest.mark.parametrize("leave_bytes", [0, 40_000, 200_000])
def test_a_full_disk_refuses_the_release_and_the_service_goes_on(environment, small_disk, leave_bytes) -> None:
    """Full before the repository is written, in the middle of it, and after it."""
    case = Case(small_disk / "project", throughput=60.0)
    case.add()
    with serving(case) as service:
        promoted(service, 1)
        size = sum(path.stat().st_blocks * 512 for path in case.repository.glob("detector_r1*/**/*"))
        before = {path: path.stat().st_mtime_ns for path in case.repository.rglob("*")}
        filler = fill(small_disk, leave_bytes if leave_bytes < 200_000 else size + 4096)
        outcome = error = None
        try:
            outcome = api.release(case.spec.path, runs=case.runs, hold=False, progress=False)
        except StoreError as caught:
            error = caught
        assert outcome is None or outcome.verdict.answer == "fail", outcome
        if error is not None:
            assert error.code == "store.full"
            assert "disk is full" in error.text()
        if leave_bytes < 200_000:
            assert outcome is None
            assert {path: path.stat().st_mtime_ns for path in case.repository.rglob("*")} == before
        serves_alone(case, service)
        filler.unlink()
        outcome = api.release(case.spec.path, runs=case.runs, hold=False, progress=False)
        assert outcome.verdict.answer == "inconclusive", outcome.verdict
        assert service.status().state.routes.active == outcome.release
