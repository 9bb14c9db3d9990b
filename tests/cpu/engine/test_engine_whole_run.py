"""`redline run` and `redline build` with everything real but the GPU: CUDA and TensorRT are the fakes of this folder.

Real: candidates, FP16 graph, lint, builder, store, proof, runner with lanes, CUDA graphs and two GPUs, anatomy, report.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_tensorrt
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from onnx import TensorProto, shape_inference

from redline import api, building, pipeline, workbench
from redline.engine import build as engine_build
from redline.engine import devices, tensorrt_versions
from redline.engine.devices import Gpu
from redline.engine.torch_runner import TorchRunner
from redline.prepare import export_graphs, load_subject
from redline.progress import Progress
from redline.records import Candidate, RunRecord, Trial
from redline.store import Journal, Store

SAYS = fake_tensorrt.Engine.create_engine_inspector
"""What the fake's inspector says: FP32 of every layer, whatever it was asked for."""


def honest(engine: fake_tensorrt.Engine) -> Any:
    """The inspector of an engine that obtained what its graph asks for."""
    told = json.loads(SAYS(engine).get_engine_information(None))
    graph = shape_inference.infer_shapes(engine.model).graph
    half = {v.name for v in (*graph.value_info, *graph.input) if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for layer in told["Layers"]:
        for tensor in layer["Inputs"]:
            tensor["Format/Datatype"] = "Half" if tensor["Name"] in half else "FP32"
    return SimpleNamespace(get_engine_information=lambda form: json.dumps(told))


GPU_TESTS = Path(__file__).parents[2] / "gpu"


@pytest.fixture
def machine(cuda: FakeCuda, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """Two GPUs of one kind; eager torch stays on the CPU, and there is no Triton for torch.compile."""
    brief = {"SCREEN_S": 0.3, "SHORTEST_S": 0.4, "OBJECTIVE_REQUESTS": 80, "STEP_REQUESTS": 30, "WARM_UP_S": 0.3}
    for name, value in brief.items():
        monkeypatch.setattr(workbench, name, value)
    found = pipeline.inspect_machine()
    for module in (pipeline, building):
        monkeypatch.setattr(module, "inspect_machine", lambda: replace(found, gpus=("Fake 1", "Fake 1")), raising=False)
    monkeypatch.setattr("redline.doctor.inspect_machine", lambda: replace(found, gpus=("Fake 1", "Fake 1")))
    monkeypatch.setattr(devices, "visible_gpus", lambda: (Gpu(name="Fake 1", memory_bytes=1 << 30),) * 2)
    monkeypatch.setattr(devices, "unusable", lambda library: None)
    for module in (devices, tensorrt_versions):
        monkeypatch.setattr(module, "find", lambda name=None: trt.library())
    monkeypatch.setattr(fake_tensorrt.Engine, "create_engine_inspector", honest)
    monkeypatch.syspath_prepend(str(GPU_TESTS))

    def torch_runner(detector: Any, candidate: Any, device: int) -> Any:
        return TorchRunner(detector.module, threads=1, compiled=False, concurrent=False)

    monkeypatch.setattr(engine_build, "_torch_on_gpu", torch_runner)
    return trt


def write(folder: Path) -> Path:
    from blob_net import project

    spec: Path = project(folder, scenes=9, minutes=0.1)
    return spec


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the graphs: exporting takes longer than all else here, and its tests are elsewhere."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GPU_TESTS))
        subject = load_subject(api.load_spec(write(folder)), Progress(None))
        log = Journal(folder / "run" / "journal.jsonl")
        export_graphs(subject, Store(folder / "store"), log, Progress(None), for_gpu=True)
    return folder / "store"


@pytest.fixture
def spec(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "runs" / "store")
    return write(tmp_path)


def trials(record: RunRecord, runner: str = "tensorrt") -> list[Trial]:
    return [trial for trial in record.trials if trial.candidate.runner == runner]


def test_a_run_on_real_engines_code(machine: FakeTensorRT, cuda: FakeCuda, spec: Path, tmp_path: Path) -> None:
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    engines = trials(record)
    assert {(t.candidate.precision, t.candidate.profiles) for t in engines} >= {
        ("fp32", "exact"), ("tf32", "exact"), ("fp16", "exact"), ("fp16", "dynamic"),
    }  # fmt: skip
    for trial in engines:
        assert trial.failure is None, (trial.candidate.name, trial.failure)
        assert trial.parity is not None
        assert trial.parity.drop.relative_pct == pytest.approx(0.0, abs=0.5)
        assert trial.screen is None or trial.screen.errors == 0
    assert record.choice.candidate is not None
    measured = [engine for engine in record.engines if engine.anatomy is not None]
    assert measured
    assert all(engine.layers for engine in measured)
    assert all(engine.build.proof.proved for engine in record.engines if engine.build.options.precision == "fp16")
    assert not cuda.memory
    assert not cuda.streams
    assert not cuda.graphs
    (html,) = [path.read_text() for path in (tmp_path / "runs").glob("*/report.html")]
    assert '<section id="engines">' in html


def test_a_machine_whose_memory_holds_no_engine_still_finds_a_choice(
    machine: FakeTensorRT, cuda: FakeCuda, spec: Path, tmp_path: Path
) -> None:
    cuda.total = 1 << 10
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    failures = {trial.failure.code for trial in trials(record) if trial.failure is not None}
    assert failures == {"engine-memory"}
    assert not cuda.memory
    assert record.choice.candidate is not None
    assert record.choice.candidate.runner == "torch-eager"


def test_a_build_that_fails_is_a_failed_trial_with_tensorrts_words(machine: FakeTensorRT, spec: Path, tmp_path: Path) -> None:
    machine.build_error = "Could not find any implementation for node conv3."
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    for trial in trials(record):
        assert trial.failure is not None
        assert trial.failure.code == "engine-build"
        assert "conv3" in trial.failure.message
    assert record.choice.candidate is not None


def test_an_engine_that_fell_back_is_a_failed_trial_that_names_its_layers(
    machine: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, spec: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(fake_tensorrt.Engine, "create_engine_inspector", SAYS)
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    failures = {t.candidate.precision: t.failure for t in trials(record) if t.failure is not None}
    assert set(failures) == {"fp16"}
    assert failures["fp16"] is not None
    assert failures["fp16"].code == "engine-precision"
    assert "conv2d" in failures["fp16"].message
    assert record.choice.candidate is not None
    assert record.choice.candidate.precision != "fp16"
    built = api.build(spec, runs=tmp_path / "runs", precision="fp16", progress=False)
    assert built.verdict.answer == "fail"


def test_build_makes_the_engine_of_the_run_and_replay_compares_it(machine: FakeTensorRT, spec: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    built = api.build(spec, runs=runs, precision="fp16", progress=False)
    assert built.verdict.answer == "pass"
    assert built.build.timing_cache == "cold"
    record = api.run(spec, runs=runs, progress=False)
    assert built.build.digest in {trial.engine for trial in trials(record)}
    assert sum(engine.build.digest == built.build.digest for engine in record.engines) == 1
    other = api.build(spec, runs=runs, precision="tf32", progress=False)
    assert other.build.timing_cache in {"cold", "warm"}
    again = api.replay(built.build.digest[:10], runs=runs, progress=False)
    assert again.verdict.answer == "pass"
    machine.tactic = "tactic_b"
    changed = api.replay(built.build.digest[:10], runs=runs, progress=False)
    assert changed.verdict.answer == "fail"
    assert changed.found.changed


def test_several_inferences_on_two_gpus_answer_as_one(
    machine: FakeTensorRT, cuda: FakeCuda, spec: Path, tmp_path: Path
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from redline.doctor import inspect_machine
    from redline.gpus import open_gpus
    from redline.live import open_live, request_mix

    quiet, store = Progress(None), Store(tmp_path / "runs" / "store")
    log = Journal(tmp_path / "run" / "journal.jsonl")
    subject = load_subject(api.load_spec(spec), quiet)
    host, _ = open_gpus(subject.spec, inspect_machine(), store, log, quiet)
    assert host is not None
    graphs, mix = export_graphs(subject, store, log, quiet, for_gpu=True), request_mix(subject)
    one = Candidate(runner="tensorrt", precision="fp16", device="cuda:0", shapes="minimal", profiles="exact", cuda_graphs=True)
    answers = []
    for candidate in (one, replace(one, device="cuda:0,1", concurrency=4), replace(one, cuda_graphs=False)):
        live = open_live(subject, graphs, candidate, mix, host.foundry)

        def found(index: int, live: Any = live) -> Any:
            return live.predict.from_bytes([mix.at(index)])[0].boxes.tolist()

        with ThreadPoolExecutor(live.callers) as callers:
            answers.append(list(callers.map(found, range(24))))
        live.close()
    assert answers[0] == answers[1] == answers[2]
    assert not cuda.memory
