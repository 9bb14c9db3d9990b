"""torch on a GPU: eager FP32 (the reference) or TF32, and torch.compile in FP16 with CUDA graphs, which engines must beat."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from redline.errors import TrialError

if TYPE_CHECKING:
    from redline.records.detect import Tensor
    from redline.records.spec import Precision


class TorchGpuRunner:
    """`module` is in eval mode, float32, on the CPU; a copy goes to the GPU. All calls run in one thread of the runner's own.

    Compiled runners share a thread for the life of the process: torch keeps its CUDA graphs in a table of the thread that first
    compiled, and fails in any other.
    """

    def __init__(
        self, module: torch.nn.Module, *, device: int = 0, precision: Precision = "fp32", compiled: bool = False
    ) -> None:
        """Raises TrialError: engine-precision for int8 and fp8, engine-memory if the network does not fit."""
        if precision in ("int8", "fp8"):
            what = f"torch runs no {precision.upper()} network here"
            raise TrialError("engine-precision", what, got=precision, allowed="fp32, tf32, fp16")
        self._device, self._half = torch.device("cuda", device), precision == "fp16"
        self._tf32, self._compiled = precision == "tf32", compiled
        how = "compile" if compiled else "eager"
        self.name = f"torch {torch.__version__} {how} {precision.upper()} {torch.cuda.get_device_name(device)}"
        self._own = _compiling() if compiled else ThreadPoolExecutor(1, thread_name_prefix="torch-gpu")
        self._call: Any = self._own.submit(self._load, module).result()

    def run(self, batch: Tensor) -> tuple[Tensor, ...]:
        return self._own.submit(self._run, batch).result()

    def on_gpu(self, work: Any) -> Any:
        """`work(call)` in the runner's thread: `call` maps a GPU batch to GPU outputs. For timing without copies."""
        return self._own.submit(lambda: self._guarded(lambda: work(self._call))).result()

    def place(self, batch: Tensor) -> torch.Tensor:
        """The batch as the network wants it."""
        tensor = torch.from_numpy(batch).to(self._device, torch.float16 if self._half else torch.float32)
        return tensor.contiguous(memory_format=torch.channels_last if self._half else torch.contiguous_format)

    def close(self) -> None:
        self._own.submit(self._unload).result()
        if not self._compiled:
            self._own.shutdown()

    def _load(self, module: torch.nn.Module) -> Any:
        def load() -> Any:
            layout = torch.channels_last if self._half else torch.contiguous_format
            placed: Any = copy.deepcopy(module).to(self._device, torch.float16 if self._half else torch.float32)
            placed = placed.to(memory_format=layout)
            return torch.compile(placed, mode="reduce-overhead", dynamic=False) if self._compiled else placed

        return self._guarded(load)

    def _run(self, batch: Tensor) -> tuple[Tensor, ...]:
        outputs = self._guarded(lambda: self._call(self.place(batch)))
        tensors = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
        return tuple(np.ascontiguousarray(tensor.float().cpu().numpy()) for tensor in tensors)

    def _guarded(self, work: Any) -> Any:
        torch.backends.cuda.matmul.allow_tf32 = self._tf32
        torch.backends.cudnn.allow_tf32 = self._tf32
        try:
            with torch.no_grad():
                return work()
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            fix = "a smaller batch, fewer inferences in flight, or free the GPU's memory"
            raise TrialError("engine-memory", "The GPU is out of memory", got=_line(error), fix=fix) from error
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
            what = "torch.compile failed on the GPU" if self._compiled else "The torch module failed on the GPU"
            raise TrialError("engine-run", what, got=f"{type(error).__name__}: {_line(error)}") from error

    def _unload(self) -> None:
        self._call = None
        if self._compiled:
            torch.compiler.reset()
        torch.cuda.empty_cache()


@cache
def _compiling() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="torch-compile")


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
