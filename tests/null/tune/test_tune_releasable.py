"""What of a run may be served: a choice that keeps images on the GPU gives way to the best that does not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from test_tune_search import load, report

from redline.errors import BadInput
from redline.records import Candidate, Choice, Knee, Trial, Verdict
from redline.releasable import choice_to_serve

HOST = Candidate(runner="tensorrt", precision="fp16", device="cuda:0", profiles="exact", cuda_graphs=True)


def trial(candidate: Candidate, knee: float | None, latency: str = "pass", parity: str = "pass") -> Trial:
    return Trial(
        candidate=candidate,
        digest=candidate.name,
        seconds=0,
        parity=report(parity),
        screen=load(100, 5),
        latency=Verdict(answer=latency, reason=""),  # type: ignore[arg-type]
        knee=None if knee is None else Knee(rate_per_s=knee, steps=()),
    )


def run_of(*trials: Trial, choice: Candidate) -> Any:
    found = Choice(candidate=choice, trial=choice.name, verdict=Verdict(answer="pass", reason=""))
    return SimpleNamespace(served=None, choice=found, trials=trials)


def test_the_best_with_host_stages_that_met_the_objective_is_served_in_place_of_kernels() -> None:
    kernels = replace(HOST, prepost="kernel", concurrency=2)
    slow, fast = trial(HOST, 300), trial(replace(HOST, concurrency=2), 500)
    late = trial(replace(HOST, concurrency=4), 900, latency="fail")
    doubtful = trial(replace(HOST, precision="int8"), 950, parity="inconclusive")
    eager = trial(Candidate(runner="torch-eager", device="cuda:0"), 999)
    candidate, served = choice_to_serve(run_of(trial(kernels, 2000), slow, fast, late, doubtful, eager, choice=kernels))
    assert served == fast
    assert (candidate.prepost, candidate.concurrency) == ("host", 2)
    assert candidate.serving is not None


def test_where_nothing_else_met_the_objective_it_says_so() -> None:
    kernels = replace(HOST, prepost="kernel")
    with pytest.raises(BadInput) as caught:
        choice_to_serve(run_of(trial(kernels, 2000), trial(HOST, None, latency="fail"), choice=kernels))
    assert caught.value.code == "release.runner"
    assert "nothing else met the objective" in caught.value.what


def test_a_choice_with_host_stages_is_served_as_it_is() -> None:
    candidate, served = choice_to_serve(run_of(trial(HOST, 300), choice=HOST))
    assert replace(candidate, serving=None) == HOST
    assert served.digest == HOST.name
