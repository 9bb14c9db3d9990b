"""The simulation of the served path against queueing theory, and how fast it is.

Protocol: six runs of a million requests each. M/M/c (Erlang C) and M/D/1 (Erlang's exact distribution): P50, P95 and P99 of
the time in the system; M/D/c: the mean (Crommelin's chain, exact); a server that takes what waits in batches, as Triton's
batcher does without a delay: mean batch and mean time (exact chain), and its two ends, one request at a time and full batches.
A figure agrees if theory is within 2 % or within the 95 % interval of the six runs. Speed: requests a second of one core, in
processor time, compiled; what compiling takes with an empty cache, and the speed of the same functions without it.

    python benchmarks/queueing_validation.py [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from redline.doctor import inspect_machine
from redline.plan.queueing import theory
from redline.plan.queueing.jit import COMPILED
from redline.plan.queueing.paths import simulate
from redline.records import LatencyCurve, ServedPath, ShapeLoad, Simulated

REQUESTS, SEEDS = 1_000_000, tuple(range(6))
T_5 = 2.571
"""Student's t, 97.5 %, 5 degrees of freedom."""
SERVICE_MS = 10.0
AGREES = 0.02
BATCHES = LatencyCurve(points=((1, 4.0), (8, 9.0)))
LIMIT_S = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    rows = [*exponential(), *constant(), *constant_many(), *batches(), *ends()]
    results = {"requests": REQUESTS, "seeds": SEEDS, "rows": rows, "speed": speeds(), "first_use": first_use()}
    machine = inspect_machine()
    environment = {
        "cpu": machine.cpu,
        "cores": machine.cores,
        "python": machine.python,
        "commit": machine.commit,
        "libraries": {library.name: library.version for library in machine.libraries if library.name == "numpy"} | numba(),
    }
    text = json.dumps({"environment": environment, "results": results}, indent=2)
    print(text)
    if output:
        output.write_text(text + "\n", encoding="utf-8")
    quick = all(one["processor_s_per_million"] < LIMIT_S for one in results["speed"])
    return 0 if quick and all(row["agrees"] for row in rows) else 1


def numba() -> dict[str, str]:
    from importlib.metadata import version

    return {"numba": version("numba")} if COMPILED else {}


def path(curve: LatencyCurve, **knobs: Any) -> ServedPath:
    return ServedPath(shapes=(ShapeLoad(curve=curve),), **knobs)


def runs(case: ServedPath, requests: int = REQUESTS) -> list[Simulated]:
    return [simulate(case, requests=requests, seed=seed) for seed in SEEDS]


def row(system: str, load: float, figure: str, exact: float, found: list[float]) -> dict[str, Any]:
    value = statistics.fmean(found)
    half = T_5 * statistics.stdev(found) / math.sqrt(len(found))
    made: dict[str, Any] = {"system": system, "load": load, "figure": figure, "theory": exact, "simulated": value}
    made |= {"interval": [value - half, value + half], "error": value / exact - 1}
    made["agrees"] = bool(abs(made["error"]) <= AGREES or value - half <= exact <= value + half)
    return made


def percentiles(found: list[Simulated]) -> list[tuple[float, list[float]]]:
    return [
        (0.5, [one.p50_ms.value for one in found]),
        (0.95, [one.p95_ms.value for one in found]),
        (0.99, [one.p99_ms.value for one in found]),
    ]


def exponential() -> list[dict[str, Any]]:
    found = []
    for servers, load in ((1, 0.5), (1, 0.9), (2, 0.8), (4, 0.9), (8, 0.7)):
        rate = load * servers / SERVICE_MS
        curve = LatencyCurve(points=((1, SERVICE_MS),), cv=1.0, law="exponential")
        seen = runs(path(curve, rate_per_s=1000 * rate, instances=servers))
        for level, value in percentiles(seen):

            def within(at: float, servers: int = servers, rate: float = rate) -> float:
                return 1 - theory.m_m_c_sojourn(servers, rate, SERVICE_MS, at)

            found.append(row(f"M/M/{servers}", load, f"P{100 * level:g} ms", theory.quantile(within, level, SERVICE_MS), value))
    return found


def constant() -> list[dict[str, Any]]:
    found = []
    for load in (0.5, 0.8, 0.9, 0.95):
        rate = load / SERVICE_MS
        seen = runs(path(LatencyCurve(points=((1, SERVICE_MS),)), rate_per_s=1000 * rate))
        for level, value in percentiles(seen):
            wait = theory.quantile(lambda at, rate=rate: theory.m_d_1_wait(rate, SERVICE_MS, at), level, SERVICE_MS)
            found.append(row("M/D/1", load, f"P{100 * level:g} ms", SERVICE_MS + wait, value))
    return found


