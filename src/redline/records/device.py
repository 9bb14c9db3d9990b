"""What a device can do by its data sheet: the roof of every prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Arithmetic = Literal["fp32", "tf32", "fp16", "int8", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sourced:
    """A number and where it is written; `value` None is unknown and stays unknown."""

    value: float | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """On-demand price of one device."""

    usd_per_hour: float
    date: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MigSlice:
    """One geometry a GPU can be cut into: `count` slices of `sms` multiprocessors and `memory_gib`."""

    name: str
    count: int
    sms: int
    memory_gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """One device by its data sheet.

    `peaks` are dense rates in TFLOP/s (int8: TOP/s), fp32 on the ordinary cores; 1 GB/s is 1e9 bytes a second.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    compute_capability: tuple[int, int] | None = None
    sms: Sourced
    boost_mhz: Sourced
    peaks: tuple[tuple[Arithmetic, Sourced], ...]
    memory_gib: Sourced
    bandwidth_gb_s: Sourced
    l2_mib: Sourced
    shared_kib_per_sm: Sourced
    registers_per_sm: Sourced
    warps_per_sm: Sourced
    blocks_per_sm: Sourced
    pcie_gb_s: Sourced
    """One direction of its own link."""
    nvlink_gb_s: Sourced
    """Both directions together, as data sheets count."""
    nvdec_engines: Sourced
    jpeg_engines: Sourced
    power_w: Sourced
    mig: tuple[MigSlice, ...] = ()
    prices: tuple[Price, ...] = ()

    def peak(self, arithmetic: Arithmetic) -> float | None:
        """Dense peak in TFLOP/s; None where the device has no such arithmetic or it is unknown."""
        return next((peak.value for name, peak in self.peaks if name == arithmetic), None)
