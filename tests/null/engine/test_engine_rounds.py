"""After FP16 failed: which nodes are held in FP32 in which order, how often, and what other engines learn from it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from redline.errors import TrialError
from redline.examining import LAYERS, ROUNDS, Examiner, off
from redline.inspecting import Looked, first_bad_layer
from redline.records import (
    Accuracy,
    BoxMatch,
    Candidate,
    Determinism,
    HeldNode,
    LayerFault,
    LayerParity,
    LayerPoint,
    MapDrop,
    ParityReport,
    TensorDelta,
    Trial,
    Verdict,
)

FP16 = Candidate(runner="tensorrt", precision="fp16", device="cuda:0", profiles="exact", cuda_graphs=True)
MINIMAL = replace(FP16, shapes="minimal")
POINT = LayerPoint(
    tensor="y", node="act", operator="Relu", module="", layers=1, nodes=2, total=0.2, local=0.1, explained=0.2, finite=True
)


def parity_report(answer: Any) -> ParityReport:
    drop = MapDrop(
        reference_ap=0.5, candidate_ap=0.4, absolute=0.1, absolute_low=0.1, absolute_high=0.1, relative_pct=20.0,
        relative_low_pct=20.0, relative_high_pct=20.0, images=10, resamples=10, seed=0, images_to_decide=None,
    )  # fmt: skip
    return ParityReport(
        tensors=(),
        boxes=BoxMatch(floor=0.05, matched=1, missing=0, extra=0, lowest_iou=1, largest_score_delta=0),
        accuracy=Accuracy(
            kind="map", ap=0.4, ap50=0.5, ap75=0.5, ap_small=None, ap_medium=None, ap_large=None, images=10, per_class=()
        ),
        drop=drop,
        determinism=Determinism(repeats=2, identical=True),
        verdict=Verdict(answer=answer, reason="mAP drop 20 % exceeds the budget"),
    )


def looked(*faults: LayerFault, hold: tuple[str, ...] = ()) -> Looked:
    found = LayerParity(
        engine="e", precision="fp16", shape=(1, 3, 8, 8), points=(POINT,), faults=faults, unconfirmed=(), looks=2, most_cuts=48
    )
    return Looked(parity=found, hold=tuple(HeldNode(node=node, module="m", why=f"{node} is bad") for node in hold))


class Inspector:
    """Each graph's layers blame one more node; `impossible` sets cannot be converted."""

    def __init__(self, impossible: tuple[str, ...] | None = None, endless: bool = True) -> None:
        self.looks: list[tuple[str, ...]] = []
        self.impossible, self.endless = impossible, endless
        self.graphs = SimpleNamespace(of=self.graph)
        self.progress = SimpleNamespace(note=lambda text: self.notes.append(text))
        self.notes: list[str] = []

    def graph(self, candidate: Candidate) -> Any:
        if candidate.wide and candidate.wide == self.impossible:
            raise TrialError("export-half", "The graph cannot be converted to FP16")
        return SimpleNamespace(digest=f"graph {candidate.wide}")

    def layers(self, candidate: Candidate, build: Any, batch: Any, what: str) -> Looked:
        self.looks.append(candidate.wide)
        return looked(hold=(f"n{len(candidate.wide)}",) if self.endless else ())

    def boundaries(self, candidate: Candidate, build: Any, *, allowed: float) -> Any:
        return ()


def examiner(inspector: Inspector) -> Examiner:
    def built(candidate: Candidate) -> Any:
        return SimpleNamespace(digest=f"plan {candidate.name}", options=SimpleNamespace(profiles=()))

    observer: Any = SimpleNamespace(hardest=lambda candidate: None)
    return Examiner(inspector, observer, built, lambda c, d: d, lambda: None)  # type: ignore[arg-type]


def chain(found: Examiner, start: Candidate, passes: tuple[str, ...] | None = None) -> list[tuple[str, ...]]:
    """The sets of nodes that are tried from `start` on; an engine keeps the accuracy if its nodes are `passes`."""
    tried: list[tuple[str, ...]] = []
    candidate: Candidate | None = start
    while candidate is not None:
        tried.append(candidate.wide)
        report = parity_report("pass" if candidate.wide == passes else "fail")
        trial = found.examined(Trial(candidate=candidate, digest="d", seconds=0.0, parity=report))
        assert (trial.failure is None) == (candidate.wide == passes)
        assert trial.engine == f"plan {candidate.name}"
        candidate = found.wider(trial)
    return tried


def test_a_run_tries_a_stated_number_of_sets_and_other_engines_do_not_try_them_again() -> None:
    inspector = Inspector()
    found = examiner(inspector)
    assert chain(found, FP16) == [(), ("n0",), ("n0", "n1"), ("n0", "n1", "n2")]
    assert ROUNDS == 3
    assert chain(found, MINIMAL) == [()]
    assert inspector.looks == [(), ("n0",), ("n0", "n1"), ("n0", "n1", "n2")]  # once for each graph


