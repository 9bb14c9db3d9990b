"""GPU telemetry with a fake NVML: what is sampled, what marks a measurement, what is said where there is no NVML."""

from __future__ import annotations

import os
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from redline.errors import BadInput
from redline.measure import telemetry as subject
from redline.records import Telemetry

BITS = {name: 1 << index for index, name in enumerate(subject.SLOWING)}
IDLE = 1 << 20


class FakeNvml(ModuleType):
    """One GPU. `reasons`: bits of each sample in turn, the last for ever; `pids`: processes on it, None: it is not told."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, reasons: list[int] | None = None, pids: list[int] | None = None, devices: int = 1) -> None:
        super().__init__("pynvml")
        self.reasons, self.pids, self.devices = reasons or [0], pids, devices
        self.clocks = iter(range(1000, 100000, 10))
        self.open = 0
        self.__dict__.update(BITS)

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index >= self.devices:
            raise self.NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return b"Fake GPU"

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        return next(self.clocks) if kind == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:  # noqa: N802
        return 60

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return 350_000

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:  # noqa: N802
        return self.reasons.pop(0) if len(self.reasons) > 1 else self.reasons[0]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        if self.pids is None:
            raise self.NVMLError("Not Permitted")
        return [SimpleNamespace(pid=pid) for pid in self.pids]


def measured(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml, seconds: float = 0.0) -> Telemetry:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found: list[Telemetry] = []
    with subject.telemetry(0, found):
        time.sleep(seconds)
    return found[0]


def test_a_quiet_gpu_is_described_and_nvml_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(pids=[os.getpid()])
    found = measured(monkeypatch, nvml, 4 * subject.INTERVAL_S)
    assert found.samples >= 3
    assert found.sm_mhz == (1000, 1000 + 10 * (found.samples - 1))
    assert (found.gpu, found.memory_mhz, found.temperature_c, found.power_w) == (
        "Fake GPU",
        (2619, 2619),
        (60, 60),
        (350.0, 350.0),
    )
    assert (found.throttle, found.processes, found.throttled) == ((), 0, False)
    assert nvml.open == 0


@pytest.mark.parametrize("name", subject.SLOWING)
def test_every_reason_that_slows_is_named_and_all_but_the_power_cap_take_the_verdict(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = measured(monkeypatch, FakeNvml([BITS[name] | IDLE], []))
    assert found.throttle == (subject.SLOWING[name],)
    assert found.throttled == (name != "nvmlClocksEventReasonSwPowerCap")


def test_one_throttled_sample_among_many_marks_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    hot = BITS["nvmlClocksThrottleReasonHwThermalSlowdown"]
    found = measured(monkeypatch, FakeNvml([0, hot, 0], []), 5 * subject.INTERVAL_S)
    assert found.samples > 3
    assert (found.throttle, found.throttled) == (("thermal (hardware)",), True)


def test_an_idle_gpu_is_not_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, FakeNvml([IDLE], []))
    assert (found.throttle, found.throttled) == ((), False)


@pytest.mark.parametrize(("pids", "others"), [([], 0), ([os.getpid()], 0), ([os.getpid(), 1, 2], 2), (None, None)])
def test_other_processes_on_the_gpu_are_counted(
    monkeypatch: pytest.MonkeyPatch, pids: list[int] | None, others: int | None
) -> None:
    assert measured(monkeypatch, FakeNvml(pids=pids)).processes == others


def test_the_old_name_of_the_reasons_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(FakeNvml):
        def __getattribute__(self, name: str) -> Any:
            if name == "nvmlDeviceGetCurrentClocksEventReasons":
                raise AttributeError(name)
            return super().__getattribute__(name)

        def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:  # noqa: N802
            return BITS["nvmlClocksThrottleReasonHwSlowdown"]

    assert measured(monkeypatch, Old(pids=[])).throttle == ("hardware slowdown",)


def test_no_gpu_and_no_binding_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="Invalid Argument") as caught:
        measured(monkeypatch, FakeNvml(devices=0))
    assert caught.value.code == "measure.nvml"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(BadInput, match="pip install nvidia-ml-py") as caught:
        subject.Recorder(0)
    assert caught.value.code == "measure.nvml"


def test_the_record_is_made_when_the_measurement_fails_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(pids=[]))
    found: list[Telemetry] = []
    with pytest.raises(ZeroDivisionError), subject.telemetry(0, found):
        raise ZeroDivisionError
    assert found[0].samples == 1
