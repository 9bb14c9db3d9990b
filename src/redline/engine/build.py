"""One entry for every runner: what a `Candidate` names is built, timed and given an identity."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from redline.errors import TrialError
from redline.records import Candidate, Detector, OnnxModel, Runner
from redline.store import digest_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    runner: Runner
    digest: str
    """Over everything that makes two compiled networks differ: model, runner, its options and library version."""
    seconds: float


def build_runner(detector: Detector, onnx: OnnxModel | None, candidate: Candidate) -> Built:
    """Raises TrialError if the candidate's runner cannot take this model."""
    started = time.perf_counter()
    runner = _build(detector, onnx, candidate)
    return Built(runner=runner, digest=engine_digest(detector, onnx, candidate), seconds=time.perf_counter() - started)


def engine_digest(detector: Detector, onnx: OnnxModel | None, candidate: Candidate) -> str:
    library = "onnxruntime" if candidate.runner == "onnxruntime" else "torch"
    source = onnx.digest if onnx is not None and candidate.runner == "onnxruntime" else detector.facts.digest
    options = [candidate.runner, candidate.precision, candidate.device, candidate.threads, candidate.concurrency > 1]
    return digest_of([source, library, _version(library), *options])


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"


def _build(detector: Detector, onnx: OnnxModel | None, candidate: Candidate) -> Runner:
    if candidate.runner == "onnxruntime":
        if onnx is None:
            raise TrialError("engine-no-graph", "ONNX Runtime needs an exported graph", fix="see why the export failed")
        from redline.engine.onnxruntime_runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(onnx.path, threads=candidate.threads, concurrent=candidate.concurrency > 1)
    if detector.module is None:
        raise TrialError(
            "engine-no-module",
            f"{candidate.runner} needs a torch module",
            got="an ONNX file",
            fix="give [model] factory instead of onnx",
        )
    from redline.engine.torch_runner import TorchRunner

    return TorchRunner(detector.module, threads=candidate.threads, compiled=candidate.runner == "torch-compile")
