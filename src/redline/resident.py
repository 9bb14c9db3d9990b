"""Images in device memory to detections without leaving it: preprocessing, engine and post-processing as one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """What is replayed for one number of images. All forms share the pipeline's buffers, of which each takes the beginning;
    a context is each form's own, as a captured graph must not be replayed once its context has had another shape.
    """

    batch: DeviceBatch
    input: torch.Tensor
    outputs: list[torch.Tensor]
    context: Any


class ResidentPipeline:
    """Batches of up to `images` images of any sizes that share one network input size. One batch at a time: several in flight
    are several pipelines of one engine, each with a stream, contexts, buffers and graphs of its own.

    A launch copies two small tables, replays one graph and copies the detections to pinned memory; it allocates nothing.
    """

    def __init__(
        self, runner: TensorRTRunner, prepared: Preprocess, head: Head, post: Postprocess, classes: int, *,
        input_hw: tuple[int, int], images: int = 1, fewer: Sequence[int] = (), shapes: ShapePolicy = "fixed",
        kernel: Literal["triton", "cuda"] = "cuda",
    ) -> None:  # fmt: skip
        """Captures a graph of `images` and one of each number in `fewer`: a batch replays the smallest that holds it, so that
        few images do not wait for the network to compute many. Raises TrialError: engine-shape (no profile holds a batch),
        engine-memory, engine-capture, no-kernel-form, kernels.compile.
        """
        torch.cuda.set_device(runner.device)
        self.device = runner.device
        self._runner, self._preprocess, self._shapes = runner, prepared, shapes
        self.stream: Any = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call, unused-ignore]
        self.post = PostprocessKernels(head, post, input_hw, classes, Capacity(images=images))
        self._staged = torch.zeros(images, ROW_WORDS, dtype=torch.int64, pin_memory=True)
        self._rows = self._staged.numpy()
        self._table = torch.zeros(images, ROW_WORDS, dtype=torch.int64, device="cuda")
        self._constants = constants(prepared)
        self._found = [self.post.boxes, self.post.scores, self.post.labels, self.post.counts]
        self._host = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in self._found]
        buffers: dict[str, torch.Tensor] = {}
        self._scratch = _scratch(runner)  # one for all graphs: one runs at a time
        counts = sorted({images, *(n for n in fewer if 0 < n < images)}, reverse=True)
        forms = [_form(runner, (count, 3, *input_hw), self.stream, buffers, self._scratch) for count in counts]
        self._cuda = CudaPreprocess(self._constants, forms[0].batch.dtype, input_hw[1]) if kernel == "cuda" else None
        self._graphs = [(form, self._captured(form)) for form in reversed(forms)]
        self._done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call, unused-ignore]
        self._done.record(self.stream)

    def launch(self, images: Sequence[DeviceImage]) -> None:
        """Enqueue a batch on `stream`, behind what is there already, such as the images' own decoding. Does not wait for it,
        but for the batch before.

        Raises BadInput: kernels.capacity, kernels.image-size, kernels.row-bytes, kernels.input-size.
        """
        self._done.synchronize()  # the tables in pinned memory belong to the batch before until it is done
        fits = (one for one in self._graphs if one[0].batch.shape[0] >= len(images))
        form, graph = next(fits, self._graphs[-1])
        placements = fill_rows(self._rows, images, self._preprocess, self._shapes, form.batch)
        with torch.cuda.stream(self.stream):
            self._table.copy_(self._staged, non_blocking=True)
            self.post.place(placements)
            graph.replay()
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

    def _captured(self, form: _Form) -> Any:
        with torch.cuda.stream(self.stream):
            for _ in range(2):  # compiles the kernels, and loads what the engine loads at its first run
                self._enqueue(form)
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self._enqueue(form)
        return graph

    def _enqueue(self, form: _Form) -> None:
        address, count = self.stream.cuda_stream, form.batch.shape[0]
        if self._cuda is not None:
            self._cuda.launch(self._table.data_ptr(), form.batch, address)
        else:
            preprocess.launch(self._table[:count], form.input, self._constants)
        if not form.context.execute_async_v3(address):
            raise TrialError("engine-capture", "The engine cannot be part of a CUDA graph", got=self._runner.name)
        self.post.launch(form.outputs)
        for host, tensor in zip(self._host, self._found, strict=True):  # torch's own copy would ask for events while capturing
            size = tensor[:count].nbytes
            ok(cudart.cudaMemcpyAsync(host.data_ptr(), tensor.data_ptr(), size, TO_HOST, address))


def _scratch(runner: TensorRTRunner) -> torch.Tensor:
    size = runner.library.context_bytes(runner.engine)
    try:
        return torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
    except torch.cuda.OutOfMemoryError as error:
        raise TrialError(
            "engine-memory", "No memory for an execution context", got=str(error), fix="fewer in flight"
        ) from error


def _form(
    runner: TensorRTRunner,
    shape: tuple[int, int, int, int],
    stream: Any,
    buffers: dict[str, torch.Tensor],
    scratch: torch.Tensor,
) -> _Form:
    """`buffers` by tensor are added to, by the largest shape, which comes first."""
    context = runner.library.context_on(runner.engine, scratch.data_ptr(), scratch.nbytes)
    if context is None:
        raise TrialError("engine-memory", "No memory for an execution context", got=str(shape), fix="fewer in flight")
    with runner.lane() as lane:
        index, name, dtypes = lane.profile_of(shape), lane.input, lane.dtypes
    context.set_optimization_profile_async(index, stream.cuda_stream)
    stream.synchronize()
    context.set_input_shape(name, shape)

    def tensor(name: str) -> torch.Tensor:
        size = tuple(context.get_tensor_shape(name))
        if name not in buffers:
            buffers[name] = torch.empty(size, dtype=TYPES[dtypes[name].name], device="cuda")
        context.set_tensor_address(name, buffers[name].data_ptr())
        return buffers[name][: size[0]]

    source, outputs = tensor(name), [tensor(output) for output in runner.output_names]
    dtype: Literal["fp16", "fp32"] = "fp16" if source.dtype == torch.float16 else "fp32"
    batch = DeviceBatch(pointer=source.data_ptr(), shape=shape, dtype=dtype)
    return _Form(batch=batch, input=source, outputs=outputs, context=context)
