"""The machine as an `Environment` record, read from /proc, /sys, the package metadata and nvidia-smi."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from redline import __version__
from redline.errors import BadInput
from redline.records import Environment, Library

LIBRARIES = (
    "torch",
    "torchvision",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "nvidia-modelopt",
    "triton",
    "tritonclient",
    "nvidia-pytriton",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "pillow",
    "faster-coco-eval",
    "hdrhistogram",
    "pydantic",
)
CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
PROBE_SECONDS = 20.0


def require_platform() -> None:
    """Raises BadInput on anything but Linux x86-64."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine.lower() not in ("x86_64", "amd64"):
        raise BadInput(
            "platform.unsupported",
            "redline does not run on this platform",
            got=f"{system or 'unknown'} {machine or 'unknown'}",
            allowed="Linux x86_64",
            fix="use a Linux x86-64 machine, a container or virtual machine of that kind, or WSL 2 on Windows",
        )


def inspect_machine() -> Environment:
    """Everything a measurement may depend on. Never raises: what cannot be found out is "unknown", 0, None or absent."""
    return Environment(
        platform=platform.platform(),
        python=platform.python_version(),
        cpu=cpu_model(),
        cores=usable_cores(),
        memory_bytes=usable_memory_bytes(),
        gpus=gpus(),
        libraries=tuple(Library(name=name, version=version_of(name)) for name in LIBRARIES),
        redline=__version__,
        commit=commit(),
    )


def version_of(distribution: str) -> str | None:
    """From the metadata, without an import; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    for line in _text(PROC / "cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or "unknown"


def usable_cores() -> int:
    """Cores this process may keep busy: affinity mask and CPU quota of its control groups, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups("cpu") if (quota := _quota(folder)) is not None]
    return max(1, int(min([allowed, *quotas])))


def usable_memory_bytes() -> int:
    """Physical memory or the smallest limit of the control groups, bytes; 0 if unknown."""
    limits = [limit for folder in _groups("memory") if (limit := _limit(folder)) is not None]
    physical = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if "SC_PHYS_PAGES" in os.sysconf_names else []
    return min([*physical, *limits], default=0)


def gpus() -> tuple[str, ...]:
    """One text a GPU: name, memory, driver; from nvidia-smi or, without it, NVML's Python binding."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        rows = [[cell.strip() for cell in line.split(",")] for line in _output([program, *QUERY]).splitlines()]
        found = tuple(
            f"{name}, {memory} MiB, driver {driver}" for name, memory, driver in (row for row in rows if len(row) == 3)
        )
        if found:
            return found
    return _gpus_by_nvml()


def commit() -> str | None:
    """Git commit of redline's own checkout, "+changes" if it has any; None if it is installed."""
    package = Path(__file__).parents[1]
    root = package.parents[1]
    program = shutil.which("git")
    if program is None or package.parent.name != "src" or not (root / ".git").exists():
        return None
    head = _output([program, "-C", str(root), "rev-parse", "HEAD"]).strip()
    changed = _output([program, "-C", str(root), "status", "--porcelain", "--untracked-files=no"]).strip()
    return (f"{head}+changes" if changed else head) or None


def _gpus_by_nvml() -> tuple[str, ...]:
    if importlib.util.find_spec("pynvml") is None:
        return ()
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver = _decoded(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        described = [(pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles]
        return tuple(f"{_decoded(name)}, {size >> 20} MiB, driver {driver}" for name, size in described)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _decoded(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _groups(controller: str) -> list[Path]:
    """Folders of this process's control groups, innermost first up to the root: version 2, and version 1 of `controller`."""
    folders: list[Path] = []
    for line in _text(PROC / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root = CGROUPS
        elif controller in controllers.split(","):
            root = CGROUPS / controller
        else:
            continue
        # Inside a container the path may be the host's: then only the mounted root exists.
        inner = root / path.strip("/")
        folders += [folder for folder in (inner, *inner.parents) if folder == root or root in folder.parents]
    return folders


def _quota(folder: Path) -> float | None:
    """CPUs' worth of time, or None if there is no limit."""
    quota, period = "", ""
    if both := _text(folder / "cpu.max").split():
        quota, period = both[0], both[1] if len(both) > 1 else "100000"
    else:
        quota, period = _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) > 0 else None


def _limit(folder: Path) -> int | None:
    text = (_text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
