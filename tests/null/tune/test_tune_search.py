"""The search against a bench whose every figure is known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from redline.errors import TrialError
from redline.plan.candidates import Space
from redline.records import (
    Accuracy,
    BoxMatch,
    Candidate,
    Determinism,
    Failure,
    HeldNode,
    Knee,
    Load,
    MapDrop,
    Objective,
    ParityReport,
    Trial,
    Verdict,
)
from redline.tune.choose import choose
from redline.tune.search import search

EAGER = Candidate(runner="torch-eager", threads=2)
ENGINE = Candidate(runner="onnxruntime", threads=2)
OBJECTIVE = Objective(p95_ms=50, throughput=20)


def load(rate: float, p95: float) -> Load:
    return Load(
        mode="closed",
        offered_per_s=rate,
        achieved_per_s=rate,
        seconds=1,
        requests=200,
        errors=0,
        mean_ms=p95 / 2,
        p50_ms=p95 / 2,
        p90_ms=p95,
        p95_ms=p95,
        p99_ms=p95,
        max_ms=p95,
        slip_p99_ms=0,
        mean_batch=1,
        histogram="",
    )


def report(answer: str) -> ParityReport:
    drop = MapDrop(
        reference_ap=0.5,
        candidate_ap=0.5,
        absolute=0,
        absolute_low=0,
        absolute_high=0,
        relative_pct=0,
        relative_low_pct=0,
        relative_high_pct=0,
        images=10,
        resamples=10,
        seed=0,
        images_to_decide=None,
    )
    accuracy = Accuracy(
        kind="map", ap=0.5, ap50=0.5, ap75=0.5, ap_small=None, ap_medium=None, ap_large=None, images=10, per_class=()
    )
    boxes = BoxMatch(floor=0.05, matched=1, missing=0, extra=0, lowest_iou=1, largest_score_delta=0)
    return ParityReport(
        tensors=(),
        boxes=boxes,
        accuracy=accuracy,
        drop=drop,
        determinism=Determinism(repeats=2, identical=True),
        verdict=Verdict(answer=answer, reason="made up"),  # type: ignore[arg-type]
    )


@dataclass
class Fake:
    """Capacity of an engine is 40/s a thread in use, batch 2 adds 10 %, more loses; eager has a quarter of that."""

    broken: set[str] = field(default_factory=set)
    parities: dict[str, str] = field(default_factory=dict)
    screened: list[Candidate] = field(default_factory=list)
    spent: bool = False
    unconfirmed: bool = False
    knees: dict[Candidate, float | None] = field(default_factory=dict)
    """What was expected of each knee that was searched."""
    wide: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Verdict by nodes in FP32, in the order in which they are offered after a failure."""

    def capacity(self, c: Candidate) -> float:
        batch = {1: 1.0, 2: 1.1}.get(c.batch, 0.8)
        spread = 1.0 if c.concurrency == 1 else 1.3
        return (
            {"torch-eager": 10, "torch-compile": 20, "onnxruntime": 40}[c.runner] * c.threads * c.concurrency * batch * spread
        )

    def trial(self, candidate: Candidate) -> Trial:
        return Trial(candidate=candidate, digest=candidate.name, seconds=0)

    def parity(self, candidate: Candidate) -> ParityReport:
        if f"parity {candidate.runner}" in self.broken:
            raise TrialError("no-run", "it does not run")
        return report(self.wide.get(candidate.wide) or self.parities.get(candidate.runner, "pass"))

    def examined(self, trial: Trial) -> Trial:
        if trial.parity is None or trial.parity.verdict.answer != "fail" or not self.wide:
            return trial
        return replace(trial, failure=Failure(stage="parity", code="layers", message="conv is bad"))

    def wider(self, trial: Trial) -> Candidate | None:
        sets = list(self.wide)
        if trial.failure is None or not sets or trial.candidate.wide == sets[-1]:
            return None
        return replace(trial.candidate, wide=sets[sets.index(trial.candidate.wide) + 1])

    def screen(self, candidate: Candidate) -> Load:
        assert candidate not in self.screened, "measured twice"
        self.screened.append(candidate)
        if f"screen {candidate.runner}" in self.broken:
            raise TrialError("oom", "out of memory")
        return load(self.capacity(candidate), 1000 * candidate.batch * candidate.concurrency / self.capacity(candidate))

    def at_objective(self, candidate: Candidate, *, repeat: int = 0) -> Load:
        late = self.unconfirmed and repeat == 1 and candidate.runner == "onnxruntime"
        return load(OBJECTIVE.throughput, 60 if late or self.capacity(candidate) < OBJECTIVE.throughput else 30)

    def judge(self, measured: Load) -> Verdict:
        return Verdict(answer="pass" if measured.p95_ms <= OBJECTIVE.p95_ms else "fail", reason=f"P95 {measured.p95_ms}")

    def knee(self, candidate: Candidate, *, capacity: float, expected: float | None = None) -> Knee:
        self.knees[candidate] = expected
        return Knee(rate_per_s=0.8 * capacity, steps=())

    def out_of_time(self, *, climbing: bool = False) -> bool:
        return self.spent


