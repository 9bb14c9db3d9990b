# ruff: noqa: N802, N815
"""The part of `cuda.bindings.runtime` that redline calls, on host memory: a stream does at once what it is told.

While a stream captures, work is recorded instead, and a launch of the graph does it. Everything is counted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

Work = Callable[[], None]


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorUnknown = 999


class Kind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class Mode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class FakeCuda:
    """`total`: bytes of the device. What is alive: `memory`, `pinned`, `streams`, `graphs`, `events`."""

    cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode, cudaStreamNonBlocking = Error, Kind, Mode, 1

    def __init__(self, total: int = 1 << 30, name: str = "Fake 1") -> None:
        self.total, self.name = total, name
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Work] | None] = {}
        """Recorded work while capturing, None while not."""
        self.graphs: dict[int, list[Work]] = {}
        self.events: set[int] = set()
        self.allocations = self.launches = self.synchronisations = 0
        self._next = 1

    def submit(self, stream: int, work: Work) -> None:
        recorded = self.streams[int(stream)]
        if recorded is None:
            work()
        else:
            recorded.append(work)

    @property
    def used(self) -> int:
        return sum(map(ctypes.sizeof, self.memory.values()))

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self.used + size > self.total:
            return Error.cudaErrorMemoryAllocation, None
        return Error.cudaSuccess, self._allocate(self.memory, size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return Error.cudaSuccess, self._allocate(self.pinned, size)

    def _allocate(self, place: dict[int, Any], size: int) -> int:
        self.allocations += 1
        buffer = ctypes.create_string_buffer(size)
        place[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.memory[address]
        return (Error.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        del self.pinned[address]
        return (Error.cudaSuccess,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, self.total - self.used, self.total

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Kind, stream: int) -> tuple[Any, ...]:
        self.submit(stream, lambda: ctypes.memmove(to, source, size) and None)
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        handle = self._handle()
        self.streams[handle] = None
        return Error.cudaSuccess, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del self.streams[stream]
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        self.synchronisations += 1
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: Mode) -> tuple[Any, ...]:
        self.streams[stream] = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        recorded, self.streams[stream] = self.streams[stream], None
        return Error.cudaSuccess, recorded

    def cudaGraphInstantiate(self, captured: list[Work], flags: int) -> tuple[Any, ...]:
        handle = self._handle()
        self.graphs[handle] = captured
        return Error.cudaSuccess, handle

    def cudaGraphDestroy(self, captured: Any) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        del self.graphs[graph]
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        for work in self.graphs[graph]:
            work()
        return (Error.cudaSuccess,)

    def cudaEventCreate(self) -> tuple[Any, ...]:
        handle = self._handle()
        self.events.add(handle)
        return Error.cudaSuccess, handle

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        self.events.remove(event)
        return (Error.cudaSuccess,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:
        return Error.cudaSuccess, 0.25

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return Error.cudaSuccess, SimpleNamespace(name=self.name.encode() + b"\0\0", major=8, minor=9)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, 12080

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def cudaGetErrorString(self, error: Error) -> tuple[Any, ...]:
        return Error.cudaSuccess, {Error.cudaErrorMemoryAllocation: b"out of memory"}.get(error, b"unknown error")
