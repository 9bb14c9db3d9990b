"""The device table, the measured ceilings and the occupancy calculator against a real GPU. Skipped without one."""

from __future__ import annotations

import pytest

from redline.doctor.ceilings import measure_ceilings
from redline.plan.devices import device
from redline.plan.occupancy import occupancy
from redline.records import Ceilings, DeviceFacts

torch = pytest.importorskip("torch", reason="torch measures")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU that this torch can use", allow_module_level=True)

WITHIN = 1.15
"""Of its data sheet: GeForce clocks above the boost that it is counted with."""


@pytest.fixture(scope="module")
def facts() -> DeviceFacts:
    return device(torch.cuda.get_device_name(0))


@pytest.fixture(scope="module")
def ceilings() -> Ceilings:
    return measure_ceilings()


def test_the_table_says_what_the_driver_says(facts: DeviceFacts) -> None:
    seen = torch.cuda.get_device_properties(0)
    assert facts.compute_capability == (seen.major, seen.minor)
    assert facts.sms.value == seen.multi_processor_count
    assert facts.warps_per_sm.value == seen.max_threads_per_multi_processor / 32
    assert facts.registers_per_sm.value == seen.regs_per_multiprocessor
    assert facts.memory_gib.value is not None
    assert 0.9 < seen.total_memory / 2**30 / facts.memory_gib.value <= 1.0
    if facts.l2_mib.value is not None:
        assert facts.l2_mib.value == seen.L2_cache_size / 2**20


def test_nothing_is_faster_than_its_data_sheet(facts: DeviceFacts, ceilings: Ceilings) -> None:
    assert ceilings.kind == "gpu"
    assert ceilings.missing == ()
    assert ceilings.seconds < 30
    for arithmetic, peak in facts.peaks:
        rate = ceilings.rate(f"matmul-{arithmetic}")
        if peak.value is not None and rate is not None:
            assert 0.25 * peak.value < rate < WITHIN * peak.value, arithmetic
    copied, link = ceilings.rate("copy"), ceilings.rate("h2d-pinned")
    assert copied is not None
    assert link is not None
    if facts.bandwidth_gb_s.value is not None:
        assert 0.5 * facts.bandwidth_gb_s.value < copied < WITHIN * facts.bandwidth_gb_s.value
    if facts.pcie_gb_s.value is not None:
        assert 0.2 * facts.pcie_gb_s.value < link < WITHIN * facts.pcie_gb_s.value


def test_occupancy_is_the_drivers(facts: DeviceFacts) -> None:
    """A kernel compiled by Triton: registers and shared memory by the compiler, resident blocks by the driver."""
    triton = pytest.importorskip("triton", reason="Triton compiles the kernels")
    driver = pytest.importorskip("cuda.bindings.driver", reason="CUDA's binding asks the driver")
    from product_kernel import product

    assert triton.__version__
    assert facts.compute_capability is not None
    for warps, stages in ((4, 2), (8, 3), (4, 4)):
        kernel = product(warps, stages)
        shared, registers = kernel.metadata.shared, kernel.n_regs
        found = occupancy(
            facts.compute_capability,
            threads_per_block=32 * warps,
            registers_per_thread=registers,
            shared_bytes_per_block=shared,
        )
        function = driver.CUfunction(kernel.function)
        error, blocks = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(function, 32 * warps, shared)
        assert error == driver.CUresult.CUDA_SUCCESS
        assert found.blocks == blocks, (warps, stages, registers, shared)
