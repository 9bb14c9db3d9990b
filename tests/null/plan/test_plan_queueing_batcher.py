"""The batcher, copies, devices and outages on traces worked out by hand. Times are milliseconds; a batch of b takes 10 + b."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from queueing_case import answers, ended, ended_as, path, starts

from redline.plan.queueing import state as at
from redline.plan.queueing.state import FAILED, REFUSED
from redline.records import LatencyCurve, Outage, Routing, ServedPath, ShapeLoad

TEN_AND_ONE = ((1, 11.0), (8, 18.0))


def test_without_a_delay_an_idle_instance_takes_at_once_what_waits() -> None:
    assert answers(path(*TEN_AND_ONE, ms=(0, 1, 2, 3), max_batch=8)) == [11, 24, 24, 24]


def test_a_batch_is_not_larger_than_the_largest() -> None:
    assert answers(path(*TEN_AND_ONE, ms=(0, 1, 2, 3), max_batch=2)) == [11, 23, 23, 34]


def test_a_lone_request_waits_for_the_whole_delay() -> None:
    assert answers(path(*TEN_AND_ONE, ms=(0,), max_batch=8, delay_ms=5.0)) == [16]


def test_a_full_batch_does_not_wait() -> None:
    assert answers(path(*TEN_AND_ONE, ms=(0, 1, 2), max_batch=3, delay_ms=50.0)) == [15, 15, 15]


def test_a_preferred_size_does_not_wait_either() -> None:
    """The third request waits alone from 40 on: the first two left when the second came."""
    assert starts(path(*TEN_AND_ONE, ms=(0, 1, 40), max_batch=8, preferred=(2,), delay_ms=20.0)) == [1, 1, 60]


def test_the_delay_runs_from_the_oldest() -> None:
    assert starts(path(*TEN_AND_ONE, ms=(0, 4, 30), max_batch=8, delay_ms=5.0)) == [5, 5, 35]


def test_behind_a_delay_a_payload_may_leave_with_room() -> None:
    """Triton wakes its batcher only when the next preferred size waits: the request of 12 could have left with that of 6.

    5: the first starts. 11: the second is a payload of its own, waiting for the instance. 12: the third wakes nobody. 16: the
    second starts alone, and only then is the third looked at, whose delay ends at 17. It starts when the second is done.
    """
    assert starts(path(*TEN_AND_ONE, ms=(0, 6, 12), max_batch=8, delay_ms=5.0)) == [5, 16, 27]
    assert starts(path(*TEN_AND_ONE, ms=(0, 6, 12), max_batch=8)) == [0, 11, 22]


def test_overdue_payloads_leave_together() -> None:
    """1: a preferred pair starts. 3: the next pair is queued. 5: two more join it, for it is not full. 6: the last is late at
    11 and a payload of its own. 41: the instance takes the four, and the overdue one behind them too."""
    case = path((1, 40.0), (8, 40.0), ms=(0, 1, 2, 3, 4, 5, 6), max_batch=8, preferred=(2,), delay_ms=5.0)
    assert starts(case) == [1, 1, 41, 41, 41, 41, 41]
    assert starts(replace(case, max_batch=4)) == [1, 1, 41, 41, 41, 41, 81]


KINDS = (0, 1, 0, 0, 1, 1)


def shapes(**knobs: object) -> ServedPath:
    """A batch of n takes n * 10 of shape 0, n * 100 of shape 1."""
    of = tuple(ShapeLoad(name=n, curve=LatencyCurve(points=((1, ms), (8, 8 * ms)))) for n, ms in (("a", 10.0), ("b", 100.0)))
    return ServedPath(shapes=of, trace_s=(0.0, 0.001, 0.002, 0.003, 0.004, 0.005), max_batch=8, **knobs)  # type: ignore[arg-type]


def test_equal_shapes_are_cut_where_the_next_one_differs() -> None:
    world = ended_as(shapes(grouping="equal"), KINDS)
    assert [round(time) for time in world.times[:, at.STARTED]] == [0, 10, 110, 110, 130, 130]
    assert [round(time) for time in world.times[:, at.DONE]] == [10, 110, 130, 130, 330, 330]


def test_mixed_shapes_run_in_turn_inside_one_batch() -> None:
    world = ended_as(shapes(grouping="mixed"), KINDS)
    assert [round(time) for time in world.times[:, at.DONE]] == [10, 330, 330, 330, 330, 330]


def test_instances_on_one_device_slow_each_other_down() -> None:
    """Alone from 0 to 5, two at half speed until the first is done at 15 (5 + 5 * 2), the second alone for its last 5."""
    assert answers(path((1, 10.0), ms=(0, 5), instances=2, slowdown=(1.0, 2.0))) == [15, 20]


def test_others_slow_small_batches_more_and_what_ends_first_is_not_what_has_least_work_left() -> None:
    disturbed = path((1, 10.0), ms=(0, 5), instances=2, slowdown=(1.0, 2.0), disturbed=((1, 1.5),))
    assert answers(disturbed) == [20, 25]
    # Both instances end at 20; then two requests together, 12 ms undisturbed, end before a single one of 10 that others slow.
    curve = path((1, 10.0), (2, 12.0), ms=(0, 0, 1, 1, 1.5), max_batch=2, instances=2, disturbed=((1, 2.0), (2, 1.0)))
    assert answers(curve) == [20, 20, 32, 32, 36]


def test_an_instance_that_rested_takes_longer() -> None:
    """After 6 ms of rest 0.4 ms longer, after none nothing, and never more than 5 ms; each instance by its own rest."""
    case = path((1, 4.0), ms=(0, 10, 14, 100, 400), rested=((2.0, 0.0), (52.0, 5.0)))
    assert answers(case) == [4, 14.4, 18.4, 109, 409]
    two = path((1, 4.0), ms=(10, 40), instances=2, rested=((0.0, 0.0), (50.0, 5.0)))
    assert answers(two) == [15, 48], "the second instance had no batch yet"


def test_copies_share_a_link_and_overlap_with_the_other_instance() -> None:
    """A copy of 2 MB at 1 GB/s takes 2 ms: in 0-2 and 2-4, computed by 12 and 14, out (1 ms) by 13 and 15."""
    case = path((1, 10.0), ms=(0, 0), instances=2, link_gb_s=1.0)
    case = replace(case, shapes=(replace(case.shapes[0], input_bytes=2_000_000, output_bytes=1_000_000),))
    assert answers(case) == [13, 15]
    two = replace(case, instances=1, gpus=2)
    assert answers(two) == [13, 13]
    assert answers(replace(two, gpus_per_link=2)) == [13, 15]
    assert answers(replace(two, gpus_per_link=2, duplex=False)) == [13, 15]


def test_the_host_stage_is_served_first_come_first_served() -> None:
    case = path((1, 1.0), ms=(0, 0, 0), decode_workers=2)
    assert answers(replace(case, shapes=(replace(case.shapes[0], decode_ms=6.0),))) == [7, 8, 13]


def test_a_slice_is_a_slower_device() -> None:
    assert answers(path((1, 10.0), ms=(0, 0, 0), slices=2, slice_slowdown=1.5)) == [15, 15, 30]


def test_what_a_full_queue_refuses_is_refused_at_once() -> None:
    """One runs, one fills the instance's batch and one may wait beyond it."""
    found = answers(path((1, 10.0), (2, 10.0), ms=(0, 1, 2, 3, 11), max_batch=2, queue_limit=1))
    assert found == [10, 20, 20, REFUSED, 30]


