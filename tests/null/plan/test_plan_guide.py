"""What is expected of candidates from closed loops and the plan's curve."""

from __future__ import annotations

from dataclasses import replace

import pytest
from roof_cases import costs, gpu

from redline.plan.efficiency import PUBLISHED
from redline.plan.guide import Guide, Prior, bare, prior
from redline.plan.roofline import roofline
from redline.records import Candidate, Expected, LatencyCurve, Load, Objective, Serving, Trial
from redline.records.run import Pipeline

ENGINE = Candidate(runner="tensorrt", precision="fp16", device="cuda:0", profiles="exact", cuda_graphs=True)
HOST = Candidate(runner="onnxruntime")
OBJECTIVE = Objective(p95_ms=100.0, throughput=10.0)
FLAT = Prior(curve=LatencyCurve(points=((1, 2.0), (4, 4.0), (8, 7.0))), busy=0.5)


def trial(candidate: Candidate, per_s: float, p95_over_mean: float = 1.0) -> Trial:
    mean = 1000 * candidate.batch * candidate.concurrency / per_s
    screen = Load(
        mode="closed", offered_per_s=None, achieved_per_s=per_s, seconds=2.0, requests=200, errors=0, mean_ms=mean,
        p50_ms=mean, p90_ms=mean, p95_ms=p95_over_mean * mean, p99_ms=mean, max_ms=mean, slip_p99_ms=0.0, mean_batch=1.0,
        histogram="",
    )  # fmt: skip
    return Trial(candidate=candidate, digest=candidate.name, seconds=0.0, screen=screen)


def served(pipeline: Pipeline = "fused", workers: int = 1, **knobs: int) -> Candidate:
    return replace(HOST, serving=Serving(pipeline=pipeline, workers=workers), **knobs)  # type: ignore[arg-type]


def rates(guide: Guide, candidates: list[Candidate], *trials: Trial) -> list[float | None]:
    found: dict[Candidate, Expected] = {one.candidate: one for one in guide.expect(candidates, trials)}
    return [found[one].rate_per_s for one in candidates]


def test_a_measured_candidate_is_expected_to_hold_less_than_it_gave_and_most_of_it() -> None:
    guide = Guide(objective=OBJECTIVE, priors={})
    (rate,) = rates(guide, [HOST], trial(HOST, 200.0))
    assert rate is not None
    assert 0.9 * 200 < rate < 200


def test_the_prior_gives_the_shape_of_the_curve_and_the_measurement_its_height() -> None:
    """Measured twice as slow as planned: 8 images take 14 ms, so a batch of 8 ends at 571/s."""
    guide = Guide(objective=OBJECTIVE, priors={bare(ENGINE): FLAT})
    one, eight = rates(guide, [ENGINE, replace(ENGINE, batch=8)], trial(ENGINE, 250.0))
    assert one is not None
    assert eight is not None
    assert 0.9 * 250 < one <= 250
    assert 0.85 * 8000 / 14 < eight <= 8000 / 14


def test_lanes_gain_what_the_kernels_leave_of_the_device() -> None:
    """Half busy: two lanes give twice as much, four no more than two; no measurement, but the plan."""
    guide = Guide(objective=replace(OBJECTIVE, p95_ms=1000.0), priors={bare(ENGINE): FLAT})
    lanes = [replace(ENGINE, concurrency=count) for count in (1, 2, 4)]
    one, two, four = rates(guide, lanes, trial(ENGINE, 500.0))
    assert one is not None
    assert two is not None
    assert two == pytest.approx(2 * one, rel=0.05)
    assert four == pytest.approx(two, rel=0.05)


def test_the_busy_share_is_all_but_the_launch_and_half_of_the_kernels_fixed_time() -> None:
    network = costs(("big", "conv", "150000000000*N", "1000*N*H*W", 500_000))
    found = prior(network, gpu(), "fp16", (320, 320), (1, 8), PUBLISHED)
    assert found is not None
    alone = roofline(network, gpu(), "fp16", 1, 320, 320, table=PUBLISHED)
    assert found.curve.points[0] == (1, alone.expected_us / 1000)
    fixed = PUBLISHED.step_us + PUBLISHED.floor_us("conv") / 2
    assert found.busy == pytest.approx(1 - fixed / alone.expected_us)
    assert prior(network, gpu(peaks={"fp32": 10.0}), "fp16", (320, 320), (1,), PUBLISHED) is None


