"""The mixed-precision search against exhaustive grouping."""

from __future__ import annotations

import numpy as np
import pytest

from redline.quantize.search import EXHAUSTIVE, Border, GroupCost, MixedSearch, best_within


def costs(count: int, seed: int) -> list[GroupCost]:
    """Times and losses over two decades, and some groups that INT8 does not make faster."""
    draw = np.random.default_rng(seed)
    found = []
    for index in range(count):
        wide = float(10 ** draw.uniform(0, 2))
        share = 1.1 if draw.random() < 0.2 else draw.uniform(0.4, 0.9)
        loss = float(10 ** draw.uniform(-4, -1))
        found.append(GroupCost(name=f"g{index}", loss=loss, int8_us=wide * share, fp16_us=wide))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_within_two_percent_of_exhaustive_grouping_by_a_tenth_of_its_evaluations(seed: int) -> None:
    given = costs(14, seed)
    borders = [Border(groups=(f"g{i}", f"g{i + 1}"), us=1.5) for i in range(13)]
    seeking, every = MixedSearch(given, borders), MixedSearch(given, borders)
    front, best = seeking.frontier(), every.exhaustive()
    assert every.evaluations == 2**14
    assert seeking.evaluations <= every.evaluations / 10
    for point in best:
        found = best_within(front, point.predicted_loss)
        assert found is not None
        assert found.predicted_us <= 1.02 * point.predicted_us


def test_the_frontier_runs_from_all_wide_to_the_fastest() -> None:
    given = costs(10, 3)
    front = MixedSearch(given, fixed_us=50).frontier()
    losses, times = [p.predicted_loss for p in front], [p.predicted_us for p in front]
    assert losses == sorted(losses)
    assert times == sorted(times, reverse=True)
    assert losses[0] == 0
    assert times[0] == pytest.approx(50 + sum(cost.fp16_us for cost in given))
    assert times[-1] == pytest.approx(50 + sum(min(cost.fp16_us, cost.int8_us) for cost in given))
    assert {cost.name for cost in given if cost.int8_us > cost.fp16_us} <= set(front[-1].kept), "INT8 does not pay there"


def test_a_border_costs_where_types_differ_and_nowhere_else() -> None:
    given = [GroupCost(name=name, loss=0.1, int8_us=5, fp16_us=10) for name in "abc"]
    search = MixedSearch(given, [Border(groups=("a", "b"), us=3), Border(groups=("b", "c"), us=4)])
    assert search.evaluate(()).predicted_us == 15
    assert search.evaluate("abc").predicted_us == 30
    assert search.evaluate("b").predicted_us == 20 + 7
    assert search.evaluate("c").predicted_us == 20 + 4
    assert search.evaluate("c").predicted_loss == pytest.approx(0.2)
    assert search.evaluations == 4, "a choice already evaluated is not counted again"


def test_nothing_within_the_budget_is_none_and_too_many_groups_are_refused() -> None:
    search = MixedSearch([GroupCost(name="a", loss=0.3, int8_us=1, fp16_us=2)])
    front = search.frontier()
    assert best_within(front, -1.0) is None
    assert best_within(front, 0.0) == search.evaluate("a")
    assert best_within(front, 0.3) == search.evaluate("")
    with pytest.raises(ValueError, match="subsets"):
        MixedSearch(costs(EXHAUSTIVE + 1, 0)).exhaustive()
