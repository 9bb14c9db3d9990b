"""Occupancy as plan/occupancy.py computes it, as the driver computes it, and as blocks were counted on the multiprocessors.

Protocol: a kernel whose blocks add one to a counter of their multiprocessor, spin for a while, and take it away again; the
largest value seen is how many were resident at once. It is compiled to keep 0 to 220 values in registers, and launched with
blocks of 32 to 1,024 threads and 0 to 220,000 bytes of shared memory, 66 blocks for every multiprocessor. Where a launch should
not fit at all, the driver must refuse it. The registers are those that the driver reports of the compiled kernel.

    python benchmarks/gpu_occupancy.py [--output FILE]
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

from redline.doctor import inspect_machine
from redline.errors import BadInput, TrialError
from redline.kernels.nvrtc import machine_code, ok
from redline.plan.occupancy import occupancy
from redline.store import dump

SOURCE = """
extern "C" __global__ void hold(int* now, int* most, const float* values, float* sink, long long cycles) {
    extern __shared__ int memory[];
    float kept[LIVE + 1];
#pragma unroll
    for (int i = 0; i <= LIVE; ++i) kept[i] = values[(threadIdx.x + i * 37) & 1023];
    __syncthreads();  // the values are in registers from here on
    unsigned int place;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(place));
    if (threadIdx.x == 0) {
        atomicMax(most + place, atomicAdd(now + place, 1) + 1);
        long long until = clock64() + cycles;
        while (clock64() < until) {}
        atomicSub(now + place, 1);
    }
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int i = 0; i <= LIVE; ++i) sum = sum * 1.5f + kept[i];
    if (sum == 12345.678f) sink[0] = sum + memory[0];
}
"""
LIVE = (0, 16, 40, 72, 120, 220)
THREADS = (32, 64, 96, 128, 192, 256, 320, 512, 768, 1024)
SHARED = (0, 1000, 9000, 33_000, 60_000, 110_000, 220_000)
BLOCKS, CYCLES = 66, 150_000
NO_ROOM = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"


class Held:
    """The kernel that keeps `live` values in registers."""

    def __init__(self, live: int, capability: tuple[int, int], most_shared: int) -> None:
        from cuda.bindings import driver

        code = machine_code(SOURCE, "hold.cu", f"sm_{capability[0]}{capability[1]}", [f"LIVE={live}"])
        self.module = ok(driver.cuModuleLoadData(code))
        self.function = ok(driver.cuModuleGetFunction(self.module, b"hold"))
        kinds = driver.CUfunction_attribute
        self.registers = int(ok(driver.cuFuncGetAttribute(kinds.CU_FUNC_ATTRIBUTE_NUM_REGS, self.function)))
        # As much shared memory as a multiprocessor can have: what the computed figure takes for granted.
        carve = kinds.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
        ok(driver.cuFuncSetAttribute(self.function, carve, 100))
        most = kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        ok(driver.cuFuncSetAttribute(self.function, most, most_shared))

    def by_driver(self, threads: int, shared: int) -> int:
        from cuda.bindings import driver

        return int(ok(driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(self.function, threads, shared)))

    def counted(self, threads: int, shared: int) -> list[int]:
        """The most blocks at once on the fullest and on the emptiest multiprocessor. Raises TrialError if refused."""
        import numpy as np
        import torch
        from cuda.bindings import driver

        places = torch.cuda.get_device_properties(0).multi_processor_count
        now, most = (torch.zeros(places, dtype=torch.int32, device="cuda") for _ in range(2))
        values, sink = torch.rand(1024, device="cuda"), torch.zeros(1, device="cuda")
        scalars = [np.array(tensor.data_ptr(), np.uint64) for tensor in (now, most, values, sink)]
        scalars.append(np.array(CYCLES, np.int64))
        addresses = np.array([scalar.ctypes.data for scalar in scalars], np.uint64)
        grid, stream = (BLOCKS * places, 1, 1), torch.cuda.current_stream().cuda_stream
        ok(driver.cuLaunchKernel(self.function, *grid, threads, 1, 1, shared, stream, addresses.ctypes.data, 0))
        torch.cuda.synchronize()
        return [int(most.max()), int(most.min())]


def row(held: Held, capability: tuple[int, int], threads: int, shared: int) -> dict[str, Any]:
    try:
        found = occupancy(
            capability, threads_per_block=threads, registers_per_thread=held.registers, shared_bytes_per_block=shared
        )
    except BadInput as error:
        return {"threads": threads, "registers": held.registers, "shared_bytes": shared, "refused": error.line()}
    try:
        counted = held.counted(threads, shared)
    except TrialError as error:
        if error.got != NO_ROOM:
            raise
        counted = [0, 0]
    return {
        "threads": threads,
        "registers": held.registers,
        "shared_bytes": shared,
        "computed": found.blocks,
        "limiters": found.limiters,
        "driver": held.by_driver(threads, shared),
        "counted": counted,
    }


def main() -> None:
    import torch

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", type=Path)
    given = options.parse_args()
    torch.zeros(1, device="cuda")
    capability = torch.cuda.get_device_capability(0)
    most = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    kernels = [Held(live, capability, most) for live in LIVE]
    sizes = [size for size in SHARED if size <= most]
    rows = [row(held, capability, *one) for held in kernels for one in product(THREADS, sizes)]
    compared = [one for one in rows if "computed" in one]
    result = {
        "environment": json.loads(dump(inspect_machine())),
        "gpu": torch.cuda.get_device_name(0),
        "capability": capability,
        "protocol": (__doc__ or "").split("\n\n")[1],
        "launches": len(compared),
        "as_the_driver": sum(one["computed"] == one["driver"] for one in compared),
        "as_counted": sum(one["computed"] == one["counted"][0] for one in compared),
        "refused_as_computed": sum(one["computed"] == 0 == one["counted"][0] for one in compared),
        "rows": rows,
    }
    print(json.dumps({key: value for key, value in result.items() if key not in ("environment", "rows")}, indent=1))
    for one in compared:
        if not one["computed"] == one["driver"] == one["counted"][0]:
            print(json.dumps(one))
    if given.output is not None:
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
