"""What the report says about a run, from its record alone: the choice, the chain of steps, the front, each trial's outcome."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from redline.records import Load, ParityReport, RunRecord, Trial
from redline.report import words

Outcome = Literal["pass", "inconclusive", "fail", "error", "screened"]
OUTCOMES: dict[Outcome, str] = {
    "pass": "pass",
    "inconclusive": "inconclusive",
    "fail": "fail",
    "error": "failed to run",
    "screened": "screened out",
}
HEADLINES = {"pass": "Objective met", "fail": "Objective not met", "inconclusive": "Inconclusive"}
Metric = Literal["open", "closed"]
"""open: P95 under Poisson load at the objective's rate; closed: P95 of the closed loop that measured capacity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One measured trial of the chain from baseline to choice and the knobs in which it differs from the one before."""

    trial: Trial
    changes: tuple[str, ...]


def every_trial(record: RunRecord) -> tuple[Trial, ...]:
    """Baseline first, then the trials in the order they were made, each once."""
    rest = (trial for trial in record.trials if trial.digest != record.baseline.digest)
    return (record.baseline, *{trial.digest: trial for trial in rest}.values())


def chosen(record: RunRecord) -> Trial | None:
    if record.choice.trial is None:
        return None
    return next((trial for trial in every_trial(record) if trial.digest == record.choice.trial), None)


def load(trial: Trial, metric: Metric) -> Load | None:
    """The load measurement of one kind, None where it was not made or answered no request."""
    found = trial.objective_load if metric == "open" else trial.screen
    return found if found is not None and found.requests > found.errors and words.known(found.p95_ms) else None


def p95(trial: Trial, metric: Metric = "open") -> float | None:
    found = load(trial, metric)
    return found.p95_ms if found else None


def capacity(trial: Trial) -> float | None:
    found = load(trial, "closed")
    return found.achieved_per_s if found else None


def knee_rate(trial: Trial) -> float | None:
    return trial.knee.rate_per_s if trial.knee and words.known(trial.knee.rate_per_s) else None


def shared_metric(first: Trial, last: Trial) -> Metric | None:
    """The way of measuring P95 that both trials have; None: they cannot be compared."""
    metrics: tuple[Metric, Metric] = ("open", "closed")
    return next((metric for metric in metrics if load(first, metric) and load(last, metric)), None)


def outcome(trial: Trial) -> tuple[Outcome, str]:
    """A trial in one word, and why. Accuracy comes before latency: a fast wrong engine is no candidate."""
    if trial.failure is not None and trial.parity is not None and trial.parity.verdict.answer == "fail":
        return "fail", trial.failure.message
    if trial.failure is not None:
        return "error", f"{trial.failure.stage}: {trial.failure.message}"
    verdicts = [verdict for verdict in (trial.parity.verdict if trial.parity else None, trial.latency) if verdict]
    for answer in ("fail", "inconclusive"):
        for verdict in verdicts:
            if verdict.answer == answer:
                return ("fail", verdict.reason) if answer == "fail" else ("inconclusive", verdict.reason)
    if trial.latency is None:
        return "screened", "not measured at the objective's rate"
    return "pass", "; ".join(verdict.reason for verdict in verdicts)


def changes(before: Trial, after: Trial) -> tuple[str, ...]:
    """Knobs in which two trials differ: "threads 2 → 1"."""
    parts = []
    for field, label in words.KNOBS.items():
        old, new = words.knob(before.candidate, field), words.knob(after.candidate, field)
        if old != new:
            parts.append(f"{old} → {new}" if field == "runner" else f"{label} {old} → {new}")
    return tuple(parts)


def chain(record: RunRecord) -> tuple[Step, ...]:
    """Measured trials from baseline to choice, each closer to the choice in knobs than the one before.

    Among all such chains the one with the smallest sum of squared knob changes, so that single-knob steps win; of equals the
    one that climbs least in P95. Every step was measured the same way. Empty if baseline and choice cannot be compared.
    """
    goal = chosen(record)
    metric = shared_metric(record.baseline, goal) if goal else None
    if goal is None or metric is None:
        return ()
    if goal.digest == record.baseline.digest:
        return (Step(trial=goal, changes=()),)
    best: dict[str, tuple[tuple[float, float], tuple[Trial, ...]]] = {record.baseline.digest: ((0.0, 0.0), (record.baseline,))}
    between = [trial for trial in every_trial(record)[1:] if load(trial, metric) and _sound(trial) and changes(trial, goal)]
    for trial in [*sorted(between, key=lambda trial: -len(changes(trial, goal))), goal]:
        found = []
        for cost, path in best.values():
            before = path[-1]
            if len(changes(before, goal)) > len(changes(trial, goal)):
                climb = max(0.0, (p95(trial, metric) or 0.0) - (p95(before, metric) or 0.0))
                found.append(((cost[0] + len(changes(before, trial)) ** 2, cost[1] + climb), (*path, trial)))
        if found:
            best[trial.digest] = min(found, key=lambda entry: entry[0])
    path = best[goal.digest][1] if goal.digest in best else (record.baseline, goal)
    pairs = pairwise(path)
    return (Step(trial=path[0], changes=()), *(Step(trial=after, changes=changes(before, after)) for before, after in pairs))


def _sound(trial: Trial) -> bool:
    return trial.failure is None and not (trial.parity and trial.parity.verdict.answer == "fail")


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (rate, latency) that no other beats in both; ascending in rate."""
    kept: list[tuple[float, float]] = []
    for point in sorted(set(points), key=lambda point: (-point[0], point[1])):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept[::-1]


def metric_name(parity: ParityReport | None) -> str:
    return "agreement" if parity and parity.accuracy.kind == "agreement" else "mAP"


def sentence(record: RunRecord) -> list[str]:
    """What was measured against what was asked, in clauses."""
    goal, trial = record.spec.objective, chosen(record)
    if trial is None:
        return ["no candidate could be measured"]
    clauses, asked = [], f"of {words.plain(goal.p95_ms)} ms at {words.plain(goal.throughput)}/s"
    clauses.append(
        f"P95 {words.number(p95(trial))} {asked}" if load(trial, "open") else f"P95 not measured ({asked[3:]} asked)"
    )
    if knee_rate(trial) is not None:
        clauses.append(f"holds that P95 up to {words.rate(knee_rate(trial))}")
    elif capacity(trial) is not None:
        clauses.append(f"closed-loop capacity {words.rate(capacity(trial))}")
    if trial.parity:
        drop = trial.parity.drop
        clauses.append(
            f"{metric_name(trial.parity)} drop {words.percent(drop.relative_pct)} of {words.plain(goal.map_drop_pct)} % "
            f"allowed (95 % interval {words.interval(drop)}, {words.plural(drop.images, 'image')})"
        )
    return clauses


def left_out(record: RunRecord) -> list[tuple[str, str]]:
    """(what, why) of what the simulation left out, in-process and through the server: how many, and the best of them."""
    searches = [("in-process", record.pruned), ("through the server", record.served.pruned if record.served else ())]
    found = []
    for where, pruned in searches:
        for what, asked in (("screen", "not measured"), ("knee", "measured once, its highest rate not searched")):
            some = [one for one in pruned if one.what == what]
            if some:
                best = max(some, key=lambda one: one.rate_per_s)
                reason = f"the simulation expects at most {words.rate(best.rate_per_s)} within the P95 limit "
                reason += f"({best.candidate.name}), and {words.rate(best.against_per_s)} of {best.against}"
                found.append((f"{words.plural(len(some), 'candidate')} {where}, {asked}", reason))
    return found
