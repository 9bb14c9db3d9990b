"""The journal after kills and full disks."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import redline.store.journal
from redline.errors import StoreError
from redline.store import Journal, digest_of


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "run" / "journal.jsonl")


def test_lines_come_back_in_order(journal):
    assert journal.read() == ()
    lines = [
        journal.append("export", {"opset": 18}, "a" * 64, 1.5, "computed"),
        journal.append("load", "b" * 64, None, 0.0, "failed", "two\nlines \u2028 and \u00e9"),
    ]
    assert journal.read() == tuple(lines)
    assert journal.read()[0].inputs == digest_of({"opset": 18})
    assert journal.read()[1].inputs == "b" * 64
    assert journal.path.read_bytes().count(b"\n") == 2


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 400), before=st.integers(0, 3))
def test_a_torn_last_line_is_left_out_and_then_overwritten(tmp_path_factory, cut, before):
    journal = Journal(tmp_path_factory.mktemp("torn") / "journal.jsonl")
    whole = [journal.append("s", {"n": n}, None, 0.0, "computed", "x" * 5000 * (n % 2)) for n in range(before)]
    size = journal.path.stat().st_size if before else 0
    journal.append("torn", {}, None, 0.0, "computed", "y" * 300)
    os.truncate(journal.path, min(size + cut, journal.path.stat().st_size - 1))
    assert journal.read() == tuple(whole)
    after = journal.append("after", {}, None, 0.0, "reused")
    assert journal.read() == (*whole, after)


def test_damage_inside_is_reported_with_its_line(journal):
    journal.append("a", {}, None, 0.0, "computed")
    with journal.path.open("ab") as file:
        file.write(b"{garbage}\n")
    journal.append("b", {}, None, 0.0, "computed")
    with pytest.raises(StoreError) as caught:
        journal.read()
    assert caught.value.code == "store.journal"
    assert "line 2" in str(caught.value)


def test_a_write_that_stops_half_way_is_taken_back(journal, monkeypatch):
    first = journal.append("a", {}, None, 0.0, "computed")
    real, calls = os.write, []

    def full(descriptor, data):
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:20])

    monkeypatch.setattr(redline.store.journal.os, "write", full)
    with pytest.raises(StoreError) as caught:
        journal.append("b", {}, None, 0.0, "computed")
    monkeypatch.undo()
    assert caught.value.code == "store.full"
    assert journal.read() == (first,)
    assert journal.path.read_bytes().endswith(b"}\n")


def many(path: str, index: int) -> None:
    for number in range(40):
        Journal(Path(path)).append(f"s{index}", {"n": number}, None, 0.0, "computed", "z" * 2000)


def test_lines_of_several_processes_do_not_mix(journal):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=many, args=(str(journal.path), index)) for index in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    lines = journal.read()
    assert sorted(line.stage for line in lines) == [f"s{index}" for index in range(2) for _ in range(40)]
