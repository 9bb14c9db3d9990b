"""The search through the server beside the in-process one: the two loads in figures, every served trial in a row."""

from __future__ import annotations

from dataclasses import dataclass

from redline.records import Candidate, RunRecord, Served, Trial
from redline.report import facts, words

PIPELINES = {"fused": "one process", "bls": "BLS", "ensemble": "ensemble"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRow:
    trial: Trial
    chosen: bool
    pipeline: str
    delay: str
    capacity: float | None
    p50_ms: float | None
    p95_ms: float | None
    knee: float | None
    outcome: facts.Outcome
    word: str
    why: str


def chosen(served: Served) -> Trial | None:
    return next((trial for trial in served.trials if trial.digest == served.choice.trial), None)


def rows(served: Served) -> list[ServedRow]:
    """The choice first, then by knee and capacity."""
    found = [_row(served, trial) for trial in served.trials]
    return sorted(found, key=lambda row: (not row.chosen, -(row.knee or 0.0), -(row.capacity or 0.0)))


def _row(served: Served, trial: Trial) -> ServedRow:
    kind, why = facts.outcome(trial)
    found, serving = facts.load(trial, "open"), trial.candidate.serving
    pipeline = PIPELINES[serving.pipeline] if serving is not None else words.NONE
    if serving is not None and serving.pipeline != "fused":
        pipeline += f", {words.plural(serving.workers, 'worker')}"
    return ServedRow(
        trial=trial,
        chosen=trial.digest == served.choice.trial,
        pipeline=pipeline,
        delay=words.number(serving.queue_delay_us / 1000) if serving is not None else words.NONE,
        capacity=facts.capacity(trial),
        p50_ms=found.p50_ms if found else None,
        p95_ms=found.p95_ms if found else None,
        knee=facts.knee_rate(trial),
        outcome=kind,
        word=facts.OUTCOMES[kind],
        why=why,
    )


def side_by_side(record: RunRecord) -> list[tuple[str, str, str]]:
    """(what, in-process, through the server) of the two choices; empty if one of them was not measured."""
    served, before = record.served, facts.chosen(record)
    after = chosen(served) if served is not None else None
    if served is None or before is None or after is None:
        return []
    old, new = served.in_process, after.confirmation or after.objective_load
    lines = [("Choice", _knobs(before.candidate), _knobs(after.candidate))]
    if old is not None and new is not None:
        lines += [
            ("P50 at the objective's rate", words.ms(old.p50_ms), words.ms(new.p50_ms)),
            ("P95 at the objective's rate", words.ms(old.p95_ms), words.ms(new.p95_ms)),
        ]
    lines.append(("Closed-loop capacity", words.rate(facts.capacity(before)), words.rate(facts.capacity(after))))
    lines.append(("Rate within the P95 limit", words.rate(facts.knee_rate(before)), words.rate(facts.knee_rate(after))))
    return lines


def _knobs(candidate: Candidate) -> str:
    serving = candidate.serving
    parts = [candidate.shape_name, words.plural(candidate.threads, "thread"), f"batch {candidate.batch}"]
    if serving is None:
        return ", ".join([*parts, f"{candidate.concurrency} in flight"])
    parts.append(words.plural(candidate.concurrency, "instance"))
    parts.append(PIPELINES[serving.pipeline] + (f", waits {serving.queue_delay_us / 1000:g} ms" if candidate.batch > 1 else ""))
    return ", ".join(parts)


def sentence(record: RunRecord) -> str | None:
    """One line for the terminal; None where nothing was measured through a server."""
    lines = {what: (old, new) for what, old, new in side_by_side(record)}
    p95, rate = lines.get("P95 at the objective's rate"), lines.get("Rate within the P95 limit")
    if record.served is None or p95 is None or rate is None:
        return None
    return f"P95 {p95[1]} (in-process {p95[0]}), holds the limit up to {rate[1]} (in-process {rate[0]})"
