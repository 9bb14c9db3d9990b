"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as pybind

from redline.errors import TrialError

if TYPE_CHECKING:
    from redline.records.detect import Image, Tensor

_OWN = (
    "Fail",
    "InvalidArgument",
    "NoSuchFile",
    "NoModel",
    "EngineError",
    "RuntimeException",
    "InvalidProtobuf",
    "InvalidGraph",
)
# ONNX Runtime's exceptions derive from Exception alone and live in its extension module.
_FAILURES = (
    *(getattr(pybind, name) for name in (*_OWN, "NotImplemented", "EPFail")),
    RuntimeError,
    ValueError,
    TypeError,
    OSError,
)


def open_session(path: str | bytes, *, threads: int, concurrent: bool, exact: bool = False) -> ort.InferenceSession:
    """`path`: the file, or its bytes.

    `concurrent`: several calls in flight share the pool, so idle threads sleep instead of spinning on others' cores. `exact`:
    without the fusions beyond the basic ones: with them 1.32 drops a ReLU that is rounded to FP8.

    Raises TrialError if ONNX Runtime refuses the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if exact else levels.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if concurrent else "1")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except _FAILURES as error:
        raise TrialError("engine-build", "ONNX Runtime refused the graph", got=_first_line(error)) from error


class OnnxRuntimeRunner:
    """A network (N, 3, H, W) -> raw outputs. One session; its calls are thread-safe. `exact`: as `open_session`, for FP8."""

    def __init__(self, path: str, *, threads: int, concurrent: bool, exact: bool = False) -> None:
        self.name = f"onnxruntime {ort.__version__} CPU"
        self._session = open_session(path, threads=threads, concurrent=concurrent, exact=exact)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, batch: Tensor) -> tuple[Tensor, ...]:
        try:
            return tuple(self._session.run(self._outputs, {self._input: batch}))
        except _FAILURES as error:
            got = f"{_first_line(error)} (input {batch.shape})"
            raise TrialError("engine-run", "ONNX Runtime failed on an input", got=got) from error

    def close(self) -> None:
        del self._session


def run_named(graph: bytes, feeds: dict[str, Any], *, threads: int) -> dict[str, Any]:
    """Outputs by name of a graph run once, from inputs by name. Raises TrialError: engine-build, engine-run."""
    session = open_session(graph, threads=threads, concurrent=True)
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except _FAILURES as error:
        raise TrialError("engine-run", "ONNX Runtime failed on a part of the graph", got=_first_line(error)) from error


class GraphSession:
    """An end-to-end graph: one uint8 image (H, W, 3) -> boxes (K, 4), scores (K,), labels (K,)."""

    def __init__(self, path: str, *, threads: int, concurrent: bool) -> None:
        self.name = f"onnxruntime {ort.__version__} CPU, pre- and post-processing in the graph"
        self._session = open_session(path, threads=threads, concurrent=concurrent)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, image: Image) -> tuple[np.ndarray[Any, Any], ...]:
        try:
            return tuple(self._session.run(["boxes", "scores", "labels"], {self._input: image}))
        except _FAILURES as error:
            got = f"{_first_line(error)} (image {image.shape})"
            raise TrialError("engine-run", "ONNX Runtime failed on an image", got=got) from error

    def close(self) -> None:
        del self._session


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
