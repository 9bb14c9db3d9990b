"""CUDA C++ of this package, compiled for the GPU at hand when it is first needed, and launched on the caller's stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import TrialError

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPTIONS = ("--std=c++17", "--fmad=false")
"""The kernels fuse a product with a sum nowhere: the reference does not."""


def source(name: str) -> str:
    """CUDA C++ text of a file of this package."""
    return files("redline.kernels").joinpath(name).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """What the compiler made of a kernel."""

    registers: int
    local_bytes: int
    """Of a thread: spilled registers and arrays that are indexed at run time."""
    shared_bytes: int
    constant_bytes: int


class Kernel:
    """A compiled kernel in the current CUDA context. Launches allocate nothing on the device and wait for nothing."""

    def __init__(self, module: Any, function: Any) -> None:
        self.module = module
        self.function = function

    def launch(
        self, grid: tuple[int, int, int], block: tuple[int, int, int], stream: int, arguments: Sequence[NDArray[Any]]
    ) -> None:
        """`arguments`: one numpy scalar array each, of the size of the kernel's parameter; read before this returns."""
        from cuda.bindings import driver

        addresses = np.array([argument.ctypes.data for argument in arguments], np.uint64)
        ok(driver.cuLaunchKernel(self.function, *grid, *block, 0, stream, addresses.ctypes.data, 0))

    def facts(self) -> KernelFacts:
        from cuda.bindings import driver

        kinds = driver.CUfunction_attribute
        wanted = (
            kinds.CU_FUNC_ATTRIBUTE_NUM_REGS,
            kinds.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
            kinds.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
            kinds.CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES,
        )
        registers, local, shared, constant = (int(ok(driver.cuFuncGetAttribute(kind, self.function))) for kind in wanted)
        return KernelFacts(registers=registers, local_bytes=local, shared_bytes=shared, constant_bytes=constant)


def compile_kernel(name: str, function: str, defines: Sequence[str]) -> Kernel:
    """Compile a file of this package for the current device. `defines`: "NAME=VALUE" each.

    Raises TrialError: kernels.compile (with the compiler's log), kernels.cuda (no context, or a driver's error).
    """
    from cuda.bindings import driver

    ok(driver.cuInit(0))
    device = ok(driver.cuCtxGetDevice())
    kinds = driver.CUdevice_attribute
    major = ok(driver.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
    minor = ok(driver.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
    module = ok(driver.cuModuleLoadData(compiled(name, f"sm_{major}{minor}", tuple(defines))))
    return Kernel(module, ok(driver.cuModuleGetFunction(module, function.encode())))


@cache
def compiled(name: str, architecture: str, defines: tuple[str, ...]) -> bytes:
    """Machine code for an architecture such as "sm_90"; needs no GPU. Raises TrialError: kernels.compile."""
    return machine_code(source(name), name, architecture, defines)


def machine_code(text: str, name: str, architecture: str, defines: Sequence[str]) -> bytes:
    """As `compiled`, of CUDA C++ that lies in no file of this package; `name` is for the compiler's messages."""
    from cuda.bindings import nvrtc

    options = [option.encode() for option in (f"--gpu-architecture={architecture}", *OPTIONS, *(f"-D{d}" for d in defines))]
    program = ok(nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], []))
    try:
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(ok(nvrtc.nvrtcGetProgramLogSize(program)))
            nvrtc.nvrtcGetProgramLog(program, log)
            raise TrialError(
                "kernels.compile",
                f"NVRTC cannot compile {name} for {architecture}",
                got=log.rstrip(b"\0\n").decode(errors="replace"),
                fix="install the nvidia-cuda-nvrtc of the driver's CUDA version",
            )
        code = bytearray(ok(nvrtc.nvrtcGetCUBINSize(program)))
        ok(nvrtc.nvrtcGetCUBIN(program, code))
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def ok(result: tuple[Any, ...]) -> Any:
    """The value of a call to the driver or to NVRTC. Raises TrialError: kernels.cuda."""
    error, *values = result
    if int(error) != 0:
        raise TrialError("kernels.cuda", "A call to the CUDA driver failed", got=error.name, fix="see `redline doctor`")
    return values[0] if values else None
