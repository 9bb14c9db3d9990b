"""What the server's Python gets for engines on a GPU, and how it is asked whether it has it. A script stands for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from redline.errors import BadInput, StoreError
from redline.serve import environment
from redline.serve.environment import (
    ServerEnvironment,
    gpu_packages,
    install_environment,
    process_environment,
    require_tensorrt,
)

NEEDED = {
    "numpy": "1.26.4",
    "pillow": "11",
    "onnxruntime": "1.20",
    "opencv-python-headless": "4.11",
    "nvidia-pytriton": "0.7.0",
}


def home(folder: Path, *, more: dict[str, str] | None = None) -> Path:
    """An environment whose python3 answers questions as a sound one does and writes down what pip is told to install."""
    stub = folder / "site" / "pytriton" / "tritonserver" / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.touch()
    (folder / "bin").mkdir()
    (folder / "more.json").write_text(json.dumps(more or {}))
    script = f"""#!{sys.executable}
import json, pathlib, sys
folder = pathlib.Path({str(folder)!r})
if sys.argv[1:4] == ["-m", "pip", "install"]:
    pins = [word for word in sys.argv[4:] if not word.startswith("-")]
    (folder / "asked").write_text(json.dumps(pins))
    if (folder / "broken").exists():
        sys.exit("no matching distribution")
    known = json.loads((folder / "more.json").read_text())
    known.update(pin.split("==") for pin in pins if "==" in pin)
    (folder / "more.json").write_text(json.dumps(known))
else:
    known = json.loads((folder / "more.json").read_text())
    print(json.dumps({{"minor": [3, 11], "libpython": "/lib/libpython3.11.so", "library": "x", "purelib": str(folder / "site"),
        "versions": {NEEDED!r}, "more": {{name: known.get(name) for name in sys.argv[4:]}}}}))
