"""Node limits against figures worked out by hand, and what is missing is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.errors import BadInput
from redline.plan.devices import cpu_device, device
from redline.plan.limits import node_limits
from redline.records import Ceiling, Ceilings, Environment, Node

NODE = Node(
    gpus=8,
    request_bytes=125e3,
    input_bytes=1.92e6,
    output_bytes=28e3,
    network_per_s=715,
    host_cores=64,
    decode_ms=5.0,
    nic_gbit_s=25,
    gpus_per_switch=2,
)
"""Eight A100s with an 800 x 800 uint8 image each 1.92 MB, decoded on the host."""


def per_s(limits):
    return {limit.resource: limit.per_s for limit in limits.known}


def test_each_resource_by_hand():
    found = node_limits(device("a100-80"), NODE)
    assert per_s(found) == pytest.approx(
        {
            "network": 8 * 715,
            "jpeg-host": 64 / 0.005,
            "nic": 25e9 / 8 / 125e3,
            "pcie-switch": 4 * 32e9 / 1.92e6,
            "h2d": 8 * 32e9 / 1.92e6,
            "d2h": 8 * 32e9 / 28e3,
        }
    )
    assert found.unknown == ()
    assert [limit.per_s for limit in found.known] == sorted(limit.per_s for limit in found.known)
    assert found.first.resource == "network"
    assert found.first.formula == "8 GPUs x 715/s = 5,720/s"


def test_the_first_to_bite_moves_with_the_numbers():
    assert node_limits(device("a100"), replace(NODE, host_cores=8)).first.resource == "jpeg-host"
    assert node_limits(device("a100"), replace(NODE, nic_gbit_s=1)).first.formula == "1 Gbit/s / 8 / 125 kB in = 1,000/s"
    tensors = replace(NODE, decode="none", request_bytes=7.68e6, input_bytes=7.68e6, nic_gbit_s=400)
    assert node_limits(device("a100"), tensors).first.resource == "network"
    assert node_limits(device("a100"), replace(tensors, network_per_s=2500, gpus_per_switch=8)).first.resource == "pcie-switch"


def test_decode_on_the_gpu_sends_the_jpeg_over_pcie():
    on_gpu = replace(NODE, decode="gpu", jpeg_per_s=5000)
    found = per_s(node_limits(device("a100"), on_gpu))
    assert found["h2d"] == pytest.approx(8 * 32e9 / 125e3)
    assert found["jpeg-gpu"] == 40_000
    assert "jpeg-host" not in found


def test_answers_larger_than_requests_leave_by_the_same_card():
    found = node_limits(device("a100"), replace(NODE, output_bytes=1e6))
    nic = next(limit for limit in found.known if limit.resource == "nic")
    assert nic.per_s == 3125
    assert nic.formula.endswith("1 MB out = 3,125/s")


def test_the_outputs_cross_pcie_and_the_answer_the_network_card():
    found = per_s(node_limits(device("a100"), replace(NODE, output_bytes=45.6e6, answer_bytes=2400.0)))
    assert found["d2h"] == pytest.approx(8 * 32e9 / 45.6e6)
    assert found["nic"] == pytest.approx(25e9 / 8 / 125e3), "the request is the larger of the two"


def test_what_is_not_known_is_listed_with_what_is_missing():
    bare = Node(gpus=2, request_bytes=1e5, input_bytes=1e6, output_bytes=1e4)
    found = node_limits(device("h100"), bare)
    assert {limit.resource for limit in found.known} == {"h2d", "d2h"}
    assert {limit.resource: limit.formula for limit in found.unknown} == {
        "network": "needs the network's images a second on one GPU",
        "pcie-switch": "needs how many GPUs share a switch",
        "jpeg-host": "needs the cores that decode and decode ms of one image",
        "nic": "needs the network card's Gbit/s",
    }
    engines = node_limits(device("h100"), replace(bare, decode="gpu")).unknown
    assert "it has 7 JPEG engines" in next(limit.formula for limit in engines if limit.resource == "jpeg-gpu")


def test_a_device_whose_link_is_unknown():
    found = node_limits(device("b200"), NODE)
    assert {"h2d", "d2h", "pcie-switch"} == {limit.resource for limit in found.unknown}
    assert all("Gen5 and Gen6" in limit.formula for limit in found.unknown)
    given_link = node_limits(device("b200"), replace(NODE, switch_gb_s=50, gpus_per_switch=4))
    assert per_s(given_link)["pcie-switch"] == pytest.approx(8 * 50e9 / (4 * 1.92e6))


def measured(kind):
    figure = {"unit": "GB/s", "kind": "ceiling", "why": "w", "slowest": 1.0, "fastest": 99.0, "repeats": 5}
    rows = (Ceiling(what="h2d-pinned", value=25.0, **figure), Ceiling(what="d2h-pinned", value=22.0, **figure))
    return Ceilings(device="d", kind=kind, threads=1, torch="2", started="s", seconds=1.0, measured=rows)


def test_measured_links_come_before_the_data_sheet():
    found = node_limits(device("a100"), NODE, measured("gpu"))
    assert per_s(found)["h2d"] == pytest.approx(8 * 25e9 / 1.92e6)
    assert per_s(found)["d2h"] == pytest.approx(8 * 22e9 / 28e3)
    assert "25 GB/s (measured)" in next(limit.formula for limit in found.known if limit.resource == "pcie-switch")
    assert per_s(node_limits(device("a100"), NODE, measured("cpu"))) == per_s(node_limits(device("a100"), NODE))


def test_nvlink_counts_one_direction():
    found = node_limits(device("h100"), replace(NODE, nvlink_bytes=4.5e6))
    assert per_s(found)["nvlink"] == pytest.approx(8 * 450e9 / 4.5e6)
    assert "nvlink" not in per_s(node_limits(device("h100"), NODE))
    with pytest.raises(BadInput) as caught:
        node_limits(device("l40s"), replace(NODE, nvlink_bytes=1.0))
    assert caught.value.code == "plan.node"
    assert "PCIe" in caught.value.fix
    unknown = node_limits(device("l4"), replace(NODE, nvlink_bytes=1.0)).unknown
    assert [limit.resource for limit in unknown] == ["nvlink"]


def test_a_switch_of_more_gpus_than_the_node_has():
    alone = replace(NODE, gpus=1, gpus_per_switch=4)
    found = per_s(node_limits(device("a100"), alone))
    assert found["pcie-switch"] == found["h2d"]


def test_a_cpu_has_no_links():
    machine = Environment(
        platform="p", python="3", cpu="c", cores=4, memory_bytes=1, gpus=(), libraries=(), redline="0", commit=None
    )
    found = node_limits(cpu_device(machine), replace(NODE, gpus=1))
    assert {limit.resource for limit in (*found.known, *found.unknown)} == {"network", "jpeg-host", "nic"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpus": 0}, {"request_bytes": 0}, {"input_bytes": -1}, {"output_bytes": -1}, {"network_per_s": 0}, {"decode_ms": 0},
        {"nic_gbit_s": float("nan")}, {"host_cores": -2}, {"gpus_per_switch": 0}, {"nvlink_bytes": float("inf")},
        {"switch_gb_s": 0}, {"jpeg_per_s": -1},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be(wrong):
    with pytest.raises(BadInput) as caught:
        node_limits(device("a100"), replace(NODE, **wrong))
    assert caught.value.code == "plan.node"
    assert next(iter(wrong)) in caught.value.what


@given(st.integers(1, 16), st.floats(1e3, 1e8), st.floats(1e3, 1e8))
def test_more_gpus_never_lower_a_limit_and_more_bytes_never_raise_one(gpus, size, request):
    node = replace(NODE, gpus=gpus, input_bytes=size, request_bytes=request)
    one = per_s(node_limits(device("h200"), node))
    more = per_s(node_limits(device("h200"), replace(node, gpus=gpus + 1)))
    larger = per_s(node_limits(device("h200"), replace(node, input_bytes=2 * size, request_bytes=2 * request)))
    assert all(more[key] >= one[key] * (1 - 1e-9) for key in one if key != "pcie-switch" or gpus > 1)
    assert all(larger[key] <= one[key] for key in one)
