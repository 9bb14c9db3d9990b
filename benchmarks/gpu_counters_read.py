"""What ncu counted of gpu_counters.py's kernels, and their occupancy as plan/occupancy.py computes it; needs no GPU.

    python benchmarks/gpu_counters_read.py NCU_CSV --order ORDER_JSON --beside RESULT [--output FILE]

`--beside`: a result file of the same machine, whose environment is taken.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

from redline.plan.occupancy import occupancy

STALL, ENDS = "smsp__average_warps_issue_stalled_", "_per_issue_active.ratio"
LEAST_STALL = 0.1
CAPABILITY = (9, 0)


def rows(path: Path) -> list[dict[str, str]]:
    """ncu's rows of kernels: what the program printed stands before them, and the units in the first."""
    lines = path.read_text("utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith('"ID"'))
    return list(csv.DictReader(lines[start:]))[1:]


def number(row: dict[str, str], *names: str) -> float:
    return float(next(row[name] for name in names if row.get(name)).replace(",", ""))


def told(row: dict[str, str]) -> dict[str, Any]:
    threads = math.prod(int(side) for side in row["Block Size"].strip("()").split(","))
    registers = int(number(row, "launch__registers_per_thread"))
    shared = sum(int(number(row, f"launch__shared_mem_per_block_{kind}")) for kind in ("dynamic", "static"))
    computed = occupancy(CAPABILITY, threads_per_block=threads, registers_per_thread=registers, shared_bytes_per_block=shared)
    stalls = {name.removeprefix(STALL).removesuffix(ENDS): number(row, name) for name in row if name.startswith(STALL)}
    return {
        "kernel": row["Kernel Name"].split("(")[0][:60], "grid": row["Grid Size"], "block": row["Block Size"],
        "us": number(row, "gpu__time_duration.sum") / 1000, "registers": registers, "shared_bytes": shared,
        "theoretical_occupancy_pct": number(row, "sm__maximum_warps_per_active_cycle_pct"),
        "computed_occupancy_pct": 100 * computed.share, "limiters": computed.limiters,
        "achieved_occupancy_pct": number(row, "sm__warps_active.avg.pct_of_peak_sustained_active"),
        "issue_active_pct": number(row, "sm__issue_active.avg.pct_of_peak_sustained_elapsed"),
        "instructions": number(row, "smsp__inst_executed.sum", "sm__inst_executed.sum"),
        "dram_read_bytes": number(row, "dram__bytes_read.sum"), "dram_write_bytes": number(row, "dram__bytes_write.sum"),
        "stalls_warps_per_issue": {
            name: value for name, value in sorted(stalls.items(), key=lambda one: -one[1]) if value >= LEAST_STALL
        },
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("csv", type=Path)
    options.add_argument("--order", type=Path, required=True)
    options.add_argument("--beside", type=Path, required=True)
    options.add_argument("--output", type=Path)
    given = options.parse_args()
    kernels = [told(row) for row in rows(given.csv)]
    alike = [abs(k["theoretical_occupancy_pct"] - k["computed_occupancy_pct"]) < 0.01 for k in kernels]
    result = {
        "environment": json.loads(given.beside.read_text("utf-8"))["environment"],
        "protocol": "ncu --set full --clock-control none over benchmarks/gpu_counters.py; caches flushed before each launch",
        "order": json.loads(given.order.read_text("utf-8")),
        "kernels": len(kernels), "occupancy_as_computed": sum(alike),
        "rows": kernels,
    }  # fmt: skip
    print(f"{len(kernels)} kernels, occupancy of {sum(alike)} as computed")
    if given.output is not None:
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
