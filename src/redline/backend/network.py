"""The network as a `records.Runner`: in this process, or a model of its own that the server runs (BLS)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from redline.backend.material import Material
from redline.errors import TrialError
from redline.records import Runner

if TYPE_CHECKING:
    from redline.records.detect import Tensor


def local_network(material: Material, gpu: int | None) -> Runner:
    """In this process: the plan on the GPU `gpu`, run once in every profile, or ONNX Runtime on the CPU.

    ONNX Runtime's idle threads sleep: the server's other processes want the cores that spinning takes.
    Raises TrialError (engine-place, engine-plan, ...) if the plan is not for this GPU and TensorRT.
    """
    if material.origin is not None:
        from redline.engine.tensorrt_place import open_plan, warm

        if gpu is None:
            raise TrialError("engine-place", "A TensorRT engine needs a GPU", got="a process on the CPU", allowed="KIND_GPU")
        plan, graphs = material.network.read_bytes(), material.cuda_graphs
        runner = open_plan(plan, material.origin, device=gpu, lanes=1, graphs=graphs, outputs=material.outputs)
        warm(runner, material.profiles, material.batch)
        return runner
    from redline.engine.onnxruntime_runner import OnnxRuntimeRunner

    return OnnxRuntimeRunner(str(material.network), threads=material.threads, concurrent=True)


class ModelNetwork:
    """The release's network model, asked through the server; its version is named, never the latest."""

    def __init__(self, material: Material, model: str) -> None:
        self.name = f"{model} version {material.number}"
        self._model, self._version = model, material.number
        self._input, self._outputs = material.input, list(material.outputs)

    def run(self, batch: Tensor) -> tuple[Tensor, ...]:
        import triton_python_backend_utils as pb

        request = pb.InferenceRequest(
            model_name=self._model,
            model_version=self._version,
            requested_output_names=self._outputs,
            inputs=[pb.Tensor(self._input, batch)],
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
        )
        answer = request.exec()
        if answer.has_error():
            raise TrialError("network-failed", f"the model {self.name} failed", got=answer.error().message())
        return tuple(pb.get_output_tensor_by_name(answer, name).as_numpy() for name in self._outputs)

    def close(self) -> None:
        """Nothing: the server owns the model."""


class Finite:
    """A runner that refuses outputs with NaN or infinities: no answer is better than a wrong one."""

    def __init__(self, runner: Runner) -> None:
        self.name, self._runner = runner.name, runner

    def run(self, batch: Tensor) -> tuple[Tensor, ...]:
        outputs = self._runner.run(batch)
        if not all(finite(output) for output in outputs):
            raise TrialError("network-not-finite", "the network gave NaN or infinite values")
        return outputs

    def close(self) -> None:
        self._runner.close()


def finite(array: np.ndarray[Any, Any]) -> bool:
    return bool(np.isfinite(array).all())
