"""`Store.once`: each key computed once, by one process, whatever is killed, damaged or raised."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redline.records import Noise
from redline.store import Journal, Store, digest_of

NOISE = Noise(p95_ms=(1.0, 2.0), relative=0.25)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def slow_once(root: str, log: str, index: int) -> None:
    def compute() -> Noise:
        with open(log, "a") as file:
            file.write(f"{index}\n")
        time.sleep(0.2)
        return NOISE

    store, journal = Store(Path(root)), Journal(Path(root) / "journal.jsonl")
    found = store.once(stage="s", key={"a": 1}, kind="noise", type=Noise, compute=compute, journal=journal)
    assert found == NOISE


def test_of_several_processes_one_computes(tmp_path):
    processes = [FORK.Process(target=slow_once, args=(str(tmp_path), str(tmp_path / "log"), index)) for index in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3
    assert len((tmp_path / "log").read_text().split()) == 1
    lines = Journal(tmp_path / "journal.jsonl").read()
    assert sorted(line.outcome for line in lines) == ["computed", "reused", "reused"]
    assert {line.output for line in lines} == {digest_of(NOISE)}


class Calls:
    def __init__(self, value=NOISE):
        self.count = 0
        self.value = value

    def __call__(self):
        self.count += 1
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


def once(store, compute, key=None, journal=None, **more):
    arguments = {"stage": "noise", "kind": "noise", "type": Noise, **more}
    return store.once(key={"n": 1} if key is None else key, compute=compute, journal=journal, **arguments)


def test_a_lock_taken_twice_by_one_thread_is_an_error_not_a_wait(store):
    def compute() -> Noise:
        return once(store, Calls())

    with pytest.raises(RuntimeError):
        once(store, compute)
    assert once(store, Calls()) == NOISE


def test_once_computes_each_key_once(store):
    compute = Calls()
    for key in ({"n": 1}, {"n": 2}, {"n": 1}, {"n": 2}, {"n": 1.0}):
        assert once(store, compute, key) == NOISE
    assert compute.count == 3
    once(store, compute, stage="other")
    once(store, compute, kind="other")
    assert compute.count == 5


def test_an_exception_stores_nothing_and_is_passed_on(store, tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(ZeroDivisionError):
        once(store, Calls(ZeroDivisionError("by zero")), journal=journal)
    assert not list(store.digests())
    assert not list(store.memos())
    compute = Calls()
    assert once(store, compute, journal=journal) == NOISE
    assert compute.count == 1
    failed, computed = journal.read()
    assert (failed.outcome, failed.output, failed.note) == ("failed", None, "ZeroDivisionError: by zero")
    assert (computed.outcome, computed.output) == ("computed", digest_of(NOISE))
    assert failed.inputs == computed.inputs


def test_an_interrupt_stores_nothing(store):
    with pytest.raises(KeyboardInterrupt):
        once(store, Calls(KeyboardInterrupt()))
    assert once(store, Calls()) == NOISE


@pytest.mark.parametrize("damage", ["bytes", "truncated", "removed", "meta", "memo", "schema"])
def test_a_damaged_result_is_computed_anew_with_a_note(store, tmp_path, damage):
    journal = Journal(tmp_path / "journal.jsonl")
    once(store, Calls(), journal=journal)
    path = store.path(digest_of(NOISE))
    memo = next(store.memos())[0]
    if damage == "bytes":
        path.write_bytes(path.read_bytes().replace(b"0.25", b"0.75"))
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "removed":
        path.unlink()
    elif damage == "meta":
        path.with_suffix(".meta").write_bytes(b"{")
    elif damage == "memo":
        memo.write_bytes(b"")
    else:
        other = store.put_record({"p95": 1}, kind="noise")
        memo.write_text(json.dumps({**json.loads(memo.read_text()), "output": other}))
    compute = Calls()
    assert once(store, compute, journal=journal) == NOISE
    assert compute.count == 1
    assert "computed anew" in journal.read()[-1].note
    assert once(store, compute, journal=journal) == NOISE
    assert compute.count == 1
    assert store.get_record(Noise, digest_of(NOISE)) == NOISE


def test_a_result_whose_file_is_gone_is_computed_anew(store):
    compute = Calls()

    def export() -> dict[str, str]:
        compute()
        return {"file": store.put_bytes(b"graph", kind="onnx", suffix=".onnx")}

    first = once(store, export, type=dict)
    assert once(store, export, type=dict) == first
    assert compute.count == 1
    store.path(first["file"]).write_bytes(b"grapf")
    assert once(store, export, type=dict) == first
    assert compute.count == 2
    assert store.path(first["file"]).read_bytes() == b"graph"
    store.path(first["file"]).unlink()
    once(store, export, type=dict)
    assert compute.count == 3


def test_a_digest_that_was_never_an_object_does_not_prevent_reuse(store):
    compute = Calls({"weights": "a" * 64})
    for _ in range(2):
        once(store, compute, type=dict, parents=["a" * 64])
    assert compute.count == 1


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
def test_once_is_a_memo_under_any_order_of_faults(steps):
    with tempfile.TemporaryDirectory() as folder:
        store, known = Store(Path(folder)), set()
        for key, fails in steps:
            compute = Calls(ValueError("no") if fails else Noise(p95_ms=(), relative=float(key)))
            if fails and key not in known:
                with pytest.raises(ValueError, match="no"):
                    once(store, compute, {"k": key})
            else:
                assert once(store, compute, {"k": key}).relative == key
            assert compute.count == (0 if key in known else 1)
            known |= set() if fails else {key}
        assert len(list(store.digests())) == len(known)
