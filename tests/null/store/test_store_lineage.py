"""Ancestry, and what reclaiming removes and leaves."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redline.errors import BadInput, StoreError
from redline.records import Noise
from redline.store import Journal, Store, collect, digest_of, explain


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs" / "store")


def run_folder(store: Store, name: str, *digests: str) -> Path:
    folder = store.root.parent / name
    for digest in digests:
        Journal(folder / "journal.jsonl").append("stage", {}, digest, 0.0, "computed")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_lineage_walks_parents_to_what_is_only_known_by_digest(store):
    weights = "a" * 64
    graph = store.put_bytes(b"graph", kind="onnx", suffix=".onnx", parents=[weights], stage="export")
    record = store.put_record({"file": graph}, kind="OnnxModel", stage="export")
    lineage = explain(store, record[:8])
    assert (lineage.digest, lineage.kind, lineage.stage) == (record, "OnnxModel", "export")
    (file,) = lineage.parents
    assert (file.digest, file.kind, file.bytes) == (graph, "onnx", 5)
    assert [(parent.digest, parent.kind) for parent in file.parents] == [(weights, "not in the store")]
    assert lineage.tools[0].name == "python"


def test_lineage_ends_where_origins_go_round(store):
    one, two = digest_of(b"1"), digest_of(b"2")
    store.put_bytes(b"1", kind="a", parents=[two, one])
    store.put_bytes(b"2", kind="b", parents=[one])
    assert [parent.kind for parent in explain(store, one).parents] == ["b"]
    assert explain(store, one).parents[0].parents == ()


def test_unknown_digest_is_bad_input(store):
    with pytest.raises(BadInput):
        explain(store, "abcdef")


def test_reclaiming_keeps_what_runs_name_and_their_ancestors(store):
    source = store.put_bytes(b"source", kind="a")
    graph = store.put_bytes(b"graph", kind="onnx", suffix=".onnx", parents=[source])
    named = store.put_record({"graph": graph}, kind="r")
    in_run_json = store.put_bytes(b"engine", kind="engine")
    lost = store.put_bytes(b"x" * 1000, kind="a", parents=[source])
    journalled = run_folder(store, "one", named)
    finished = run_folder(store, "two")
    (finished / "run.json").write_text(json.dumps({"trials": [{"engine": in_run_json}]}))
    would = collect(store, [journalled, finished], dry_run=True)
    assert store.has(lost)
    done = collect(store, [journalled, finished])
    assert (done.files, done.kept, done.dry_run) == (2, 4, False)
    assert (would.files, would.bytes, would.kept) == (done.files, done.bytes, done.kept)
    assert done.bytes > 1000
    assert sorted(store.digests()) == sorted([source, graph, named, in_run_json])
    assert collect(store, [journalled, finished]).files == 0


def test_reclaiming_forgets_memos_of_what_is_removed(store):
    results = [
        store.once(stage="s", key={"n": n}, kind="n", type=Noise, compute=lambda n=n: Noise(p95_ms=(), relative=float(n)))
        for n in range(2)
    ]
    collect(store, [run_folder(store, "one", digest_of(results[0]))])
    assert [output for _, output in store.memos()] == [digest_of(results[0])]
    again = []
    for n in range(2):
        store.once(stage="s", key={"n": n}, kind="n", type=Noise, compute=lambda n=n: again.append(n) or results[n])
    assert again == [1]


def test_leftovers_of_killed_processes_go(store):
    kept = store.put_bytes(b"kept", kind="a")
    (store.scratch / "99-dead").write_bytes(b"z" * 50)
    orphan = store.root / "objects" / "00" / ("0" * 64 + ".onnx")
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"z" * 70)
    done = collect(store, [run_folder(store, "one", kept)])
    assert (done.files, done.bytes) == (2, 120)
    assert not orphan.exists()
    assert store.path(kept).read_bytes() == b"kept"


def test_nothing_is_removed_while_a_lock_is_held(store):
    digest = store.put_bytes(b"x", kind="a")
    with store.lock("run"), pytest.raises(StoreError) as caught:
        collect(store, [])
    assert caught.value.code == "store.busy"
    assert store.has(digest)
    with store.lock("run"):
        assert collect(store, [], dry_run=True).files == 2
    assert collect(store, []).files == 2
    assert not store.has(digest)


def test_nothing_is_removed_during_a_computation(store):
    def compute() -> Noise:
        with pytest.raises(StoreError):
            collect(store, [])
        return Noise(p95_ms=(), relative=0.0)

    store.once(stage="s", key={}, kind="n", type=Noise, compute=compute)
    assert len(list(store.digests())) == 1


def test_a_root_that_is_not_there_stops_everything(store, tmp_path):
    digest = store.put_bytes(b"x", kind="a")
    with pytest.raises(StoreError) as caught:
        collect(store, [tmp_path / "typo"])
    assert caught.value.code == "store.root"
    assert store.has(digest)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=8), st.sets(st.integers(0, 7)))
def test_what_is_kept_is_exactly_what_is_reachable(edges, roots):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        digests: list[str] = []
        for number, parents in enumerate(edges):
            above = [digests[parent] for parent in parents if parent < number]
            digests.append(store.put_bytes(bytes([number]), kind="n", parents=above))
        reachable, ahead = set(), [root for root in roots if root < len(edges)]
        while ahead:
            number = ahead.pop()
            reachable.add(number)
            ahead.extend(parent for parent in edges[number] if parent < number)
        run = run_folder(store, "run", *(digests[root] for root in roots if root < len(edges)))
        collect(store, [run])
        assert set(store.digests()) == {digests[number] for number in reachable}
