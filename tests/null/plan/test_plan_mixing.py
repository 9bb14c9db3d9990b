"""What a run takes of the frontier of INT8: the fastest within all, a fifth and a twentieth of the loss."""

from __future__ import annotations

from redline.mixing import picked
from redline.quantize.search import GroupCost, MixedSearch
from redline.records.quantize import LayerGroup, Sensitivity


def group(name: str, loss: float) -> Sensitivity:
    return Sensitivity(group=LayerGroup(name=name, nodes=(f"{name}0", f"{name}1")), divergence=loss)


def cost(one: Sensitivity, gain_us: float) -> GroupCost:
    return GroupCost(name=one.group.name, loss=one.divergence, int8_us=10.0, fp16_us=10.0 + gain_us)


def test_what_loses_much_for_little_time_stays_out_first() -> None:
    stem, body, head = group("stem", 0.70), group("body", 0.04), group("head", 0.26)
    front = MixedSearch([cost(stem, 1), cost(body, 30), cost(head, 5)]).frontier()
    assert picked(front, [stem, body, head]) == ((), ("head0", "head1", "stem0", "stem1"))


def test_a_group_that_gains_no_time_is_not_rounded_even_where_all_of_the_loss_may_stay() -> None:
    slow, body = group("depthwise", 0.5), group("body", 0.5)
    front = MixedSearch([cost(slow, -2), cost(body, 30)]).frontier()
    chosen = picked(front, [slow, body])
    assert chosen == ((), ("depthwise0", "depthwise1")), "everything rounded is tried too: a roofline can be wrong"


def test_each_share_of_the_loss_has_a_choice_of_its_own() -> None:
    groups = [group("a", 0.84), group("b", 0.12), group("c", 0.04)]
    front = MixedSearch([cost(one, 10) for one in groups]).frontier()
    assert picked(front, groups) == ((), ("a0", "a1"), ("a0", "a1", "b0", "b1"))


def test_where_no_loss_is_small_enough_nothing_that_keeps_every_layer_wide_is_a_candidate() -> None:
    alone = [group("a", 1.0)]
    front = MixedSearch([cost(alone[0], 10)]).frontier()
    assert picked(front, alone) == ((),)