def make_space(*families: Candidate) -> Space:
    return Space(baseline=families[0], families=families, refusals=(), cores=2, batches=(1, 2, 4))


def run(bench: Fake, *families: Candidate) -> tuple[tuple[Trial, ...], list[str]]:
    notes: list[str] = []
    return search(make_space(*families), bench, OBJECTIVE, notes.append), notes


def test_the_climb_finds_the_best_knobs_and_the_choice_is_the_highest_rate_within_the_objective() -> None:
    bench = Fake()
    trials, _ = run(bench, EAGER, ENGINE)
    assert trials[0].candidate == EAGER
    choice, after = choose(trials, bench, OBJECTIVE, None)
    assert choice.verdict.answer == "pass"
    assert choice.candidate == replace(ENGINE, threads=1, concurrency=2, batch=2)
    winner = next(t for t in after if t.digest == choice.trial)
    assert winner.confirmation is not None
    assert winner.knee is not None
    assert winner.knee.rate_per_s == pytest.approx(0.8 * 40 * 2 * 1.1 * 1.3)


def test_a_failing_family_is_data_and_the_search_goes_on() -> None:
    bench = Fake(broken={"parity onnxruntime"})
    trials, _ = run(bench, EAGER, ENGINE)
    failed = next(t for t in trials if t.candidate == ENGINE)
    assert failed.failure is not None
    assert (failed.failure.stage, failed.failure.code) == ("parity", "no-run")
    assert all(t.candidate.runner == "torch-eager" for t in trials if t.objective_load is not None)


def test_an_unsound_reference_ends_the_search_with_its_reason() -> None:
    bench = Fake(parities={"torch-eager": "fail"})
    trials, notes = run(bench, EAGER, ENGINE)
    assert [t.candidate for t in trials] == [EAGER]
    assert bench.screened == []
    assert any("reference" in note for note in notes)
    choice, _ = choose(trials, bench, OBJECTIVE, None)
    assert (choice.candidate, choice.verdict.answer) == (None, "fail")
    assert "made up" in choice.verdict.reason


def test_a_narrow_family_that_fails_is_tried_with_more_nodes_in_fp32_and_climbs_from_there() -> None:
    bench = Fake(wide={(): "pass", ("a",): "pass"})
    assert [t.candidate.wide for t in run(bench, EAGER)[0] if t.parity] == [()] * len(run(Fake(), EAGER)[0])
    bench = Fake(parities={"torch-eager": "pass"}, wide={("",): "fail", ("a",): "fail", ("a", "b"): "pass"})
    narrow = replace(ENGINE, wide=("",))
    trials, _ = run(bench, EAGER, narrow)
    tried = [t for t in trials if t.candidate.runner == "onnxruntime"]
    assert [t.candidate.wide for t in tried[:3]] == [("",), ("a",), ("a", "b")]
    assert [t.failure.message for t in tried[:2] if t.failure] == ["conv is bad"] * 2
    assert {c.wide for c in bench.screened if c.runner == "onnxruntime"} == {("a", "b")}
    assert len(bench.screened) > 2  # neighbours of what passed
    choice, _ = choose(trials, bench, OBJECTIVE, None)
    assert choice.candidate is not None
    assert choice.candidate.wide == ("a", "b")


