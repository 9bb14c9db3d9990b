"""A fake CUDA in place of cuda.bindings, with redline's GPU modules loaded on it."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_tensorrt
import pytest
from blob_machine import GPU_TESTS, honest, write
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from small_engine import small_graph

import redline.engine
from redline.records import OnnxModel, TensorFact

GPU = ("cuda", "tensorrt_runner", "tensorrt_anatomy")
Write = Callable[..., OnnxModel]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda()
    bindings, runtime = ModuleType("cuda.bindings"), ModuleType("cuda.bindings.runtime")
    for name in dir(fake):
        if name.startswith("cuda"):
            setattr(runtime, name, getattr(fake, name))
    bindings.runtime = runtime  # type: ignore[attr-defined]
    for name, module in {"cuda": ModuleType("cuda"), "cuda.bindings": bindings, "cuda.bindings.runtime": runtime}.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in GPU:
        monkeypatch.delitem(sys.modules, f"redline.engine.{name}", raising=False)
        monkeypatch.delattr(redline.engine, name, raising=False)
    yield fake
    for name in GPU:
        sys.modules.pop(f"redline.engine.{name}", None)
        if hasattr(redline.engine, name):
            delattr(redline.engine, name)


@pytest.fixture
def trt(cuda: FakeCuda) -> FakeTensorRT:
    return FakeTensorRT(cuda=cuda)


@pytest.fixture
def small(tmp_path: Path) -> Write:
    """Write `small_graph` to a file and describe it."""

    def write(operator: str = "Relu", seed: int = 0) -> OnnxModel:
        data = small_graph(operator, seed).SerializeToString()
        path = tmp_path / f"small_{operator}_{seed}.onnx"
        path.write_bytes(data)
        return OnnxModel(
            path=str(path),
            digest=hashlib.sha256(data).hexdigest(),
            exporter="given",
            opset=18,
            input=TensorFact(name="images", dtype="float32", shape=("N", 3, "H", "W")),
            outputs=(TensorFact(name="out", dtype="float32", shape=("N", 2, "H", "W")),),
            dynamic=True,
            checks=(),
        )

    return write


@pytest.fixture
def machine(cuda: FakeCuda, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """Two GPUs of one kind; eager torch stays on the CPU, and there is no Triton for torch.compile."""
    from redline import building, pipeline, workbench
    from redline.engine import build as engine_build
    from redline.engine import devices, tensorrt_versions
    from redline.engine.devices import Gpu
    from redline.engine.torch_runner import TorchRunner

    brief = {"SCREEN_S": 0.3, "SHORTEST_S": 0.4, "OBJECTIVE_REQUESTS": 40, "STEP_REQUESTS": 20, "WARM_UP_S": 0.3}
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


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the graphs: exporting takes longer than all else here, and its tests are elsewhere."""
    from redline import api
    from redline.prepare import export_graphs, load_subject
    from redline.progress import Progress
    from redline.store import Journal, Store

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
