"""What is said to be possible, for made-up machines."""

from __future__ import annotations

import shutil
import sysconfig

import pytest

from redline.doctor import abilities, cautions
from redline.records import Environment, Library


def machine(gpus=(), **versions):
    libraries = tuple(Library(name=name.replace("_", "-"), version=version) for name, version in versions.items())
    return Environment(
        platform="Linux",
        python="3.11",
        cpu="x",
        cores=2,
        memory_bytes=1,
        gpus=gpus,
        libraries=libraries,
        redline="0",
        commit=None,
    )


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Programs that are found, and a folder with Python's header."""
    found = {"g++": "/usr/bin/g++"}
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(shutil, "which", found.get)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    return found, tmp_path


def by_name(environment):
    return {ability.name: ability for ability in abilities(environment)}


def test_an_empty_machine_is_told_what_to_install(tools):
    found = by_name(machine())
    assert not any(ability.available for ability in found.values())
    assert all(ability.install for ability in found.values())
    assert "redline[torch]" in found["torch-eager"].install
    assert "redline[ort]" in found["onnxruntime"].install


def test_a_full_machine(tools):
    found, _ = tools
    found["tritonserver"] = "/opt/tritonserver/bin/tritonserver"
    full = machine(
        gpus=("A100",), torch="2.11", onnx="1.17", onnxscript="0.5", onnxruntime_gpu="1.20", tensorrt="10.3", tensorrt_rtx=None
    )
    assert {ability.name for ability in abilities(full) if ability.available} == {
        "torch-eager", "torch-compile", "onnx-export", "onnxruntime", "cuda", "tensorrt", "triton",
    }  # fmt: skip
    assert all(ability.install is None for ability in abilities(full))
    assert by_name(full)["tensorrt"].detail == "tensorrt 10.3"


def test_compile_needs_torch_compiler_and_header(tools):
    found, folder = tools
    assert by_name(machine(torch="2.11"))["torch-compile"].available
    assert "torch not installed" in by_name(machine())["torch-compile"].detail
    (folder / "Python.h").unlink()
    found.clear()
    found["clang++"] = "/usr/bin/clang++"
    ability = by_name(machine(torch="2.11"))["torch-compile"]
    assert not ability.available
    assert "clang++" in ability.detail
    assert ability.install == "apt install g++; apt install python3-dev"


def test_tensorrt_without_gpu_is_not_available(tools):
    ability = by_name(machine(tensorrt="10.3"))["tensorrt"]
    assert not ability.available
    assert "no GPU" in ability.detail


def test_export_names_what_is_missing(tools):
    assert by_name(machine(onnx="1.17"))["onnx-export"].detail == "onnxscript not installed"


def test_two_onnx_runtimes_are_a_caution(tools):
    (text,) = cautions(machine(onnxruntime="1.20", onnxruntime_gpu="1.21"))
    assert "onnxruntime 1.20" in text
    assert "onnxruntime-gpu 1.21" in text
    assert cautions(machine(onnxruntime="1.20", onnxruntime_gpu=None)) == ()