def test_the_choice_says_which_nodes_stayed_in_fp32_and_why() -> None:
    bench = Fake()
    held = tuple(HeldNode(node=n, module="m", why=why) for n, why in (("a", "overflows"), ("b", "reads a"), ("c", "overflows")))
    trials = tuple(replace(t, held=held if t.candidate.runner == "onnxruntime" else ()) for t in run(bench, EAGER, ENGINE)[0])
    assert choose(trials, bench, OBJECTIVE, None)[0].notes[0] == "3 nodes in FP32: a, c (overflows); b (reads a)"


def test_an_inaccurate_family_is_never_loaded() -> None:
    bench = Fake(parities={"onnxruntime": "fail"})
    trials, _ = run(bench, EAGER, ENGINE)
    assert all(c.runner == "torch-eager" for c in bench.screened)
    choice, _ = choose(trials, bench, OBJECTIVE, None)
    assert choice.candidate is not None
    assert choice.candidate.runner == "torch-eager"


def test_int8_that_loses_too_much_is_timed_once_and_never_chosen() -> None:
    rounded = Candidate(runner="onnxruntime", threads=2, precision="int8")
    bench = Fake(parities={"onnxruntime": "fail"})
    trials, _ = run(bench, EAGER, rounded, ENGINE)
    by_candidate = {trial.candidate: trial for trial in trials}
    assert by_candidate[rounded].screen is not None
    assert by_candidate[rounded].objective_load is None
    assert by_candidate[rounded].knee is None
    assert by_candidate[ENGINE].screen is None, "only what was rounded is of interest after it has failed"
    assert [c for c in bench.screened if c.precision == "int8"] == [rounded]
    choice, _ = choose(trials, bench, OBJECTIVE, None)
    assert choice.candidate is not None
    assert choice.candidate.precision == "fp32"


def test_unproved_accuracy_gives_an_inconclusive_choice_not_a_pass() -> None:
    bench = Fake(parities={"onnxruntime": "inconclusive", "torch-eager": "inconclusive"})
    choice, _ = choose(run(bench, EAGER, ENGINE)[0], bench, OBJECTIVE, None)
    assert choice.verdict.answer == "inconclusive"


def test_a_winner_that_does_not_repeat_is_not_chosen() -> None:
    bench = Fake(unconfirmed=True)
    choice, after = choose(run(bench, EAGER, ENGINE)[0], bench, OBJECTIVE, None)
    assert choice.candidate is not None
    assert choice.candidate.runner == "torch-eager"
    assert any(t.latency is not None and t.latency.answer == "fail" for t in after if t.candidate.runner == "onnxruntime")


def test_nothing_fast_enough_fails_and_names_the_best_found() -> None:
    bench = Fake()
    trials, _ = run(bench, replace(EAGER, threads=1))
    slow = tuple(
        replace(t, latency=Verdict(answer="fail", reason="P95 60 ms"), objective_load=load(20, 60)) for t in trials if t.screen
    )
    choice, _ = choose(slow, bench, OBJECTIVE, None)
    assert choice.verdict.answer == "fail"
    assert "best found: torch-eager" in choice.verdict.reason


def test_when_no_candidate_runs_the_reason_is_theirs() -> None:
    bench = Fake(broken={"screen torch-eager"})
    choice, _ = choose(run(bench, EAGER)[0], bench, OBJECTIVE, None)
    assert choice.candidate is None
    assert "out of memory" in choice.verdict.reason


def test_a_spent_budget_stops_the_climb_and_says_what_was_left_out() -> None:
    bench = Fake(spent=True)
    _, notes = run(bench, EAGER, ENGINE)
    assert set(bench.screened) == {EAGER, ENGINE}
    assert any("budget" in note for note in notes)


def test_the_choice_says_how_it_stands_against_torch_compile() -> None:
    bench = Fake()
    trials, _ = run(bench, EAGER, replace(EAGER, runner="torch-compile"), ENGINE)
    choice, _ = choose(trials, bench, OBJECTIVE, None)
    assert any(note.startswith("2.20x the capacity of torch.compile") and "worth it" in note for note in choice.notes)
