"""The GPUs that CUDA shows to this process, in its own order, and the TensorRT that could run on them."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import Any

from redline.engine.tensorrt_versions import Library, find
from redline.errors import BadInput, TrialError
from redline.records import TensorRTFacts

NEEDED = (
    ("IBuilderConfig", "builder_optimization_level"),
    ("ICudaEngine", "num_io_tensors"),
    ("IExecutionContext", "execute_async_v3"),
)
"""What every build and run here uses, and what 8.6 was the first to have all of."""
COMPILERS = ("cc", "gcc", "clang")
"""Triton compiles its launchers with one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    name: str
    memory_bytes: int


def visible_gpus() -> tuple[Gpu, ...]:
    """By CUDA's index. Raises TrialError (engine-no-gpu) if torch cannot use any, with the reason."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as NVML counts; CUDA by itself has the fastest first
    try:
        import torch
    except ImportError as error:
        fix = "pip install 'redline[torch]'"
        raise TrialError("engine-no-gpu", "torch finds the GPUs, and is not installed", got=error, fix=fix) from error
    if torch.version.cuda is None:
        fix = "install torch's CUDA build, from https://pytorch.org"
        raise TrialError("engine-no-gpu", "this torch is built without CUDA", got=f"torch {torch.__version__}", fix=fix)
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = tuple(_gpu(torch.cuda.get_device_properties(index)) for index in range(count))
    except RuntimeError as error:  # how torch tells of a driver that is too old or does not answer
        raise _unseen(str(error).splitlines()[0]) from error
    if not found:
        raise _unseen(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    return found


def no_compile() -> str | None:
    """Why torch.compile cannot make GPU code here."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed, which torch.compile needs on a GPU"
    if not any(shutil.which(compiler) for compiler in COMPILERS):
        return f"no C compiler ({', '.join(COMPILERS)}), which Triton needs"
    return None


def tensorrt_facts() -> TensorRTFacts:
    """The TensorRT that is installed, and why it cannot be used if so. Imports it."""
    try:
        library = find()
    except BadInput as error:
        return TensorRTFacts(library="", version="", abilities=(), problem=f"{error.what} ({error.got}): {error.fix}")
    return TensorRTFacts(
        library=library.name, version=library.version, abilities=library.abilities(), problem=unusable(library)
    )


def unusable(library: Library) -> str | None:
    """Why this version cannot be used; None if it can."""
    for owner, member in NEEDED:
        if not hasattr(getattr(library.module, owner, None), member):
            return f"{library.name} {library.version} has no {owner}.{member}: 8.6 or newer is needed"
    if not _has_cuda_bindings():
        return "the CUDA runtime's binding is missing: pip install 'redline[tensorrt]'"
    return None


def _has_cuda_bindings() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except ImportError:
        return False


def _gpu(properties: Any) -> Gpu:
    return Gpu(name=str(properties.name), memory_bytes=int(properties.total_memory))


def _unseen(got: str) -> TrialError:
    fix = "see `redline doctor`; CUDA_VISIBLE_DEVICES may hide it, or the driver be too old for this torch"
    return TrialError("engine-no-gpu", "torch sees no GPU", got=got, fix=fix)
