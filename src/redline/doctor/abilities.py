"""What can be done with what is installed."""

from __future__ import annotations

import shutil
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from redline.records import Environment, TensorRTFacts

ONNXRUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
    "ort-nightly",
)
"""Distributions that all install the one module `onnxruntime`: two of them overwrite each other's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    name: str
    """Stable: torch-eager, torch-compile, onnx-export, onnxruntime, cuda, tensorrt, triton."""
    title: str
    available: bool
    detail: str
    install: str | None = None
    """What to do to have it; None if it is there."""


def abilities(environment: Environment, tensorrt: TensorRTFacts | None = None) -> tuple[Ability, ...]:
    """In the order a run needs them. Looks for compilers, headers and programs; imports and starts nothing.

    `tensorrt`: what the library itself says; without it only its version is known.
    """
    versions = {library.name: library.version for library in environment.libraries}
    return (
        _library(versions, "torch-eager", "PyTorch, the FP32 reference", ("torch",), "pip install 'redline[torch]'"),
        _compile(versions),
        _library(versions, "onnx-export", "Export to ONNX", ("onnx", "onnxscript"), "pip install 'redline[torch]'"),
        _onnxruntime(versions),
        _cuda(environment),
        _tensorrt(versions, environment, tensorrt),
        _triton(),
    )


def cautions(environment: Environment) -> tuple[str, ...]:
    """What is installed but will make trouble."""
    found = [f"{name} {version}" for name in ONNXRUNTIMES if (version := _version(environment, name)) is not None]
    several = len(found) > 1
    fix = "they overwrite each other: uninstall all of them, then install one again"
    texts = [f"several ONNX Runtime distributions are installed ({', '.join(found)}); {fix}"] if several else []
    return (*texts, *(_gpu_cautions(environment) if environment.gpus else ()))


def _gpu_cautions(environment: Environment) -> list[str]:
    """What would leave a GPU unused or unwatched."""
    torch, texts = _version(environment, "torch"), []
    if torch is not None and torch.endswith("+cpu"):
        texts.append(f"torch {torch} is built without CUDA: the GPU stays unused; install torch's CUDA build")
    if _version(environment, "nvidia-ml-py") is None:
        texts.append("no GPU telemetry, so a throttled GPU would go unseen: pip install 'redline[tensorrt]'")
    return texts


def _version(environment: Environment, name: str) -> str | None:
    for library in environment.libraries:
        if library.name == name:
            return library.version
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _library(versions: dict[str, str | None], name: str, title: str, needed: tuple[str, ...], install: str) -> Ability:
    missing = [library for library in needed if versions.get(library) is None]
    if missing:
        return Ability(name=name, title=title, available=False, detail=f"{', '.join(missing)} not installed", install=install)
    return Ability(name=name, title=title, available=True, detail=", ".join(f"{key} {versions[key]}" for key in needed))


def _compile(versions: dict[str, str | None]) -> Ability:
    """torch.compile makes C++ on a CPU: it needs torch, g++ (its default compiler) and Python's headers."""
    name, title = "torch-compile", "torch.compile on the CPU"
    gcc, clang = shutil.which("g++"), shutil.which("clang++")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    lacking: list[tuple[str, str]] = []
    if versions.get("torch") is None:
        lacking.append(("torch not installed", "pip install 'redline[torch]'"))
    if gcc is None:
        found = "only clang++, which torch does not take by itself" if clang else "no C++ compiler"
        lacking.append((f"{found} (g++ not found)", "apt install g++"))
    if not header.is_file():
        lacking.append((f"no {header}", "apt install python3-dev"))
    if lacking:
        detail, install = "; ".join(what for what, _ in lacking), "; ".join(fix for _, fix in lacking)
        return Ability(name=name, title=title, available=False, detail=detail, install=install)
    return Ability(name=name, title=title, available=True, detail=f"torch {versions['torch']}, {gcc}, Python.h")


def _onnxruntime(versions: dict[str, str | None]) -> Ability:
    name, title = "onnxruntime", "ONNX Runtime"
    found = [f"{key} {versions[key]}" for key in ("onnxruntime", "onnxruntime-gpu") if versions.get(key) is not None]
    if found:
        return Ability(name=name, title=title, available=True, detail=", ".join(found))
    return Ability(name=name, title=title, available=False, detail="not installed", install="pip install 'redline[ort]'")


def _cuda(environment: Environment) -> Ability:
    found = environment.gpus
    return Ability(
        name="cuda",
        title="NVIDIA GPU",
        available=bool(found),
        detail="; ".join(found) or "none found by nvidia-smi or NVML",
        install=None if found else "a machine with an NVIDIA GPU and its driver",
    )


def _tensorrt(versions: dict[str, str | None], environment: Environment, facts: TensorRTFacts | None) -> Ability:
    name, title = "tensorrt", "TensorRT"
    found = [f"{key} {versions[key]}" for key in ("tensorrt", "tensorrt-rtx") if versions.get(key) is not None]
    if facts is not None and facts.library:  # it may be a build of one's own, without metadata
        found = [f"{facts.library} {facts.version} ({', '.join(facts.abilities)})"]
    if not found:
        install = "pip install tensorrt (needs an NVIDIA GPU)"
        return Ability(name=name, title=title, available=False, detail="not installed", install=install)
    gpu = "a machine with an NVIDIA GPU and its driver"
    if not environment.gpus:
        install = f"{gpu}; without one redline build --capability builds ahead of time" if _ahead(facts) else gpu
        detail = f"{', '.join(found)}, but no GPU to run on"
        return Ability(name=name, title=title, available=False, detail=detail, install=install)
    if facts is not None and facts.problem is not None:
        return Ability(name=name, title=title, available=False, detail=", ".join(found), install=facts.problem)
    return Ability(name=name, title=title, available=True, detail=", ".join(found))


def _ahead(facts: TensorRTFacts | None) -> bool:
    return facts is not None and facts.library == "tensorrt-rtx"


def _triton() -> Ability:
    """A `tritonserver` on the PATH, or the one inside the nvidia-pytriton wheel."""
    found = shutil.which("tritonserver") or _bundled_server()
    return Ability(
        name="triton",
        title="Triton Inference Server",
        available=found is not None,
        detail=found or "no tritonserver program",
        install=None if found else "pip install nvidia-pytriton, or work in NVIDIA's Triton container",
    )


def _bundled_server() -> str | None:
    try:
        program = Path(str(metadata.distribution("nvidia-pytriton").locate_file("pytriton/tritonserver/bin/tritonserver")))
    except metadata.PackageNotFoundError:
        return None
    return str(program) if program.is_file() else None
