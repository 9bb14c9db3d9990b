"""The device table: names, sources, and numbers that have to agree with each other and with the architectures."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from redline.errors import BadInput
from redline.plan import devices as table
from redline.plan.devices import cpu_device, device, devices, sm_limits
from redline.records import Ceiling, Ceilings, Environment, Sourced

ALL = devices()
FP32_LANES = {(7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 9): 128, (9, 0): 128, (12, 0): 128}
"""Of one multiprocessor: the white papers of Turing, Ampere, Ada, Hopper and RTX Blackwell."""
FP16_PER_CLOCK = {(7, 5): 1024, (8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (12, 0): 1024}
"""Dense tensor-core operations of one multiprocessor a clock, by the same; GeForce does half of it with FP32 accumulation."""


def sourced(facts):
    named = [(field.name, getattr(facts, field.name)) for field in fields(facts)]
    return [(name, value) for name, value in named if isinstance(value, Sourced)] + list(facts.peaks)


def test_the_devices_that_a_plan_may_be_asked_for():
    assert {facts.name for facts in ALL} >= {
        "a100-40", "a100-80", "a100-80-pcie", "h100-pcie", "h100-sxm", "h100-nvl", "h200-sxm", "l4", "l40s", "t4", "a10",
        "rtx-4090", "rtx-5090", "b200",
    }  # fmt: skip


@pytest.mark.parametrize("facts", ALL, ids=lambda facts: facts.name)
def test_every_value_says_where_it_is_written(facts):
    for name, each in sourced(facts):
        assert len(each.source) > 8, name
        assert " " in each.source or "/" in each.source, (name, each.source)  # a key that nobody resolved has neither
    assert " " in facts.mig_source
    assert len(facts.prices) >= 1
    for price in facts.prices:
        assert price.usd_per_hour > 0
        assert re.fullmatch(r"20\d\d-(0\d|1[0-2])(-[0-3]\d)?", price.date)
        assert price.offer
        assert " " in price.source or "/" in price.source


@pytest.mark.parametrize("name", ["a100-80", "h100-sxm"])
def test_prices_spread_as_the_page_says(name):
    usd = [price.usd_per_hour for price in device(name).prices]
    assert 2.5 < max(usd) / min(usd) < 3.5  # docs/devices.md: threefold


def test_no_source_is_kept_that_nothing_uses():
    text = str(table._file()["device"])
    unused = [key for key in table._file()["sources"] if key not in text and key not in ("guide", "occupancy-h")]
    assert unused == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a100-80", "a100-80"),
        ("A100", "a100-80"),
        ("h100", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("nvidia h100 80gb hbm3, 81559 MiB, driver 580.159.03", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80-pcie"),
        ("NVIDIA H200", "h200-sxm"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("RTX_5090", "rtx-5090"),
        ("NVIDIA L40S", "l40s"),
        ("  b200 ", "b200"),
    ],
)
def test_names_as_people_and_nvml_write_them(name, expected):
    assert device(name).name == expected


@pytest.mark.parametrize(
    ("name", "near"), [("a100-8", "a100-80"), ("h1000", "h100-sxm"), ("RTX 4900", "rtx-4090"), ("l40", "l4")]
)
def test_an_unknown_device_names_the_nearest_and_all(name, near):
    with pytest.raises(BadInput) as caught:
        device(name)
    assert caught.value.code == "plan.device"
    assert caught.value.got == name
    assert near in str(caught.value.fix)
    assert all(facts.name in caught.value.allowed for facts in ALL)


@pytest.mark.parametrize("name", ["", "qqqq"])
def test_a_device_like_none_of_the_table(name):
    with pytest.raises(BadInput, match="no such device"):
        device(name)


def test_no_alias_means_two_devices():
    keys = [{table._key(alias) for alias in (facts.name, *facts.aliases)} for facts in ALL]
    assert sum(map(len, keys)) == len(set().union(*keys))


@pytest.mark.parametrize("facts", ALL, ids=lambda facts: facts.name)
def test_narrower_arithmetic_is_not_slower(facts):
    order = [facts.peak(kind) for kind in ("fp32", "tf32", "fp16", "int8") if facts.peak(kind) is not None]
    assert order == sorted(order)
    assert len(order) >= 3
    if facts.peak("fp8") is not None:
        assert facts.compute_capability >= (8, 9)
        assert facts.peak("fp16") < facts.peak("fp8") <= facts.peak("int8")


@pytest.mark.parametrize("name", ["a100-40", "a100-80", "a100-80-pcie", "h100-pcie", "h100-sxm", "h100-nvl", "h200-sxm"])
def test_int8_is_twice_fp16_and_fp16_twice_tf32(name):
    facts = device(name)
    assert facts.peak("int8") == pytest.approx(2 * facts.peak("fp16"), rel=1e-3)
    assert facts.peak("fp16") == pytest.approx(2 * facts.peak("tf32"), rel=1e-3)


@pytest.mark.parametrize("facts", [facts for facts in ALL if facts.boost_mhz.value], ids=lambda facts: facts.name)
def test_peaks_are_what_multiprocessors_and_clock_give_dense(facts):
    """A sparse rate in the place of a dense one would be twice as much."""
    clocks = facts.sms.value * facts.boost_mhz.value * 1e6 / 1e12
    assert facts.peak("fp32") == pytest.approx(2 * FP32_LANES[facts.compute_capability] * clocks, rel=0.01)
    half = 0.5 if facts.name.startswith("rtx") else 1.0
    dense = half * FP16_PER_CLOCK[facts.compute_capability] * clocks
    assert 0.85 * dense < facts.peak("fp16") < 1.005 * dense


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("a100-40", "bandwidth_gb_s", 1555), ("a100-80", "bandwidth_gb_s", 2039), ("a100-80", "sms", 108),
        ("a100-80", "l2_mib", 40), ("a100-80", "nvlink_gb_s", 600), ("a100-80", "pcie_gb_s", 32), ("a100-80", "power_w", 400),
        ("h100-sxm", "bandwidth_gb_s", 3350), ("h100-sxm", "sms", 132), ("h100-sxm", "l2_mib", 50),
        ("h100-sxm", "nvlink_gb_s", 900), ("h100-sxm", "pcie_gb_s", 64), ("h100-sxm", "power_w", 700),
        ("h100-pcie", "sms", 114), ("h100-pcie", "bandwidth_gb_s", 2000),
        ("h200-sxm", "memory_gib", 141), ("h200-sxm", "bandwidth_gb_s", 4800), ("h200-sxm", "sms", 132),
        ("l4", "sms", 58), ("l4", "power_w", 72), ("l4", "l2_mib", 48), ("t4", "bandwidth_gb_s", 320), ("t4", "power_w", 70),
    ],
)  # fmt: skip
def test_values_of_the_data_sheets(name, field, expected):
    assert getattr(device(name), field).value == expected


@pytest.mark.parametrize(
    ("name", "peaks"),
    [
        ("t4", {"fp32": 8.1, "tf32": None, "fp16": 65, "int8": 130, "fp8": None}),
        ("l4", {"fp32": 30.3, "fp16": 121, "int8": 242, "fp8": 242}),
        ("a100-80", {"fp32": 19.5, "tf32": 156, "fp16": 312, "int8": 624, "fp8": None}),
        ("h100-sxm", {"fp32": 66.9, "tf32": 494.7, "fp16": 989.4, "int8": 1978.9, "fp8": 1978.9}),
        ("h200-sxm", {"fp32": 66.9, "tf32": 494.7, "fp16": 989.4, "int8": 1978.9, "fp8": 1978.9}),
        ("h100-pcie", {"fp16": 756, "int8": 1513}),
    ],
)
def test_dense_peaks_of_the_data_sheets(name, peaks):
    for kind, expected in peaks.items():
        assert device(name).peak(kind) == (None if expected is None else pytest.approx(expected, rel=3e-3))


@pytest.mark.parametrize("facts", [facts for facts in ALL if facts.mig], ids=lambda facts: facts.name)
def test_slices_fit_the_device(facts):
    assert facts.compute_capability >= (8, 0)
    for each in facts.mig:
        assert each.count * each.sms <= facts.sms.value, each
        assert each.count * each.memory_gib <= facts.memory_gib.value, each
    smallest = facts.mig[0]
    assert smallest.name.startswith("1g.")
    assert smallest.count == 7


def test_what_was_not_read_is_unknown_and_not_zero():
    facts = device("h100-pcie")
    assert facts.jpeg_engines.value is None
    assert "not in a table" in facts.jpeg_engines.source
    assert device("t4").jpeg_engines.value == 0
    assert device("a100-80").jpeg_engines.value == 1
    assert table._sourced(None) == Sourced(value=None, source=table.UNREAD)


def test_multiprocessors_hold_what_the_programming_guide_says():
    assert [device("h100").shared_kib_per_sm.value, device("h100").warps_per_sm.value] == [228, 64]
    assert [device("t4").warps_per_sm.value, device("t4").blocks_per_sm.value] == [32, 16]
    assert sm_limits((8, 9)).blocks_per_sm == 24
    with pytest.raises(BadInput) as caught:
        sm_limits((7, 0))
    assert caught.value.code == "plan.capability"
    assert "7.5" in caught.value.allowed


MACHINE = Environment(
    platform="p", python="3", cpu="Some CPU", cores=2, memory_bytes=3 << 30, gpus=(), libraries=(), redline="0", commit=None
)


def ceilings(kind):
    figure = {"unit": "TFLOP/s", "why": "MKL", "slowest": 0.1, "fastest": 0.3, "repeats": 5}
    product = Ceiling(what="matmul-fp32", value=0.2, kind="lower bound", **figure)
    copied = Ceiling(what="copy", value=30.0, kind="ceiling", **{**figure, "unit": "GB/s"})
    return Ceilings(device="d", kind=kind, threads=2, torch="2", started="s", seconds=1.0, measured=(product, copied))


def test_the_cpu_has_no_rates_until_they_are_measured():
    bare = cpu_device(MACHINE)
    assert (bare.name, bare.kind, bare.memory_gib.value) == ("cpu", "cpu", 3.0)
    assert bare.peak("fp32") is None
    assert bare.bandwidth_gb_s.value is None
    assert "doctor --measure" in bare.bandwidth_gb_s.source
    measured = cpu_device(MACHINE, ceilings("cpu"))
    assert measured.peak("fp32") == 0.2
    assert "lower bound" in dict(measured.peaks)["fp32"].source
    assert measured.bandwidth_gb_s.value == 30.0
    assert cpu_device(MACHINE, ceilings("gpu")) == bare  # another device's figures
