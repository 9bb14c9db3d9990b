"""The search space of a server: pipelines, processes, threads, batch, queue delay, workers and shape policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from redline.records import Candidate, Objective, Serving, Trial

DELAYS_US = (0, 1_000, 2_000, 5_000, 10_000)
DELAY_SHARE = 0.25
"""A queue delay may take this share of the P95 objective at the most."""
MAX_BATCH = 8
NEAR = 0.9
"""Of the capacity in-process with the best shape policy and equal knobs: a policy below it is not tried through the server.
In-process and through it were seen: fixed 0.89 and 0.81 (demo detector), 0.78 and 0.76 (YOLOX-Nano); buckets 0.97 and 0.97,
1.00 and 0.97 (benchmarks/results/2026-11-29-cpu-shape-policies-served.json)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSpace:
    """`baseline`: the in-process winner in fused processes, as nearly as it can be served."""

    baseline: Candidate
    families: tuple[Candidate, ...]
    cores: int
    batches: tuple[int, ...]
    delays_us: tuple[int, ...]

    def lawful(self, candidate: Candidate) -> bool:
        serving = candidate.serving
        if serving is None or candidate.prepost != "host" or candidate.runner != "onnxruntime":
            return False
        # Decoding and post-processing want a core too, but wait while the network runs: one process more than cores may pay.
        fits = candidate.threads >= 1 and candidate.concurrency >= 1 and candidate.threads <= self.cores
        fits = fits and candidate.threads * candidate.concurrency <= max(self.cores, candidate.threads)
        workers = 1 <= serving.workers <= self.cores and (serving.pipeline != "fused" or serving.workers == 1)
        # Waiting for others is of use only to a batch.
        delay = serving.queue_delay_us in self.delays_us and (candidate.batch > 1 or serving.queue_delay_us == 0)
        return fits and workers and delay and candidate.batch in self.batches

    def neighbours(self, candidate: Candidate) -> tuple[Candidate, ...]:
        """One knob moved one step."""
        serving = candidate.serving
        assert serving is not None
        moves = [
            replace(candidate, threads=max(1, candidate.threads // 2), concurrency=candidate.concurrency * 2),
            replace(candidate, threads=candidate.threads * 2, concurrency=max(1, candidate.concurrency // 2)),
            replace(candidate, concurrency=candidate.concurrency // 2),
            replace(candidate, concurrency=candidate.concurrency * 2),
            *(replace(candidate, batch=batch) for batch in _beside(self.batches, candidate.batch)),
            *(
                replace(candidate, serving=replace(serving, queue_delay_us=delay))
                for delay in _beside(self.delays_us, serving.queue_delay_us)
            ),
            *(replace(candidate, serving=replace(serving, workers=serving.workers + more)) for more in (-1, 1)),
            # A batch of one cannot wait for others: leaving batches behind leaves the delay behind too.
            replace(candidate, batch=1, serving=replace(serving, queue_delay_us=0)),
        ]
        return tuple(dict.fromkeys(move for move in moves if move != candidate and self.lawful(move)))


def served_space(trials: Sequence[Trial], chosen: Candidate | None, objective: Objective, cores: int) -> ServedSpace | None:
    """What can be served of what a run found accurate; None if nothing can.

    Families: the best host candidate of ONNX Runtime in each pipeline, and fused with every other shape policy whose accuracy
    passed and whose capacity in-process is near. `chosen` goes first if it can be served itself.
    """
    sound = [t for t in trials if t.parity is not None and t.parity.verdict.answer != "fail" and t.failure is None]
    able = [t for t in sound if t.candidate.runner == "onnxruntime" and t.candidate.prepost == "host"]
    if not able:
        return None
    best = max(able, key=lambda t: (t.candidate == chosen, _proved(t), _capacity(t))).candidate
    start = replace(best, serving=Serving(), threads=min(best.threads, cores), concurrency=max(1, cores // best.threads))
    graph = (best.precision, best.wide)  # another graph has another accuracy
    alike = [t for t in able if (t.candidate.precision, t.candidate.wide) == graph and _proved(t)]
    known = {t.candidate: _capacity(t) for t in alike}
    near = [c for c, found in known.items() if found >= NEAR * known.get(replace(c, shapes=best.shapes), 0.0)]
    shapes = dict.fromkeys(c.shapes for c in near if c.shapes != best.shapes)
    families = [start, *(replace(start, shapes=policy) for policy in shapes)]
    families += [replace(start, serving=Serving(pipeline=pipeline)) for pipeline in ("bls", "ensemble")]
    longest = 1000 * objective.p95_ms * DELAY_SHARE
    return ServedSpace(
        baseline=start,
        families=tuple(families),
        cores=cores,
        batches=tuple(sorted({1, *(2**p for p in range(MAX_BATCH.bit_length())), start.batch})),
        delays_us=tuple(delay for delay in DELAYS_US if delay <= longest),
    )


def _capacity(trial: Trial) -> float:
    return trial.screen.achieved_per_s if trial.screen is not None else 0.0


def _proved(trial: Trial) -> bool:
    return trial.parity is not None and trial.parity.verdict.answer == "pass"


def _beside(values: Sequence[int], value: int) -> list[int]:
    at = list(values).index(value)
    return [values[i] for i in (at - 1, at + 1) if 0 <= i < len(values)]
