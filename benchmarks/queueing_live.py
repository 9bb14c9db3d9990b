"""The simulation's P95 against the real Triton on this machine's CPU, at five loads up to 90 % utilisation.

Protocol: the demo detector in fused processes of one thread, batches of up to 4, no delay. The simulation is fed from the
server and from nothing else: with one instance, closed loops of 1 to 5 callers give the service time of every batch size
(Triton's own statistics: input, compute and output of each execution); one caller gives the spread, and what a request takes
beside (client latency less service); single requests with 3, 10, 30 and 100 ms between them give what one takes longer on an
instance that rested; with two instances and callers that keep both busy, with batches of 1 to 4 in turn, the same statistics
give how much they slow each batch size, and the last of these loops the capacity. Then all five P95s are predicted, at 30, 50,
70, 80 and 90 % of that capacity, for the very arrival times that are sent afterwards; then they are measured, in rounds over
the five loads. Every arrival sequence is sent twice, in two halves of the measurement (A/A): what two windows of equal arrivals
differ by is the noise of the machine, and nothing that the simulation could know.

Agreement: P95 over all windows within 10 % of the prediction, or the prediction inside the 95 % interval that A/A gives it,
which must be 10 % or less itself. Takes 10 minutes, and a few more where the folder has no finished run yet.

--paced tells the host's unrest from the simulation's errors: the same server, requests, decoding and network, but each
execution of the network waits until `PACE_MS` for its batch has passed since it began, so that cores that are slower for a
while answer in the same time.

    python benchmarks/queueing_live.py --work FOLDER [--output FILE] [--paced] [--quick]
"""

from __future__ import annotations

import contextlib
import math
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from redline.measure.histogram import Histogram, merge
from redline.measure.load import closed_loop, intended_times, open_loop
from redline.plan.queueing import state as at
from redline.plan.queueing.paths import trial
from redline.plan.queueing.rate import STUDENT
from redline.records import LatencyCurve, Load, ServedPath, ShapeLoad
from redline.serve import repository
from redline.serve.material import installed_code
from redline.serve.names import model_name
from redline.served import ServedLive
from serving_case import Case, demo_case, parser, watched, write

BATCH, INSTANCES = 4, 2
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9)
WINDOWS, WINDOW_S, LOOP_S = 6, 15.0, 6.0
QUICK = (2, 1.0, 0.5)
RESTS_MS = (3.0, 10.0, 30.0, 100.0)
CLIENTS = 32
LEVELS = 100
AGREEMENT = 0.10
PACE_MS = (60.0, 80.0, 100.0, 120.0)
"""By batch: so long that two instances in them leave most of two cores idle."""
NETWORK = "    return OnnxRuntimeRunner(str(material.network), threads=material.threads, concurrent=True)\n"
PACED = """    return _Paced(OnnxRuntimeRunner(str(material.network), threads=material.threads, concurrent=True))


class _Paced:
    def __init__(self, runner):
        self.name, self._runner, self.close = runner.name, runner, runner.close

    def run(self, batch):
        import time

        end = time.perf_counter() + PACE_MS[len(batch) - 1] / 1000
        outputs = self._runner.run(batch)
        time.sleep(max(0.0, end - time.perf_counter()))
        return outputs
"""


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--quick", action="store_true", help="windows too short for a verdict: does the protocol run?")
    options.add_argument("--paced", action="store_true", help="the network's time is the clock's")
    given = options.parse_args()
    with paced() if given.paced else contextlib.nullcontext():
        return compared(given)


def compared(given: Any) -> int:
    windows, window_s, loop_s = QUICK if given.quick else (WINDOWS, WINDOW_S, LOOP_S)
    case, result = demo_case(given.work, given.minutes), dict[str, Any]()
    with watched(result):
        alone = alone_of(case, loop_s)
        with served(case, INSTANCES) as live:
            fed = together(live, alone, loop_s)
            path = path_of(fed)
            rates = [round(share * fed["capacity_per_s"], 1) for share in SHARES]
            predicted = [predict(path, rate, windows, window_s) for rate in rates]
            measured: list[list[Load]] = [[] for _ in rates]
            for window in range(windows):
                for loads, rate in zip(measured, rates, strict=True):
                    loads.append(sent(live, rate, window_s, arrivals(window, windows)))
    rows = [row(*one) for one in zip(SHARES, rates, predicted, measured, strict=True)]
    result |= {"batch": BATCH, "instances": INSTANCES, "fed": fed, "loads": rows, "quick": given.quick}
    result |= {"pace_ms": PACE_MS} if given.paced else {}
    write(given, {case.name: result})
    return 0 if all(one["agrees"] for one in rows) else 1


