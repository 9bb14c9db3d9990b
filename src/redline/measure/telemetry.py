"""What a GPU did while something was measured: clocks, temperature, power, throttle reasons, other processes, by NVML."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redline.errors import BadInput
from redline.records import Telemetry

INTERVAL_S = 0.05
SLOWING = {
    "nvmlClocksEventReasonSwThermalSlowdown": "thermal (software)",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "thermal (hardware)",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
    "nvmlClocksEventReasonSwPowerCap": "power cap",
}
"""NVML's reasons that slow a busy GPU. Idle, and clocks that somebody set, are no throttling."""
FATAL = frozenset(SLOWING.values()) - {"power cap"}
"""A GPU at its power cap runs as it always does under that load; the others mean that the same run may be faster tomorrow."""


class Recorder:
    """Samples one GPU in a thread of its own until `stop`."""

    def __init__(self, device: int) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise BadInput("measure.nvml", "NVML's binding is missing", got=error, fix="pip install nvidia-ml-py") from error
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handle = _handle(pynvml, device, os.environ.get("CUDA_VISIBLE_DEVICES"))
        except pynvml.NVMLError as error:
            raise BadInput("measure.nvml", "NVML does not see the GPU", got=error, fix="see `redline doctor`") from error
        self._rows: list[tuple[int, int, int, float, int]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="nvml", daemon=True)
        self._thread.start()

    def stop(self) -> Telemetry:
        self._done.set()
        self._thread.join()
        self._rows.append(self._sample())
        name = self._nvml.nvmlDeviceGetName(self._handle)
        record = summarise(name if isinstance(name, str) else name.decode(), self._rows, self._others(), self._reasons())
        self._nvml.nvmlShutdown()
        return record

    def _loop(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self._rows.append(self._sample())

    def _sample(self) -> tuple[int, int, int, float, int]:
        nvml, handle = self._nvml, self._handle
        reasons = (
            getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None) or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        )
        return (
            nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            reasons(handle),
        )

    def _reasons(self) -> dict[int, str]:
        return {getattr(self._nvml, name): text for name, text in SLOWING.items() if hasattr(self._nvml, name)}

    def _others(self) -> int | None:
        try:
            running: list[Any] = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError:
            return None
        return len([process for process in running if process.pid != os.getpid()])


def _handle(nvml: Any, device: int, visible: str | None) -> Any:
    """NVML's handle of CUDA device `device`: NVML counts all GPUs, CUDA those that CUDA_VISIBLE_DEVICES names."""
    names = [name.strip() for name in visible.split(",")] if visible else []
    name = names[device] if device < len(names) else str(device)
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)


def summarise(gpu: str, rows: list[tuple[int, int, int, float, int]], others: int | None, reasons: dict[int, str]) -> Telemetry:
    """`rows`: (SM MHz, memory MHz, degrees C, W, bits of reasons) a sample; `reasons`: text by bit."""
    seen = tuple(text for bit, text in reasons.items() if any(row[4] & bit for row in rows))
    sm, memory, degrees, watts = zip(*(row[:4] for row in rows), strict=True)
    return Telemetry(
        gpu=gpu,
        samples=len(rows),
        sm_mhz=(min(sm), max(sm)),
        memory_mhz=(min(memory), max(memory)),
        temperature_c=(min(degrees), max(degrees)),
        power_w=(min(watts), max(watts)),
        throttle=seen,
        processes=others,
        throttled=bool(FATAL & set(seen)),
    )


@contextmanager
def telemetry(device: int, found: list[Telemetry]) -> Iterator[None]:
    """Appends the record of the block's time to `found`. Raises BadInput (measure.nvml) where there is no NVML."""
    recorder = Recorder(device)
    try:
        yield
    finally:
        found.append(recorder.stop())