def test_an_outage_loses_what_runs_and_delays_what_waits() -> None:
    case = path((1, 10.0), ms=(0, 1, 30), outages=(Outage(unit="instance", index=0, at_s=0.005, seconds=0.01),))
    assert answers(case) == [FAILED, 25, 40]


def test_a_node_that_is_down_gets_nothing_new() -> None:
    down = Outage(unit="node", index=1, at_s=0.0005, seconds=1.0)
    case = path((1, 10.0), ms=(1, 2, 3, 4), nodes=2, balancer="round-robin", outages=(down,))
    assert answers(case) == [11, 21, 31, 41]


@pytest.mark.parametrize("policy", ["round-robin", "shortest", "two-choices", "random"])
def test_policies_share_the_load(policy: Routing) -> None:
    """1,000 requests on 4 GPUs: taking turns shares exactly; drawn ones lie within 5 sigma of 250."""
    world = ended(path((1, 100.0), rate_per_s=30.0, gpus=4, queues=policy), 1000)
    counts = np.unique(world.notes[:, at.WHERE], return_counts=True)[1]
    assert len(counts) == 4
    assert counts.max() - counts.min() <= (0 if policy == "round-robin" else 2 * 5 * 13.7)


def test_the_shortest_queue_is_chosen() -> None:
    """Three long ones on three of four GPUs: the fourth request takes the idle one, whatever the draw."""
    assert answers(path((1, 100.0), ms=(0, 1, 2, 3), gpus=4, queues="shortest")) == [100, 101, 102, 103]