@contextlib.contextmanager
def paced() -> Iterator[None]:
    """Servers that are rendered meanwhile carry a network of which every execution takes `PACE_MS` by the clock."""
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "redline"
        shutil.copytree(installed_code(), code, ignore=shutil.ignore_patterns("__pycache__"))
        file = code / "backend" / "network.py"
        before, found, after = file.read_text(encoding="utf-8").partition(NETWORK)
        assert found, "the served network is made elsewhere"
        file.write_text(f"{before}{PACED}{after}\nPACE_MS = {PACE_MS}\n", encoding="utf-8")
        plain, repository.installed_code = repository.installed_code, lambda: code  # type: ignore[assignment]
        try:
            yield
        finally:
            repository.installed_code = plain


def served(case: Case, instances: int) -> Any:
    """At one input size whatever the run chose, and whether or not it chose: one curve tells of all requests."""
    return case.served(case.fused(threads=1, batch=BATCH, concurrency=instances))


def times_of(live: ServedLive, before: Counter[tuple[int, str]]) -> tuple[dict[int, float], Counter[tuple[int, str]]]:
    """Mean ms of each batch size executed since `before`, and the sums now."""
    control, name = live.host.server().control, model_name("tune", live.number, "entry")
    now = Counter[tuple[int, str]]()
    for size, executions, spent in control.statistics(name, live.number).batches:
        now[size, "n"], now[size, "ns"] = executions, spent
    sizes = [size for size, kind in now if kind == "n" and now[size, "n"] > before[size, "n"]]
    means = {size: (now[size, "ns"] - before[size, "ns"]) / (now[size, "n"] - before[size, "n"]) / 1e6 for size in sizes}
    return means, now


def loop(live: ServedLive, callers: int, seconds: float) -> Load:
    return closed_loop(live.target, concurrency=callers, seconds=seconds, same_batch=live.same_batch)


def alone_of(case: Case, seconds: float) -> dict[str, Any]:
    """Of one instance: mean ms by batch, the spread of single requests as ratios, and what a request takes beside."""
    with served(case, 1) as live:
        loop(live, BATCH + 1, seconds / 2)  # warm
        _, start = times_of(live, Counter())
        single = loop(live, 1, seconds)
        ones, _ = times_of(live, start)
        rested = [rest(live, single.mean_ms, pause, 2 * seconds) for pause in RESTS_MS]
        _, before = times_of(live, Counter())
        for callers in range(2, BATCH + 2):
            loop(live, callers, seconds)
        means, _ = times_of(live, before)
    means |= {1: ones[1]}
    beside = max(0.0, single.mean_ms - ones[1])
    latencies = Histogram.decode(single.histogram)
    ratios = [max(0.05, (latencies.percentile(100 * k / LEVELS) - beside) / ones[1]) for k in range(LEVELS + 1)]
    return {"ms_by_batch": dict(sorted(means.items())), "beside_ms": beside, "ratios": ratios, "rested": rested}


def rest(live: ServedLive, busy_ms: float, pause_ms: float, seconds: float) -> tuple[float, float]:
    """(ms of rest, ms that a request takes longer after it) from single requests, each long after the last one's answer."""
    rate = 1000 / (busy_ms + pause_ms)
    load = open_loop(live.target, rate_per_s=rate, seconds=seconds, mode="constant", concurrency=CLIENTS)
    return 1000 / rate - load.mean_ms, max(0.0, load.mean_ms - busy_ms)


