"""Which candidate of a run a release serves: the choice, where the server's pipeline can have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from redline.errors import BadInput
from redline.records import Candidate, RunRecord, Serving, Trial

SERVABLE = ("onnxruntime", "tensorrt")


def choice_to_serve(record: RunRecord) -> tuple[Candidate, Trial]:
    """The candidate to release and its trial: the served search's, or the in-process choice in one process. Raises BadInput."""
    choice = record.served.choice if record.served is not None else record.choice
    trials = record.served.trials if record.served is not None else record.trials
    if choice.verdict.answer != "pass" or choice.candidate is None:
        reason = choice.verdict.reason
        fix = "change the objective or the model, then redline run"
        raise BadInput("release.not-met", "the run found nothing to release", got=reason, fix=fix)
    candidate, digest = choice.candidate, choice.trial
    if candidate.prepost == "kernel":
        candidate, digest = _on_the_host(trials, candidate)
    if candidate.runner not in SERVABLE or candidate.prepost != "host":
        raise BadInput(
            "release.runner",
            "this choice cannot be served: the server's Python has no torch"
            if candidate.runner.startswith("torch")
            else "this choice cannot be served yet",
            got=candidate.name,
            allowed="ONNX Runtime, or a TensorRT engine on a GPU, with pre- and post-processing on the host",
            fix='redline run with TensorRT (redline doctor) or with [target] devices = "cpu" searches what can be served'
            if candidate.gpus
            else "redline run with a server (redline serve --install) searches among what can be served",
        )
    if candidate.serving is None:
        candidate = replace(candidate, serving=Serving())
    return candidate, next(trial for trial in trials if trial.digest == digest)


def _on_the_host(trials: Sequence[Trial], choice: Candidate) -> tuple[Candidate, str]:
    """The best that met the objective with pre- and post-processing on the host, as the server's pipeline has them."""
    able = [
        trial
        for trial in trials
        if trial.candidate.runner in SERVABLE and trial.candidate.prepost == "host"
        if trial.latency is not None and trial.latency.answer == "pass"
        if trial.parity is not None and trial.parity.verdict.answer == "pass"
    ]
    if not able:
        what = "this choice keeps images on the GPU, which the server does not do, and nothing else met the objective"
        fix = "redline run with a lower objective, or use redline.resident from Python"
        raise BadInput("release.runner", what, got=choice.name, fix=fix)
    best = max(able, key=lambda trial: trial.knee.rate_per_s if trial.knee is not None else 0.0)
    return best.candidate, best.digest


def trial_like(record: RunRecord, candidate: Candidate) -> Trial:
    """A trial of the same accuracy. Raises BadInput if none was measured."""
    for trial in record.trials:
        found = trial.candidate
        alike = (found.runner, found.precision, found.shapes, found.prepost, found.profiles, found.wide) == (
            candidate.runner,
            candidate.precision,
            candidate.shapes,
            candidate.prepost,
            candidate.profiles,
            candidate.wide,
        )
        # One engine takes single images, another one batches.
        alike = alike and (candidate.profiles is None or (found.batch > 1) == (candidate.batch > 1))
        if alike and trial.parity is not None and trial.parity.verdict.answer != "fail":
            return trial
    raise BadInput("release.unmeasured", "the run measured no accuracy for this candidate", got=candidate.name)
