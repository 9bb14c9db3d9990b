"""What a search for INT8's frontier takes from the records of earlier runs: engines of the same network on the same GPU."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from report_fixture import make_record
from test_report_engines import build

from redline.mixing import dissected, layer_times
from redline.records import Anatomy, EngineRecord, LayerTime, RunRecord
from redline.store import dump

GPU = "NVIDIA H200, 143771 MiB, driver 1"
LAYERS = (LayerTime(name="a + act", ms=0.03, nodes=("a", "act")), LayerTime(name="b || c", ms=0.02, nodes=("b", "c")))


def engine(precision: str, share: float = 1.0, *, digest: str = "e") -> EngineRecord:
    made = build(digest * 64)
    made = replace(made, options=replace(made.options, precision=precision))  # type: ignore[arg-type]
    made = replace(made, proof=replace(made.proof, asked=precision, shares=((precision, share),)))  # type: ignore[arg-type]
    return EngineRecord(build=made, shape=(1, 3, 64, 64), anatomy=anatomy(0.05), layers=LAYERS)


def anatomy(gpu_ms: float) -> Anatomy:
    zeros = dict.fromkeys((field.name for field in fields(Anatomy)), 0.0)
    return Anatomy(**{**zeros, "gpu_ms": gpu_ms, "repeats": 1})  # type: ignore[arg-type]


def kept(runs: Path, record: RunRecord, name: str, started: str, *engines: EngineRecord, gpu: str = GPU) -> None:
    (runs / name).mkdir(parents=True)
    environment = replace(record.environment, gpus=(gpu,))
    found = replace(record, id=name, started=started, environment=environment, engines=engines)
    (runs / name / "run.json").write_bytes(dump(found))


def test_a_layer_s_time_is_shared_by_the_nodes_that_are_asked_for() -> None:
    assert layer_times(engine("fp16"), {"a", "b", "c", "d"}) == {"a": 30.0, "b": 10.0, "c": 10.0}
    half = replace(engine("fp16"), anatomy=anatomy(0.025))
    assert layer_times(half, {"a", "b", "c"}) == {"a": 15.0, "b": 5.0, "c": 5.0}, "timing layers costs time of its own"


def test_the_newest_run_of_this_network_on_this_gpu_counts_and_the_engine_with_most_in_int8(tmp_path: Path) -> None:
    record, runs = make_record(tmp_path), tmp_path / "runs"
    whole, part = engine("int8", 0.9, digest="a"), engine("int8", 0.5, digest="b")
    kept(runs, record, "old", "2026-01-01T00:00:00+00:00", engine("fp16", digest="c"))
    kept(runs, record, "new", "2026-02-01T00:00:00+00:00", whole, engine("fp16", digest="d"), part)
    kept(runs, record, "elsewhere", "2026-03-01T00:00:00+00:00", engine("fp16"), gpu="NVIDIA L4")
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    found = dissected(runs, record.spec, GPU)
    assert {precision: one.build.digest[0] for precision, one in found.items()} == {"fp16": "d", "int8": "a"}
    other = replace(record.spec, model=replace(record.spec.model, weights="other.safetensors"))
    assert dissected(runs, other, GPU) == {}
    assert dissected(tmp_path / "none", record.spec, GPU) == {}


def test_an_engine_that_never_ran_says_nothing(tmp_path: Path) -> None:
    record, runs = make_record(tmp_path), tmp_path / "runs"
    kept(runs, record, "run", "2026-01-01T00:00:00+00:00", replace(engine("fp16"), shape=None))
    kept(runs, record, "few layers", "2026-01-02T00:00:00+00:00", replace(engine("fp16"), anatomy=anatomy(1.0)))
    assert dissected(runs, record.spec, GPU) == {}