def together(live: ServedLive, alone: dict[str, Any], seconds: float) -> dict[str, Any]:
    """With every instance busy: the slowdown of each batch size, and the capacity."""
    loop(live, 2 * INSTANCES * BATCH, seconds / 2)  # warm
    _, before = times_of(live, Counter())
    for size in range(1, BATCH + 1):
        loop(live, INSTANCES * size, seconds)
    full = loop(live, 2 * INSTANCES * BATCH, 2 * seconds)
    means, now = times_of(live, before)
    counts = {size: now[size, "n"] - before[size, "n"] for size in means}
    slowed = [(n, means[n] / alone["ms_by_batch"][n]) for n in sorted(means) if n in alone["ms_by_batch"]]
    together = {"slowed": slowed, "executions_together": counts, "ms_by_batch_together": means}
    return alone | together | {"capacity_per_s": full.achieved_per_s}


def path_of(fed: dict[str, Any]) -> ServedPath:
    """The curve made not to fall with the batch, which noise may do."""
    sizes = sorted(fed["ms_by_batch"])
    rising = np.maximum.accumulate([fed["ms_by_batch"][size] for size in sizes])
    curve = LatencyCurve(points=tuple(zip(sizes, rising.tolist(), strict=True)), ratios=tuple(fed["ratios"]))
    return ServedPath(
        shapes=(ShapeLoad(curve=curve),), max_batch=BATCH, instances=INSTANCES, slowdown=(1.0, 1.0),
        disturbed=tuple((size, more) for size, more in fed["slowed"]),
        rested=((0.0, 0.0), *((pause, more) for pause, more in fed["rested"] if pause > 0)), overhead_ms=fed["beside_ms"],
    )  # fmt: skip


def predict(path: ServedPath, rate: float, windows: int, seconds: float) -> dict[str, float]:
    """P50 and P95 over the windows, for the arrival times that `sent` sends."""
    found = []
    for window in range(windows):
        due = intended_times("poisson", rate_per_s=rate, seconds=seconds, seed=arrivals(window, windows))
        world, _ = trial(replace(path, trace_s=tuple(due.tolist())), len(due), window)
        found.append(world.times[:, at.DONE] - world.times[:, at.ARRIVES] + path.overhead_ms)
    latency = np.concatenate(found)
    return {"p50_ms": float(np.percentile(latency, 50)), "p95_ms": float(np.percentile(latency, 95))}


def arrivals(window: int, windows: int) -> int:
    """Seed of a window's arrivals: the second half repeats the first."""
    return window % (windows // 2)


def sent(live: ServedLive, rate: float, seconds: float, seed: int) -> Load:
    return open_loop(live.target, rate_per_s=rate, seconds=seconds, mode="poisson", seed=seed, concurrency=CLIENTS)


def noise_of(p95_ms: list[float]) -> float:
    """Half the 95 % interval of a P95 over all windows, relative, from windows of equal arrivals."""
    pairs = list(zip(p95_ms[: len(p95_ms) // 2], p95_ms[len(p95_ms) // 2 :], strict=True))
    spread = math.sqrt(statistics.fmean(((a - b) / (a + b) * 2) ** 2 for a, b in pairs) / 2)
    return STUDENT[len(pairs) + 1] * spread / math.sqrt(len(p95_ms))


def row(share: float, rate: float, predicted: dict[str, float], loads: list[Load]) -> dict[str, Any]:
    every = Histogram.decode(merge(*(load.histogram for load in loads)))
    p95, each = every.percentile(95), [load.p95_ms for load in loads]
    noise, error = noise_of(each), predicted["p95_ms"] / p95 - 1
    inside = abs(error) <= noise <= AGREEMENT
    return {
        "share_of_capacity": share,
        "rate_per_s": rate,
        "requests": sum(load.requests for load in loads),
        "predicted": predicted,
        "measured": {"p50_ms": every.percentile(50), "p95_ms": p95},
        "p95_ms_of_windows": each,
        "noise": noise,
        "p95_error": error,
        "errors": sum(load.errors for load in loads),
        "slip_p99_ms": max(load.slip_p99_ms for load in loads),
        "agrees": abs(error) <= AGREEMENT or inside,
    }


if __name__ == "__main__":
    sys.exit(main())
