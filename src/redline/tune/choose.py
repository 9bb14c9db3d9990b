"""Which trial wins: accuracy and P95 first, then the highest rate within the objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from redline.errors import TrialError
from redline.records import Choice, Failure, Noise, Objective, Trial, Verdict
from redline.tune.search import Bench


def choose(
    trials: Sequence[Trial], bench: Bench, objective: Objective, noise: Noise | None
) -> tuple[Choice, tuple[Trial, ...]]:
    """The choice and the trials, the winner's now with its confirmation.

    pass: a trial met P95 at the objective's rate, kept the accuracy, and did so again when built afresh.
    inconclusive: nothing passed, but something was neither shown to pass nor to fail.
    fail: everything measured failed; the candidate named is the best found.
    """
    current = {trial.candidate: trial for trial in trials}
    for contender in sorted((t for t in trials if _met(t) == "pass"), key=_promise, reverse=True):
        confirmed, verdict = _confirm(contender, bench)
        current[contender.candidate] = confirmed
        if verdict.answer == "pass":
            reason = _reason(confirmed, objective)
            choice = Choice(
                candidate=confirmed.candidate,
                trial=confirmed.digest,
                verdict=Verdict(answer="pass", reason=reason),
                notes=_notes(confirmed, tuple(current.values()), noise),
            )
            return choice, tuple(current.values())
        current[contender.candidate] = replace(confirmed, latency=verdict)
    left = tuple(current.values())
    return _without_winner(left, objective), left


def _met(trial: Trial) -> str:
    """The weakest of the trial's verdicts; what was never judged is no candidate for a choice."""
    if trial.failure is not None or trial.parity is None or trial.latency is None:
        return "fail"
    answers = {trial.parity.verdict.answer, trial.latency.answer}
    return "fail" if "fail" in answers else "inconclusive" if "inconclusive" in answers else "pass"


def _rate(trial: Trial) -> float:
    return trial.knee.rate_per_s if trial.knee is not None else 0.0


def _capacity(trial: Trial) -> float:
    return trial.screen.achieved_per_s if trial.screen is not None else 0.0


def _promise(trial: Trial) -> tuple[float, float]:
    """What holds the objective holds its rate, whatever the search for the knee found, or if there was no time for it."""
    offered = trial.objective_load.offered_per_s if trial.objective_load is not None else None
    return (max(_rate(trial), offered or 0.0), _capacity(trial))


def _confirm(trial: Trial, bench: Bench) -> tuple[Trial, Verdict]:
    try:
        load = bench.at_objective(trial.candidate, repeat=1)
        knee = trial.knee or bench.knee(trial.candidate, capacity=_capacity(trial))
    except TrialError as error:
        failure = Failure(stage="confirm", code=error.code, message=error.text())
        return replace(trial, failure=failure), Verdict(answer="fail", reason=f"confirmation failed: {error.what}")
    return replace(trial, confirmation=load, knee=knee), bench.judge(load)


def _reason(trial: Trial, objective: Objective) -> str:
    load, drop = trial.confirmation or trial.objective_load, trial.parity.drop if trial.parity else None
    p95 = f"P95 {load.p95_ms:.1f} ms (limit {objective.p95_ms:g}) at {load.achieved_per_s:.1f}/s" if load else "P95 unknown"
    rate = f"up to {_promise(trial)[0]:.1f}/s within the limit"
    accuracy = f"mAP drop {drop.relative_pct:.2f} % [{drop.relative_low_pct:.2f}, {drop.relative_high_pct:.2f}]" if drop else ""
    return f"{p95}; {rate}; {accuracy} (limit {objective.map_drop_pct:g} %)"


def _notes(winner: Trial, trials: Sequence[Trial], noise: Noise | None) -> tuple[str, ...]:
    """How the winner stands against torch.compile, and against the runner-up."""
    notes = [_wide(winner)] if winner.held else []
    margin = noise.relative if noise is not None else 0.0
    compiled = _fastest(trials, "torch-compile")
    engine = winner if winner.candidate.runner != "torch-compile" else _fastest(trials, "tensorrt")
    if compiled is not None and engine is not None:
        ratio = _capacity(engine) / _capacity(compiled) if _capacity(compiled) > 0 else float("inf")
        worth = "worth it" if ratio > 1 + margin else "not worth it: within the noise of torch.compile or slower"
        name = "" if engine is winner else f"{engine.candidate.name}: "
        notes.append(f"{name}{ratio:.2f}x the capacity of torch.compile ({_capacity(compiled):.1f}/s): {worth}")
    others = sorted((t for t in trials if t.candidate != winner.candidate and _met(t) == "pass"), key=_rate, reverse=True)
    if others and _rate(others[0]) > _rate(winner) * (1 - margin):
        notes.append(f"{others[0].candidate.name} is within the noise ({100 * margin:.0f} %): {_rate(others[0]):.1f}/s")
    return tuple(notes)


def _wide(winner: Trial) -> str:
    """Which nodes stay in FP32, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for held in winner.held:
        reasons.setdefault(held.why, []).append(held.node)
    count = f"{len(winner.held)} node{'s' if len(winner.held) > 1 else ''} in FP32"
    return f"{count}: " + "; ".join(f"{', '.join(nodes)} ({why})" for why, nodes in reasons.items())


def _fastest(trials: Sequence[Trial], runner: str) -> Trial | None:
    able = (t for t in trials if t.candidate.runner == runner and t.screen and t.parity and t.parity.verdict.answer != "fail")
    return max(able, key=_capacity, default=None)


def _without_winner(trials: Sequence[Trial], objective: Objective) -> Choice:
    measured = [t for t in trials if t.failure is None and t.objective_load is not None]
    if not measured:
        reasons = [f"{t.candidate.name}: {t.failure.message.splitlines()[0]}" for t in trials if t.failure]
        reasons += [f"{t.candidate.name}: {t.parity.verdict.reason}" for t in trials if t.parity and not t.failure]
        verdict = Verdict(answer="fail", reason="; ".join(["no candidate could be measured", *reasons]))
        return Choice(candidate=None, trial=None, verdict=verdict)
    undecided = [t for t in measured if _met(t) == "inconclusive"]
    best = max(undecided or measured, key=lambda t: (_rate(t), -(t.objective_load.p95_ms if t.objective_load else 0.0)))
    verdicts = (best.latency, best.parity.verdict if best.parity else None)
    reasons = [v.reason for v in verdicts if v is not None and v.answer != "pass"]
    found = f"best found: {best.candidate.name}, {_rate(best):.1f}/s within {objective.p95_ms:g} ms"
    return Choice(
        candidate=best.candidate,
        trial=best.digest,
        verdict=Verdict(answer="inconclusive" if undecided else "fail", reason="; ".join([*reasons, found])),
    )
