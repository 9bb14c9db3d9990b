"""Go or no-go by hand-made networks: how many GPUs, what a node's limits do to the answer, and what it rests on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from roof_cases import costs, gpu

from redline.plan.decide import Case, decide
from redline.plan.efficiency import PUBLISHED
from redline.plan.ladder import Image
from redline.plan.limits import node_limits
from redline.records import Decision, DeviceFacts, Node, NodeLimits, Objective, Price

HEAVY = costs(("big", "conv", "150000000000*N", "1000*N*H*W", 500_000))
"""0.61 ms an image in FP16 on an H100 at half its peak, 4.5 ms of its FP32 peak."""


def case(objective: Objective, network: Any = HEAVY, device: DeviceFacts | None = None) -> Case:
    return Case(costs=network, device=device or gpu(), image=Image(height=320, width=320), objective=objective, table=PUBLISHED)


def limits(nic: float | None = None) -> Any:
    def of(device: DeviceFacts, gpus: int, rate: float) -> NodeLimits:
        node = Node(gpus=gpus, request_bytes=100_000, input_bytes=307_200, output_bytes=0, network_per_s=rate, nic_gbit_s=nic)
        return node_limits(device, node)

    return of


def decided(p95_ms: float, throughput: float, *others: DeviceFacts, most: int = 8, nic: float | None = None) -> Decision:
    return decide(case(Objective(p95_ms=p95_ms, throughput=throughput)), others, limits(nic), most=most)


def test_go_with_the_fewest_gpus_that_hold_the_p95_together() -> None:
    found = decided(20.0, 4000.0)
    assert found.answer == "go"
    own = next(answer for answer in found.devices if answer.arithmetic == "fp16")
    assert own.gpus is not None
    assert own.rate_per_gpu is not None
    assert own.p95_ms is not None
    roof = 1000 / case(Objective(p95_ms=20.0, throughput=4000.0)).curve().ms(32) * 32
    assert own.rate_per_gpu < roof
    assert 4000 / roof < own.gpus <= math.ceil(4000 / own.rate_per_gpu)
    assert own.p95_ms <= 20.0
    assert found.advice == ()


def test_a_tighter_p95_costs_rate_and_int8_gives_it() -> None:
    loose, tight = decided(20.0, 2000.0), decided(3.0, 2000.0)

    def rate(found: Decision, arithmetic: str) -> float:
        return next(answer.rate_per_gpu or 0.0 for answer in found.devices if answer.arithmetic == arithmetic)

    assert rate(tight, "fp16") < rate(loose, "fp16") < rate(loose, "int8")


def test_no_go_where_one_image_alone_is_too_slow_and_what_to_change() -> None:
    found = decided(0.4, 100.0)
    assert found.answer == "no-go"
    assert "one image alone" in found.reason
    assert any(text.startswith("a P95 above") for text in found.advice)
    assert any("smaller input" in text or "INT8" in text for text in found.advice)
    assert all(answer.gpus is None or answer.arithmetic == "int8" for answer in found.devices)


def test_no_go_where_a_node_has_too_few() -> None:
    found = decided(20.0, 50_000.0, most=2)
    assert found.answer == "no-go"
    assert "a node has 2" in found.reason
    assert any("more nodes" in text for text in found.advice)


def test_no_go_where_the_network_card_ends_first() -> None:
    found = decided(20.0, 4000.0, nic=1.0)
    assert found.answer == "no-go"
    assert "network card ends at 1,250/s" in found.reason


def test_unknown_where_a_peak_is_unknown() -> None:
    blind = gpu(peaks={"fp32": 10.0})
    found = decide(case(Objective(p95_ms=20.0, throughput=10.0), device=blind), (), limits(), most=8)
    assert found.answer == "unknown"


def test_the_cheapest_per_image_is_first_and_price_is_of_all_gpus() -> None:
    price = Price(usd_per_hour=2.0, date="2026-05", source="list")
    dear = replace(gpu("dear"), prices=(replace(price, usd_per_hour=9.0),))
    cheap = replace(gpu("cheap"), prices=(price,))
    found = decided(20.0, 4000.0, dear, cheap)
    assert found.devices[0].device == "cheap"
    first = found.devices[0]
    assert first.gpus is not None
    assert first.usd_per_hour == pytest.approx(2.0 * first.gpus)
    assert first.usd_per_million == pytest.approx(2.0 * first.gpus / (3600 * 4000) * 1e6)
    assert found.devices[-1].usd_per_million is None, "without a price it cannot be first"


def test_the_heaviest_assumption_is_first() -> None:
    found = decided(20.0, 4000.0)
    weights = [one.weight for one in found.assumptions]
    assert weights == sorted(weights, reverse=True)
    slower = next(one for one in found.assumptions if one.changed == "all 30 % slower")
    faster = next(one for one in found.assumptions if one.changed == "all 30 % faster")
    assert slower.gpus is not None
    assert faster.gpus is not None
    assert slower.gpus > 4000 / next(a.rate_per_gpu for a in found.devices if a.arithmetic == "fp16") > faster.gpus  # type: ignore[operator]


def test_a_network_that_leaves_the_device_idle_gets_a_second_instance_and_a_full_one_does_not() -> None:
    """400 kernels of next to no work are launch-bound: half of their time another inference may have."""
    small = costs(*((f"k{i}", "conv", "1000*N", "10*N*H*W", 10) for i in range(400)))
    idle = decide(case(Objective(p95_ms=4.0, throughput=500.0), small), (), limits(), most=8)
    full = decided(20.0, 2000.0)
    own, other = (next(a for a in found.devices if a.arithmetic == "fp16") for found in (idle, full))
    assert own.instances == 2
    assert "on 2 instances" in own.reason
    assert (other.instances, other.delay_ms) == (1, 0.0)
    assert own.rate_per_gpu is not None
    assert own.full_per_gpu is not None
    assert own.rate_per_gpu <= own.full_per_gpu


def test_many_slow_gpus_are_counted_as_surely_as_few() -> None:
    """The fewest: one less does not hold the P95 behind one queue."""
    found = decide(case(Objective(p95_ms=6.0, throughput=60_000.0)), (), limits(), most=8)
    own = next(a for a in found.devices if a.arithmetic == "fp16")
    assert own.gpus is not None
    assert own.full_per_gpu is not None
    assert own.rate_per_gpu is not None
    assert 60_000 / own.full_per_gpu < own.gpus <= math.ceil(60_000 / own.rate_per_gpu)
    assert own.p95_ms is not None
    assert own.p95_ms <= 6.0