def constant_many() -> list[dict[str, Any]]:
    found = []
    for servers, load in ((2, 0.8), (4, 0.9), (8, 0.9)):
        rate = load * servers / SERVICE_MS
        knobs = {"rate_per_s": 1000 * rate, "instances": servers}
        seen = runs(path(LatencyCurve(points=((1, SERVICE_MS),)), **knobs))
        exact = SERVICE_MS + theory.m_d_c_mean_wait(servers, rate, SERVICE_MS)
        found.append(row(f"M/D/{servers}", load, "mean ms", exact, [one.mean_ms for one in seen]))
    return found


def batches() -> list[dict[str, Any]]:
    found, times = [], np.array([0.0, *(BATCHES.ms(size) for size in range(1, 9))])
    for load in (0.1, 0.3, 0.6, 0.8, 0.9, 0.95):
        rate = load * 8 / times[8]
        seen = runs(path(BATCHES, rate_per_s=1000 * rate, max_batch=8))
        batch, mean = theory.batch_server(rate, times)
        found.append(row("M/D(batch 8)/1", load, "mean batch", batch, [one.mean_batch for one in seen]))
        found.append(row("M/D(batch 8)/1", load, "mean ms", mean, [one.mean_ms for one in seen]))
    return found


def ends() -> list[dict[str, Any]]:
    """Next to no load: a request waits for nobody, or for its whole delay. Overload: full batches without a pause."""
    alone = runs(path(BATCHES, rate_per_s=0.5, max_batch=8), 20_000)
    delayed = runs(path(BATCHES, rate_per_s=0.5, max_batch=8, delay_ms=3.0), 20_000)
    full = runs(path(BATCHES, rate_per_s=1200.0, max_batch=8))
    return [
        row("batch 8, one at a time", 0.0, "P95 ms", 4.0, percentiles(alone)[1][1]),
        row("batch 8, one at a time, delay 3 ms", 0.0, "P95 ms", 7.0, percentiles(delayed)[1][1]),
        row("batch 8, overload", 1.35, "answers/s", 8000 / 9.0, [one.achieved_per_s for one in full]),
    ]


def speeds() -> list[dict[str, Any]]:
    one = path(LatencyCurve(points=((1, 1.0),), cv=1.0, law="exponential"), rate_per_s=900.0)
    shapes = tuple(
        ShapeLoad(name=f"{k}", share=1 / k, curve=BATCHES.scaled(k / 2), decode_ms=2.0, input_bytes=2_000_000)
        for k in (1, 2, 3)
    )
    node = ServedPath(
        shapes=shapes, rate_per_s=3000.0, decode_workers=16, decode_cv=0.3, max_batch=8, delay_ms=2.0, instances=2,
        slowdown=(1.0, 1.8), link_gb_s=25.0, gpus_per_link=2, gpus=8, queue_limit=1000,
    )  # fmt: skip
    cases = {
        "M/M/1 at 0.9, batch 1": one,
        "one GPU, batch 8, delay 2 ms": path(BATCHES, rate_per_s=700.0, max_batch=8, delay_ms=2.0),
        "8 GPUs of 2 instances, 3 shapes, host stage, copies": node,
        "the same in 4 nodes, two choices": replace(node, nodes=4, balancer="two-choices", rate_per_s=12_000.0),
    }
    found = []
    for name, case in cases.items():
        simulate(case, requests=1000, seed=SEEDS[0])  # compiled before it is timed
        began, processor = time.perf_counter(), time.process_time()
        simulate(case, requests=REQUESTS, seed=SEEDS[0])
        spent, wall = time.process_time() - processor, time.perf_counter() - began
        found.append(
            {
                "path": name,
                "compiled": COMPILED,
                "processor_s_per_million": round(spent * 1e6 / REQUESTS, 3),
                "wall_s": round(wall, 3),
                "requests_per_s": round(REQUESTS / spent),
            }
        )
    return found


FIRST = """
import time
from redline.plan.queueing.paths import simulate
from redline.records import LatencyCurve, ServedPath, ShapeLoad

path = ServedPath(shapes=(ShapeLoad(curve=LatencyCurve(points=((1, 1.0),), cv=1.0, law="exponential")),), rate_per_s=900.0)
for requests in (1000, 20_000):
    began = time.process_time()
    simulate(path, requests=requests)
    print(time.process_time() - began)
"""


def first_use() -> dict[str, float]:
    """Processor seconds of the first call, compiled into an empty cache, and requests a second where nothing is compiled."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as cache:
        for name, settings in (
            ("compiled", {"NUMBA_DISABLE_JIT": "0", "NUMBA_CACHE_DIR": cache}),
            ("plain", {"NUMBA_DISABLE_JIT": "1"}),
        ):
            done = subprocess.run(
                [sys.executable, "-c", FIRST], env={**os.environ, **settings}, capture_output=True, text=True, check=True
            )
            first, many = map(float, done.stdout.split())
            found |= {f"{name}_first_call_s": round(first, 2), f"{name}_requests_per_s": round(20_000 / many)}
    return found


if __name__ == "__main__":
    sys.exit(main())
