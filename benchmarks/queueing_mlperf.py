"""The simulation against MLPerf Inference's RetinaNet server results, which others measured on GPUs that are not here.

Each row is a submitted log: Poisson arrivals at a rate a GPU, and P50, P95 and P99. The service time of a batch is batch / (the
row's own offline rate) on a GPU that its streams share, so that full batches reach the offline rate; batch and streams are
those of the submissions' server settings, where they could be read (else assumed, and marked). Two numbers a GPU kind are
fitted on one row, that of the lowest share of its offline rate: a time that every request takes beside (it moves all
percentiles alike) and the spread of the service times (lognormal), by the least squares of the logarithms of the three
percentiles. Every other row of the kind is a prediction. A kind with one row predicts nothing: it is listed as fitted.

The knee is the highest rate with P99 within 100 ms, MLPerf's bound, for the kind's best offline rate, beside the best rate that
was submitted. Errors will be large: one rate has a P95 of 17 ms on one box and of 51 ms on another, and the simulation is given
nothing that tells them apart.

    python benchmarks/queueing_mlperf.py [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from redline.doctor import inspect_machine
from redline.plan.queueing.paths import simulate
from redline.records import LatencyCurve, ServedPath, ShapeLoad, Simulated

REQUESTS, SEED = 300_000, 0
KNEE_REQUESTS = 3_000_000
"""Near the offline rate a queue takes minutes to grow, and a submission runs for ten."""
TIMEOUT_MS = 30.0
"""Of the submissions' own batching queue."""
BOUND_MS, KNEE_SHARE = 100.0, 0.05


@dataclass(frozen=True)
class Kind:
    batch: int
    streams: int
    offline: float
    """Best submitted, a GPU."""
    assumed: bool = False
    """Its server settings were not read."""


KINDS = {
    "H200 SXM": Kind(8, 2, 1877),
    "H100 SXM": Kind(8, 2, 1817),
    "H100 NVL": Kind(8, 2, 1360, assumed=True),
    "H100 PCIe": Kind(8, 2, 1175, assumed=True),
    "GH200": Kind(16, 2, 1923),
    "L40S": Kind(4, 2, 836, assumed=True),
    "RTX 4090": Kind(4, 2, 883, assumed=True),
    "A100 SXM": Kind(16, 4, 741),
    "A100 PCIe": Kind(16, 4, 653, assumed=True),
    "A30": Kind(16, 4, 349, assumed=True),
    "L4": Kind(2, 2, 229),
}
HOPPER_SINGLE = 16
"""Batch on boxes of one GPU."""


@dataclass(frozen=True)
class Row:
    kind: str
    rate: float
    gpus: int
    p50: float | None
    p95: float
    p99: float
    offline: float
    """Of the same system where it is known, else the kind's best."""
    system: str


