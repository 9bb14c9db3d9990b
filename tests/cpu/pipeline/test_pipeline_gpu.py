"""A whole run on a made-up machine with two GPUs: the CPU answers for them, and TensorRT is made up at the seam of its store.

What is real: candidates, FP16 graph, search, proof as a failure, telemetry in loads, one queue over two GPUs, report.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from corridor_case import journal, project, shorten

from redline import api, boundary, examining, pipeline, workbench
from redline.engine import build as engine_build
from redline.engine import devices as engine_devices
from redline.engine import foundry as foundries
from redline.engine.devices import Gpu
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.engine.tensorrt_store import Place
from redline.engine.torch_runner import TorchRunner
from redline.errors import TrialError
from redline.gpus import GpuHost
from redline.measure import telemetry as nvml
from redline.plan.boundaries import boundary_shapes
from redline.records import (
    Anatomy,
    BuildOptions,
    EngineBuild,
    EngineRecord,
    LayerTime,
    OnnxModel,
    PrecisionProof,
    RunRecord,
    Telemetry,
    TensorRTFacts,
    Trial,
)
from redline.store import Store

FACTS = TensorRTFacts(library="tensorrt", version="8.6.0", abilities=("made up",), problem=None)
PARTS = Anatomy(fill_ms=0.1, enqueue_ms=0.2, upload_ms=0.1, gpu_ms=0.5, download_ms=0.1, gap_ms=0.05, wall_ms=0.85, repeats=200)
TOP = LayerTime(name="conv0 + act", ms=0.2, nodes=("conv0", "act"))


def made_up_build(onnx: OnnxModel, options: BuildOptions, library: Any, store: Store, **_: Any) -> EngineBuild:
    """TF32 is obtained, FP16 is; an engine for FP32 falls back nowhere. Dynamic profiles lose half of FP16."""
    dynamic = options.profiles[0].minimum[2:] != options.profiles[0].maximum[2:]
    fallen = ("conv7",) if dynamic else ()
    proof = PrecisionProof(
        asked=options.precision,
        shares=((options.precision, 1.0),),
        layers=(),
        fallen=fallen,
        fallen_share=0.5 if dynamic else 0.0,
        allowed_share=0.02,
        proved=not dynamic,
    )
    text = f"{onnx.digest} {options}".encode()
    return EngineBuild(
        digest=store.put_bytes(text, kind="plan", suffix=".plan", parents=(onnx.digest,), stage="engine"),
        plan_bytes=len(text),
        onnx=onnx.digest,
        library=library.name,
        version=library.version,
        gpu="Made Up 9.0",
        driver="12.4",
        options=options,
        seconds=12.5,
        timing_cache="cold",
        device_memory_bytes=1 << 20,
        inputs=(onnx.input,),
        outputs=onnx.outputs,
        proof=proof,
    )


def engine_runner(onnx: OnnxModel, candidate: Any, order: Any, device: int, lanes: int) -> Any:
    """The seam of TensorRTRunner: proof and plan are asked for as there; several exact profiles are too much memory."""
    build = order.foundry.engine(onnx, order.options, candidate.name)
    assert order.foundry.plan(build)
    if len(build.options.profiles) > 1 and candidate.profiles == "exact":
        raise TrialError("engine-memory", "The GPU is out of memory", got="out of memory")
    return Limited(OnnxRuntimeRunner(onnx.path, threads=1, concurrent=lanes > 1), build.options)


def open_engine(foundry: foundries.Foundry, build: EngineBuild) -> Any:
    return Limited(OnnxRuntimeRunner(str(foundry.store.path(build.onnx)), threads=1, concurrent=False), build.options)


def few_boundaries(profiles: Any, stride: int) -> Any:
    """The first ones for one image: batches of eight take a CPU seconds."""
    inside, beyond = boundary_shapes(profiles, stride)
    return tuple(shape for shape in inside if shape[0] == 1)[:2], beyond[:2]


class Limited:
    """Takes what the profiles hold and nothing else, as an engine does."""

    def __init__(self, runner: OnnxRuntimeRunner, options: BuildOptions) -> None:
        self.runner, self.profiles, self.name = runner, options.profiles, runner.name

    def run(self, batch: Any) -> Any:
        spans = ((profile.minimum, profile.maximum) for profile in self.profiles)
        if not any(all(a <= s <= b for a, s, b in zip(low, batch.shape, high, strict=True)) for low, high in spans):
            raise TrialError("engine-shape", "The shape lies outside every profile", got=batch.shape)
        return self.runner.run(batch)

    def close(self) -> None:
        self.runner.close()


def throttled() -> Telemetry:
    return Telemetry(
        gpu="Made Up", samples=9, sm_mhz=(900, 1980), memory_mhz=(2619, 2619), temperature_c=(60, 88), power_w=(300.0, 700.0),
        throttle=("thermal (hardware)",), processes=0, throttled=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        brief = {"SCREEN_S": 0.3, "SHORTEST_S": 0.4, "OBJECTIVE_REQUESTS": 80, "STEP_REQUESTS": 30, "WARM_UP_S": 0.3}
        for name, value in brief.items():
            patch.setattr(workbench, name, value)
        seen: list[Telemetry] = []

        @contextmanager
        def telemetry(device: int, found: list[Telemetry]) -> Any:
            yield
            found.append(seen[0] if seen else Telemetry(**{**_fields(throttled()), "throttle": (), "throttled": False}))

        def open_gpus(spec: Any, environment: Any, store: Store, journal_: Any, progress: Any) -> Any:
            sources = ("CUDNN", "JIT_CONVOLUTIONS")
            library: Any = SimpleNamespace(
                name="tensorrt", version="8.6.0", strongly_typed=False, tactic_sources=sources, no_fp8=lambda _: "no FP8"
            )
            made = foundries.Foundry(library, store, journal_, progress.build, place=Place("Made Up 9.0", "12.4"))
            gpu = Gpu(name="Made Up", memory_bytes=80 << 30)
            return GpuHost((gpu, gpu), FACTS, made), ""

        def torch_runner(detector: Any, candidate: Any, device: int) -> Any:
            return TorchRunner(detector.module, threads=1, compiled=False, concurrent=False)

        def dissect(live: Any, build: EngineBuild) -> EngineRecord:
            return EngineRecord(build=build, shape=(1, 3, 320, 320), anatomy=PARTS, layers=(TOP,))

        shorten(patch)
        patch.setattr(pipeline, "open_gpus", open_gpus)
        patch.setattr(engine_devices, "no_compile", lambda: "triton is not installed")
        patch.setattr(foundries, "build_engine", made_up_build)
        patch.setattr(foundries.Foundry, "open", open_engine)
        patch.setattr(boundary, "boundary_shapes", few_boundaries)
        patch.setattr(engine_build, "_tensorrt", engine_runner)
        patch.setattr(engine_build, "_torch_on_gpu", torch_runner)
        patch.setattr(examining, "dissect", dissect)
        patch.setattr(nvml, "telemetry", telemetry)
        yield seen


def _fields(record: Telemetry) -> dict[str, Any]:
    return {name: getattr(record, name) for name in Telemetry.__dataclass_fields__}


@pytest.fixture(scope="module")
def finished(patched: list[Telemetry], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    spec = project(tmp_path_factory.mktemp("gpu"), scenes=8, throughput=25, evidence="point")
    spec.write_text(spec.read_text().replace('server = "none"', 'server = "none"\nprecisions = ["fp32", "tf32", "fp16"]'))
    return spec, api.run(spec, runs=spec.parent / "runs", progress=False)


def by_kind(record: RunRecord) -> dict[tuple[str, str, Any], Trial]:
    first: dict[tuple[str, str, Any], Trial] = {}
    for trial in record.trials:
        kind = "fixed" if trial.candidate.shapes == "fixed" else trial.candidate.profiles
        first.setdefault((trial.candidate.runner, trial.candidate.precision, kind), trial)
    return first


def test_the_run_goes_from_eager_on_the_gpu_to_a_choice(finished: tuple[Path, RunRecord]) -> None:
    _, record = finished
    assert record.baseline.candidate.name == "torch-eager fp32 fixed b1 c1 cuda:0"
    kinds = by_kind(record)
    for precision in ("fp32", "tf32", "fp16"):
        trial = kinds["tensorrt", precision, "fixed"]
        assert trial.failure is None
        assert trial.parity is not None
        assert trial.parity.verdict.answer == "pass"
        assert trial.screen is not None
    assert kinds["torch-eager", "tf32", "fixed"].failure is None
    assert record.choice.candidate is not None
    assert record.choice.candidate.gpus
    reasons = {refusal.what: refusal.reason for refusal in record.refusals}
    assert "triton" in reasons["torch-compile"]
    assert "float64" in reasons["pre- and post-processing in the graph"]


def test_an_unproved_precision_and_missing_memory_are_failed_trials_and_the_search_goes_on(
    finished: tuple[Path, RunRecord],
) -> None:
    kinds = by_kind(finished[1])
    fell = kinds["tensorrt", "fp16", "dynamic"].failure
    assert fell is not None
    assert fell.code == "engine-precision"
    assert "conv7" in fell.message
    full = kinds["tensorrt", "fp16", "exact"].failure
    assert full is not None
    assert full.code == "engine-memory"
    assert kinds["tensorrt", "fp16", "bucketed"].failure is None


def test_the_fp16_engine_is_made_from_the_graph_in_fp16(finished: tuple[Path, RunRecord]) -> None:
    spec, record = finished
    store = Store(spec.parent / "runs" / "store")
    for trial in record.trials:
        if trial.candidate.runner != "tensorrt" or trial.engine is None:
            continue
        (parent,) = store.meta(trial.engine).parents
        assert store.meta(trial.engine).kind == "plan"
        wanted = "export-half" if trial.candidate.precision == "fp16" else "export"
        assert store.meta(parent).stage == wanted, trial.candidate.name


def test_engines_are_in_the_record_with_those_that_failed_their_proof(finished: tuple[Path, RunRecord]) -> None:
    _, record = finished
    engines = {engine.build.digest: engine for engine in record.engines}
    assert {trial.engine for trial in record.trials if trial.candidate.runner == "tensorrt" and trial.engine} <= set(engines)
    failed = [engine for engine in record.engines if not engine.build.proof.proved]
    assert len(failed) == 1
    assert failed[0].anatomy is None
    measured = [engine for engine in record.engines if engine.anatomy is not None]
    assert measured
    assert all(engine.layers == (TOP,) for engine in measured)
    assert {engine.build.options.tactic_sources for engine in record.engines} == {("JIT_CONVOLUTIONS",)}


def test_every_load_has_the_state_of_each_gpu_it_used(finished: tuple[Path, RunRecord]) -> None:
    for trial in finished[1].trials:
        loads = [load for load in (trial.screen, trial.objective_load, trial.confirmation) if load is not None]
        loads += list(trial.knee.steps) if trial.knee is not None else []
        for load in loads:
            assert len(load.gpus) == len(trial.candidate.gpus), trial.candidate.name
            assert load.throttled == ()


def test_the_report_shows_builds_anatomy_layers_and_telemetry(finished: tuple[Path, RunRecord]) -> None:
    spec, record = finished
    (html,) = [path.read_text() for path in (spec.parent / "runs").glob("*/report.html")]
    assert '<section id="engines">' in html
    for engine in record.engines:
        assert engine.build.digest[:12] in html
    for text in ("fell back: conv7", "conv0, act", "1980", "Where an inference", "part-gpu", "12.5 s".replace(".5", "")):
        assert text in html, text


def test_the_same_run_again_builds_and_measures_nothing(finished: tuple[Path, RunRecord]) -> None:
    spec, record = finished
    (folder,) = [path for path in (spec.parent / "runs").iterdir() if (path / "journal.jsonl").exists()]
    before = len(journal(folder))
    again = api.run(spec, runs=spec.parent / "runs", progress=False)
    lines = journal(folder)[before:]
    assert not [line for line in lines if line["outcome"] == "computed"]
    failed = [line for line in lines if line["outcome"] == "failed"]  # a failure is no result: it is tried again
    assert {line["stage"] for line in failed} <= {"parity", "detections"}
    assert again.choice == record.choice
    assert {e.build.digest: e for e in again.engines} == {e.build.digest: e for e in record.engines}


def test_a_throttled_gpu_gives_no_verdict(finished: tuple[Path, RunRecord], patched: list[Telemetry], tmp_path: Path) -> None:
    spec = project(tmp_path, scenes=4, throughput=25, evidence="point")
    patched.append(throttled())
    try:
        record = api.run(spec, runs=finished[0].parent / "runs", progress=False)
    finally:
        patched.clear()
    assert record.choice.verdict.answer == "inconclusive"
    judged = [trial for trial in record.trials if trial.latency is not None]
    assert judged
    for trial in judged:
        assert trial.latency is not None
        assert trial.latency.answer == "inconclusive"
        assert "thermal (hardware)" in trial.latency.reason


def test_two_gpus_behind_one_queue_answer_as_one(finished: tuple[Path, RunRecord]) -> None:
    from dataclasses import replace

    from redline.live import open_live, request_mix
    from redline.prepare import export_graphs, load_subject
    from redline.progress import Progress
    from redline.store import Journal

    spec, record = finished
    store = Store(spec.parent / "runs" / "store")
    quiet = Progress(None)
    subject = load_subject(api.load_spec(spec), quiet)
    log = Journal(spec.parent / "other" / "journal.jsonl")
    graphs = export_graphs(subject, store, log, quiet, for_gpu=True)
    host, _ = pipeline.open_gpus(subject.spec, record.environment, store, log, quiet)
    assert host is not None
    one = next(t.candidate for t in record.trials if (t.candidate.runner, t.candidate.precision) == ("tensorrt", "fp16"))
    two = replace(one, device="cuda:0,1", concurrency=4)
    mix, answers = request_mix(subject), []
    for candidate in (one, two):
        live = open_live(subject, graphs, candidate, mix, host.foundry)
        answers.append([live.predict.from_bytes([mix.at(i)])[0].boxes.tolist() for i in range(8)])
        if candidate == two:
            assert live.runner.name.startswith("2 x ")
            assert live.callers == 4
        live.close()
    assert answers[0] == answers[1]
