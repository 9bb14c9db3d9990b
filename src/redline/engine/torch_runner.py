"""torch on the CPU: eager FP32, which is the accuracy reference, and torch.compile, the baseline every engine must beat."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from redline.errors import TrialError

if TYPE_CHECKING:
    from redline.records.detect import Tensor


class TorchRunner:
    """`module` is in eval mode, float32, on the CPU, and returns a tensor or a tuple of tensors.

    TF32 stays off: it would change the reference silently on GPUs that have it.
    """

    def __init__(self, module: torch.nn.Module, *, threads: int, compiled: bool, concurrent: bool) -> None:
        """`concurrent`: several calls in flight, each in its caller's thread; otherwise all run in one of the runner's."""
        self.name = f"torch {torch.__version__} {'compile' if compiled else 'eager'} FP32 CPU"
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._threads = threads
        self._thread = threading.local()
        self._call: Any = torch.compile(module, dynamic=False, options={"freezing": True}) if compiled else module
        self._compiled = compiled
        # OpenMP keeps a pool for every thread that ever ran parallel code, and stops spinning once the pools together have more
        # threads than there are cores: inference then takes twice as long. So the pool lives in one thread and ends with it.
        self._own = None if concurrent else ThreadPoolExecutor(1, thread_name_prefix="torch")

    def run(self, batch: Tensor) -> tuple[Tensor, ...]:
        return self._run(batch) if self._own is None else self._own.submit(self._run, batch).result()

    def _run(self, batch: Tensor) -> tuple[Tensor, ...]:
        if not hasattr(self._thread, "ready"):
            # OpenMP's thread count belongs to the calling thread; compiled code is also guarded on it and would compile again.
            torch.set_num_threads(self._threads)
            self._thread.ready = True
        try:
            # no_grad, not inference_mode: constant folding of frozen weights needs ordinary tensors.
            with torch.no_grad():
                outputs = self._call(torch.from_numpy(batch))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            what = "torch.compile failed" if self._compiled else "The torch module failed"
            lines = str(error).strip().splitlines() or [""]
            got = f"{type(error).__name__}: {lines[0][:300]} (input {batch.shape})"
            raise TrialError("engine-run", f"{what} on an input", got=got) from error
        tensors = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
        return tuple(tensor.numpy() for tensor in tensors)

    def close(self) -> None:
        if self._own is not None:
            self._own.shutdown()
        self._call = None
        if self._compiled:
            torch.compiler.reset()
