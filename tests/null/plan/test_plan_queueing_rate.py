"""The best setting, the ranking for the tuner, and fleets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from queueing_case import CURVE, path

from redline.errors import BadInput
from redline.plan.queueing.fleet import fleet, lost, with_spare
from redline.plan.queueing.rate import Grid, best, capacity, highest_rate, network_of, prune
from redline.records import Candidate, LatencyCurve, Objective, Serving, ShapeLoad


def test_capacity_is_that_of_the_first_stage_to_be_full() -> None:
    case = path(*CURVE.points, max_batch=8, instances=2, slowdown=(1.0, 1.6), gpus=3)
    assert capacity(case) == pytest.approx(3 * 2 / 1.6 * 8000 / 9)
    decodes = replace(case, shapes=(replace(case.shapes[0], decode_ms=4.0),), decode_workers=2)
    assert capacity(decodes) == pytest.approx(500.0)


def test_an_error_budget_lets_a_full_queue_refuse() -> None:
    """Batches of one, at most one waits: P95 is never above 20 ms, so the rate ends where too many are refused."""
    case = path((1, 10.0), queue_limit=1)
    strict = highest_rate(case, p95_ms=25.0, requests=600, replications=1).rate_per_s.value
    loose = highest_rate(case, p95_ms=25.0, error_pct=10.0, requests=600, replications=1).rate_per_s.value
    assert strict < 0.5 * loose


def test_the_best_setting_comes_first_and_more_gpus_only_where_they_are_needed() -> None:
    """One GPU reaches about 800/s in batches of 8 and 200/s in batches of 1, two 1,600/s."""
    grid = Grid(batches=(1, 8), delays_ms=(0.0, 30.0), instances=(1,), gpus=(1, 2))
    case = path(*CURVE.points)
    found = best(case, grid, p95_ms=20.0, wanted_per_s=500.0, requests=200)
    assert (found[0].gpus, found[0].max_batch, found[0].enough) == (1, 8, True)
    assert {setting.delay_ms for setting in found} == {0.0}  # 30 ms would take the whole objective
    assert [setting.enough for setting in found] == sorted((setting.enough for setting in found), reverse=True)
    more = best(case, replace(grid, batches=(8,), delays_ms=(0.0,)), p95_ms=20.0, wanted_per_s=1200.0, requests=300)
    assert [setting.gpus for setting in more if setting.enough] == [2]
    assert more[0].at_wanted is not None
    assert more[0].at_wanted.p95_ms.value <= 20.0


def test_a_grid_without_a_lawful_point_is_refused() -> None:
    with pytest.raises(BadInput, match="no setting of the grid is lawful"):
        best(path(*CURVE.points), Grid(batches=(1,), delays_ms=(1.0,)), p95_ms=20.0)


def test_instances_that_the_slowdown_does_not_tell_of_are_not_lawful() -> None:
    grid = Grid(batches=(1,), delays_ms=(0.0,), instances=(1, 2, 3))
    lawful = list(grid.lawful(path(*CURVE.points, slowdown=(1.0, 1.8)), 20.0))
    assert [one.instances for one in lawful] == [1, 2]


def served(**knobs: object) -> Candidate:
    serving = Serving(queue_delay_us=int(knobs.pop("delay_us", 0)))  # type: ignore[call-overload]
    return Candidate(**{"runner": "onnxruntime", "serving": serving, **knobs})  # type: ignore[arg-type]


def test_pruning_ranks_by_what_each_candidate_can_hold() -> None:
    """Batches of 8 hold 300/s within 20 ms, batches of 1 do not; another precision has no curve and stands between them."""
    slow, fast, unknown = served(batch=1), served(batch=8), served(batch=8, precision="int8")
    curves = {network_of(slow): (ShapeLoad(curve=CURVE),)}
    ranked = prune([slow, unknown, fast], curves, Objective(p95_ms=20.0, throughput=300.0), requests=400)
    assert [one.candidate for one in ranked] == [fast, unknown, slow]
    assert ranked[0].p95_ms is not None
    assert ranked[0].p95_ms < 20.0
    assert ranked[1].rate_per_s is None
    assert ranked[2].rate_per_s is not None
    assert ranked[2].rate_per_s < 250.0
    assert ranked == prune([slow, unknown, fast], curves, Objective(p95_ms=20.0, throughput=300.0), requests=400)


def test_candidates_of_one_network_share_their_curves() -> None:
    assert network_of(served(batch=4, concurrency=2, delay_us=2000)) == network_of(served())
    assert network_of(served(threads=2)) != network_of(served())


@pytest.mark.parametrize(("spare", "needed", "nodes"), [("none", 10, 10), ("node", 10, 11), ("zone", 10, 15), ("zone", 1, 2)])
def test_the_headroom_is_the_fewest_nodes_that_survive(spare: str, needed: int, nodes: int) -> None:
    """Of 15 nodes in 3 zones 5 may go and 10 are left; of 14 as well, and 9 are left. Of 2, one."""
    assert with_spare(needed, spare, 3) == nodes  # type: ignore[arg-type]
    assert nodes - lost(nodes, spare, 3) >= needed  # type: ignore[arg-type]


def test_a_fleet_is_its_nodes_and_their_price() -> None:
    node = path(*CURVE.points, max_batch=8, gpus=2)
    found = fleet(
        node, demand_per_s=100_000.0, p95_ms=20.0, usd_per_gpu_hour=2.0, policies=("random", "shortest"), requests=2500
    )
    assert 1200 < found.rate_per_node < 1750
    assert found.nodes == found.nodes_needed + 1
    assert found.nodes_needed * found.rate_per_node >= 100_000 > (found.nodes_needed - 1) * found.rate_per_node
    assert found.gpus == 2 * found.nodes
    assert found.usd_per_hour == pytest.approx(4.0 * found.nodes)
    assert found.usd_per_million == pytest.approx(4.0 * found.nodes / 360)
    assert [effect.policy for effect in found.balancers] == ["random", "shortest"]
    assert found.balancers[1].p95_ms.value <= found.balancers[0].p95_ms.value


def test_a_fleet_of_nodes_that_cannot_meet_the_objective_is_refused() -> None:
    with pytest.raises(BadInput, match="no number of such nodes"):
        fleet(path((1, 30.0)), demand_per_s=100.0, p95_ms=20.0, requests=120)
    with pytest.raises(BadInput, match="makes no fleet"):
        fleet(path((1, 30.0)), demand_per_s=0.0, p95_ms=20.0)


def test_a_spread_is_kept_where_the_curve_is_scaled() -> None:
    curve = LatencyCurve(points=((1, 2.0), (4, 5.0)), cv=0.3).scaled(2.0)
    assert curve.points == ((1, 4.0), (4, 10.0))
    assert curve.cv == 0.3
