"""Measured ceilings of the first GPU, or of the CPU where there is none: copies and matrix products, by torch.

A product by a library that is tuned for the device is a ceiling: nothing of ours will be faster. Where the library is not, or
takes a path that is not made for this processor, the figure is a lower bound of what the device can do, and says so.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from redline.doctor.machine import cpu_model, usable_cores, usable_memory_bytes
from redline.errors import BadInput
from redline.records import Ceiling, CeilingKind, Ceilings, DeviceKind
from redline.store import dump, load
from redline.store.disk import write_file

Run = Callable[[], object]
Clock = Callable[[Run], float]
Phases = Callable[[str, int, int], None]

LEAST_REPEATS = 5
MOST_REPEATS = 50
MEMORY_SHARE = 8
"""One buffer takes at most this part of what is free."""
GPU_BURST_S = 0.05
"""Launches timed together on a GPU, so that the gaps between them do not count."""
DRIVER = "the driver's copy"
GPU = "cuda:0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is moved and multiplied, and for how long. The copies are far larger than a cache."""

    copy_bytes: int
    side: int
    """Of the square matrices."""
    seconds: float
    """Of each measurement, once it has repeated often enough."""


CPU_SIZES = Sizes(copy_bytes=1 << 28, side=2048, seconds=2.0)
GPU_SIZES = Sizes(copy_bytes=1 << 30, side=8192, seconds=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One measurement: `prepare` makes the data and returns what is timed; `amount` is bytes or operations of one run."""

    what: str
    unit: str
    amount: float
    kind: CeilingKind
    why: str
    prepare: Callable[[], Run]


def measure_ceilings(phases: Phases = lambda what, step, steps: None, sizes: Sizes | None = None) -> Ceilings:
    """Measure this machine, for seconds; `phases` is told which step of how many begins.

    What fails is in `Ceilings.missing` with its reason. Raises BadInput (doctor.no-torch) without torch.
    """
    torch = _torch()
    started, begun = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.perf_counter()
    cuda = bool(torch.cuda.is_available())
    kind: DeviceKind = "gpu" if cuda else "cpu"
    used = sizes or (GPU_SIZES if cuda else CPU_SIZES)
    tasks = gpu_tasks(torch, used) if cuda else cpu_tasks(torch, used)
    measured: list[Ceiling] = []
    missing: list[tuple[str, str]] = []
    with _threads(torch) as threads:
        for step, task in enumerate(tasks, 1):
            phases(task.what, step, len(tasks))
            try:
                measured.append(_measure(task, _events(torch) if cuda else _wall, used.seconds))
            except RuntimeError as error:  # out of memory, or an arithmetic that this build of torch lacks
                missing.append((task.what, str(error).splitlines()[0]))
    return Ceilings(
        device=str(torch.cuda.get_device_name(0)) if cuda else cpu_model(),
        kind=kind,
        threads=threads,
        torch=str(torch.__version__),
        started=started,
        seconds=time.perf_counter() - begun,
        measured=tuple(measured),
        missing=tuple(missing),
    )


def write_ceilings(ceilings: Ceilings, path: Path) -> None:
    """As JSON, whole or not at all. Raises StoreError if `path` cannot be written."""
    write_file(path, dump(ceilings, indent=2) + b"\n", path.parent)


def read_ceilings(path: Path) -> Ceilings:
    """What `write_ceilings` wrote. Raises BadInput (doctor.no-ceilings) if there is no file, StoreError if it is another."""
    try:
        data = path.read_bytes()
    except OSError as error:
        fix = "redline doctor --measure writes it"
        raise BadInput("doctor.no-ceilings", f"cannot read {path}", got=error.strerror, fix=fix) from error
    return load(Ceilings, data)


def cpu_tasks(torch: Any, sizes: Sizes) -> tuple[Task, ...]:
    """Copies and an FP32 product on all usable cores, and a copy on one."""
    count = _elements(sizes.copy_bytes, usable_memory_bytes())
    kind, library = _cpu_library(torch)

    def copy() -> Run:
        source, target = torch.ones(count, dtype=torch.float32), torch.zeros(count, dtype=torch.float32)
        return lambda: target.copy_(source)

    def copy_on_one() -> Run:
        import numpy as np

        source, target = np.ones(count, np.float32), np.zeros(count, np.float32)
        return lambda: np.copyto(target, source)

    def product() -> Run:
        left, right, out = (torch.rand(sizes.side, sizes.side) for _ in range(3))
        return lambda: torch.mm(left, right, out=out)

    moved = 2.0 * 4 * count
    why = "by torch on all cores, with loads and stores that also read what they overwrite"
    one = "by numpy on one core"
    return (
        Task(what="copy", unit="GB/s", amount=moved, kind="lower bound", why=why, prepare=copy),
        Task(what="copy-one-thread", unit="GB/s", amount=moved, kind="lower bound", why=one, prepare=copy_on_one),
        Task(what="matmul-fp32", unit="TFLOP/s", amount=_ops(sizes), kind=kind, why=library, prepare=product),
    )


def gpu_tasks(torch: Any, sizes: Sizes) -> tuple[Task, ...]:
    """Copies within the GPU and to and from it, and products in every arithmetic that it has and torch offers."""
    free = min(int(torch.cuda.mem_get_info(0)[0]), usable_memory_bytes() or sizes.copy_bytes * MEMORY_SHARE)
    size = 4 * _elements(sizes.copy_bytes, free)

    def buffer(where: str) -> Any:
        pinned = where == "pinned"
        return torch.ones(size, dtype=torch.uint8, device=GPU if where == GPU else "cpu", pin_memory=pinned)

    def copy(source: str, target: str) -> Run:
        read, written = buffer(source), buffer(target)
        return lambda: written.copy_(read, non_blocking=True)

    def transfer(what: str, source: str, target: str, kind: CeilingKind, why: str) -> Task:
        amount = 2.0 * size if source == target else float(size)
        return Task(what=what, unit="GB/s", amount=amount, kind=kind, why=why, prepare=partial(copy, source, target))

    staged = f"{DRIVER}, by way of its own pinned buffer and on one thread"
    return (
        transfer("copy", GPU, GPU, "ceiling", DRIVER),
        *_products(torch, sizes),
        transfer("h2d-pinned", "pinned", GPU, "ceiling", DRIVER),
        transfer("d2h-pinned", GPU, "pinned", "ceiling", DRIVER),
        transfer("h2d-pageable", "pageable", GPU, "lower bound", staged),
        transfer("d2h-pageable", GPU, "pageable", "lower bound", staged),
    )


def _products(torch: Any, sizes: Sizes) -> Iterator[Task]:
    """FP32 on the ordinary cores, then what the compute capability has of tensor-core arithmetic."""
    capability, side, why = torch.cuda.get_device_capability(0), sizes.side, f"cuBLAS, {sizes.side} x {sizes.side}"

    def product(dtype: Any, tf32: bool) -> Run:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        left, right = (torch.rand(side, side, device=GPU).to(dtype) for _ in range(2))
        return lambda: torch.mm(left, right)

    def integers() -> Run:
        left, right = (torch.ones(side, side, dtype=torch.int8, device=GPU) for _ in range(2))
        return lambda: torch._int_mm(left, right.t())

    kinds = (
        ("matmul-fp32", "TFLOP/s", (0, 0), partial(product, torch.float32, False)),
        ("matmul-tf32", "TFLOP/s", (8, 0), partial(product, torch.float32, True)),
        ("matmul-fp16", "TFLOP/s", (7, 0), partial(product, torch.float16, False)),
        ("matmul-bf16", "TFLOP/s", (8, 0), partial(product, torch.bfloat16, False)),
        ("matmul-int8", "TOP/s", (7, 5), integers),
    )
    for what, unit, least, prepare in kinds:
        if capability >= least:
            yield Task(what=what, unit=unit, amount=_ops(sizes), kind="ceiling", why=why, prepare=prepare)


def _measure(task: Task, clock: Clock, seconds: float) -> Ceiling:
    run = task.prepare()
    clock(run)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_REPEATS or (time.perf_counter() < end and len(times) < MOST_REPEATS):
        times.append(clock(run))
    scale = task.amount / (1e9 if task.unit == "GB/s" else 1e12)
    return Ceiling(
        what=task.what,
        value=scale / statistics.median(times),
        unit=task.unit,
        kind=task.kind,
        why=task.why,
        slowest=scale / max(times),
        fastest=scale / min(times),
        repeats=len(times),
    )


def _wall(run: Run) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _events(torch: Any) -> Clock:
    """Seconds of one run by CUDA events, over as many runs as fill a burst."""
    burst = 1

    def clock(run: Run) -> float:
        nonlocal burst
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(burst):
            run()
        end.record()
        end.synchronize()
        each = float(start.elapsed_time(end)) / 1000 / burst
        burst = max(1, min(20, int(GPU_BURST_S / max(each, 1e-6))))
        return each

    return clock


@contextlib.contextmanager
def _threads(torch: Any) -> Iterator[int]:
    """All usable cores, and no TF32 left behind."""
    before, tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(usable_cores())
    try:
        yield int(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _cpu_library(torch: Any) -> tuple[CeilingKind, str]:
    """Which library multiplies, and whether it is tuned for this processor."""
    if not torch.backends.mkl.is_available():
        return "lower bound", "torch is built without MKL"
    if "intel" not in cpu_model().lower():
        return "lower bound", "MKL, whose kernels are tuned for Intel's processors; this is another"
    return "ceiling", "MKL"


def _elements(wanted: int, free: int) -> int:
    """Numbers of 4 bytes in one buffer."""
    return (min(wanted, free // MEMORY_SHARE) if free else wanted) // 4


def _ops(sizes: Sizes) -> float:
    return 2.0 * sizes.side**3


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        fix = "pip install 'redline[torch]'"
        raise BadInput("doctor.no-torch", "measuring needs torch, which is not installed", got=error, fix=fix) from error
    return torch
