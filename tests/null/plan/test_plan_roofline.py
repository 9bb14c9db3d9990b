"""The roofline by hand: what bounds a kernel, the two conventions, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from roof_cases import costs, gpu

from redline.errors import BadInput
from redline.plan.efficiency import PUBLISHED
from redline.plan.roofline import roofline
from redline.records import KernelFloor, KernelShare, Roofline, Size, UnknownOperator
from redline.store import dump, load

CARD = gpu(peaks={"fp32": 10.0, "fp16": 100.0}, bandwidth=1000)
"""1 us is 1e7 FLOP in FP32, 1e8 in FP16, and 1e6 bytes."""
NETWORK = costs(
    ("big", "conv", "1000000*N*H*W", "10*H*W", 500),
    ("wide", "pointwise", "0", "50000*N*H*W", 0),
    ("deep", "depthwise", "1000000*H*W", "10*H*W", 0),
    ("tiny", "move", "0", "H", 0),
)


def run(arithmetic: Any = "fp16", n: int = 1, **how: Any) -> Roofline:
    return roofline(NETWORK, CARD, arithmetic, n, 10, 10, **({"table": PUBLISHED} | how))


def test_each_kernel_is_charged_the_largest_of_its_three_times() -> None:
    big, wide, deep, tiny = run().groups
    assert (big.bound, big.flops, big.bytes) == ("compute", 200_000_000, 2 * (2000 + 500))
    assert big.roof_us == pytest.approx(2.0)
    assert big.intensity == pytest.approx(200_000_000 / 5000)
    assert (wide.bound, wide.roof_us) == ("memory", pytest.approx(20.0))
    assert (deep.bound, deep.roof_us) == ("compute", pytest.approx(20.0)), "depthwise runs at the FP32 peak"
    assert (tiny.bound, tiny.roof_us, tiny.limit) == ("launch", 1.2, "memory")
    assert tiny.work_us == pytest.approx(20 * 2 / 1e6)


def test_totals_and_the_time_expected() -> None:
    whole = run()
    assert whole.roof_us == pytest.approx(2 + 20 + 20 + 1.2)
    assert whole.compute_us == pytest.approx(2 + 20)
    assert whole.memory_us == pytest.approx(whole.bytes / 1e9 * 1e6 / 1000)
    assert whole.flops == 400_000_000
    assert whole.unfused_bytes == 2 * (3 * (1000 + 5_000_000 + 1000 + 10) + 500)
    work = 2 + 20 + 20 + 20 * 2 / 1e6
    assert whole.expected_us == pytest.approx(15.0 + 4 * 1.2 + work / 0.5)


def test_the_layers_convention_charges_products_and_pools_alone_at_one_peak() -> None:
    whole = run(convention="layers")
    assert [group.name for group in whole.groups] == ["big", "deep"]
    assert whole.roof_us == pytest.approx(2 + 2), "no launch floor, and depthwise at the FP16 peak"


def test_fp32_moves_four_bytes_and_has_its_own_peak() -> None:
    big, wide, *_ = run("fp32").groups
    assert big.roof_us == pytest.approx(20.0)
    assert wide.bytes == 2 * run().groups[1].bytes


def test_a_batch_shares_the_weights() -> None:
    one, many = run().groups[0], run(n=8).groups[0]
    assert many.flops == 8 * one.flops
    assert many.bytes == one.bytes, "this kernel's tensors do not grow with N"


def test_without_a_cuda_graph_every_kernel_costs_a_launch_more() -> None:
    graph, stream = run(), run(cuda_graph=False)
    assert stream.expected_us - graph.expected_us == pytest.approx(4 * PUBLISHED.stream_us)
    assert stream.groups[3].roof_us == pytest.approx(1.2 + PUBLISHED.stream_us)


def test_rows_of_the_table_go_before_relatives_and_defaults() -> None:
    row = KernelShare(kind="conv", arithmetic="fp16", limit="compute", share=0.8, points=9)
    table = replace(PUBLISHED, shares=(row,), floors=(KernelFloor(kind="conv", us=3.0, points=9),))
    assert table.share("conv", "fp16", "compute") == (0.8, 9)
    assert table.share("conv", "int8", "compute") == (0.8, 0), "of FP16, so nothing measured behind it"
    assert table.share("matmul", "fp16", "compute") == (0.8, 0)
    assert table.share("conv", "fp16", "memory") == (0.5, 0)
    assert [table.floor_us(kind) for kind in ("conv", "depthwise", "move")] == [3.0, 3.0, 1.2]
    big, wide, deep, _ = run(table=table).groups
    assert big.expected_us == pytest.approx(3.0 + 2.0 / 0.8)
    assert wide.expected_us == pytest.approx(1.2 + 20 / 0.5)
    assert deep.expected_us == pytest.approx(3.0 + 20 / 0.8)


def test_tensor_cores_are_asked_for_products_only() -> None:
    odd = costs(("odd", "conv", "H*W", "H", 0))
    odd = replace(odd, layers=(replace(odd.layers[0], channels_in=3),))
    assert roofline(odd, CARD, "fp16", 1, 8, 8).groups[0].no_tensor_core == "3 input channels, not a multiple of 8"
    assert roofline(odd, CARD, "fp32", 1, 8, 8).groups[0].no_tensor_core == ""
    assert run().groups[1].no_tensor_core == ""


def test_unknown_operators_are_named_with_their_bound() -> None:
    row = UnknownOperator(operator="Warp", count=3, elements=Size("500000*N"), fixed_bytes=Size("0"), assumed="a guess")
    whole = roofline(costs(("big", "conv", "H", "H", 0), unknown=(row,)), CARD, "fp16", 2, 8, 8)
    assert whole.notes == (
        "operators of unknown cost: 3 x Warp; they read and write at most 2,000,000 bytes, 2.0 us of bandwidth; a guess",
    )


@pytest.mark.parametrize(
    ("device", "arithmetic", "size", "code"),
    [
        (CARD, "int8", (1, 8, 8), "plan.no-peak"),
        (gpu(peaks={"fp16": None}), "fp16", (1, 8, 8), "plan.no-peak"),
        (gpu(bandwidth=None), "fp16", (1, 8, 8), "plan.no-bandwidth"),
        (CARD, "fp16", (0, 8, 8), "plan.size"),
        (CARD, "fp16", (1, 8, 9), "plan.size"),
    ],
)
def test_what_is_unknown_or_impossible_is_refused(device: Any, arithmetic: Any, size: tuple[int, int, int], code: str) -> None:
    with pytest.raises(BadInput) as raised:
        roofline(costs(("a", "conv", "H", "H", 0), size=(None, None, 8)), device, arithmetic, *size)
    assert raised.value.code == code


def test_a_roofline_survives_the_store() -> None:
    whole = run()
    assert load(Roofline, dump(whole)) == whole
