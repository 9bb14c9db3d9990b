"""What is said to be possible, for made-up machines."""

from __future__ import annotations

import shutil
import sysconfig
from dataclasses import replace

import pytest

from redline.doctor import abilities, cautions
from redline.records import Environment, Library, TensorRTFacts


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


RTX = TensorRTFacts(library="tensorrt-rtx", version="1.7", abilities=("ahead-of-time builds",), problem=None)


def test_tensorrt_says_what_it_can_do(tools):
    facts = replace(RTX, library="tensorrt", version="8.6.0", abilities=("types by flags that follow the graph",))
    ability = next(a for a in abilities(machine(gpus=("A100",)), facts) if a.name == "tensorrt")
    assert ability.available
    assert ability.detail == "tensorrt 8.6.0 (types by flags that follow the graph)"
    ability = next(
        a for a in abilities(machine(gpus=("A100",)), replace(facts, problem="8.6 or newer is needed")) if a.name == "tensorrt"
    )
    assert not ability.available
    assert ability.install == "8.6 or newer is needed"


def test_without_a_gpu_tensorrt_rtx_still_builds_ahead_of_time(tools):
    ability = next(a for a in abilities(machine(), RTX) if a.name == "tensorrt")
    assert not ability.available
    assert "--capability" in ability.install
    plain = replace(RTX, library="", problem="No TensorRT can be loaded")
    assert next(a for a in abilities(machine(), plain) if a.name == "tensorrt").detail == "not installed"


def test_a_gpu_that_would_stay_unused_or_unwatched_is_a_caution(tools):
    texts = cautions(machine(gpus=("A100",), torch="2.13.0+cpu", nvidia_ml_py=None))
    assert any("without CUDA" in text for text in texts)
    assert any("throttled" in text for text in texts)
    assert cautions(machine(gpus=("A100",), torch="2.13.0+cu128", nvidia_ml_py="13.0")) == ()
    assert cautions(machine(torch="2.13.0+cpu")) == ()


def test_export_names_what_is_missing(tools):
    assert by_name(machine(onnx="1.17"))["onnx-export"].detail == "onnxscript not installed"


def test_two_onnx_runtimes_are_a_caution(tools):
    (text,) = cautions(machine(onnxruntime="1.20", onnxruntime_gpu="1.21"))
    assert "onnxruntime 1.20" in text
    assert "onnxruntime-gpu 1.21" in text
    assert cautions(machine(onnxruntime="1.20", onnxruntime_gpu=None)) == ()
