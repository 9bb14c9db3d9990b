"""What may be combined through a server, and from where the search starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from redline.plan.serving import ServedSpace, served_space
from redline.records import (
    Accuracy,
    BoxMatch,
    Candidate,
    Determinism,
    Load,
    MapDrop,
    Objective,
    ParityReport,
    Serving,
    Trial,
    Verdict,
)

OBJECTIVE = Objective(p95_ms=20, throughput=50)


def parity(answer: str) -> ParityReport:
    drop = MapDrop(
        reference_ap=0.5, candidate_ap=0.5, absolute=0, absolute_low=0, absolute_high=0, relative_pct=0, relative_low_pct=0,
        relative_high_pct=0, images=10, resamples=1, seed=0, images_to_decide=None,
    )  # fmt: skip
    accuracy = Accuracy(
        kind="map", ap=0.5, ap50=0.5, ap75=0.5, ap_small=None, ap_medium=None, ap_large=None, images=10, per_class=()
    )
    boxes = BoxMatch(floor=0.05, matched=1, missing=0, extra=0, lowest_iou=1, largest_score_delta=0)
    determinism = Determinism(repeats=1, identical=True)
    verdict = Verdict(answer=answer, reason="")  # type: ignore[arg-type]
    return ParityReport(tensors=(), boxes=boxes, accuracy=accuracy, drop=drop, determinism=determinism, verdict=verdict)


def screen(rate: float) -> Load:
    return Load(
        mode="closed", offered_per_s=None, achieved_per_s=rate, seconds=1, requests=10, errors=0, mean_ms=1, p50_ms=1, p90_ms=1,
        p95_ms=1, p99_ms=1, max_ms=1, slip_p99_ms=0, mean_batch=1, histogram="",
    )  # fmt: skip


def trial(rate: float, answer: str = "pass", **knobs: object) -> Trial:
    plain = Candidate(runner="onnxruntime", threads=2)
    candidate = replace(plain, **knobs)  # type: ignore[arg-type]
    return Trial(candidate=candidate, digest=candidate.name, seconds=0, parity=parity(answer), screen=screen(rate))


def space(*trials: Trial, chosen: Candidate | None = None, cores: int = 4) -> ServedSpace:
    found = served_space(trials, chosen, OBJECTIVE, cores)
    assert found is not None
    return found


def test_it_starts_from_the_choice_if_that_can_be_served() -> None:
    slow, fast = trial(10, shapes="minimal"), trial(99)
    assert space(slow, fast, chosen=slow.candidate).baseline.shapes == "minimal"
    assert space(slow, fast).baseline.shapes == "fixed"


@pytest.mark.parametrize("knobs", [{"runner": "torch-eager"}, {"prepost": "graph"}])
def test_what_a_server_cannot_run_is_left_out(knobs: dict[str, object]) -> None:
    assert served_space([trial(10, **knobs)], None, OBJECTIVE, 4) is None


def test_a_failed_accuracy_is_never_served() -> None:
    assert served_space([trial(10, answer="fail")], None, OBJECTIVE, 4) is None


def test_every_pipeline_and_every_proved_shape_policy_is_a_family() -> None:
    found = space(trial(10), trial(9, shapes="minimal"), trial(8, answer="inconclusive", shapes=((32, 32),)))
    pipelines = {f.serving.pipeline for f in found.families if f.serving is not None}
    assert pipelines == {"fused", "bls", "ensemble"}
    assert {f.shapes for f in found.families} == {"fixed", "minimal"}
    assert all(found.lawful(family) for family in found.families)


def test_all_cores_are_taken_at_the_start() -> None:
    start = space(trial(10, threads=2), cores=4).baseline
    assert (start.threads, start.concurrency) == (2, 2)


def test_a_delay_is_of_use_to_batches_alone_and_never_eats_the_objective() -> None:
    found = space(trial(10))
    start = found.baseline
    assert found.delays_us == (0, 1000, 2000, 5000)  # a quarter of 20 ms
    waits = replace(start, serving=Serving(queue_delay_us=1000))
    assert not found.lawful(waits)
    assert found.lawful(replace(waits, batch=4))
    assert not found.lawful(replace(waits, batch=4, serving=Serving(queue_delay_us=10_000)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": 8},
        {"threads": 2, "concurrency": 4},
        {"serving": Serving(workers=2)},
        {"serving": Serving(pipeline="bls", workers=9)},
        {"serving": None},
        {"batch": 3},
    ],
)
def test_unlawful(wrong: dict[str, object]) -> None:
    found = space(trial(10))
    assert not found.lawful(replace(found.baseline, **wrong))  # type: ignore[arg-type]


def test_neighbours_are_lawful_one_knob_away_and_go_back_from_batches() -> None:
    found = space(trial(10))
    here = replace(found.baseline, batch=2, serving=Serving(pipeline="bls", queue_delay_us=2000, workers=2))
    near = found.neighbours(here)
    assert here not in near
    assert all(found.lawful(move) for move in near)
    assert replace(here, batch=1, serving=Serving(pipeline="bls", queue_delay_us=0, workers=2)) in near
    assert replace(here, serving=replace(Serving(pipeline="bls", queue_delay_us=2000), workers=1)) in near
    assert {m.serving.queue_delay_us for m in near if m.serving and m.batch == 2 and m.serving.workers == 2} == {
        1000,
        2000,
        5000,
    }


def test_a_shape_policy_far_behind_in_process_is_not_tried_through_the_server_and_knobs_are_compared_alike() -> None:
    best = trial(100, shapes="minimal")
    climbed = trial(240, shapes="minimal", threads=1, concurrency=2)
    near, far = trial(91, shapes=((320, 320), (640, 640))), trial(89)
    found = space(best, climbed, near, far, chosen=climbed.candidate)
    assert {family.shapes for family in found.families} == {"minimal", ((320, 320), (640, 640))}


def test_another_precision_lends_no_shape_policy() -> None:
    rounded = trial(100, shapes="minimal", precision="int8")
    found = space(rounded, trial(99), chosen=rounded.candidate)
    assert {(family.shapes, family.precision) for family in found.families} == {("minimal", "int8")}
