"""One entry for every runner: what a `Candidate` names is built and given an identity."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from redline.errors import TrialError
from redline.records import Candidate, Detector, OnnxModel, Runner
from redline.store import digest_of


def build_runner(detector: Detector, onnx: OnnxModel | None, candidate: Candidate) -> Runner:
    """Raises TrialError if the candidate's runner cannot take this model."""
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

    return TorchRunner(
        detector.module,
        threads=candidate.threads,
        compiled=candidate.runner == "torch-compile",
        concurrent=candidate.concurrency > 1,
    )


def engine_digest(detector: Detector, onnx: OnnxModel | None, candidate: Candidate) -> str:
    """sha256 over everything that makes two compiled networks differ: model, runner, its options and library version."""
    libraries = ("onnxruntime", "onnxruntime-gpu") if candidate.runner == "onnxruntime" else ("torch",)
    source = onnx.digest if onnx is not None and candidate.runner == "onnxruntime" else detector.facts.digest
    options = [candidate.runner, candidate.precision, candidate.device, candidate.threads, candidate.concurrency > 1]
    return digest_of([source, [_version(library) for library in libraries], *options])


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
