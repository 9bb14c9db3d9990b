"""The little of the CUDA runtime that a runner needs, through cuda.bindings: memory, streams, events and graphs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from cuda.bindings import runtime as cudart

from redline.errors import TrialError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Error = cudart.cudaError_t
Kind = cudart.cudaMemcpyKind


def ok(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call. Raises TrialError: engine-memory (out of memory) or engine-cuda (anything else)."""
    error, *values = result
    if error != Error.cudaSuccess:
        name = str(cudart.cudaGetErrorString(error)[1].decode())
        if error == Error.cudaErrorMemoryAllocation:
            cudart.cudaGetLastError()  # out of memory is not sticky: forget it, so that the search can go on
            fix = "smaller profiles, fewer inferences in flight, or free the GPU's memory"
            raise TrialError("engine-memory", "The GPU is out of memory", got=name, fix=fix)
        raise TrialError(
            "engine-cuda", "A CUDA call failed", got=name, fix="see `redline doctor`; the process may need a restart"
        )
    return values[0] if len(values) == 1 else values or None


_here = threading.local()


def select(device: int) -> None:
    ok(cudart.cudaSetDevice(device))
    _here.device = device


def ensure(device: int) -> None:
    """`select`, unless this thread did so last: several runners may share a thread, each on a GPU of its own."""
    if getattr(_here, "device", None) != device:
        select(device)


def memory(device: int) -> tuple[int, int]:
    """(free, total) bytes of the device."""
    select(device)
    free, total = ok(cudart.cudaMemGetInfo())
    return int(free), int(total)


def describe(device: int) -> tuple[str, str, str]:
    """(name, compute capability, driver's CUDA version) of a GPU."""
    properties = ok(cudart.cudaGetDeviceProperties(device))
    driver = int(ok(cudart.cudaDriverGetVersion()))
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return name.rstrip("\0"), f"{properties.major}.{properties.minor}", f"{driver // 1000}.{driver % 1000 // 10}"


class Scratch:
    """Device memory, allocated once. Raises TrialError: engine-memory."""

    def __init__(self, size: int) -> None:
        self.size, self.device = max(size, 1), 0
        self.device = int(ok(cudart.cudaMalloc(self.size)))

    def close(self) -> None:
        if self.device:
            cudart.cudaFree(self.device)
        self.device = 0


class Buffer:
    """Device memory and pinned host memory of the same size, allocated once."""

    def __init__(self, size: int) -> None:
        self.size = max(size, 1)
        self.device, self.host = 0, 0
        try:
            self.device = int(ok(cudart.cudaMalloc(self.size)))
            self.host = int(ok(cudart.cudaMallocHost(self.size)))
        except TrialError:
            self.close()
            raise
        self.bytes = np.ctypeslib.as_array(_pointer(self.host), shape=(self.size,))

    def view(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """The head of the host memory as an array; no copy."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        array: NDArray[Any] = self.bytes[:count].view(dtype).reshape(shape)
        return array

    def close(self) -> None:
        if self.device:
            cudart.cudaFree(self.device)
        if self.host:
            cudart.cudaFreeHost(self.host)
        self.device = self.host = 0


def _pointer(address: int) -> Any:
    import ctypes

    return ctypes.cast(ctypes.c_void_p(address), ctypes.POINTER(ctypes.c_uint8))


def fetch(address: int, shape: tuple[int, ...], dtype: Any, stream: int) -> NDArray[Any]:
    """Device memory as a new array; waits for the stream (an address)."""
    array: NDArray[Any] = np.empty(shape, dtype)
    ok(cudart.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, Kind.cudaMemcpyDeviceToHost, stream))
    ok(cudart.cudaStreamSynchronize(stream))
    return array


class Stream:
    """A stream of its own that does not wait for the legacy default stream."""

    def __init__(self) -> None:
        self.handle = ok(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))

    @property
    def address(self) -> int:
        return int(self.handle)

    def to_device(self, buffer: Buffer, size: int) -> None:
        ok(cudart.cudaMemcpyAsync(buffer.device, buffer.host, size, Kind.cudaMemcpyHostToDevice, self.handle))

    def to_host(self, buffer: Buffer, size: int) -> None:
        ok(cudart.cudaMemcpyAsync(buffer.host, buffer.device, size, Kind.cudaMemcpyDeviceToHost, self.handle))

    def wait(self) -> None:
        ok(cudart.cudaStreamSynchronize(self.handle))

    def begin_capture(self) -> None:
        ok(cudart.cudaStreamBeginCapture(self.handle, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))

    def end_capture(self) -> Graph:
        return Graph(ok(cudart.cudaStreamEndCapture(self.handle)))

    def abandon_capture(self) -> None:
        """After a call that could not be captured: forget the broken graph and its error."""
        cudart.cudaStreamEndCapture(self.handle)
        cudart.cudaGetLastError()

    def launch(self, graph: Graph) -> None:
        ok(cudart.cudaGraphLaunch(graph.handle, self.handle))

    def close(self) -> None:
        cudart.cudaStreamDestroy(self.handle)


class Graph:
    """An instantiated CUDA graph: shapes and addresses are fixed in it."""

    def __init__(self, captured: Any) -> None:
        try:
            self.handle = ok(cudart.cudaGraphInstantiate(captured, 0))
        finally:
            cudart.cudaGraphDestroy(captured)

    def close(self) -> None:
        cudart.cudaGraphExecDestroy(self.handle)


class Event:
    def __init__(self) -> None:
        self.handle = ok(cudart.cudaEventCreate())

    def record(self, stream: Stream) -> None:
        ok(cudart.cudaEventRecord(self.handle, stream.handle))

    def since(self, earlier: Event) -> float:
        """Milliseconds; both must have happened."""
        return float(ok(cudart.cudaEventElapsedTime(earlier.handle, self.handle)))

    def close(self) -> None:
        cudart.cudaEventDestroy(self.handle)
