"""The search through the server against a brute-force grid of the same space on the same server.

Protocol: the space is what `redline run` searches for the demo detector (pipelines, processes, threads, batch, queue delay),
cut to batches 1 and 4 and no queue delay so that a grid can be measured at all. First `redline`'s search runs with no limit
of time, steered by the simulation as in a run (seeded), then the same search alone (unseeded), then every lawful candidate of
the space gets a closed loop and a search for its knee, all through a real Triton over HTTP. The best of a grid is partly luck,
so its first four and the searches' choices are measured twice more in turn, and the medians of the three rates are compared. A
measurement is one load, of any side; those repeats count for none. Target: the seeded search reaches at least 95 % of the best
rate within the objective with at most a tenth of the grid's loads. The guide starts from the in-process trials of the run in
the folder. Takes about 40 minutes.

    python benchmarks/served_search.py --work FOLDER [--output FILE]
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rich.console import Console

from redline.doctor import inspect_machine
from redline.errors import TrialError
from redline.plan.serving import ServedSpace, served_space
from redline.progress import Progress
from redline.records import Candidate, Load, ParityReport, Pruned, Serving
from redline.records.run import Pipeline
from redline.serve.environment import find_environment
from redline.served import Host
from redline.steering import by_trials
from redline.store import Journal, Store
from redline.tune.choose import choose
from redline.tune.search import Guide, search
from redline.workbench import Workbench
from serving_case import Case, demo_case, parser, watched, write

BATCHES, DELAYS_US, WORKERS = (1, 4), (0,), (1, 2)
PIPELINES: tuple[Pipeline, ...] = ("fused", "bls", "ensemble")
LEAST_RATE, MOST_SHARE = 0.95, 0.10
CONTENDERS, REPEATS = 4, 2
FOREVER_MINUTES = 600.0


class Counted(Workbench):
    """A workbench whose accuracy is the run's and which counts its loads."""

    def __init__(self, case: Case, host: Host, salt: str) -> None:
        store, journal = Store(case.runs / "store"), Journal(case.runs / f"{salt}.jsonl")
        progress = Progress(Console(stderr=True))
        environment = inspect_machine()
        super().__init__(
            case.subject, case.graphs, case.record.baseline.candidate, store, journal, environment, progress, salt, minutes=0.0
        )
        self._record, self.loads = case.record, 0
        self.through(host, FOREVER_MINUTES)

    def parity(self, candidate: Candidate) -> ParityReport:
        for trial in self._record.trials:
            alike = trial.candidate.runner == "onnxruntime" and trial.candidate.prepost == "host"
            if alike and trial.candidate.shapes == candidate.shapes and trial.parity is not None:
                return trial.parity
        raise TrialError("bench-parity", "the run measured no accuracy for these shapes")

    def _measured(self, *arguments: Any) -> Load:
        self.loads += 1
        return super()._measured(*arguments)


def main() -> int:
    given = parser(__doc__).parse_args()
    case, result = demo_case(given.work, given.minutes), dict[str, Any]()
    host = Host(find_environment())
    try:
        with watched(result):
            result |= compare(case, host)
    finally:
        host.close()
    write(given, {case.name: result})
    seeded = result["seeded"]
    return 0 if seeded["rate_share"] >= LEAST_RATE and seeded["load_share"] <= MOST_SHARE else 1


def compare(case: Case, host: Host) -> dict[str, Any]:
    objective = case.spec.objective
    space = served_space(case.record.trials, case.record.choice.candidate, objective, inspect_machine().cores)
    assert space is not None
    space = replace(space, batches=BATCHES, delays_us=DELAYS_US)
    shapes = {space.baseline.shapes}
    space = replace(space, families=tuple(family for family in space.families if family.shapes in shapes))
    guide = by_trials(objective, case.record.trials)
    searches = {name: searched(case, host, space, name, steered) for name, steered in (("seeded", guide), ("unseeded", None))}
    grid_bench, rates = Counted(case, host, "grid"), dict[Candidate, float]()
    for candidate in grid(space):
        rates[candidate] = rate_of(grid_bench, candidate)
    grid_bench.close()
    final = repeated(case, host, rates, [one.chosen for one in searches.values()])
    best = max(final, key=lambda one: final[one])
    return {
        "objective_p95_ms": objective.p95_ms,
        "candidates": len(rates),
        "in_process_per_s": {t.candidate.name: t.screen.achieved_per_s for t in case.record.trials if t.screen is not None},
        "grid": {"best": best.name, "loads": grid_bench.loads},
        **{
            name: one.told | {"rate_share": final[one.chosen] / final[best], "load_share": one.loads / grid_bench.loads}
            for name, one in searches.items()
        },
        "medians_per_s": {candidate.name: rate for candidate, rate in final.items()},
        "rates_per_s": {candidate.name: rate for candidate, rate in sorted(rates.items(), key=lambda item: -item[1])},
    }


@dataclass(frozen=True)
class Searched:
    chosen: Candidate
    loads: int
    told: dict[str, Any]


def searched(case: Case, host: Host, space: ServedSpace, name: str, guide: Guide | None) -> Searched:
    """Measured afresh: neither search finds what the other has measured."""
    bench, left, objective = Counted(case, host, name), list[Pruned](), case.spec.objective
    found = search(space, bench, objective, print, climbs=1, guide=guide, prune=left.append)
    choice, found = choose(found, bench, objective, None)
    bench.close()
    if choice.candidate is None:
        raise SystemExit(f"the {name} search chose nothing: {choice.verdict.reason}")
    told = {
        "chosen": choice.candidate.name,
        "verdict": choice.verdict.answer,
        "loads": bench.loads,
        "screened": [trial.candidate.name for trial in found if trial.screen is not None],
        "knees": {t.candidate.name: t.knee.rate_per_s for t in found if t.knee is not None},
        "pruned": {one.candidate.name: [one.what, round(one.rate_per_s, 1), round(one.against_per_s, 1)] for one in left},
    }
    return Searched(choice.candidate, bench.loads, told)


def repeated(case: Case, host: Host, rates: dict[Candidate, float], chosen: list[Candidate]) -> dict[Candidate, float]:
    """Median rate of each that may be the best, and of the chosen ones."""
    first = sorted(rates, key=lambda one: -rates[one])[:CONTENDERS]
    found = {one: [rates[one]] if one in rates else [] for one in dict.fromkeys((*first, *chosen))}
    for repeat in range(REPEATS):
        bench = Counted(case, host, f"repeat-{repeat}")
        for candidate, seen in found.items():
            seen.append(rate_of(bench, candidate))
        bench.close()
    return {candidate: statistics.median(seen) for candidate, seen in found.items()}


def grid(space: ServedSpace) -> list[Candidate]:
    start, places = space.baseline, [(1, 1), (2, 1), (1, 2)]
    found = [
        replace(
            start,
            threads=threads,
            concurrency=instances,
            batch=batch,
            serving=Serving(pipeline=pipeline, queue_delay_us=delay, workers=workers),
        )
        for pipeline, (threads, instances), batch, delay, workers in product(PIPELINES, places, BATCHES, DELAYS_US, WORKERS)
    ]
    return [candidate for candidate in dict.fromkeys(found) if space.lawful(candidate)]


def rate_of(bench: Counted, candidate: Candidate) -> float:
    try:
        capacity = bench.screen(candidate).achieved_per_s
        return bench.knee(candidate, capacity=capacity).rate_per_s
    except TrialError as error:
        print(f"{candidate.name}: {error.what}", file=sys.stderr)
        return 0.0


if __name__ == "__main__":
    sys.exit(main())
