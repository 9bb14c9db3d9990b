"""Images in device memory to detections without leaving it: preprocessing, engine and post-processing as one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from cuda.bindings import runtime as cudart

from redline.engine.cuda import ok
from redline.errors import TrialError
from redline.kernels import preprocess
from redline.kernels.postprocess import Capacity, PostprocessKernels
from redline.kernels.preprocess_cuda import CudaPreprocess
from redline.kernels.table import ROW_WORDS, constants, fill_rows
from redline.records import Detections, DeviceBatch, DeviceImage

if TYPE_CHECKING:
    from redline.engine.tensorrt_runner import TensorRTRunner
    from redline.records import Head, Postprocess, Preprocess, ShapePolicy

TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
TYPES = {"float32": torch.float32, "float16": torch.float16}


class ResidentPipeline:
    """Batches of up to `images` images of any sizes that share one network input size. One batch at a time: several in flight
    are several pipelines of one engine, each with a stream, a context, buffers and a graph of its own.

    A launch copies two small tables, replays one graph and copies the detections to pinned memory; it allocates nothing.
    """

    def __init__(
        self, runner: TensorRTRunner, prepared: Preprocess, head: Head, post: Postprocess, classes: int, *,
        input_hw: tuple[int, int], images: int = 1, shapes: ShapePolicy = "fixed", kernel: Literal["triton", "cuda"] = "cuda",
    ) -> None:  # fmt: skip
        """Captures the graph. Raises TrialError: engine-shape (no profile holds the batch), engine-memory, engine-capture,
        no-kernel-form, kernels.compile.
        """
        torch.cuda.set_device(runner.device)
        self.device = runner.device
        self._runner, self._preprocess, self._shapes = runner, prepared, shapes
        self.stream: Any = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call, unused-ignore]
        shape = (images, 3, *input_hw)
        self._context, self._input, self._outputs = _context(runner, shape, self.stream)
        self.post = PostprocessKernels(head, post, input_hw, classes, Capacity(images=images))
        self._staged = torch.zeros(images, ROW_WORDS, dtype=torch.int64, pin_memory=True)
        self._rows = self._staged.numpy()
        self._table = torch.zeros(images, ROW_WORDS, dtype=torch.int64, device="cuda")
        dtype: Literal["fp16", "fp32"] = "fp16" if self._input.dtype == torch.float16 else "fp32"
        self._batch = DeviceBatch(pointer=self._input.data_ptr(), shape=shape, dtype=dtype)
        self._constants = constants(prepared)
        self._cuda = CudaPreprocess(self._constants, dtype, input_hw[1]) if kernel == "cuda" else None
        self._found = [self.post.boxes, self.post.scores, self.post.labels, self.post.counts]
        self._host = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in self._found]
        self._graph = self._captured()
        self._done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call, unused-ignore]
        self._done.record(self.stream)

    def launch(self, images: Sequence[DeviceImage]) -> None:
        """Enqueue a batch on `stream`, behind what is there already, such as the images' own decoding. Does not wait for it,
        but for the batch before.

        Raises BadInput: kernels.capacity, kernels.image-size, kernels.row-bytes, kernels.input-size.
        """
        self._done.synchronize()  # the tables in pinned memory belong to the batch before until it is done
        placements = fill_rows(self._rows, images, self._preprocess, self._shapes, self._batch)
        with torch.cuda.stream(self.stream):
            self._table.copy_(self._staged, non_blocking=True)
            self.post.place(placements)
            self._graph.replay()
            self._done.record(self.stream)

    def wait(self, images: int = 1) -> list[Detections]:
        """Detections of the batch launched last, in pixels of its images."""
        self._done.synchronize()
        boxes, scores, labels, counts = (tensor.numpy() for tensor in self._host)
        return [
            Detections(
                boxes=boxes[row, :count].copy(), scores=scores[row, :count].copy(), labels=labels[row, :count].astype(np.int64)
            )
            for row, count in enumerate(counts[:images].tolist())
        ]

    def _captured(self) -> Any:
        with torch.cuda.stream(self.stream):
            for _ in range(2):  # compiles the kernels, and loads what the engine loads at its first run
                self._enqueue()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self._enqueue()
        return graph

    def _enqueue(self) -> None:
        address = self.stream.cuda_stream
        if self._cuda is not None:
            self._cuda.launch(self._table.data_ptr(), self._batch, address)
        else:
            preprocess.launch(self._table, self._input, self._constants)
        if not self._context.execute_async_v3(address):
            raise TrialError("engine-capture", "The engine cannot be part of a CUDA graph", got=self._runner.name)
        self.post.launch(self._outputs)
        for host, tensor in zip(self._host, self._found, strict=True):  # torch's own copy would ask for events while capturing
            ok(cudart.cudaMemcpyAsync(host.data_ptr(), tensor.data_ptr(), host.nbytes, TO_HOST, address))


def _context(runner: TensorRTRunner, shape: tuple[int, ...], stream: Any) -> tuple[Any, torch.Tensor, list[torch.Tensor]]:
    """(context with all addresses set, its input, its outputs in the order of the graph)."""
    engine = runner.engine
    context = engine.create_execution_context()
    if context is None:
        raise TrialError("engine-memory", "No memory for an execution context", got=str(shape), fix="fewer in flight")
    with runner.lane() as lane:
        index, name, dtypes = lane.profile_of(shape), lane.input, lane.dtypes
    context.set_optimization_profile_async(index, stream.cuda_stream)
    stream.synchronize()
    context.set_input_shape(name, shape)

    def tensor(name: str) -> torch.Tensor:
        made = torch.empty(tuple(context.get_tensor_shape(name)), dtype=TYPES[dtypes[name].name], device="cuda")
        context.set_tensor_address(name, made.data_ptr())
        return made

    return context, tensor(name), [tensor(output) for output in runner.output_names]