def test_without_a_prior_one_measured_batch_tells_nothing_of_another() -> None:
    guide, other = Guide(objective=OBJECTIVE, priors={}), replace(HOST, batch=4)
    assert rates(guide, [other], trial(HOST, 100.0)) == [None]
    known = rates(guide, [replace(HOST, batch=8)], trial(HOST, 100.0), trial(replace(HOST, batch=2), 110.0))
    assert known[0] is not None
    assert rates(guide, [replace(HOST, threads=2)], trial(HOST, 100.0)) == [None], "threads make another curve"


def test_a_server_takes_its_share_of_what_one_process_gives() -> None:
    """In-process batches of 4 are worth 20 %; the server was measured at batch 1 alone, at 0.8 of the process."""
    before = (trial(HOST, 100.0), trial(replace(HOST, batch=4), 120.0))
    guide = Guide(objective=replace(OBJECTIVE, p95_ms=1000.0), priors={}, before=before)
    one, four = rates(guide, [served(), served(batch=4)], trial(served(), 80.0))
    assert one is not None
    assert four is not None
    assert 0.9 * 80 < one <= 80
    assert four == pytest.approx(1.2 * one, rel=0.03)
    assert rates(guide, [served("bls")], trial(served(), 80.0)) == [None], "a pipeline that was never measured"


def test_what_a_pipeline_loses_is_charged_to_its_workers() -> None:
    """Two processes give 200/s and the ensemble 90 with one worker: with two it may give 180."""
    before = (trial(HOST, 100.0), trial(replace(HOST, concurrency=2), 200.0))
    guide = Guide(objective=replace(OBJECTIVE, p95_ms=1000.0), priors={}, before=before)
    seen = trial(served("ensemble", concurrency=2), 90.0)
    one, two = rates(guide, [served("ensemble", concurrency=2), served("ensemble", 2, concurrency=2)], seen)
    assert one is not None
    assert two is not None
    assert 0.9 * 90 < one <= 90
    assert 0.9 * 180 < two <= 180


def test_a_tight_objective_and_a_wide_spread_cost_rate() -> None:
    guide, steady, wild = Guide(objective=replace(OBJECTIVE, p95_ms=25.0), priors={}), replace(HOST, threads=2), HOST
    calm, loose = rates(guide, [steady, wild], trial(steady, 100.0), trial(wild, 100.0, p95_over_mean=1.8))
    assert calm is not None
    assert loose is not None
    assert loose < 0.8 * calm


def test_equal_trials_give_equal_answers_and_the_highest_is_first() -> None:
    guide = Guide(objective=OBJECTIVE, priors={bare(ENGINE): FLAT})
    pool = [replace(ENGINE, batch=batch, concurrency=lanes) for batch in (1, 4, 8) for lanes in (1, 2)]
    found = guide.expect(pool, (trial(ENGINE, 400.0),))
    known = [one.rate_per_s for one in found]
    assert known == sorted(known, key=lambda rate: -(rate or 0.0))
    assert found == guide.expect(pool, (trial(ENGINE, 400.0),))
    bounded = [one for one in found if "at most" in one.reason]
    assert all((one.rate_per_s or 0.0) <= (found[0].rate_per_s or 0.0) for one in bounded)


def test_what_was_measured_itself_is_always_known() -> None:
    """In-process batch 1 alone was measured, the server also gave batches of 4: of those its own capacity tells."""
    guide = Guide(objective=replace(OBJECTIVE, p95_ms=1000.0), priors={}, before=(trial(HOST, 100.0),))
    four = served(batch=4, concurrency=2)
    assert rates(guide, [four], trial(served(), 80.0)) == [None]
    (rate,) = rates(guide, [four], trial(served(), 80.0), trial(four, 150.0))
    assert rate is not None
    assert 0.9 * 150 < rate <= 150
