"""The search: accuracy of every family, a climb on capacity, then finalists at the objective's rate and up to their knee.

With a guide, which simulates what was not measured yet, it measures what the guide puts first, and leaves out what cannot win.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from redline.errors import TrialError
from redline.records import Candidate, Expected, Failure, Knee, Load, Objective, ParityReport, Pruned, Trial, Verdict

FINALISTS = 3
GAIN = 0.02
"""Expected above the best measured, for a candidate to be worth a measurement; less is within every load's noise."""
CONTENDER = 0.95
"""Of the best's expected rate, for a candidate to be a finalist of a narrow guide: the tolerance of the knee itself."""
ALWAYS = 2
"""The baseline and the best candidate are measured at the objective's rate however little time is left."""


class Lawful(Protocol):
    """The search space, as far as the search needs it."""

    @property
    def baseline(self) -> Candidate: ...
    @property
    def families(self) -> tuple[Candidate, ...]: ...
    def neighbours(self, candidate: Candidate) -> tuple[Candidate, ...]: ...


class Guide(Protocol):
    """What may be expected of candidates before they are measured. Pure: equal trials give equal answers."""

    @property
    def narrow(self) -> bool:
        """Only contenders are to be measured at the objective's rate and up to their knee."""
        ...

    def expect(self, candidates: Sequence[Candidate], trials: Sequence[Trial]) -> tuple[Expected, ...]:
        """All candidates, the highest rate first; no rate where nothing is known."""
        ...


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
    def knee(self, candidate: Candidate, *, capacity: float, expected: float | None = None) -> Knee:
        """`expected`: where the knee should be, requests/s; None: nothing says."""
        ...

    def out_of_time(self, *, climbing: bool = False) -> bool: ...


@dataclass(slots=True)
class _State:
    """What the steps of one search share."""

    space: Lawful
    bench: Bench
    objective: Objective
    note: Callable[[str], None]
    guide: Guide | None
    prune: Callable[[Pruned], None]
    trials: dict[Candidate, Trial] = field(default_factory=dict)

    def expected(self, candidates: Sequence[Candidate]) -> dict[Candidate, Expected]:
        """The highest first; empty without a guide."""
        found = self.guide.expect(candidates, tuple(self.trials.values())) if self.guide is not None else ()
        return {one.candidate: one for one in found}

    def leave(self, expected: Expected, against: Expected, what: Literal["screen", "knee"]) -> None:
        assert expected.rate_per_s is not None
        assert against.rate_per_s is not None
        self.prune(
            Pruned(
                candidate=expected.candidate,
                what=what,
                rate_per_s=expected.rate_per_s,
                against=against.candidate.name,
                against_per_s=against.rate_per_s,
                reason=expected.reason,
            )
        )


def search(
    space: Lawful,
    bench: Bench,
    objective: Objective,
    note: Callable[[str], None],
    *,
    climbs: int | None = None,
    guide: Guide | None = None,
    prune: Callable[[Pruned], None] = lambda _: None,
) -> tuple[Trial, ...]:
    """Every trial made, the baseline first. A failed trial is data: the search goes on.

    `climbs`: from how many families, the best first, the climb may start; None: from all. `guide`: what it can tell of, it
    steers, and `prune` gets what was left out for its sake; the families it knows nothing of are climbed from.
    """
    state = _State(space, bench, objective, note, guide, prune)
    trials = state.trials
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
    _climb(state, _steered(state, live), climbs)
    finalists, expected = _finalists(state)
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
            trials[candidate] = _step(trials[candidate], "knee", lambda t: _with_knee(t, bench, expected.get(t.candidate)))
    for candidate in [c for c, trial in trials.items() if _lost_in_rounding(trial)]:
        trials[candidate] = _screened(trials[candidate], bench)
    return tuple(trials.values())


def _steered(state: _State, live: Sequence[Candidate]) -> list[Candidate]:
    """Screens what the guide expects to beat the best measured, one at a time, for each changes what it expects of the rest.

    Candidates of proved accuracy first. Returns the live families that the guide cannot tell of.
    """
    if state.guide is None:
        return list(live)
    left = []
    for proved in (True, False):
        pools = [(f, _reachable(state.space, f)) for f in live if _proved(state.trials[f]) == proved]
        known = state.expected([c for _, pool in pools for c in pool])
        told = [(f, p) for f, p in pools if any(known[c].rate_per_s is not None and c not in state.trials for c in p)]
        left += [family for family, _ in pools if family not in dict(told)]
        if not _steer(state, {c: family for family, pool in reversed(told) for c in pool}):
            return []
    return left


def _steer(state: _State, family_of: dict[Candidate, Candidate]) -> bool:
    """Whether there was time for all that was worth it."""
    trials, bench = state.trials, state.bench
    while family_of and _screens(trials):
        expected = state.expected(list(dict.fromkeys((*family_of, *_screens(trials)))))
        best = max(_screens(trials), key=lambda c: _promise(trials[c], expected, state.objective))
        top = expected[best].rate_per_s or 0.0
        beside = [c for c in state.space.neighbours(best) if c in family_of and expected[c].rate_per_s is None]
        hopeful = [c for c, one in expected.items() if (one.rate_per_s or 0.0) > top * (1 + GAIN)]
        there = next((c for c in (*hopeful, *beside) if c not in trials), None)
        if there is None:
            for one in expected.values():
                if one.candidate not in trials and one.rate_per_s is not None:
                    state.leave(one, expected[best], "screen")
            return True
        if bench.out_of_time(climbing=True):
            state.note(f"the budget ended the search at {best.name}: {there.name} and what follows were not tried")
            return False
        trials[there] = _screened(replace(bench.trial(there), parity=trials[family_of[there]].parity), bench)
    return True


