"""Engines kept: one build for all processes, timings reused and never mixed, failures that leave nothing, replay."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from small_engine import small_options

from redline.engine.tensorrt_store import Replay, build_engine, place_of, replay
from redline.errors import TrialError
from redline.records import EngineBuild, OnnxModel
from redline.store import Store

Write = Callable[..., OnnxModel]
AHEAD = {"capabilities": ("8.9",)}


def ahead(version: str = "10.13.0") -> FakeTensorRT:
    return FakeTensorRT(version, ahead=True)


def build_in_process(model: OnnxModel, folder: Path, note: Path, results: Any) -> None:
    trt = ahead()
    trt.seconds, trt.note = 1.0, note
    started = time.monotonic()
    build = build_engine(model, small_options(**AHEAD), trt.library(), Store(folder))
    results.put((build.digest, time.monotonic() - started))


def test_of_two_processes_one_builds_and_the_other_waits_for_it(small: Write, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (small(), tmp_path / "store", tmp_path / "note", results)
    processes = [context.Process(target=build_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert (tmp_path / "note").read_text() == "built\n"
    assert found[0][0] == found[1][0]


@pytest.mark.parametrize(
    "changed",
    [
        {"optimization_level": 4},
        {"workspace_bytes": 1 << 20},
        {"tactic_sources": ("JIT_CONVOLUTIONS",)},
        {"version_compatible": True},
        {"hardware": "ampere-plus"},
        {"precision": "tf32"},
        {"timing_cache": False},
    ],
)
def test_what_makes_engines_differ_is_built_apart(cuda: FakeCuda, small: Write, tmp_path: Path, changed: Any) -> None:
    trt, store = FakeTensorRT(cuda=cuda), Store(tmp_path / "store")
    base = small_options()
    for options in (base, replace(base, **changed), base):
        build_engine(small(), options, trt.library(), store)
    assert len(trt.builds) == 2


@pytest.mark.parametrize(
    "spans",
    [
        (((1, 3, 8, 8), (1, 3, 8, 8)), ((2, 3, 8, 8), (4, 3, 8, 8))),
        (((1, 3, 8, 8), (1, 3, 8, 8)), ((1, 3, 16, 8), (1, 3, 16, 8))),
        (((1, 3, 8, 8), (2, 3, 8, 8)),),
    ],
)
def test_the_type_of_every_layer_of_every_profile_is_read(cuda: FakeCuda, small: Write, tmp_path: Path, spans: Any) -> None:
    trt = FakeTensorRT("8.6.1", cuda=cuda)
    build = build_engine(small(), small_options(*spans), trt.library(), Store(tmp_path / "store"))
    assert build.proof.proved, build.proof.note
    assert dict(build.proof.shares) == {"fp32": pytest.approx(1.0)}
    assert [layer.nodes for layer in build.proof.layers] == [("stem",), ("act",), ("last",)] * len(spans)


def test_an_engine_is_built_once_for_each_graph_version_gpu_and_driver(cuda: FakeCuda, small: Write, tmp_path: Path) -> None:
    store, options = Store(tmp_path / "store"), small_options()
    trt = FakeTensorRT(cuda=cuda)
    first = build_engine(small(), options, trt.library(), store)
    assert (first.gpu, first.driver, first.version) == ("Fake 1 8.9", "12.8", "10.13.0")
    assert first.plan_bytes == store.path(first.digest).stat().st_size
    assert first.warnings == ("weights were rounded",)
    assert build_engine(small(), options, trt.library(), store) == first
    build_engine(small(seed=1), options, trt.library(), store)
    newer = FakeTensorRT("11.0", cuda)
    build_engine(small(), options, newer.library(), store)
    cuda.name = "Fake 2"
    # The bound methods of the runtime module read it when they are asked.
    other = build_engine(small(), options, trt.library(), store)
    assert other.gpu == "Fake 2 8.9"
    assert (len(trt.builds), len(newer.builds)) == (3, 1)


def test_timings_are_reused_on_the_same_gpu_and_version_and_nowhere_else(cuda: FakeCuda, small: Write, tmp_path: Path) -> None:
    trt, store = FakeTensorRT(cuda=cuda), Store(tmp_path / "store")
    builds = [build_engine(small(seed=seed), small_options(), trt.library(), store) for seed in range(2)]
    assert [build.timing_cache for build in builds] == ["cold", "warm"]
    assert trt.builds == [b"", b"timings"]
    newer = FakeTensorRT("11.0", cuda)
    assert build_engine(small(), small_options(), newer.library(), store).timing_cache == "cold"
    cuda.name = "Fake 2"
    assert build_engine(small(), small_options(), trt.library(), store).timing_cache == "cold"
    assert len(list((tmp_path / "store" / "timing").iterdir())) == 3


def test_without_the_timing_cache_everything_is_timed_anew_and_nothing_is_kept(
    cuda: FakeCuda, small: Write, tmp_path: Path
) -> None:
    trt, store = FakeTensorRT(cuda=cuda), Store(tmp_path / "store")
    off = small_options(timing_cache=False)
    builds = [build_engine(small(), off, trt.library(), store)]
    assert not (tmp_path / "store" / "timing").exists()
    builds += [build_engine(small(seed=1), small_options(), trt.library(), store)]
    builds += [build_engine(small(seed=2), off, trt.library(), store)]
    assert [build.timing_cache for build in builds] == ["none", "cold", "none"]
    assert trt.builds == [b"", b"", b""]
    store.put_file(Path(small(seed=2).path), kind="onnx")
    replay(builds[2], trt.library(), store)
    assert trt.builds[3:] == [b""]


@pytest.mark.parametrize(
    ("said", "code", "what"),
    [
        ("Requested amount of GPU memory (8589934592 bytes) could not be allocated", "engine-memory", "out of GPU memory"),
        ("[virtualMemoryBuffer.cpp::resize] Error Code 2: OutOfMemory", "engine-memory", "out of GPU memory"),
        ("Could not find any implementation for node last due to insufficient workspace.", "engine-build", "node last"),
        ("Internal error: plugin failed", "engine-build", "plugin failed"),
    ],
)
def test_a_failed_build_says_why_and_leaves_nothing(
    cuda: FakeCuda, small: Write, tmp_path: Path, said: str, code: str, what: str
) -> None:
    trt, store = FakeTensorRT(cuda=cuda), Store(tmp_path / "store")
    trt.build_error = said
    with pytest.raises(TrialError, match=what) as caught:
        build_engine(small(), small_options(), trt.library(), store)
    assert caught.value.code == code
    assert said in str(caught.value.got)
    assert caught.value.fix
    assert not list(store.root.rglob("*.plan"))
    assert not list(store.root.glob("timing/*"))
    assert cuda.used == 0
    trt.build_error = None
    assert build_engine(small(), small_options(), trt.library(), store).timing_cache == "cold"


def test_an_operator_the_parser_lacks_is_named_with_its_node(cuda: FakeCuda, small: Write, tmp_path: Path) -> None:
    trt = FakeTensorRT(cuda=cuda)
    with pytest.raises(TrialError, match=r"node act \(Celu\): No importer") as caught:
        build_engine(small("Celu"), small_options(), trt.library(), Store(tmp_path / "store"))
    assert caught.value.code == "engine-parse"
    assert trt.builds == []


def test_a_profile_that_is_out_of_order_is_refused(cuda: FakeCuda, small: Write, tmp_path: Path) -> None:
    trt = FakeTensorRT(cuda=cuda)
    options = small_options(((2, 3, 8, 8), (1, 3, 8, 8)))
    with pytest.raises(TrialError, match="profile 0") as caught:
        build_engine(small(), options, trt.library(), Store(tmp_path / "store"))
    assert caught.value.code == "engine-profile"


def test_progress_is_told_where_the_version_reports_it(cuda: FakeCuda, small: Write, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    for version in ("8.6.1", "10.13.0"):
        library = FakeTensorRT(version, cuda).library()
        build_engine(small(), small_options(), library, Store(tmp_path / version), on_phase=lambda *step: told.append(step))
    assert told == [("Tactics", 1, 2)]


def stored(small: Write, trt: FakeTensorRT, store: Store) -> EngineBuild:
    model = small()
    digest = store.put_bytes(Path(model.path).read_bytes(), kind="onnx", suffix=".onnx", parents=(), stage="export")
    return build_engine(replace(model, digest=digest), small_options(), trt.library(), store)


def test_a_replay_compares_bytes_and_tactics(cuda: FakeCuda, small: Write, tmp_path: Path) -> None:
    trt, store = FakeTensorRT(cuda=cuda), Store(tmp_path / "store")
    record = stored(small, trt, store)
    found = replay(record, trt.library(), store)
    assert found == Replay(seconds=found.seconds, first_seconds=record.seconds, same_bytes=True, same_tactics=True, changed=())
    assert trt.builds[-1] == b"timings"
    trt.tactic = "tactic_b"
    found = replay(record, trt.library(), store)
    assert (found.same_bytes, found.same_tactics) == (False, False)
    assert found.changed == tuple(f"{name}{end}" for name in ("act", "last", "stem") for end in ("", " [profile 1]"))


def test_a_replay_elsewhere_is_refused_with_both_places(cuda: FakeCuda, small: Write, tmp_path: Path) -> None:
    trt, store = FakeTensorRT(cuda=cuda), Store(tmp_path / "store")
    record = stored(small, trt, store)
    with pytest.raises(TrialError, match="not where the engine was built") as caught:
        replay(record, FakeTensorRT("11.0", cuda).library(), store)
    assert caught.value.code == "engine-replay"
    assert ("11.0" in str(caught.value.got), "10.13.0" in str(caught.value.allowed)) == (True, True)
    assert place_of(small_options(**AHEAD), 0).gpu == ""
