"""The best setting, and fleets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from queueing_case import CURVE, path

from redline.errors import BadInput
from redline.plan.queueing.fleet import fleet, lost, with_spare
from redline.plan.queueing.rate import Grid, best, capacity, highest_rate
from redline.records import LatencyCurve, NodeLimit


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


def test_the_best_setting_holds_most_and_a_plainer_one_is_kept_where_it_holds_as_much() -> None:
    """Batches of 8 reach about 800/s within 20 ms and batches of 1 about 200; 30 ms of delay would take the objective."""
    grid = Grid(batches=(1, 8), delays_ms=(0.0, 30.0), instances=(1,))
    case = path(*CURVE.points)
    found, answer = best(grid.lawful(case, 20.0), p95_ms=20.0, requests=400)
    assert (found.max_batch, found.delay_ms, found.instances) == (8, 0.0, 1)
    alone = highest_rate(replace(case, max_batch=8), p95_ms=20.0, requests=400, replications=1)
    assert answer == alone
    same = replace(found, gpus=1, overhead_ms=0.001)
    assert best([found, same], p95_ms=20.0, requests=400)[0] == found, "no gain is not worth a change"


def test_a_second_instance_is_taken_where_it_gains_and_left_where_it_shares() -> None:
    case = replace(path(*CURVE.points), max_batch=8)
    free, full = (replace(case, instances=2, slowdown=(1.0, slow)) for slow in (1.2, 2.0))
    assert best([case, free], p95_ms=30.0, requests=400)[0] == free
    assert best([case, full], p95_ms=30.0, requests=400)[0] == case


def test_a_setting_that_holds_nothing_gives_way_to_one_that_does() -> None:
    slow, fast = path((1, 30.0)), path((1, 5.0))
    found, answer = best([slow, fast], p95_ms=20.0, requests=200)
    assert found == fast
    assert answer.rate_per_s.value > 0


def test_a_grid_without_a_lawful_point_is_refused() -> None:
    with pytest.raises(BadInput, match="no setting of the grid is lawful"):
        best(Grid(batches=(1,), delays_ms=(1.0,)).lawful(path(*CURVE.points), 20.0), p95_ms=20.0)


def test_instances_that_the_slowdown_does_not_tell_of_are_not_lawful() -> None:
    grid = Grid(batches=(1,), delays_ms=(0.0,), instances=(1, 2, 3))
    lawful = list(grid.lawful(path(*CURVE.points, slowdown=(1.0, 1.8)), 20.0))
    assert [one.instances for one in lawful] == [1, 2]


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


def test_a_node_that_ends_elsewhere_gives_no_more_than_that() -> None:
    node = path(*CURVE.points, max_batch=8, gpus=2)
    card = NodeLimit(resource="nic", title="network card", per_s=500.0, formula="1 Gbit/s / 250 kB")
    asked = {"demand_per_s": 10_000.0, "p95_ms": 20.0, "policies": ("random",), "requests": 2500}
    found = fleet(node, limit=card, **asked)  # type: ignore[arg-type]
    assert (found.rate_per_node, found.nodes_needed, found.nodes) == (500.0, 20, 21)
    assert found.limit == "network card: 1 Gbit/s / 250 kB"
    high = fleet(node, limit=replace(card, per_s=5000.0), **asked)  # type: ignore[arg-type]
    assert high.limit == ""
    assert high.rate_per_node > 1200


def test_a_fleet_of_nodes_that_cannot_meet_the_objective_is_refused() -> None:
    with pytest.raises(BadInput, match="no number of such nodes"):
        fleet(path((1, 30.0)), demand_per_s=100.0, p95_ms=20.0, requests=120)
    with pytest.raises(BadInput, match="makes no fleet"):
        fleet(path((1, 30.0)), demand_per_s=0.0, p95_ms=20.0)


def test_a_spread_is_kept_where_the_curve_is_scaled() -> None:
    curve = LatencyCurve(points=((1, 2.0), (4, 5.0)), cv=0.3).scaled(2.0)
    assert curve.points == ((1, 4.0), (4, 10.0))
    assert curve.cv == 0.3
