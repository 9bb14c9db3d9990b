"""What holds of every served path: nothing is lost, order is kept, less load and more GPUs do no harm. And bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queueing_case import CURVE, ended, path

from redline.errors import BadInput
from redline.plan.queueing import state as at
from redline.plan.queueing.paths import simulate
from redline.records import LatencyCurve, Outage, ServedPath, ShapeLoad

POLICIES = st.sampled_from(["shared", "random", "round-robin", "shortest", "two-choices"])


@st.composite
def paths(draw: st.DrawFn) -> ServedPath:
    """Anything at once: shapes, host stage, batcher, copies, slices, nodes, outages and refusals."""
    batch = draw(st.integers(1, 6))
    shapes = tuple(
        ShapeLoad(
            name=str(index),
            share=draw(st.floats(0.1, 3.0)),
            curve=LatencyCurve(points=((1, 3.0), (4, 3.0 + draw(st.floats(0.0, 20.0)))), cv=draw(st.sampled_from([0.0, 0.4]))),
            decode_ms=draw(st.floats(0.0, 4.0)),
            input_bytes=draw(st.sampled_from([0, 2_000_000])),
            output_bytes=draw(st.sampled_from([0, 1000])),
        )
        for index in range(draw(st.integers(1, 3)))
    )
    nodes, gpus, instances = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    policy = draw(st.sampled_from(["random", "round-robin", "shortest", "two-choices"]))
    outages = tuple(
        Outage(unit=unit, index=0, at_s=draw(st.floats(0.0, 0.5)), seconds=0.1)
        for unit in draw(st.lists(st.sampled_from(["instance", "gpu", "node"]), max_size=2))
    )
    return ServedPath(
        shapes=shapes,
        rate_per_s=draw(st.floats(50.0, 1500.0)),
        decode_workers=draw(st.integers(0, 3)),
        decode_cv=draw(st.sampled_from([0.0, 0.5])),
        max_batch=batch,
        preferred=draw(st.sampled_from([(), (1,), (batch,)])),
        delay_ms=draw(st.sampled_from([0.0, 2.0])),
        queue_limit=draw(st.sampled_from([None, 0, 5])),
        grouping=draw(st.sampled_from(["mixed", "equal"])),
        instances=instances,
        streams=draw(st.integers(1, 2)),
        slowdown=draw(st.sampled_from([(), (1.0, 1.7)])),
        disturbed=draw(st.sampled_from([(), ((1, 1.4), (4, 1.0))])),
        rested=draw(st.sampled_from([(), ((5.0, 1.0),), ((2.0, 0.0), (20.0, 3.0))])),
        link_gb_s=draw(st.sampled_from([None, 10.0])),
        duplex=draw(st.booleans()),
        gpus_per_link=draw(st.integers(1, 2)),
        gpus=gpus,
        queues=draw(POLICIES),
        slices=draw(st.integers(1, 2)),
        nodes=nodes,
        balancer=policy,
        outages=outages,
        mean_up_s=draw(st.sampled_from([None, 0.5])),
        mean_down_s=0.05,
    )


@given(case=paths(), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_every_request_is_answered_refused_or_lost_once_and_in_order(case: ServedPath, seed: int) -> None:
    world = ended(case, 150, seed)
    done, begun, came = (world.times[:, column] for column in (at.DONE, at.STARTED, at.ARRIVES))
    answered = done >= 0
    assert not np.isnan(done).any()
    assert set(done[~answered].tolist()) <= {at.REFUSED, at.FAILED}
    assert (done[answered] > begun[answered]).all()
    assert (begun[answered] >= came[answered]).all()
    refused = done == at.REFUSED
    assert np.isnan(begun[refused]).all()
    assert not refused.any() or case.queue_limit is not None
    assert (done != at.FAILED).all() or case.outages or case.mean_up_s is not None
    # First come first served in the order in which a queue was joined, of one shape and of all: batches are cut, not sorted.
    for queue in np.unique(world.notes[answered, at.WHERE]):
        mine = answered & (world.notes[:, at.WHERE] == queue)
        order = np.lexsort((came[mine], world.times[mine, at.ENQUEUED]))
        assert (np.diff(begun[mine][order]) >= -1e-9).all()
    assert world.ints[world.notes[~refused, at.WHERE] + at.INSIDE].sum() == 0


@given(load=st.floats(0.1, 0.6), seed=st.integers(0, 50), count=st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_no_request_is_answered_faster_at_a_higher_rate_or_with_fewer_gpus(load: float, seed: int, count: int) -> None:
    """Single requests, common random numbers: it holds of each request, and so of P95."""
    case = path((1, 10.0), rate_per_s=100.0 * load * count, gpus=count)

    def latency(one: ServedPath) -> np.ndarray:  # type: ignore[type-arg]
        world = ended(one, 300, seed)
        return np.asarray(world.times[:, at.DONE] - world.times[:, at.ARRIVES])

    slow = latency(case)
    assert (latency(replace(case, rate_per_s=1.5 * case.rate_per_s)) >= slow - 1e-6).all()
    assert (latency(replace(case, gpus=count + 1)) <= slow + 1e-6).all()


@given(seed=st.integers(0, 20), delay=st.sampled_from([0.0, 2.0]))
@settings(max_examples=6, deadline=None)
def test_p95_rises_with_the_rate_and_falls_with_gpus_in_batches_too(seed: int, delay: float) -> None:
    """Batches of up to 8 at 40, 80 and 95 % of what one GPU can do, and at 95 % on two."""
    case = path(*CURVE.points, rate_per_s=1.0, max_batch=8, delay_ms=delay)
    found = [
        simulate(replace(case, rate_per_s=share * 8000 / 9, gpus=gpus), requests=1500, seed=seed).p95_ms.value
        for share, gpus in ((0.4, 1), (0.8, 1), (0.95, 1), (0.95, 2))
    ]
    assert found[0] < found[1] < found[2]
    assert found[3] < found[2]


def test_equal_seeds_give_equal_results_and_others_do_not() -> None:
    case = path(*CURVE.points, cv=0.2, rate_per_s=500.0, max_batch=8)
    assert simulate(case, requests=500, seed=4) == simulate(case, requests=500, seed=4)
    assert simulate(case, requests=500, seed=4) != simulate(case, requests=500, seed=5)


def test_pooling_beats_queues_of_their_own_at_the_same_load() -> None:
    """The order that queueing theory gives: one queue, the shortest, two choices, chance; and turns beat chance."""
    case = path((1, 10.0), rate_per_s=340.0, gpus=4)
    order = ("shared", "shortest", "two-choices", "random", "round-robin")
    *found, turns = [simulate(replace(case, queues=policy), requests=4000).p95_ms.value for policy in order]
    assert found == sorted(found)
    assert max(1.5 * found[0], turns) < found[-1]


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"rate_per_s": 0.0}, "above 0 requests/s"),
        ({"rate_per_s": float("nan")}, "above 0 requests/s"),
        ({"ms": (*range(200), 5)}, "ascending"),
        ({"ms": (*range(200), float("inf"))}, "0 seconds or more"),
        ({"rate_per_s": 1.0, "mean_up_s": 1e-9}, "0.01 s or more"),
        ({"rate_per_s": 1.0, "max_batch": 0}, "1 or more"),
        ({"rate_per_s": 1.0, "preferred": (2,)}, "1 to 1"),
        ({"rate_per_s": 1.0, "delay_ms": -1.0}, "0 or more"),
        ({"rate_per_s": 1.0, "rested": ((5.0, 1.0), (5.0, 2.0))}, "ascending times of 0 ms"),
        ({"rate_per_s": 1.0, "rested": ((5.0, -1.0),)}, "each with 0 ms or more"),
        ({"rate_per_s": 1.0, "balancer": "shared"}, "every policy but shared"),
        ({"rate_per_s": 1.0, "outages": (Outage(unit="gpu", index=3, at_s=0.0, seconds=1.0),)}, "gpu 0 to 0"),
    ],
)
def test_a_path_that_makes_no_sense_is_refused_with_what_is_allowed(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        simulate(path((1, 10.0), **knobs), requests=1000)


@pytest.mark.parametrize("points", [(), ((0, 1.0),), ((2, 1.0), (1, 2.0)), ((1, 2.0), (2, 1.0)), ((1, 0.0),)])
def test_a_curve_that_is_none_is_refused(points: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(BadInput, match="curve of 'any'"):
        simulate(path(*points, rate_per_s=1.0), requests=1000)


def test_too_few_requests_make_no_percentile() -> None:
    with pytest.raises(BadInput, match="at least 100"):
        simulate(path((1, 10.0), rate_per_s=1.0), requests=99)
    assert simulate(path((1, 10.0), rate_per_s=1.0), requests=100).requests == 100


def test_a_curve_interpolates_and_goes_on_with_its_slope() -> None:
    curve = LatencyCurve(points=((2, 4.0), (4, 6.0), (8, 8.0)))
    assert [curve.ms(batch) for batch in (1, 2, 3, 4, 6, 8, 12)] == [4.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0]
    assert LatencyCurve(points=((2, 4.0),)).ms(6) == 12.0
