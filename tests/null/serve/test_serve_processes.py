"""Processes told apart without the wall clock."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from redline.serve.processes import identity, runs, stubs_of


def test_a_process_has_an_identity_that_stays() -> None:
    first = identity(os.getpid())
    assert first is not None
    time.sleep(0.03)
    assert identity(os.getpid()) == first
    assert identity(1) != first  # the first process of the machine began before this one


def test_a_change_of_the_clock_changes_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil's time of creation is the boot's time of day plus the ticks since, and the boot's moves with the clock."""
    first = identity(os.getpid())
    monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 0.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert identity(os.getpid()) == first


def test_the_next_process_of_a_pid_is_another_one() -> None:
    """Started at least a tick later, which is all that the next owner of a pid has to differ in."""
    found = []
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            found.append(identity(process.pid))
            process.communicate(b"\n")
        time.sleep(0.03)
    assert None not in found
    assert found[0] != found[1]


def test_an_ended_process_that_nobody_waited_for_does_not_run() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    end = time.monotonic() + 10
    while runs(process.pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert identity(process.pid) is not None
    assert not runs(process.pid)
    process.wait()
    assert identity(process.pid) is None
    assert not runs(process.pid)


def test_only_a_servers_stubs_are_its_models() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert stubs_of(os.getpid()) == {}
        process.communicate(b"\n")
    assert stubs_of(process.pid) == {}
