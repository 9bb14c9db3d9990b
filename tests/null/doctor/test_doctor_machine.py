"""The machine, read from made-up /proc and /sys trees and programs that answer as the real ones do."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from redline.doctor import inspect_machine, machine, require_platform
from redline.errors import BadInput


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """(proc, cgroups), with eight cores allowed by the affinity mask."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    monkeypatch.setattr(machine, "PROC", proc)
    monkeypatch.setattr(machine, "CGROUPS", groups)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return proc, groups


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_this_machine():
    found = inspect_machine()
    assert 1 <= found.cores <= os.cpu_count()
    assert found.memory_bytes > 100 << 20
    assert found.python == platform.python_version()
    versions = {library.name: library.version for library in found.libraries}
    assert versions["numpy"] == __import__("numpy").__version__
    assert versions["tensorrt-rtx"] is None or versions["tensorrt-rtx"][0].isdigit()


def test_nothing_heavy_is_imported():
    code = "import sys; from redline.doctor import *; abilities(inspect_machine()); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnx", "onnxruntime", "cv2", "numpy", "matplotlib", "pydantic"} & set(loaded)


def test_cores_by_affinity_alone(roots):
    assert machine.usable_cores() == 8


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({"a/b/cpu.max": "300000 100000\n"}, 3),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000"}, 2),
        ({"a/b/cpu.max": "50000 100000"}, 1),
        ({"a/b/cpu.max": "max"}, 8),
        ({"cpu.max": "400000 100000"}, 4),
        ({"a/b/cpu.max": "9900000 100000"}, 8),
        ({"a/b/cpu.max": "nonsense"}, 8),
    ],
)
def test_cores_under_control_groups_version_2(roots, limits, cores):
    proc, groups = roots
    write(proc / "self" / "cgroup", "0::/a/b\n")
    for name, text in limits.items():
        write(groups / name, text)
    assert machine.usable_cores() == cores


def test_cores_under_control_groups_version_1(roots):
    proc, groups = roots
    write(proc / "self" / "cgroup", "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")
    write(groups / "cpu" / "job" / "cpu.cfs_quota_us", "150000\n")
    write(groups / "cpu" / "job" / "cpu.cfs_period_us", "50000\n")
    write(groups / "memory" / "job" / "memory.limit_in_bytes", "123456789\n")
    assert machine.usable_cores() == 3
    assert machine.usable_memory_bytes() == 123_456_789
    write(groups / "cpu" / "job" / "cpu.cfs_quota_us", "-1\n")
    assert machine.usable_cores() == 8


def test_a_path_of_the_host_falls_back_to_the_mounted_root(roots):
    proc, groups = roots
    write(proc / "self" / "cgroup", "0::/host/only\n")
    write(groups / "cpu.max", "200000 100000")
    write(groups / "memory.max", "1000000")
    assert machine.usable_cores() == 2
    assert machine.usable_memory_bytes() == 1_000_000


def test_memory_without_a_limit_is_the_physical_one(roots):
    proc, groups = roots
    write(proc / "self" / "cgroup", "0::/\n")
    write(groups / "memory.max", "max\n")
    assert machine.usable_memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_cpu_model(roots):
    proc, _ = roots
    write(proc / "cpuinfo", "processor\t: 0\nmodel name\t: Example CPU @ 2.00GHz\nmodel name\t: other\n")
    assert machine.cpu_model() == "Example CPU @ 2.00GHz"
    write(proc / "cpuinfo", "processor : 0\n")
    assert machine.cpu_model()


def program(tmp_path, monkeypatch, name, script):
    path = tmp_path / "bin" / name
    write(path, f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))


def test_gpus_from_nvidia_smi(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "nvidia-smi", 'echo "NVIDIA A100, 81920, 550.54"; echo "NVIDIA A100, 81920, 550.54"')
    assert machine.gpus() == ("NVIDIA A100, 81920 MiB, driver 550.54",) * 2


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "echo; echo a,b"])
def test_an_nvidia_smi_without_gpus(tmp_path, monkeypatch, script):
    monkeypatch.setattr(machine, "_gpus_by_nvml", lambda: ())
    program(tmp_path, monkeypatch, "nvidia-smi", script)
    assert machine.gpus() == ()


def test_a_program_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(machine, "PROBE_SECONDS", 0.05)
    assert machine._output([sys.executable, "-c", "import time; time.sleep(9)"]) == ""


@pytest.mark.parametrize(
    ("system", "kind", "fits"),
    [
        ("Linux", "x86_64", True),
        ("Linux", "aarch64", False),
        ("Darwin", "arm64", False),
        ("Darwin", "x86_64", False),
        ("Windows", "AMD64", False),
        ("", "", False),
    ],
)
def test_platforms(monkeypatch, system, kind, fits):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: kind)
    if fits:
        require_platform()
        return
    with pytest.raises(BadInput) as caught:
        require_platform()
    assert caught.value.code == "platform.unsupported"
    assert system in str(caught.value.got)
    assert "Linux x86_64" in str(caught.value)
