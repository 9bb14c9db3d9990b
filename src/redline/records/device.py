"""What a device can do by its data sheet, what it was measured to do, and how full a kernel can make it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Arithmetic = Literal["fp32", "tf32", "fp16", "int8", "fp8"]
DeviceKind = Literal["gpu", "cpu"]
CeilingKind = Literal["ceiling", "lower bound"]
Limiter = Literal["threads", "blocks", "registers", "shared memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sourced:
    """A number and where it is written; `value` None is unknown and stays unknown."""

    value: float | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Price of one device for one hour in one offer."""

    usd_per_hour: float
    date: str
    """When it was read, YYYY-MM-DD, or YYYY-MM of a page that says no day."""
    source: str
    offer: str = ""
    """Whose, and which of its tiers."""


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

    `peaks` are dense rates in TFLOP/s (int8: TOP/s), fp32 on the ordinary cores; an arithmetic that is not listed is one that
    the device does not have. 1 GB/s is 1e9 bytes a second. `memory_gib` is what the data sheet calls GB: driver and ECC keep
    some of it.
    """

    name: str
    title: str
    kind: DeviceKind = "gpu"
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
    """Both directions together, as data sheets count; 0: it has none."""
    nvdec_engines: Sourced
    jpeg_engines: Sourced
    power_w: Sourced
    mig: tuple[MigSlice, ...] = ()
    mig_source: str = ""
    """Where the geometries are written, or why there are none here."""
    prices: tuple[Price, ...] = ()

    def peak(self, arithmetic: Arithmetic) -> float | None:
        """Dense peak in TFLOP/s; None where the device has no such arithmetic or it is unknown."""
        return next((peak.value for name, peak in self.peaks if name == arithmetic), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """One rate that this machine reached: the median of `repeats` runs, and the slowest and fastest of them."""

    what: str
    """Stable: copy, copy-one-thread, matmul-fp32 (-tf32, -fp16, -bf16, -int8), h2d-pinned, h2d-pageable, d2h-pinned and
    d2h-pageable."""
    value: float
    unit: str
    """GB/s (1e9 bytes a second; a copy counts what it reads and what it writes), TFLOP/s or TOP/s."""
    kind: CeilingKind
    """A ceiling is what a tuned library reaches; a lower bound is what the path at hand reaches, and better may exist."""
    why: str
    """What ran, and on a lower bound what makes it one."""
    slowest: float
    fastest: float
    repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What one device was measured to reach, for a plan to set beside its data sheet."""

    device: str
    kind: DeviceKind
    threads: int
    """Of the CPU, where it did the work."""
    torch: str
    started: str
    seconds: float
    measured: tuple[Ceiling, ...]
    missing: tuple[tuple[str, str], ...] = ()
    """What was not measured, and why."""

    def rate(self, what: str) -> float | None:
        """Median of one measurement in its unit; None if it is missing."""
        return next((ceiling.value for ceiling in self.measured if ceiling.what == what), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """How many blocks of a kernel one multiprocessor holds, and what keeps it from holding more."""

    compute_capability: tuple[int, int]
    threads_per_block: int
    registers_per_thread: int
    shared_bytes_per_block: int
    blocks: int
    """Resident blocks; 0: the kernel cannot be launched so."""
    warps: int
    share: float
    """Resident warps of those that the multiprocessor can hold."""
    limits: tuple[tuple[Limiter, int], ...]
    """Blocks that each resource allows that the kernel uses."""
    limiters: tuple[Limiter, ...]
    """The resources that allow the fewest."""