def test_what_kept_the_accuracy_is_what_other_engines_try_at_once() -> None:
    found = examiner(Inspector())
    assert chain(found, FP16, ("n0", "n1")) == [(), ("n0",), ("n0", "n1")]
    assert chain(found, MINIMAL, ("n0", "n1")) == [(), ("n0", "n1")]
    assert [held.why for held in found.held(replace(FP16, wide=("n0", "n1")))] == ["n0 is bad", "n1 is bad"]


@pytest.mark.parametrize("candidate", [replace(FP16, precision="tf32"), replace(FP16, precision="fp32")])
def test_only_fp16_has_nodes_to_widen(candidate: Candidate) -> None:
    assert chain(examiner(Inspector()), candidate) == [()]


def test_where_nothing_can_be_held_or_converted_the_rounds_end() -> None:
    assert chain(examiner(Inspector(endless=False)), FP16) == [()]
    inspector = Inspector(impossible=("n0",))
    assert chain(examiner(inspector), FP16) == [()]
    assert "cannot be converted" in inspector.notes[0]


def test_the_failure_names_the_layer_and_the_verdict() -> None:
    trial = examiner(Inspector()).examined(Trial(candidate=FP16, digest="d", seconds=0.0, parity=parity_report("fail")))
    assert trial.failure is not None
    assert (trial.failure.stage, trial.failure.code) == ("parity", LAYERS)
    reason = parity_report("fail").verdict.reason
    assert trial.failure.message == f"{reason}; {first_bad_layer(looked().parity)}"


def test_the_first_bad_layer_is_told_with_its_module() -> None:
    fault = LayerFault(
        nodes=("conv", "act"), operators=("Conv", "Relu"), module="stem", tensor="x", local=0.5, explained=0.01, finite=True
    )
    told = first_bad_layer(looked(fault, replace(fault, nodes=("other",), operators=("Mul",))).parity)
    begins = "the first bad layer is conv (Conv) + act (Relu) of module stem: "
    assert told == begins + "it adds an error of 0.5 where FP16 explains 0.01; 1 more"
    broken = replace(fault, nodes=("conv",), operators=("Conv",), module="", finite=False)
    told = first_bad_layer(looked(broken).parity)
    assert told == "the first bad layer is conv (Conv): it makes infinity or NaN of finite values"
    told = first_bad_layer(looked().parity)
    assert told == "no layer is wrong beyond what FP16 explains; the stretch up to act (Relu) adds most: 0.1"


def test_what_makes_layers_worth_comparing() -> None:
    right = parity_report("pass")
    delta = TensorDelta(name="out", max_abs=1, max_rel=0.01, mean_abs=0, finite=True, tolerance=0.02)
    assert off(replace(right, tensors=(delta,))) == ""
    assert off(replace(right, tensors=(replace(delta, max_rel=0.03),))) == "output out differs by 0.03 (tolerance 0.02)"
    assert off(replace(right, tensors=(replace(delta, finite=False),))) == "NaN or infinity in output out"
    boxes = BoxMatch(floor=0.05, matched=80, missing=20, extra=1, lowest_iou=1, largest_score_delta=0)
    assert off(replace(right, boxes=boxes)) == ""
    doubtful = parity_report("inconclusive")
    assert off(replace(doubtful, boxes=boxes)) == "21 boxes unpaired of 100"
    assert off(replace(doubtful, boxes=replace(boxes, matched=800, missing=10))) == ""


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_rounding_that_loses_too_much_is_no_failure_and_blames_no_layer_unless_it_is_not_finite(precision: Any) -> None:
    inspector = Inspector()
    rounded, report = replace(FP16, precision=precision), parity_report("fail")
    trial = examiner(inspector).examined(Trial(candidate=rounded, digest="d", seconds=0.0, parity=report))
    assert trial.failure is None, "so that it is timed once"
    assert trial.engine == f"plan {rounded.name}"
    assert inspector.looks == []
    broken = TensorDelta(name="o", max_abs=1.0, max_rel=float("nan"), mean_abs=1.0, finite=False, tolerance=1.0)
    trial = examiner(inspector).examined(replace(trial, parity=replace(report, tensors=(broken,))))
    assert trial.failure is not None
    assert inspector.looks == [()]


def test_kernels_around_an_engine_blame_none_of_its_layers_and_take_the_nodes_that_kept_its_accuracy() -> None:
    inspector = Inspector()
    found, kernels = examiner(inspector), replace(FP16, prepost="kernel")
    lost = Trial(candidate=kernels, digest="d", seconds=0.0, parity=parity_report("fail"))
    assert found.examined(lost).failure is None
    assert found.wider(lost) is None, "nothing has kept the accuracy yet"
    assert inspector.looks == []
    chain(found, FP16, ("n0",))
    assert found.wider(lost) == replace(kernels, wide=("n0",))
    assert found.wider(replace(lost, candidate=replace(kernels, wide=("n0",)))) is None
    assert found.wider(replace(lost, parity=parity_report("pass"))) is None
