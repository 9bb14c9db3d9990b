"""Which GPU is sampled, and what counts as throttled."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from redline.measure.telemetry import _handle, summarise

NVML = SimpleNamespace(
    nvmlDeviceGetHandleByIndex=lambda index: ("index", index), nvmlDeviceGetHandleByUUID=lambda name: ("uuid", name)
)


@pytest.mark.parametrize(
    ("device", "visible", "handle"),
    [
        (1, None, ("index", 1)),
        (1, "", ("index", 1)),
        (0, "1", ("index", 1)),
        (1, "3, 2", ("index", 2)),
        (0, "GPU-5a", ("uuid", "GPU-5a")),
    ],
)
def test_the_gpu_sampled_is_the_one_that_cuda_counts(device: int, visible: str | None, handle: tuple[str, object]) -> None:
    assert _handle(NVML, device, visible) == handle


def test_a_power_cap_is_named_and_heat_takes_the_verdict() -> None:
    reasons = {1: "power cap", 2: "thermal (hardware)"}
    cool = summarise("gpu", [(1980, 2619, 50, 300.0, 1), (1900, 2619, 55, 400.0, 0)], 0, reasons)
    assert (cool.sm_mhz, cool.power_w, cool.throttle, cool.throttled) == ((1900, 1980), (300.0, 400.0), ("power cap",), False)
    hot = summarise("gpu", [(900, 2619, 90, 300.0, 3)], 0, reasons)
    assert (hot.throttle, hot.throttled) == (("power cap", "thermal (hardware)"), True)
