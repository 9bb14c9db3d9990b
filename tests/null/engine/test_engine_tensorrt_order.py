"""Outputs come in the graph's order, whatever the engine's."""

from __future__ import annotations

import pytest

from redline.engine.tensorrt_order import in_order
from redline.errors import TrialError


def test_the_graphs_order_wins() -> None:
    assert in_order(["boxes", "logits"], ["logits", "boxes"]) == ["logits", "boxes"]
    assert in_order(["boxes", "logits"], ()) == ["boxes", "logits"]


@pytest.mark.parametrize("wanted", [["logits"], ["logits", "masks"], ["logits", "boxes", "boxes"]])
def test_other_outputs_are_refused_by_name(wanted: list[str]) -> None:
    with pytest.raises(TrialError, match="other outputs") as caught:
        in_order(["boxes", "logits"], wanted)
    assert (caught.value.code, caught.value.got) == ("engine-outputs", "boxes, logits")
