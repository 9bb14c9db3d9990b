"""A plan's predictions beside the trials that measured them."""

from __future__ import annotations

from collections.abc import Sequence

from redline.records import Candidate, PlanRecord, PredictionCheck, StepKey, Trial


def checks(plan: PlanRecord, trials: Sequence[Trial]) -> tuple[PredictionCheck, ...]:
    """Steps of one image at a time: P50 of a closed loop of one, which pays for its host stages as the prediction does.

    A step that several trials measured is compared with the fastest; one that none did is left out.
    """
    found = []
    for step in plan.ladder:
        if step.p50_ms is None or step.key in ("batching", "more-gpus"):
            continue
        alone = [trial for trial in trials if trial.screen is not None and step_of(trial.candidate) == step.key]
        if not alone:
            continue
        best = min(alone, key=lambda trial: _p50(trial))
        found.append(
            PredictionCheck(
                step=step.key,
                candidate=best.candidate.name,
                trial=best.digest,
                metric="P50 ms",
                predicted=step.p50_ms,
                measured=_p50(best),
            )
        )
    return tuple(found)


def step_of(candidate: Candidate) -> StepKey | None:
    """The step that a candidate measures: one image, one in flight, on one GPU, the fixed shape; None for all others."""
    alone = candidate.batch == 1 and candidate.concurrency == 1 and len(candidate.gpus) == 1
    if not alone or candidate.shapes != "fixed" or candidate.prepost == "graph" or candidate.serving is not None:
        return None
    if candidate.prepost == "kernel":
        return "gpu-prepost"
    if candidate.runner == "torch-eager":
        eager: dict[str, StepKey] = {"fp32": "fp32-eager", "tf32": "tf32-eager", "fp16": "fp16-eager"}
        return eager.get(candidate.precision)
    if candidate.runner == "tensorrt" and candidate.precision == "fp16":
        return "cuda-graph" if candidate.cuda_graphs else "engine"
    return "int8" if candidate.runner == "tensorrt" and candidate.precision == "int8" else None


def _p50(trial: Trial) -> float:
    assert trial.screen is not None
    return trial.screen.p50_ms
