"""A TensorRT plan on one GPU: named tensors, memory allocated once, a context for each profile, CUDA graphs for each shape."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.engine import cuda
from redline.engine.dlpack import DeviceArray, borrow
from redline.engine.tensorrt_log import make_logger
from redline.engine.tensorrt_order import in_order
from redline.errors import TrialError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import tensorrt as trt

    from redline.engine.tensorrt_log import Log
    from redline.engine.tensorrt_versions import Library
    from redline.records.detect import Tensor

GRAPHS = 32
"""Most CUDA graphs that a lane keeps; each holds some memory of the driver, and the least recently used goes first."""
Shape = tuple[int, ...]
REBUILD = "redline build"
Key = tuple[int, Shape, int]
"""(profile, input shape, input address) of a captured graph."""


def open_engine(
    plan: bytes, library: Library, *, rebuild: str = REBUILD, host_code: bool = False
) -> tuple[trt.ICudaEngine, Log, tuple[Any, Any]]:
    """(engine, its log, what must stay alive with it). `host_code`: the plan is version-compatible, and brings a runtime.

    Raises TrialError: engine-plan with the command that builds it anew.
    """
    log, logger = make_logger(library.module)
    runtime = library.runtime(logger, host_code=host_code)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        text = log.tail()
        what = "The file is not an engine, is cut short, or was built by another version or for another GPU"
        raise TrialError("engine-plan", what, got=f"{len(plan)} bytes; {text}", fix=f"build it here: {rebuild}")
    return engine, log, (runtime, logger)


class TensorRTRunner:
    """(N, 3, H, W) -> raw outputs. Thread-safe: `lanes` inferences run at once, each on a stream with contexts of its own.

    With `graphs` every (profile, shape) is captured once as a CUDA graph and replayed from then on.
    """

    def __init__(
        self,
        plan: bytes,
        library: Library,
        *,
        device: int = 0,
        lanes: int = 1,
        graphs: bool = True,
        outputs: Sequence[str] = (),
        rebuild: str = REBUILD,
        host_code: bool = False,
    ) -> None:
        """`outputs`: names in the order in which results are wanted, as the graph has them (`EngineBuild.outputs`): an engine
        lists its tensors in an order of its own, which is taken if none is given. Raises TrialError: engine-outputs.
        """
        cuda.select(device)
        self.library, self.device = library, device
        self.engine: Any
        self.engine, self._log, self._alive = open_engine(plan, library, rebuild=rebuild, host_code=host_code)
        self.name = f"{library.name} {library.version} {cuda.describe(device)[0]}"
        self.profiles = _profiles(self.engine, library.module.TensorIOMode.INPUT)
        self._lanes: list[Lane] = []
        self._free: SimpleQueue[Lane] = SimpleQueue()
        try:
            for _ in range(lanes):
                self._lanes.append(Lane(self.engine, self.profiles, library, self._log, device, graphs, outputs))
                self._free.put(self._lanes[-1])
        except TrialError:
            self.close()
            raise

    @property
    def output_names(self) -> tuple[str, ...]:
        """In the order in which `run` gives them."""
        return tuple(self._lanes[0].outputs)

    def run(self, batch: Tensor) -> tuple[Tensor, ...]:
        with self.lane() as lane:
            return lane.run(batch)

    def infer(self, array: Any) -> tuple[DeviceArray, ...]:
        """GPU array in, GPU arrays out, no copy in either direction (DLPack). Outputs are valid until the next call.

        One lane only, since outputs are that lane's memory. Raises TrialError: engine-lanes otherwise.
        A caller that hands in the same memory again replays the same CUDA graph.
        """
        if len(self._lanes) != 1:
            raise TrialError(
                "engine-lanes", "Outputs on the GPU belong to a lane", got=f"{len(self._lanes)} lanes", allowed="1"
            )
        return self._lanes[0].infer(array)

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """A lane for this caller alone; waits until one is free."""
        lane = self._free.get()
        try:
            yield lane
        finally:
            self._free.put(lane)

    def close(self) -> None:
        """Gives all GPU memory back; contexts before the engine."""
        for lane in self._lanes:
            lane.close()
        self._lanes = []
        self.engine = None
        self._alive = (None, None)


def no_memory(log: Log) -> TrialError:
    fix = "smaller profiles, fewer inferences in flight, or free the GPU's memory"
    return TrialError("engine-memory", "No memory for an execution context", got=log.tail(), fix=fix)


class Lane:
    """One inference at a time: a stream, contexts of all profiles on one scratch memory, buffers for the largest shapes."""

    def __init__(
        self,
        engine: trt.ICudaEngine,
        profiles: list[tuple[Shape, Shape, Shape]],
        library: Library,
        log: Log,
        device: int,
        graphs: bool,
        outputs: Sequence[str] = (),
    ) -> None:
        self._engine, self._profiles, self._log, self._device = engine, profiles, log, device
        self._keep = GRAPHS if graphs else 0
        self.graphs: OrderedDict[Key, cuda.Graph] = OrderedDict()
        self.buffers: dict[str, cuda.Buffer] = {}
        self.scratch: cuda.Scratch | None = None
        self.contexts: list[trt.IExecutionContext] = []
        self.stream = cuda.Stream()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        mode = library.module.TensorIOMode.INPUT
        self.input = next(name for name in names if engine.get_tensor_mode(name) == mode)
        self.outputs = in_order([name for name in names if engine.get_tensor_mode(name) != mode], outputs)
        self.dtypes = {name: np.dtype(library.module.nptype(engine.get_tensor_dtype(name))) for name in names}
        self._shape: list[tuple[Shape, int] | None] = []
        try:
            self._open(library)
        except TrialError:
            self.close()
            raise

    def _open(self, library: Library) -> None:
        sizes = dict.fromkeys((self.input, *self.outputs), 0)
        self.scratch = cuda.Scratch(library.context_bytes(self._engine))
        for index, (_, _, largest) in enumerate(self._profiles):
            context = library.context_on(self._engine, self.scratch.device, self.scratch.size)
            if context is None:
                raise no_memory(self._log)
            context.set_optimization_profile_async(index, self.stream.address)
            self.stream.wait()
            context.set_input_shape(self.input, largest)
            for name in sizes:
                sizes[name] = max(sizes[name], int(np.prod(tuple(context.get_tensor_shape(name)))) * self.dtypes[name].itemsize)
            self.contexts.append(context)
            self._shape.append(None)
            del context  # the traceback of a failure below would keep its memory
        self.buffers = {}
        for name, size in sizes.items():
            self.buffers[name] = cuda.Buffer(size)

    def context_beside(self, batch: Tensor) -> Any:
        """A context of its own on the lane's buffers, with `batch` uploaded: for a profiler or a listener, which would slow the
        lane's. Raises TrialError: engine-shape, engine-memory."""
        self.upload(batch)
        context = self._engine.create_execution_context()
        if context is None:
            raise no_memory(self._log)
        context.set_optimization_profile_async(self.profile_of(batch.shape), self.stream.address)
        self.stream.wait()
        context.set_input_shape(self.input, tuple(batch.shape))
        for name, buffer in self.buffers.items():
            context.set_tensor_address(name, buffer.device)
        return context

    def run(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Through pinned memory; returns arrays the caller owns. Raises TrialError: engine-shape, engine-run."""
        self.upload(batch)
        shapes = self.compute(batch.shape)
        return self.download(shapes)

    def upload(self, batch: Tensor) -> None:
        self._select()
        self.profile_of(batch.shape)
        buffer = self.buffers[self.input]
        np.copyto(buffer.view(batch.shape, self.dtypes[self.input]), batch, casting="same_kind")
        self.stream.to_device(buffer, batch.size * self.dtypes[self.input].itemsize)

    def compute(self, shape: Shape, address: int | None = None) -> list[Shape]:
        """Enqueue the network on the input buffer (or `address`); returns the shapes of the outputs. Does not wait."""
        self._select()
        index = self.profile_of(shape)
        source = self.buffers[self.input].device if address is None else address
        key = (index, tuple(shape), source)
        graph = self.graphs.get(key)
        context = self._prepare(index, tuple(shape), source)
        if graph is not None:
            self.graphs.move_to_end(key)
            self.stream.launch(graph)
        else:
            self._enqueue(context, shape)
            if self._keep:
                self._capture(key, context)
        return [tuple(context.get_tensor_shape(name)) for name in self.outputs]

    def download(self, shapes: list[Shape]) -> tuple[Tensor, ...]:
        views = [self.buffers[name].view(shape, self.dtypes[name]) for name, shape in zip(self.outputs, shapes, strict=True)]
        for name, view in zip(self.outputs, views, strict=True):
            self.stream.to_host(self.buffers[name], view.nbytes)
        self.stream.wait()
        return tuple(view.copy() for view in views)

    def infer(self, array: Any) -> tuple[DeviceArray, ...]:
        self._select()
        lent = borrow(array, self.stream.address, self.dtypes[self.input])
        shapes = self.compute(lent.shape, lent.address)
        self.stream.wait()
        return tuple(
            DeviceArray(self.buffers[name].device, shape, self.dtypes[name], self._device, self)
            for name, shape in zip(self.outputs, shapes, strict=True)
        )

    def profile_of(self, shape: Shape) -> int:
        """The smallest profile that holds `shape`. Raises TrialError: engine-shape, naming the nearest profile."""
        return choose_profile(self._profiles, tuple(shape))

    def close(self) -> None:
        cuda.select(self._device)
        for graph in self.graphs.values():
            graph.close()
        self.graphs.clear()
        self.contexts.clear()
        if self.scratch is not None:
            self.scratch.close()
        for buffer in self.buffers.values():
            buffer.close()
        self.buffers = {}
        self.stream.close()

    def _select(self) -> None:
        """The current device belongs to a thread, which may run lanes of several GPUs in turn."""
        cuda.ensure(self._device)

    def _prepare(self, index: int, shape: Shape, source: int) -> trt.IExecutionContext:
        context = self.contexts[index]
        if self._shape[index] != (shape, source):
            if not context.set_input_shape(self.input, shape):
                raise TrialError("engine-run", "TensorRT refuses an input shape", got=f"{shape}; {self._log.tail()}")
            context.set_tensor_address(self.input, source)
            for name in self.outputs:
                context.set_tensor_address(name, self.buffers[name].device)
            self._shape[index] = (shape, source)
        return context

    def _enqueue(self, context: trt.IExecutionContext, shape: Shape) -> None:
        if not context.execute_async_v3(self.stream.address):
            raise TrialError("engine-run", "TensorRT failed on an input", got=f"{tuple(shape)}; {self._log.tail()}")

    def _capture(self, key: Key, context: trt.IExecutionContext) -> None:
        """The plain run before was the warm-up that capture needs. A network that cannot be captured stays plain."""
        self.stream.wait()
        self.stream.begin_capture()
        if not context.execute_async_v3(self.stream.address):
            self.stream.abandon_capture()
            self._keep = 0
            return
        self.graphs[key] = self.stream.end_capture()
        while len(self.graphs) > self._keep:
            self.graphs.popitem(last=False)[1].close()


def choose_profile(profiles: list[tuple[Shape, Shape, Shape]], shape: Shape) -> int:
    """Of (minimum, optimum, maximum) profiles the smallest that holds `shape`; ties go to the nearest optimum, then the first.

    Raises TrialError: engine-shape with the nearest profile if none does.
    """
    fits = [
        index
        for index, (low, _, high) in enumerate(profiles)
        if len(low) == len(shape) and all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))
    ]
    if fits:
        return min(fits, key=lambda i: (int(np.prod(profiles[i][2])), _gap(profiles[i][1], shape), i))
    near = min(range(len(profiles)), key=lambda i: _outside(profiles[i], shape))
    low, _, high = profiles[near]
    allowed = f"profile {near}: {' x '.join(f'{a}' if a == b else f'{a}..{b}' for a, b in zip(low, high, strict=True))}"
    fix = "resize or split the batch to fit, or build with a profile for this shape"
    raise TrialError(
        "engine-shape", "The shape lies outside every profile", got=" x ".join(map(str, shape)), allowed=allowed, fix=fix
    )


def _gap(one: Shape, other: Shape) -> float:
    return float(sum(abs(np.log(a / b)) for a, b in zip(one, other, strict=True)))


def _outside(profile: tuple[Shape, Shape, Shape], shape: Shape) -> float:
    """How far out `shape` is, as the sum of log ratios by axis."""
    low, _, high = profile
    if len(low) != len(shape):
        return float("inf")
    return sum(float(np.log(max(a / max(s, 1), s / b, 1))) for a, s, b in zip(low, shape, high, strict=True))


def _profiles(engine: trt.ICudaEngine, mode: trt.TensorIOMode) -> list[tuple[Shape, Shape, Shape]]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    name = next(name for name in names if engine.get_tensor_mode(name) == mode)
    return [
        tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, index))  # type: ignore[misc]
        for index in range(engine.num_optimization_profiles)
    ]
