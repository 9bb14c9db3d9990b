"""A fake CUDA in place of cuda.bindings, with redline's GPU modules loaded on it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
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
