"""A search that is told what to expect: what it measures, what it leaves out and what it says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from test_tune_search import EAGER, ENGINE, OBJECTIVE, Fake, make_space

from redline.records import Candidate, Expected, Pruned, Trial
from redline.tune.choose import choose
from redline.tune.search import Guide, search

BEST = replace(ENGINE, threads=1, concurrency=2, batch=2)


@dataclass
class Oracle:
    """Expects `factor` of what the bench would measure, of one runner alone."""

    bench: Fake
    narrow: bool = False
    factor: float = 0.8
    runner: str = "onnxruntime"
    wrong: dict[Candidate, float] = field(default_factory=dict)
    """Rates that it gets wrong until they are measured."""

    def expect(self, candidates: Sequence[Candidate], trials: Sequence[Trial]) -> tuple[Expected, ...]:
        screened = {trial.candidate for trial in trials if trial.screen is not None}
        found = []
        for one in candidates:
            rate = self.factor * self.bench.capacity(one)
            rate = self.wrong[one] if one in self.wrong and one not in screened else rate
            known = one.runner == self.runner or one in screened
            found.append(Expected(candidate=one, p95_ms=None, rate_per_s=rate if known else None, reason="simulated"))
        return tuple(sorted(found, key=lambda one: -(one.rate_per_s or 0.0)))


def run(bench: Fake, guide: Guide, *families: Candidate) -> tuple[tuple[Trial, ...], list[Pruned], list[str]]:
    left, notes = list[Pruned](), list[str]()
    trials = search(make_space(*families), bench, OBJECTIVE, notes.append, climbs=1, guide=guide, prune=left.append)
    return trials, left, notes


def test_a_right_guide_leads_to_the_optimum_with_one_measurement_beside_the_families() -> None:
    bench = Fake()
    trials, left, _ = run(bench, Oracle(bench, narrow=True), ENGINE)
    assert bench.screened == [ENGINE, BEST]
    assert choose(trials, bench, OBJECTIVE, None)[0].candidate == BEST
    assert bench.knees == {BEST: 0.8 * bench.capacity(BEST)}, "the knee is looked for where it is expected"
    screens = [one for one in left if one.what == "screen"]
    assert {one.candidate for one in screens}.isdisjoint(bench.screened)
    assert all(one.rate_per_s <= 1.02 * one.against_per_s and one.against == BEST.name for one in screens)
    assert [(one.candidate, one.what, one.reason) for one in left if one.what == "knee"] == [(ENGINE, "knee", "simulated")]


def test_a_guide_that_was_too_hopeful_is_put_right_by_the_measurement() -> None:
    bench = Fake()
    hoped = replace(ENGINE, batch=4)
    trials, left, _ = run(bench, Oracle(bench, wrong={hoped: 500.0}), ENGINE)
    assert bench.screened == [ENGINE, hoped, BEST]
    assert hoped not in {one.candidate for one in left}
    assert choose(trials, bench, OBJECTIVE, None)[0].candidate == BEST


def test_what_the_guide_cannot_tell_of_is_climbed_from_as_ever() -> None:
    blind, steered = Fake(), Fake()
    search(make_space(EAGER, ENGINE), blind, OBJECTIVE, lambda _: None)
    left, notes = list[Pruned](), list[str]()
    search(make_space(EAGER, ENGINE), steered, OBJECTIVE, notes.append, guide=Oracle(steered), prune=left.append)
    eager = {one for one in blind.screened if one.runner == "torch-eager"}
    assert {one for one in steered.screened if one.runner == "torch-eager"} == eager
    assert len(eager) > 1
    assert {one.candidate.runner for one in left} == {"onnxruntime"}


def test_a_wide_guide_keeps_the_baseline_and_every_runner_as_finalists() -> None:
    bench = Fake()
    trials, _, _ = run(bench, Oracle(bench), EAGER, ENGINE)
    loaded = {trial.candidate.runner for trial in trials if trial.objective_load is not None}
    assert loaded == {"torch-eager", "onnxruntime"}


def test_the_end_of_the_budget_is_no_pruning() -> None:
    bench = Fake(spent=True)
    _, left, notes = run(bench, Oracle(bench, narrow=True), ENGINE)
    assert bench.screened == [ENGINE]
    assert left == []
    assert any("budget ended the search" in note and BEST.name in note for note in notes)