def _screens(trials: dict[Candidate, Trial]) -> list[Candidate]:
    return [candidate for candidate, trial in trials.items() if trial.failure is None and trial.screen is not None]


def _promise(trial: Trial, expected: dict[Candidate, Expected], objective: Objective) -> tuple[bool, float, float]:
    within, capacity = _rank(trial, objective)
    return (within, expected[trial.candidate].rate_per_s or 0.0, capacity)


def _reachable(space: Lawful, family: Candidate) -> tuple[Candidate, ...]:
    """The family and all that the search could come to from it."""
    found, waiting = {family: None}, [family]
    while waiting:
        fresh = [c for c in space.neighbours(waiting.pop()) if c not in found]
        found |= dict.fromkeys(fresh)
        waiting += fresh
    return tuple(found)


def _climb(state: _State, live: list[Candidate], climbs: int | None) -> None:
    """From each live family, those of proved accuracy first, move to the neighbour of highest capacity until none is better."""
    trials, bench, objective = state.trials, state.bench, state.objective
    for family in sorted(live, key=lambda c: (_proved(trials[c]), *_rank(trials[c], objective)), reverse=True)[:climbs]:
        here = family
        while trials[here].failure is None:
            for there in state.space.neighbours(here):
                if there in trials:
                    continue
                if bench.out_of_time(climbing=True):
                    state.note(f"the budget ended the search at {here.name}: its neighbours were not tried")
                    return
                trials[there] = _screened(replace(bench.trial(there), parity=trials[family].parity), bench)
            around = [c for c in state.space.neighbours(here) if c in trials and trials[c].failure is None]
            best = max([here, *around], key=lambda c: _rank(trials[c], objective))
            if best == here:
                break
            here = best


def _rank(trial: Trial, objective: Objective) -> tuple[bool, float]:
    """Candidates whose closed-loop P95 is within the objective first, then by capacity."""
    if trial.failure is not None or trial.screen is None:
        return (False, 0.0)
    return (trial.screen.p95_ms <= objective.p95_ms, trial.screen.achieved_per_s)


def _finalists(state: _State) -> tuple[list[Candidate], dict[Candidate, Expected]]:
    """The baseline, the best of those whose accuracy is proved, the best of every runner, and the best of all; with what a
    guide expects of them."""
    trials, measured = state.trials, _screens(state.trials)
    expected = state.expected(measured)
    if state.guide is not None and state.guide.narrow and measured:
        return _contenders(state, measured, expected), expected
    ranked = sorted(measured, key=lambda c: _rank(trials[c], state.objective), reverse=True)
    proved = [c for c in ranked if _proved(trials[c])]
    best_of_runner = {candidate.runner: candidate for candidate in reversed(ranked)}
    baseline = [c for c in ranked if c == state.space.baseline]
    return list(dict.fromkeys([*baseline, *proved[:FINALISTS], *best_of_runner.values(), *ranked[:1]])), expected


def _contenders(state: _State, measured: Sequence[Candidate], expected: dict[Candidate, Expected]) -> list[Candidate]:
    """Those that could be the best of proved accuracy, and the best of all."""
    trials = state.trials
    ranked = sorted(measured, key=lambda c: _promise(trials[c], expected, state.objective), reverse=True)
    proved = [c for c in ranked if _proved(trials[c])] or ranked
    first = expected[proved[0]]
    least = CONTENDER * (first.rate_per_s or 0.0)
    close = [c for c in proved if (expected[c].rate_per_s or 0.0) >= least]
    kept = list(dict.fromkeys([*close[:FINALISTS], ranked[0]]))
    for one in (expected[c] for c in ranked if c not in kept):
        if one.rate_per_s is not None:
            state.leave(one, first, "knee")
    return kept


def _screened(trial: Trial, bench: Bench) -> Trial:
    return _step(trial, "screen", lambda t: replace(t, screen=bench.screen(t.candidate)))


def _at_objective(trial: Trial, bench: Bench) -> Trial:
    load = bench.at_objective(trial.candidate)
    return replace(trial, objective_load=load, latency=bench.judge(load))


def _with_knee(trial: Trial, bench: Bench, expected: Expected | None) -> Trial:
    capacity = trial.screen.achieved_per_s if trial.screen is not None else 0.0
    rate = expected.rate_per_s if expected is not None else None
    return replace(trial, knee=bench.knee(trial.candidate, capacity=capacity, expected=rate))


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


def _lost_in_rounding(trial: Trial) -> bool:
    """INT8 or FP8 that loses too much: one short load tells what winning the accuracy back would be worth."""
    lost = trial.parity is not None and trial.parity.verdict.answer == "fail" and trial.parity.drop.candidate_ap > 0
    return lost and trial.failure is None and trial.screen is None and trial.candidate.precision in ("int8", "fp8")


def _proved(trial: Trial) -> bool:
    return trial.parity is not None and trial.parity.verdict.answer == "pass"
