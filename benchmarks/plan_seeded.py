"""A search that the plan and the simulation steer against the same search alone, on recorded measurements.

Every load of both searches is answered from what was recorded, by the search's own code; only the loads are replayed.

- GPU: curves (time by batch) of TensorRT engines in result files. A candidate is a batch, a queue delay and lanes behind
  Triton's batcher; what it does under load is the simulation of the *recorded* curve. The guide starts from what the packaged
  table says of the graph, before anything is measured. Curves with fewer than three batches are left out. Two lanes: the
  slowdown that 2026-11-25-h100-tensorrt-pair.json measured at batch 1, on every device and at every batch.
- CPU: the grid of a served_search.py result through a live Triton. Only the rate within the P95 was kept of a candidate, so
  its capacity is taken as that rate over 0.9, the same for all; the guide starts from the in-process trials of a finished run
  (`--run`), of whatever machine.

The exhaustive search measures every candidate: a closed loop and a search for the knee. A measurement is one load.
Target: within 5 % of the exhaustive optimum with at most 10 % of its measurements.

    python benchmarks/plan_seeded.py --weights DIR --work DIR [--curves FILE ...] [--grid FILE --run runs/ID] --output FILE
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plan_points import RESULTS, Case, points
from redline import api
from redline.doctor import inspect_machine
from redline.measure.histogram import Histogram
from redline.measure.knee import GROWTH, find_knee
from redline.measure.verdict import judge_latency
from redline.plan.devices import device
from redline.plan.efficiency import shipped_table
from redline.plan.guide import Guide, Prior, bare, prior
from redline.plan.queueing.paths import simulate
from redline.plan.queueing.rate import capacity, path_of
from redline.plan.serving import ServedSpace, served_space
from redline.records import (
    Accuracy,
    BoxMatch,
    Candidate,
    Determinism,
    Knee,
    LatencyCurve,
    Load,
    MapDrop,
    Objective,
    ParityReport,
    Pruned,
    ServedPath,
    Serving,
    ShapeLoad,
    Trial,
    Verdict,
)  # fmt: skip
from redline.store.codec import plain
from redline.tune.choose import choose
from redline.tune.search import Lawful, search
from redline.workbench import NEAR

LEAST_RATE, MOST_LOADS = 0.95, 0.10
REQUESTS, PILOT = 20_000, 3
LANES, DELAYS_US, TWO_LANES = (1, 2), (0, 1_000, 2_000, 5_000), 2 * 638.5 / 749.1
"""Of two lanes: one gave 638.5 images/s alone (2026-11-25-h100-tensorrt-retinanet-proved.json), two 749.1 together."""
SHARE_OF_CAPACITY, LONGEST_MS = 0.9, 60_000.0
P95_MS = (10.0, 20.0, 50.0)
SAFE = ParityReport(
    tensors=(), boxes=BoxMatch(floor=0.05, matched=1, missing=0, extra=0, lowest_iou=1.0, largest_score_delta=0.0),
    accuracy=Accuracy(
        kind="map", ap=0.5, ap50=0.5, ap75=0.5, ap_small=None, ap_medium=None, ap_large=None, images=1, per_class=()
    ),
    drop=MapDrop(
        reference_ap=0.5, candidate_ap=0.5, absolute=0.0, absolute_low=0.0, absolute_high=0.0, relative_pct=0.0,
        relative_low_pct=0.0, relative_high_pct=0.0, images=1, resamples=1, seed=0, images_to_decide=None,
    ),
    determinism=Determinism(repeats=1, identical=True), verdict=Verdict(answer="pass", reason="not replayed"),
)  # fmt: skip
"""Accuracy is not what is compared here: it passes."""


@dataclass(frozen=True)
class Recorded:
    """What a candidate does: its closed loop, and P95 by the rate offered."""

    capacity: float
    p95_ms: Callable[[float], float]


class Replay:
    """A `tune.Bench` whose loads are looked up and counted."""

    def __init__(self, recorded: Callable[[Candidate], Recorded], objective: Objective) -> None:
        self.recorded, self.objective, self.loads, self.piloted = recorded, objective, 0, False

    def trial(self, candidate: Candidate) -> Trial:
        return Trial(candidate=candidate, digest=candidate.name, seconds=0.0)

    def parity(self, candidate: Candidate) -> ParityReport:
        return SAFE

    def examined(self, trial: Trial) -> Trial:
        return trial

    def wider(self, trial: Trial) -> Candidate | None:
        return None

    def screen(self, candidate: Candidate) -> Load:
        found = self.recorded(candidate)
        lanes = candidate.concurrency * candidate.batch
        return self._load(None, found.capacity, 1000 * lanes / found.capacity)

    def at_objective(self, candidate: Candidate, *, repeat: int = 0) -> Load:
        self.loads += 0 if self.piloted else PILOT
        self.piloted = True
        return self._at(candidate, self.objective.throughput)

    def judge(self, load: Load) -> Verdict:
        return judge_latency(load, p95_ms=self.objective.p95_ms, noise=None, rate=self.objective.throughput)

    def knee(self, candidate: Candidate, *, capacity: float, expected: float | None = None) -> Knee:
        return find_knee(
            lambda rate: self._at(candidate, rate), p95_ms=self.objective.p95_ms, start_rate=expected or 0.7 * capacity,
            low=0.05 * capacity, high=1.1 * capacity, noise=None, growth=NEAR if expected else GROWTH,
        )  # fmt: skip

    def out_of_time(self, *, climbing: bool = False) -> bool:
        return False

    def _at(self, candidate: Candidate, rate: float) -> Load:
        found = self.recorded(candidate)
        return self._load(rate, min(rate, found.capacity), found.p95_ms(rate))

    def _load(self, offered: float | None, achieved: float, p95_ms: float) -> Load:
        self.loads += 1
        p95_ms = min(p95_ms, LONGEST_MS)
        histogram = Histogram()
        histogram.record(p95_ms)
        return Load(
            mode="closed" if offered is None else "poisson", offered_per_s=offered, achieved_per_s=achieved, seconds=60.0,
            requests=REQUESTS, errors=0, mean_ms=p95_ms, p50_ms=p95_ms, p90_ms=p95_ms, p95_ms=p95_ms, p99_ms=p95_ms,
            max_ms=p95_ms, slip_p99_ms=0.0, mean_batch=1.0, histogram=histogram.encode(),
        )  # fmt: skip


@dataclass(frozen=True)
class GpuSpace:
    """Batches, lanes and queue delays of one engine."""

    baseline: Candidate
    batches: tuple[int, ...]

    @property
    def families(self) -> tuple[Candidate, ...]:
        return (self.baseline,)

    def all(self) -> list[Candidate]:
        return [
            replace(self.baseline, batch=batch, concurrency=lanes, serving=Serving(queue_delay_us=delay))
            for batch in self.batches for lanes in LANES for delay in DELAYS_US if batch > 1 or delay == 0
        ]  # fmt: skip

    def neighbours(self, candidate: Candidate) -> tuple[Candidate, ...]:
        """One knob moved one step; a batch of one leaves its delay behind."""
        serving = candidate.serving or Serving()
        moves = [
            *(replace(candidate, batch=batch) for batch in beside(self.batches, candidate.batch)),
            *(replace(candidate, concurrency=lanes) for lanes in beside(LANES, candidate.concurrency)),
            *(replace(candidate, serving=Serving(queue_delay_us=us)) for us in beside(DELAYS_US, serving.queue_delay_us)),
            replace(candidate, batch=1, serving=Serving()),
        ]
        lawful = set(self.all())
        return tuple(dict.fromkeys(move for move in moves if move in lawful and move != candidate))


def beside(values: Sequence[int], value: int) -> list[int]:
    at = list(values).index(value)
    return [values[i] for i in (at - 1, at + 1) if 0 <= i < len(values)]


def compare(
    space: Lawful, every: Sequence[Candidate], recorded: Callable[[Candidate], Recorded], objective: Objective, guide: Guide
) -> dict[str, Any]:
    exhaustive = Replay(recorded, objective)
    rates = {one: exhaustive.knee(one, capacity=exhaustive.screen(one).achieved_per_s).rate_per_s for one in every}
    best = max(rates, key=lambda one: rates[one])
    row: dict[str, Any] = {
        "p95_ms": objective.p95_ms, "throughput": objective.throughput, "candidates": len(every),
        "exhaustive": {"best": best.name, "rate_per_s": round(rates[best], 1), "loads": exhaustive.loads},
    }  # fmt: skip
    for name, steered in (("unseeded", None), ("seeded", guide)):
        bench, left = Replay(recorded, objective), list[Pruned]()
        trials = search(space, bench, objective, lambda _: None, climbs=1, guide=steered, prune=left.append)
        choice, _ = choose(trials, bench, objective, None)
        rate = rates.get(choice.candidate, 0.0) if choice.candidate is not None else 0.0
        row[name] = {
            "chosen": choice.candidate.name if choice.candidate else choice.verdict.reason, "rate_per_s": round(rate, 1),
            "rate_share": round(rate / rates[best], 4) if rates[best] else math.nan, "loads": bench.loads,
            "load_share": round(bench.loads / exhaustive.loads, 4), "screened": sum(t.screen is not None for t in trials),
            "knees": sum(t.knee is not None for t in trials), "pruned": len(left),
        }  # fmt: skip
    row["target_met"] = row["seeded"]["rate_share"] >= LEAST_RATE and row["seeded"]["load_share"] <= MOST_LOADS
    return row


def gpu_rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    case, curves = Case(given.weights, given.work, given.curves), defaultdict(dict)
    for point in points(given.curves):
        if point.how.endswith("graph"):
            n, _, height, width = point.shape
            curves[point.device, point.model, point.arithmetic, (height, width)][n] = point.us / 1000
    found = []
    for (on, model, arithmetic, size), measured in curves.items():
        if len(measured) < 3:
            continue
        batches = tuple(sorted(measured))
        start = Candidate(
            runner="tensorrt", precision=arithmetic, device="cuda:0", profiles="exact", cuda_graphs=True, serving=Serving()
        )
        known = prior(case.costs(model, arithmetic == "fp16"), device(on), arithmetic, size, batches, shipped_table())
        priors = {} if known is None else {bare(start): known}
        for p95_ms in P95_MS:
            row = gpu_row(start, measured, batches, priors, p95_ms)
            about = {
                "device": on,
                "model": model,
                "precision": arithmetic,
                "size": size,
                "ms_by_batch": dict(sorted(measured.items())),
            }
            found.append(about | row)
    return found


def gpu_row(
    start: Candidate, measured: dict[int, float], batches: tuple[int, ...], priors: dict[Candidate, Prior], p95_ms: float
) -> dict[str, Any]:
    rising = sorted(measured.items())
    curve = LatencyCurve(points=tuple((n, max(ms for m, ms in rising if m <= n)) for n, ms in rising))
    slowdown = (1.0, TWO_LANES)

    def recorded(candidate: Candidate) -> Recorded:
        path = path_of(candidate, (ShapeLoad(curve=curve),), slowdown, 1.0)
        return Recorded(capacity(path), lambda rate: p95_of(path, rate))

    # What the whole space can do at most, and a quarter of it: a rate that every sensible setting holds.
    space = GpuSpace(start, batches)
    objective = Objective(p95_ms=p95_ms, throughput=0.25 * max(recorded(one).capacity for one in space.all()))
    return compare(space, space.all(), recorded, objective, Guide(objective=objective, priors=priors, narrow=True))


def p95_of(path: ServedPath, rate: float) -> float:
    if rate >= capacity(path):
        return math.inf
    return simulate(replace(path, rate_per_s=rate), requests=REQUESTS, seed=7).p95_ms.value


@dataclass(frozen=True)
class RecordedSpace:
    """A served space cut to what a grid measured. Names in the grid are those of fixed shapes, whatever the run chose."""

    space: ServedSpace
    rates: dict[str, float]

    @property
    def baseline(self) -> Candidate:
        return self.space.baseline

    @property
    def families(self) -> tuple[Candidate, ...]:
        return tuple(one for one in self.space.families if one.shapes == self.baseline.shapes and self.rate(one))

    def neighbours(self, candidate: Candidate) -> tuple[Candidate, ...]:
        return tuple(one for one in self.space.neighbours(candidate) if self.rate(one))

    def rate(self, candidate: Candidate) -> float:
        return self.rates.get(replace(candidate, shapes="fixed").name, 0.0)

    def all(self) -> list[Candidate]:
        found, waiting = dict.fromkeys(self.families), [*self.families]
        while waiting:
            fresh = [one for one in self.neighbours(waiting.pop()) if one not in found]
            found |= dict.fromkeys(fresh)
            waiting += fresh
        return list(found)


def cpu_row(grid: Path, run: Path) -> dict[str, Any]:
    (result,) = json.loads(grid.read_text("utf-8"))["results"].values()
    record = api.read_run(run)
    objective = replace(record.spec.objective, p95_ms=result["objective_p95_ms"])
    served = served_space(record.trials, record.choice.candidate, objective, 2)
    assert served is not None
    space = RecordedSpace(replace(served, batches=(1, 4), delays_us=(0,)), result["rates_per_s"])

    def recorded(candidate: Candidate) -> Recorded:
        rate = space.rate(candidate)
        return Recorded(rate / SHARE_OF_CAPACITY, lambda offered: objective.p95_ms * offered / rate)

    guide = Guide(objective=objective, priors={}, before=record.trials, narrow=True)
    row = compare(space, space.all(), recorded, objective, guide)
    inside = {t.candidate.name: round(t.screen.achieved_per_s, 1) for t in record.trials if t.screen is not None}
    return {"file": grid.name, "recorded": len(space.rates), "in_process_per_s": inside} | row


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--weights", type=Path)
    options.add_argument("--work", type=Path)
    options.add_argument("--curves", type=Path, nargs="*", default=sorted(RESULTS.glob("*h[12]00-*.json")))
    options.add_argument("--grid", type=Path, default=RESULTS / "2026-11-25-cpu-served-search.json")
    options.add_argument("--run", type=Path)
    options.add_argument("--output", type=Path)
    given = options.parse_args()
    report: dict[str, Any] = {
        "notes": (__doc__ or "").split("\n\n")[1:-1],
        "environment": plain(inspect_machine()),
        "target": {"rate_share": LEAST_RATE, "load_share": MOST_LOADS},
    }
    report["gpu"] = gpu_rows(given) if given.weights is not None else []
    report["cpu"] = [cpu_row(given.grid, given.run)] if given.run is not None else []
    if given.output:
        given.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    for row in (*report["gpu"], *report["cpu"]):
        what = f"{row.get('device', 'cpu')} {row.get('model', '')} P95 {row['p95_ms']:g}: {row['exhaustive']['loads']} loads"
        for name in ("unseeded", "seeded"):
            one = row[name]
            what += f"; {name} {one['rate_share']:.1%} of the best with {one['load_share']:.1%} ({one['loads']})"
        print(what)
    return 0 if all(row["target_met"] for row in (*report["gpu"], *report["cpu"])) else 1


if __name__ == "__main__":
    sys.exit(main())
