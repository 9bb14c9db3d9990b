"""Compare the occupancy calculator with NVIDIA's header on every launch of a grid, and keep a sample of its answers as a test.

python tools/occupancy_reference.py INCLUDE, the folder of cuda_occupancy.h: `pip download nvidia-cuda-runtime` and unpack it.
It compiles a small program against the header with g++; the header itself is not kept.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from redline.plan.devices import sm_limits
from redline.plan.occupancy import MAX_THREADS, occupancy

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))
THREADS = (32, 33, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
REGISTERS = (0, 8, 16, 24, 25, 32, 33, 37, 40, 48, 56, 64, 72, 80, 96, 100, 128, 160, 168, 255)
SHARED = (0, 1, 100, 1024, 4096, 8192, 12288, 16384, 24576, 32767, 32768, 49152, 65536, 101376, 102400, 166912, 204800, 232448)
SAMPLE = 61
"""One launch of so many is kept; coprime with the grid's sides, so that all of them are touched."""
BITS = {"threads": 1, "registers": 2, "shared memory": 4, "blocks": 8}
KEPT = Path(__file__).parents[1] / "tests" / "null" / "plan" / "occupancy_reference.json"
COLUMNS = ["major", "minor", "threads per block", "registers per thread", "shared bytes per block", "resident blocks"]
PROGRAM = """
#include <climits>
#include <cstdio>
#include "cuda_occupancy.h"
int main() {
    int major, minor, most, registers, shared_sm, reserved, threads, regs, shared;
    while (scanf("%d %d %d %d %d %d %d %d %d", &major, &minor, &most, &registers, &shared_sm, &reserved, &threads, &regs,
                 &shared) == 9) {
        cudaOccDeviceProp device;
        device.computeMajor = major; device.computeMinor = minor; device.numSms = 1; device.warpSize = 32;
        device.maxThreadsPerBlock = 1024; device.maxThreadsPerMultiprocessor = most;
        device.regsPerBlock = registers; device.regsPerMultiprocessor = registers;
        device.sharedMemPerBlock = 49152; device.sharedMemPerMultiprocessor = shared_sm;
        device.reservedSharedMemPerBlock = reserved; device.sharedMemPerBlockOptin = shared_sm - reserved;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024; kernel.numRegs = regs; kernel.sharedSizeBytes = 0; kernel.numBlockBarriers = 0;
        kernel.partitionedGCConfig = PARTITIONED_GC_OFF; kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = shared_sm - reserved;
        cudaOccDeviceState state;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult found;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&found, &device, &kernel, &state, threads, shared) != CUDA_OCC_SUCCESS)
            return 1;
        printf("%d %u\\n", found.activeBlocksPerMultiprocessor, found.limitingFactors);
    }
}
"""


def grid() -> list[tuple[int, int, int, int, int]]:
    """Every launch of the grid that its compute capability can be asked for."""
    launches = []
    for capability in CAPABILITIES:
        limits = sm_limits(capability)
        most = limits.shared_kib_per_sm * 1024 - limits.reserved_shared_bytes
        launches += [(*capability, t, r, s) for t in THREADS for r in REGISTERS for s in SHARED if s <= most]
    return launches


def by_nvidia(launches: list[tuple[int, int, int, int, int]], include: str) -> list[tuple[int, int]]:
    """(resident blocks, limits as bits) of each launch, by the header."""
    lines = []
    for major, minor, threads, registers, shared in launches:
        limits = sm_limits((major, minor))
        sm = (limits.warps_per_sm * 32, limits.registers_per_sm, limits.shared_kib_per_sm * 1024, limits.reserved_shared_bytes)
        lines.append(" ".join(map(str, (major, minor, *sm, threads, registers, shared))))
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "reference.cpp", Path(folder) / "reference"
        source.write_text(PROGRAM, encoding="utf-8")
        subprocess.run(["g++", "-I", include, str(source), "-o", str(program)], check=True)
        told = subprocess.run([str(program)], input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    return [(int(blocks), int(bits)) for blocks, bits in (line.split() for line in told.splitlines())]


def version(include: str) -> str:
    """Of the CUDA runtime that the header belongs to."""
    found = re.search(r"#define CUDART_VERSION\s+(\d+)", Path(include, "cuda_runtime_api.h").read_text(encoding="utf-8"))
    return f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}" if found else "unknown"


def main() -> int:
    launches = grid()
    assert max(THREADS) == MAX_THREADS
    told = by_nvidia(launches, sys.argv[1])
    different = 0
    for (major, minor, threads, registers, shared), answer in zip(launches, told, strict=True):
        found = occupancy(
            (major, minor), threads_per_block=threads, registers_per_thread=registers, shared_bytes_per_block=shared
        )
        different += (found.blocks, sum(BITS[name] for name in found.limiters)) != answer
    rows = [[*launch, *answer] for launch, answer in list(zip(launches, told, strict=True))[::SAMPLE]]
    head = {
        "source": f"cuda_occupancy.h of CUDA {version(sys.argv[1])}, with the carveout at most shared memory",
        "launches_compared": len(launches),
        "launches_different": different,
        "columns": [*COLUMNS, "limits: 1 threads, 2 registers, 4 shared memory, 8 blocks"],
    }
    lines = ",\n".join("  " + ", ".join(json.dumps(row) for row in rows[at : at + 4]) for at in range(0, len(rows), 4))
    KEPT.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    print(f"{len(launches)} launches compared, {different} different; {len(rows)} kept in {KEPT}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
