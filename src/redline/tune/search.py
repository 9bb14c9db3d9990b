"""The search: accuracy of every family, a climb on capacity, then finalists at the objective's rate and up to their knee."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from redline.errors import TrialError
from redline.records import Candidate, Failure, Knee, Load, Objective, ParityReport, Trial, Verdict

FINALISTS = 3
ALWAYS = 2
"""The baseline and the best candidate are measured at the objective's rate however little time is left."""


class Lawful(Protocol):
    """The search space, as far as the search needs it."""

    @property
    def baseline(self) -> Candidate: ...
    @property
    def families(self) -> tuple[Candidate, ...]: ...
    def neighbours(self, candidate: Candidate) -> tuple[Candidate, ...]: ...


class Bench(Protocol):
    """Measures one candidate at a time. Every method may raise TrialError; nothing is measured twice."""

    def trial(self, candidate: Candidate) -> Trial: ...
    def parity(self, candidate: Candidate) -> ParityReport: ...
    def examined(self, trial: Trial) -> Trial:
        """With what a closer look at its engine shows; failed if that is wrong."""
        ...

    def wider(self, trial: Trial) -> Candidate | None:
        """What to try instead of a narrow candidate that failed; bounded by the bench."""
        ...

    def screen(self, candidate: Candidate) -> Load: ...
    def at_objective(self, candidate: Candidate, *, repeat: int = 0) -> Load: ...
    def judge(self, load: Load) -> Verdict: ...
    def knee(self, candidate: Candidate, *, capacity: float) -> Knee: ...
    def out_of_time(self, *, climbing: bool = False) -> bool: ...


def search(
    space: Lawful, bench: Bench, objective: Objective, note: Callable[[str], None], *, climbs: int | None = None
) -> tuple[Trial, ...]:
    """Every trial made, the baseline first. A failed trial is data: the search goes on.

    `climbs`: from how many families, the best first, the climb may start; None: from all.
    """
    trials: dict[Candidate, Trial] = {}
    for family in space.families:
        tried: Candidate | None = family
        while tried is not None and tried not in trials:
            trial = _step(bench.trial(tried), "parity", lambda t: replace(t, parity=bench.parity(t.candidate)))
            trials[tried] = _step(trial, "parity", bench.examined)
            tried = bench.wider(trials[tried])
        if not _accurate(trials[space.baseline]):
            note("the reference itself is not sound, so nothing can be compared with it")
            return tuple(trials.values())
    live = [candidate for candidate in trials if _accurate(trials[candidate])]
    for family in live:
        trials[family] = _screened(trials[family], bench)
    _climb(space, bench, objective, trials, live, note, climbs)
    finalists = _finalists(space, objective, trials)
    for place, candidate in enumerate(finalists):
        if place >= ALWAYS and bench.out_of_time():
            note(f"the budget is spent: {candidate.name} was not measured at the objective's rate")
        else:
            trials[candidate] = _step(trials[candidate], "load", lambda t: _at_objective(t, bench))
    for candidate in sorted(finalists, key=lambda c: _hope(trials[c], objective), reverse=True):
        if trials[candidate].objective_load is None:
            continue
        if bench.out_of_time() and any(t.knee is not None for t in trials.values()):
            note(f"the budget is spent: the knee of {candidate.name} was not searched")
        else:
            trials[candidate] = _step(trials[candidate], "knee", lambda t: _with_knee(t, bench))
    return tuple(trials.values())


def _climb(
    space: Lawful,
    bench: Bench,
    objective: Objective,
    trials: dict[Candidate, Trial],
    live: list[Candidate],
    note: Callable[[str], None],
    climbs: int | None,
) -> None:
    """From each live family, those of proved accuracy first, move to the neighbour of highest capacity until none is better."""
    for family in sorted(live, key=lambda c: (_proved(trials[c]), *_rank(trials[c], objective)), reverse=True)[:climbs]:
        here = family
        while trials[here].failure is None:
            for there in space.neighbours(here):
                if there in trials:
                    continue
                if bench.out_of_time(climbing=True):
                    note(f"the budget ended the search at {here.name}: its neighbours were not tried")
                    return
                trials[there] = _screened(replace(bench.trial(there), parity=trials[family].parity), bench)
            around = [c for c in space.neighbours(here) if c in trials and trials[c].failure is None]
            best = max([here, *around], key=lambda c: _rank(trials[c], objective))
            if best == here:
                break
            here = best


def _rank(trial: Trial, objective: Objective) -> tuple[bool, float]:
    """Candidates whose closed-loop P95 is within the objective first, then by capacity."""
    if trial.failure is not None or trial.screen is None:
        return (False, 0.0)
    return (trial.screen.p95_ms <= objective.p95_ms, trial.screen.achieved_per_s)


def _finalists(space: Lawful, objective: Objective, trials: dict[Candidate, Trial]) -> list[Candidate]:
    """The baseline, the best of those whose accuracy is proved, the best of every runner, and the best of all."""
    ranked = sorted(
        (c for c, t in trials.items() if t.failure is None and t.screen is not None),
        key=lambda c: _rank(trials[c], objective),
        reverse=True,
    )
    proved = [c for c in ranked if _proved(trials[c])]
    best_of_runner = {candidate.runner: candidate for candidate in reversed(ranked)}
    baseline = [c for c in ranked if c == space.baseline]
    return list(dict.fromkeys([*baseline, *proved[:FINALISTS], *best_of_runner.values(), *ranked[:1]]))


def _screened(trial: Trial, bench: Bench) -> Trial:
    return _step(trial, "screen", lambda t: replace(t, screen=bench.screen(t.candidate)))


def _at_objective(trial: Trial, bench: Bench) -> Trial:
    load = bench.at_objective(trial.candidate)
    return replace(trial, objective_load=load, latency=bench.judge(load))


def _with_knee(trial: Trial, bench: Bench) -> Trial:
    capacity = trial.screen.achieved_per_s if trial.screen is not None else 0.0
    return replace(trial, knee=bench.knee(trial.candidate, capacity=capacity))


def _hope(trial: Trial, objective: Objective) -> tuple[bool, bool, bool, float]:
    """What may be chosen first: P95 not failed, accuracy proved, then as `_rank`."""
    met = trial.latency is not None and trial.latency.answer != "fail"
    return (met, _proved(trial), *_rank(trial, objective))


def _step(trial: Trial, stage: str, act: Callable[[Trial], Trial]) -> Trial:
    if trial.failure is not None:
        return trial
    try:
        return act(trial)
    except TrialError as error:
        return replace(trial, failure=Failure(stage=stage, code=error.code, message=error.text()))


def _accurate(trial: Trial) -> bool:
    return trial.failure is None and trial.parity is not None and trial.parity.verdict.answer != "fail"


def _proved(trial: Trial) -> bool:
    return trial.parity is not None and trial.parity.verdict.answer == "pass"