ROWS = (
    Row("H200 SXM", 1700, 8, 12.6, 16.7, 18.1, 1700 / 0.935, "v5.1 Dell XE9680L"),
    Row("H200 SXM", 1700, 8, 12.9, 17.0, 18.3, 1700 / 0.924, "v5.1 Google"),
    Row("H200 SXM", 1646, 8, 10.0, 12.9, 14.9, 1646 / 0.877, "v4.1 Lenovo"),
    Row("H200 SXM", 1200, 8, 8.1, 12.0, 13.2, 1200 / 0.889, "v4.1 NVIDIA MaxQ, power-capped"),
    Row("H200 SXM", 1801, 8, 25.8, 44.5, 61.7, 1877, "v5.1 ASUS"),
    Row("H200 SXM", 1776, 8, 17.9, 26.1, 30.5, 1875, "v5.1 HPE"),
    Row("H200 SXM", 1700, 8, 20.5, 50.9, 63.9, 1805, "v4.1 NVIDIA"),
    Row("H100 SXM", 1611, 8, 12.0, 19.7, 24.7, 1611 / 0.894, "v4.1 Supermicro"),
    Row("H100 SXM", 1440, 8, 12.3, 20.0, 23.0, 1440 / 0.947, "v3.0 NVIDIA"),
    Row("H100 SXM", 1747, 8, 42.8, 87.5, 97.5, 1817, "v4.1 Supermicro, 100 ms"),
    Row("H100 SXM", 1619, 1, 21.4, 32.9, 41.9, 1728, "v4.0 NVIDIA, one GPU"),
    Row("H100 SXM", 1440, 1, None, 54.6, 72.9, 1479, "v3.0 NVIDIA, one GPU, batch 8"),
    Row("H100 NVL", 1201, 4, 8.3, 11.5, 13.2, 1201 / 0.883, "v4.1 Dell"),
    Row("H100 NVL", 1125, 8, 7.5, 8.5, 9.3, 1125 / 0.828, "v4.1 Lenovo"),
    Row("H100 PCIe", 1001, 4, 9.8, 13.5, 15.4, 1001 / 0.864, "v4.1 Quanta"),
    Row("GH200", 1731, 1, 28.2, 65.3, 89.6, 1923, "v3.1 NVIDIA"),
    Row("L40S", 763, 8, 7.0, 10.8, 12.5, 763 / 0.936, "v5.1 Cisco"),
    Row("L40S", 800, 2, 16.2, 46.1, 60.7, 836, "v4.1 Cisco"),
    Row("RTX 4090", 724, 2, 4.2, 7.3, 9.5, 724 / 0.823, "v5.1 GATEOverflow"),
    Row("A100 SXM", 715, 8, 41.1, 58.3, 67.5, 741, "v3.0 Dell"),
    Row("A100 SXM", 700, 8, 37.9, 53.0, 61.0, 5803 / 8, "v3.0 NVIDIA"),
    Row("A100 PCIe", 536, 4, None, 22.9, 61.7, 653, "v3.0 Dell"),
    Row("A30", 335, 10, 26.8, 50.8, 63.1, 349, "v3.0 H3C"),
    Row("L4", 214, 2, 19.5, 56.7, 92.3, 229, "v5.1 Dell"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    kinds = {name: of_kind(name) for name in KINDS}
    predicted = [row for kind in kinds.values() for row in kind["rows"] if not row["fitted"]]
    errors = {key: [abs(row["error"][key]) for row in predicted if key in row["error"]] for key in ("p50", "p95", "p99")}
    summary = {
        "predicted_rows": len(predicted),
        "overloaded_rows": sum(row["overloaded"] for row in predicted),
        "median_absolute_error": {key: statistics.median(values) for key, values in errors.items()},
        "worst_absolute_error": {key: max(values) for key, values in errors.items()},
        "knees_within_5_pct_of_offline": {
            "simulated": [name for name, kind in kinds.items() if kind["knee"]["share_of_offline"] >= 1 - KNEE_SHARE],
            "submitted": [name for name, kind in kinds.items() if kind["knee"]["best_submitted_share"] >= 1 - KNEE_SHARE],
            "of": len(kinds),
        },
    }
    machine = inspect_machine()
    environment = {"cpu": machine.cpu, "python": machine.python, "commit": machine.commit}
    text = json.dumps({"environment": environment, "results": {"summary": summary, "kinds": kinds}}, indent=2)
    print(text)
    if output:
        output.write_text(text + "\n", encoding="utf-8")
    return 0


def of_kind(name: str) -> dict[str, Any]:
    rows = [row for row in ROWS if row.kind == name]
    fitted = min(rows, key=lambda row: row.rate / row.offline)
    overhead, cv = fit(fitted)
    return {
        "settings": {"batch": KINDS[name].batch, "streams": KINDS[name].streams, "assumed": KINDS[name].assumed},
        "beside_ms": overhead,
        "spread_cv": cv,
        "rows": [compared(row, overhead, cv, row is fitted) for row in rows],
        "knee": knee(name, overhead, cv, rows),
    }


def seen(row: Row, overhead: float, cv: float, requests: int = REQUESTS) -> Simulated:
    kind = KINDS[row.kind]
    single = row.kind == "H100 SXM" and row.gpus == 1 and "batch 8" not in row.system
    batch, image = HOPPER_SINGLE if single else kind.batch, 1000 / row.offline
    curve = LatencyCurve(points=((1, image), (batch, batch * image)), cv=cv)
    slowdown = tuple(float(running) for running in range(1, kind.streams + 1))
    path = ServedPath(
        shapes=(ShapeLoad(curve=curve),), rate_per_s=row.rate * row.gpus, max_batch=batch, delay_ms=TIMEOUT_MS,
        streams=kind.streams, slowdown=slowdown, gpus=row.gpus, overhead_ms=overhead,
    )  # fmt: skip
    return simulate(path, requests=requests, seed=SEED)


def percentiles(row: Row, found: Simulated) -> dict[str, tuple[float, float]]:
    """(submitted, simulated) of each percentile that the log gives."""
    submitted = {"p50": row.p50, "p95": row.p95, "p99": row.p99}
    simulated = {"p50": found.p50_ms.value, "p95": found.p95_ms.value, "p99": found.p99_ms.value}
    return {key: (value, simulated[key]) for key, value in submitted.items() if value is not None}


def fit(row: Row) -> tuple[float, float]:
    """Time beside (ms) and cv: a scan over the cv, each with the time beside that fits it best, then finer around the best."""

    def fitted(cv: float) -> tuple[float, float]:
        pairs = list(percentiles(row, seen(row, 0.0, cv)).values())
        tried = [max(0.0, submitted - simulated) for submitted, simulated in pairs]
        beside = np.linspace(0.0, max(tried), 201)
        loss = sum(np.log((simulated + beside) / submitted) ** 2 for submitted, simulated in pairs)
        return float(np.min(loss)), float(beside[np.argmin(loss)])

    low, high = 0.0, 1.0
    for _ in range(3):
        step = (high - low) / 10
        best = min((low + k * step for k in range(11)), key=lambda cv: fitted(cv)[0])
        low, high = max(0.0, best - step), best + step
    return fitted(best)[1], best


def compared(row: Row, overhead: float, cv: float, fitted: bool) -> dict[str, Any]:
    found = seen(row, overhead, cv)
    pairs = percentiles(row, found)
    return {
        "system": row.system,
        "gpus": row.gpus,
        "rate_per_gpu": row.rate,
        "share_of_offline": row.rate / row.offline,
        "fitted": fitted,
        "submitted_ms": {key: a for key, (a, _) in pairs.items()},
        "simulated_ms": {key: b for key, (_, b) in pairs.items()},
        "error": {key: b / a - 1 for key, (a, b) in pairs.items()},
        "mean_batch": found.mean_batch,
        "overloaded": found.achieved_per_s < 0.98 * row.rate * row.gpus,
    }


def knee(name: str, overhead: float, cv: float, rows: list[Row]) -> dict[str, Any]:
    """On a box of the kind's largest submission, by bisection to 0.1 % of the offline rate."""
    offline, gpus = KINDS[name].offline, max(row.gpus for row in rows)
    row = replace(rows[0], gpus=gpus, offline=offline)
    low, high = 0.0, 1.0
    while high - low > 0.001:
        middle = (low + high) / 2
        held = seen(replace(row, rate=middle * offline), overhead, cv, KNEE_REQUESTS).p99_ms.value <= BOUND_MS
        low, high = (middle, high) if held else (low, middle)
    best = max(row.rate for row in rows)
    return {
        "offline_per_gpu": offline,
        "simulated_per_gpu": low * offline,
        "share_of_offline": low,
        "best_submitted_per_gpu": best,
        "best_submitted_share": best / offline,
    }


if __name__ == "__main__":
    sys.exit(main())
