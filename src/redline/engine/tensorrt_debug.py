"""Look into a TensorRT engine by debug tensors (10.0 and newer): the graph keeps its outputs, marked tensors are handed out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.engine.graph_facts import read_graph
from redline.engine.tensorrt_builder import build_plan
from redline.errors import TrialError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.engine.segments import Look
    from redline.engine.tensorrt_builder import Plan
    from redline.engine.tensorrt_runner import TensorRTRunner
    from redline.engine.tensorrt_versions import Library
    from redline.records import BuildOptions
    from redline.records.detect import Tensor


def look_by_debug_tensors(
    path: str,
    options: BuildOptions,
    library: Library,
    batch: Tensor,
    *,
    device: int = 0,
    build: Callable[[Sequence[str]], Plan] | None = None,
) -> Look:
    """Each look builds the graph at `path` with other tensors marked, runs it once and closes it.

    `build`: how it is built with these tensors marked; None: from nothing, without timings of earlier builds.
    A marked tensor is not fused away, as an output would not be. Raises TrialError: engine-ability where the version has none.
    """
    if not library.debug_tensors:
        raise library.lacks("debug tensors", "look into the engine by further outputs")
    outputs = {value.name for value in read_graph(path).graph.output}

    def look(cuts: Sequence[str]) -> dict[str, NDArray[Any]]:
        from redline.engine.tensorrt_runner import TensorRTRunner

        watched = [name for name in cuts if name not in outputs]
        plan = build(watched) if build is not None else build_plan(path, options, library, watched=watched)
        runner = TensorRTRunner(plan.data, library, device=device, graphs=False)
        try:
            found = debug_values(runner, batch)
        finally:
            runner.close()
        missing = [name for name in cuts if name not in found]
        if missing:
            raise TrialError("engine-cut", "The engine did not hand out a debug tensor", got=", ".join(missing))
        return found

    return look


def debug_values(runner: TensorRTRunner, batch: Tensor) -> dict[str, NDArray[Any]]:
    """One inference without a CUDA graph: the values of every debug tensor and output by name."""
    from redline.engine import cuda

    library = runner.library
    found: dict[str, NDArray[Any]] = {}

    def receive(name: str, address: int, on_host: bool, kind: Any, shape: tuple[int, ...], stream: int) -> None:
        # The memory is the engine's own and valid only during this call.
        dtype = np.dtype(library.module.nptype(kind))
        if on_host:
            size = int(np.prod(shape)) * dtype.itemsize
            found[name] = np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)
        else:
            found[name] = cuda.fetch(address, shape, dtype, stream)

    with runner.lane() as lane:
        context = lane.context_beside(batch)
        listener = library.listen(context, receive)
        if not context.execute_async_v3(lane.stream.address):
            raise TrialError("engine-run", "TensorRT failed on an input", got=str(tuple(batch.shape)))
        shapes = [tuple(context.get_tensor_shape(name)) for name in lane.outputs]
        found.update(zip(lane.outputs, lane.download(shapes), strict=True))
        del context, listener
    return found