"""
    (folder / "bin" / "python3").write_text(script)
    (folder / "bin" / "python3").chmod(0o755)
    return folder


def asked(folder: Path) -> list[str] | None:
    path = folder / "asked"
    return json.loads(path.read_text()) if path.exists() else None


PINS = ("tensorrt-cu12==10.13.0.35", "cuda-bindings==12.9.2")


def test_what_an_engine_needs_is_installed_once_beside_numpy_1(tmp_path):
    folder, told = home(tmp_path), []
    found = install_environment(folder, more=PINS, note=told.append)
    assert asked(folder) == [*PINS, "numpy>=1.26,<2"]
    assert dict(found.versions) == {**NEEDED, "tensorrt-cu12": "10.13.0.35", "cuda-bindings": "12.9.2"}
    (folder / "asked").unlink()
    assert install_environment(folder, more=PINS, note=told.append) == found
    assert asked(folder) is None
    assert len(told) == 1
    assert "tensorrt-cu12==10.13.0.35" in told[0]
    newer = ("tensorrt-cu12==10.14.1.48", PINS[1])
    install_environment(folder, more=newer, note=told.append)
    assert asked(folder) == [newer[0], "numpy>=1.26,<2"]


def test_without_a_gpu_nothing_more_is_installed(tmp_path):
    assert dict(install_environment(home(tmp_path), note=pytest.fail).versions) == NEEDED


def test_an_install_that_fails_says_what_pip_said(tmp_path):
    folder = home(tmp_path)
    (folder / "broken").touch()
    with pytest.raises(StoreError, match="no matching distribution") as caught:
        install_environment(folder, more=PINS, note=lambda _: None)
    assert PINS[0] in str(caught.value.fix)


@pytest.mark.parametrize(
    ("modules", "versions", "pins"),
    [
        ({"tensorrt": ["tensorrt-cu12"]}, {"tensorrt-cu12": "10.13.0.35", "cuda-bindings": "12.9.2"}, PINS),
        ({"tensorrt_rtx": ["rtx"]}, {"rtx": "1.7", "cuda-bindings": "13"}, ("rtx==1.7", "cuda-bindings==13")),
        ({"tensorrt": ["trt"], "tensorrt_rtx": ["rtx"]}, {"trt": "8", "cuda-bindings": "12"}, ("trt==8", "cuda-bindings==12")),
        ({"numpy": ["numpy"]}, {"cuda-bindings": "12.6"}, ()),
        ({"tensorrt": ["tensorrt"]}, {"tensorrt": "8.6.1"}, ()),
    ],
)  # fmt: skip
def test_the_server_gets_the_tensorrt_that_redline_has(monkeypatch, modules, versions, pins):
    def version(name):
        if name not in versions:
            raise environment.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(environment.metadata, "packages_distributions", lambda: modules)
    monkeypatch.setattr(environment.metadata, "version", version)
    assert gpu_packages() == pins


def server(folder: Path, answer: str) -> ServerEnvironment:
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").write_text(f"#!/bin/sh\n{answer}\n")
    (folder / "bin" / "python3").chmod(0o755)
    return ServerEnvironment(bin=str(folder / "bin"), libpython_folder=None, triton="", stub="", versions=())


def says(**values: object) -> str:
    return f"echo '{json.dumps(values)}'"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (says(version="10.13.0", gpus=1), None),
        (f"echo noise; {says(version='10.13.0', gpus=2)}", None),
        (says(version="10.14.1", gpus=1), "tensorrt 10.14.1, 1 GPUs"),
        (says(version="10.13.0", gpus=0), "tensorrt 10.13.0, 0 GPUs"),
        (says(problem="ModuleNotFoundError: No module named cuda"), "No module named cuda"),
        ("exit 3", "exit status 3"),
        ("true", "IndexError"),
    ],
)
def test_a_server_without_the_engines_tensorrt_is_refused(tmp_path, answer, told):
    where = server(tmp_path, answer)
    if told is None:
        require_tensorrt(where, "tensorrt", "10.13.0")
        return
    with pytest.raises(BadInput) as caught:
        require_tensorrt(where, "tensorrt", "10.13.0")
    assert caught.value.code == "serve.tensorrt"
    assert told in str(caught.value.got)
    assert caught.value.fix == "redline serve --install"


def test_the_question_is_answered_by_a_python_without_tensorrt(tmp_path, monkeypatch):
    """The script itself, run by this Python."""
    where = server(tmp_path, f'exec {sys.executable} "$@"')
    with pytest.raises(BadInput) as caught:
        require_tensorrt(where, "tensorrt", "10.13.0")
    assert "ModuleNotFoundError" in str(caught.value.got)


def test_the_servers_process_counts_gpus_as_redline_and_keeps_the_drivers_path(monkeypatch):
    of = ServerEnvironment(bin="/b", libpython_folder="/python/lib", triton="", stub="", versions=())
    monkeypatch.setenv("LD_LIBRARY_PATH", "/driver")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    found = process_environment(of)
    assert (found["LD_LIBRARY_PATH"], found["CUDA_DEVICE_ORDER"]) == ("/python/lib:/driver", "PCI_BUS_ID")
    monkeypatch.delenv("LD_LIBRARY_PATH")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    found = process_environment(of)
    assert (found["LD_LIBRARY_PATH"], found["CUDA_DEVICE_ORDER"]) == ("/python/lib", "FASTEST_FIRST")


def test_install_asks_for_what_engines_need_where_there_is_a_gpu(monkeypatch):
    from redline import api, doctor

    given: list[tuple[str, ...]] = []
    monkeypatch.setattr(environment, "install_environment", lambda *, more: given.append(more))
    monkeypatch.setattr(environment, "gpu_packages", lambda: PINS)
    for gpus in ((), ("H100",)):
        monkeypatch.setattr(doctor, "inspect_machine", lambda gpus=gpus: SimpleNamespace(gpus=gpus))
        api.install_server()
    assert given == [(), PINS]
