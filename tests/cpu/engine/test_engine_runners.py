"""Every runner against the plain module on the same tensors, and what each refuses."""

from __future__ import annotations

import shutil
import sysconfig
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from redline.engine.build import build_runner, engine_digest
from redline.engine.onnxruntime_runner import GraphSession, OnnxRuntimeRunner
from redline.errors import TrialError
from redline.records import Candidate, Detector, Head, ModelFacts, OnnxModel, Postprocess, Preprocess, TensorFact

TOLERANCE = 1e-5
"""FP32 sums of 27 terms of up to 255 in another order."""
COMPILER = shutil.which("g++") is not None and (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.relu(self.norm(self.conv(images))).flatten(2).transpose(1, 2),)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(3)
    return Net().eval()


@pytest.fixture(scope="module")
def graph(net: Net, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    path = tmp_path_factory.mktemp("graph") / "net.onnx"
    axes = {"images": {0: "N", 2: "H", 3: "W"}, "rows": {0: "N"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.rand(2, 3, 32, 64),),
            str(path),
            dynamo=False,
            input_names=["images"],
            output_names=["rows"],
            dynamic_axes=axes,
            opset_version=18,
        )
    images = TensorFact(name="images", dtype="float32", shape=("N", 3, "H", "W"))
    return OnnxModel(
        path=str(path), digest="g", exporter="torchscript", opset=18, input=images, outputs=(), dynamic=True, checks=()
    )


def detector(module: nn.Module | None) -> Detector:
    facts = ModelFacts(
        name="net", digest="m", parameters=1, weight_bytes=4, inputs=(), outputs=(), classes=None, origin="torch"
    )
    head = Head(kind="custom", function="a:b")
    return Detector(module=module, onnx_path=None, facts=facts, head=head, preprocess=Preprocess(), postprocess=Postprocess())


def batch(count: int = 1, height: int = 64, width: int = 96) -> Any:
    return np.random.default_rng(5).uniform(0, 255, (count, 3, height, width)).astype(np.float32)


def expected(net: Net, images: Any) -> Any:
    with torch.no_grad():
        return net(torch.from_numpy(images))[0].numpy()


@pytest.mark.parametrize("runner", ["torch-eager", "onnxruntime"])
@pytest.mark.parametrize(("threads", "concurrency"), [(1, 1), (2, 1), (1, 2)])
def test_equals_the_module_at_several_shapes(net: Net, graph: OnnxModel, runner: Any, threads: int, concurrency: int) -> None:
    built = build_runner(detector(net), graph, Candidate(runner=runner, threads=threads, concurrency=concurrency))
    try:
        for images in (batch(), batch(3, 32, 32), batch(1, 128, 32)):
            (found,) = built.run(images)
            np.testing.assert_allclose(found, expected(net, images), rtol=TOLERANCE, atol=TOLERANCE * 255)
    finally:
        built.close()


@pytest.mark.skipif(not COMPILER, reason="torch.compile on a CPU needs g++ and Python.h")
def test_torch_compile_equals_the_module_from_any_thread(net: Net) -> None:
    built = build_runner(detector(net), None, Candidate(runner="torch-compile", threads=1, concurrency=2))
    images = batch()
    found: list[Any] = list(built.run(images))
    thread = threading.Thread(target=lambda: found.extend(built.run(images)))
    thread.start()
    thread.join()
    built.close()
    assert len(found) == 2
    for one in found:
        np.testing.assert_allclose(one, expected(net, images), rtol=1e-4, atol=1e-3)


def test_calls_from_many_threads_do_not_mix(net: Net, graph: OnnxModel) -> None:
    built = build_runner(detector(net), graph, Candidate(runner="torch-eager", threads=2))
    inputs = [batch(1, 32, 32 * width) for width in range(1, 6)]
    results: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: built.run(inputs[i])[0]})) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    built.close()
    for index, images in enumerate(inputs):
        np.testing.assert_allclose(results[index], expected(net, images), rtol=TOLERANCE, atol=1e-2)


def test_a_file_that_is_no_graph_is_a_failed_trial(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(TrialError, match="refused the graph") as caught:
        OnnxRuntimeRunner(str(path), threads=1, concurrent=False)
    assert caught.value.code == "engine-build"
    with pytest.raises(TrialError):
        GraphSession(str(path), threads=1, concurrent=False)


@pytest.mark.parametrize("runner", ["torch-eager", "onnxruntime"])
def test_an_input_the_network_cannot_take_is_a_failed_trial(net: Net, graph: OnnxModel, runner: Any) -> None:
    built = build_runner(detector(net), graph, Candidate(runner=runner))
    with pytest.raises(TrialError, match=r"\(1, 4, 32, 32\)") as caught:
        built.run(np.zeros((1, 4, 32, 32), np.float32))
    assert caught.value.code == "engine-run"
    built.close()


def test_torch_runners_need_a_module_and_onnx_runtime_a_graph(net: Net) -> None:
    with pytest.raises(TrialError, match="torch module"):
        build_runner(detector(None), None, Candidate(runner="torch-eager"))
    with pytest.raises(TrialError, match="exported graph"):
        build_runner(detector(net), None, Candidate(runner="onnxruntime"))


def test_the_digest_tells_apart_what_makes_two_engines_differ(net: Net, graph: OnnxModel) -> None:
    subject = detector(net)
    candidates = [
        Candidate(runner="torch-eager"),
        Candidate(runner="onnxruntime"),
        Candidate(runner="onnxruntime", threads=2),
        Candidate(runner="onnxruntime", concurrency=2),
    ]
    assert len({engine_digest(subject, graph, candidate) for candidate in candidates}) == len(candidates)
    batched = Candidate(runner="onnxruntime", batch=4)
    assert engine_digest(subject, graph, batched) == engine_digest(subject, graph, candidates[1])
