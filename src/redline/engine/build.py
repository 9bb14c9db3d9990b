"""One entry for every runner: what a `Candidate` names is built and given an identity."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from redline.engine.pool import PooledRunner
from redline.errors import TrialError
from redline.records import BuildOptions, Candidate, Detector, OnnxModel, Runner
from redline.store import digest_of

if TYPE_CHECKING:
    from redline.engine.foundry import Foundry


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """What a TensorRT candidate needs beside its graph. `rebuild`: the command that makes the engine again."""

    foundry: Foundry
    options: BuildOptions
    rebuild: str


def build_runner(detector: Detector, onnx: OnnxModel | None, candidate: Candidate, order: Order | None = None) -> Runner:
    """Raises TrialError if the candidate's runner cannot take this model or finds no memory; what it took is given back."""
    if candidate.gpus:
        return _gpu_runner(detector, onnx, candidate, order)
    if candidate.runner == "onnxruntime":
        if onnx is None:
            raise TrialError("engine-no-graph", "ONNX Runtime needs an exported graph", fix="see why the export failed")
        from redline.engine.onnxruntime_runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(onnx.path, threads=candidate.threads, concurrent=candidate.concurrency > 1)
    _require_module(detector, candidate)
    from redline.engine.torch_runner import TorchRunner

    return TorchRunner(
        detector.module,
        threads=candidate.threads,
        compiled=candidate.runner == "torch-compile",
        concurrent=candidate.concurrency > 1,
    )


def engine_digest(detector: Detector, onnx: OnnxModel | None, candidate: Candidate, order: Order | None = None) -> str:
    """sha256 over everything that makes two compiled networks differ: model, runner, its options and library version."""
    if candidate.runner == "tensorrt":
        return _needed(order, candidate).foundry.identity(_graph(onnx), _needed(order, candidate).options)
    libraries = ("onnxruntime", "onnxruntime-gpu") if candidate.runner == "onnxruntime" else ("torch",)
    source = onnx.digest if onnx is not None and candidate.runner == "onnxruntime" else detector.facts.digest
    options = [candidate.runner, candidate.precision, candidate.device, candidate.threads, candidate.concurrency > 1]
    return digest_of([source, [_version(library) for library in libraries], *options])


def _gpu_runner(detector: Detector, onnx: OnnxModel | None, candidate: Candidate, order: Order | None) -> Runner:
    """One runner a GPU, and one queue over them if there are several."""
    _return_memory()
    lanes = -(-candidate.concurrency // len(candidate.gpus))
    runners: list[Runner] = []
    try:
        for device in candidate.gpus:
            if candidate.runner == "tensorrt":
                runners.append(_tensorrt(_graph(onnx), candidate, _needed(order, candidate), device, lanes))
            else:
                runners.append(_torch_on_gpu(detector, candidate, device))
    except TrialError:
        for runner in runners:
            runner.close()
        raise
    return runners[0] if len(runners) == 1 else PooledRunner(runners, lanes=lanes)


def _return_memory() -> None:
    """What torch keeps of closed or failed runners goes back to the GPU: TensorRT's memory is not torch's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()  # a failure's traceback may have held tensors until now
        torch.cuda.empty_cache()


def _tensorrt(onnx: OnnxModel, candidate: Candidate, order: Order, device: int, lanes: int) -> Runner:
    from redline.engine.tensorrt_runner import TensorRTRunner

    build = order.foundry.engine(onnx, order.options, candidate.name)
    return TensorRTRunner(
        order.foundry.plan(build),
        order.foundry.library,
        device=device,
        lanes=lanes,
        graphs=candidate.cuda_graphs,
        outputs=[fact.name for fact in build.outputs],
        rebuild=order.rebuild,
        host_code=build.options.version_compatible,
    )


def _torch_on_gpu(detector: Detector, candidate: Candidate, device: int) -> Runner:
    _require_module(detector, candidate)
    from redline.engine.torch_gpu_runner import TorchGpuRunner

    compiled = candidate.runner == "torch-compile"
    return TorchGpuRunner(detector.module, device=device, precision=candidate.precision, compiled=compiled)


def _graph(onnx: OnnxModel | None) -> OnnxModel:
    if onnx is None:
        raise TrialError("engine-no-graph", "TensorRT needs an exported graph", fix="see why the export failed")
    return onnx


def _needed(order: Order | None, candidate: Candidate) -> Order:
    if order is None:
        fix = "see `redline doctor`"
        raise TrialError("engine-no-tensorrt", "there is no TensorRT to build with", got=candidate.name, fix=fix)
    return order


def _require_module(detector: Detector, candidate: Candidate) -> None:
    if detector.module is None:
        what = f"{candidate.runner} needs a torch module"
        raise TrialError("engine-no-module", what, got="an ONNX file", fix="give [model] factory instead of onnx")


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
