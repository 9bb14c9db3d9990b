"""Occupancy against NVIDIA's own calculator, a published example, and what has to hold of any launch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.errors import BadInput
from redline.plan.devices import devices, sm_limits
from redline.plan.occupancy import occupancy

REFERENCE = json.loads((Path(__file__).parent / "occupancy_reference.json").read_text(encoding="utf-8"))["rows"]
BITS = {"threads": 1, "registers": 2, "shared memory": 4, "blocks": 8}
CAPABILITIES = [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]


def of(capability, threads, registers, shared=0):
    return occupancy(capability, threads_per_block=threads, registers_per_thread=registers, shared_bytes_per_block=shared)


def test_the_same_blocks_and_limits_as_nvidias_header():
    assert {(row[0], row[1]) for row in REFERENCE} == set(CAPABILITIES)
    assert len(REFERENCE) > 600
    for major, minor, threads, registers, shared, blocks, limits in REFERENCE:
        found = of((major, minor), threads, registers, shared)
        assert found.blocks == blocks, found
        assert sum(BITS[name] for name in found.limiters) == limits, found


def test_every_device_of_the_table_has_a_capability_that_is_checked():
    assert {facts.compute_capability for facts in devices()} <= set(CAPABILITIES)


@pytest.mark.parametrize(("threads", "blocks", "share"), [(128, 12, 0.75), (320, 4, 0.625)])
def test_the_example_of_the_best_practices_guide(threads, blocks, share):
    """CUDA C++ Best Practices Guide, Calculating Occupancy: 37 registers and 64 warps, 75 % and (rounded there) 63 %."""
    found = of((8, 0), threads, 37)
    assert found.blocks == blocks
    assert found.share == share
    assert found.limiters == ("registers",)


def test_the_drivers_kilobyte_counts_on_hopper():
    """12 KiB a block of 228 KiB looks like 19 blocks; each takes 1 KiB more, so 17 fit."""
    found = of((9, 0), 32, 8, 12 * 1024)
    assert dict(found.limits) == {"threads": 64, "blocks": 32, "registers": 256, "shared memory": 17}
    assert (found.blocks, found.warps, found.limiters) == (17, 17, ("shared memory",))


def test_a_block_whose_registers_do_not_fit_does_not_launch():
    found = of((9, 0), 1024, 128)
    assert (found.blocks, found.warps, found.share, found.limiters) == (0, 0, 0.0, ("registers",))
    assert of((9, 0), 1024, 64).blocks == 1


def test_a_full_multiprocessor():
    found = of((8, 0), 256, 32)
    assert (found.blocks, found.share) == (8, 1.0)
    assert found.limiters == ("threads", "registers")


@pytest.mark.parametrize(
    ("threads", "registers", "shared"),
    [(0, 32, 0), (1025, 32, 0), (32, 256, 0), (32, -1, 0), (32, 32, 227 * 1024 + 1), (32, 32, -1)],
)
def test_what_no_launch_can_ask_for(threads, registers, shared):
    with pytest.raises(BadInput) as caught:
        of((9, 0), threads, registers, shared)
    assert caught.value.code == "plan.occupancy"
    assert " to " in caught.value.allowed


def test_an_unknown_capability():
    with pytest.raises(BadInput, match="not in the table"):
        of((6, 0), 32, 32)


LAUNCHES = st.tuples(st.sampled_from(CAPABILITIES), st.integers(1, 1024), st.integers(0, 255), st.integers(0, 48 * 1024))


@given(LAUNCHES)
def test_nothing_is_handed_out_twice(launch):
    capability, threads, registers, shared = launch
    found, limits = of(*launch), sm_limits(capability)
    each = -(-threads // 32)
    assert found.warps == found.blocks * each <= limits.warps_per_sm
    assert 0 <= found.share <= 1
    assert found.blocks <= limits.blocks_per_sm
    assert found.warps * 32 * registers <= limits.registers_per_sm
    assert found.blocks * (shared + limits.reserved_shared_bytes) <= limits.shared_kib_per_sm * 1024
    assert found.blocks == min(count for _, count in found.limits)
    assert found.limiters == tuple(name for name, count in found.limits if count == found.blocks)


@given(LAUNCHES, st.integers(0, 64), st.integers(0, 4096))
def test_a_hungrier_kernel_never_fits_more_often(launch, registers, shared):
    capability, threads, has, uses = launch
    more = of(
        capability, threads, min(255, has + registers), min(64 * 1024 - 1024, uses + shared) if uses < 63 * 1024 else uses
    )
    assert more.blocks <= of(*launch).blocks


@given(LAUNCHES)
def test_one_block_more_would_not_fit(launch):
    """The answer is the most, not only possible: one of the resources is used up."""
    capability, threads, registers, shared = launch
    found, limits = of(*launch), sm_limits(capability)
    each, blocks = -(-threads // 32), found.blocks + 1
    portions = -(-(registers * 32) // 256) * 256
    partition = limits.registers_per_sm // 4
    fits_registers = portions == 0 or blocks * each <= 4 * (partition // portions)
    launches = portions * (-(-each // 4) * 4) <= limits.registers_per_sm
    used = blocks * (-(-(shared + limits.reserved_shared_bytes) // limits.shared_unit_bytes) * limits.shared_unit_bytes)
    assert not (
        blocks * each <= limits.warps_per_sm
        and blocks <= limits.blocks_per_sm
        and fits_registers
        and launches
        and used <= limits.shared_kib_per_sm * 1024
    )
