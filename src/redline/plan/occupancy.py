"""How many blocks of a kernel a multiprocessor holds at once, and which resource says so, by compute capability.

Theoretical occupancy: what fits, whatever the kernel then does. The rules are those of NVIDIA's occupancy calculator and of
cuda_occupancy.h of the CUDA runtime: a block holds whole warps; registers are handed to warps in portions of 256, from one of
four equal parts of the register file; shared memory is handed to blocks in portions, after what the driver keeps of it.
The multiprocessor's memory is taken to be set to as much shared memory as it has.
"""

from __future__ import annotations

from redline.errors import BadInput
from redline.plan.devices import SmLimits, sm_limits
from redline.records import Limiter, Occupancy

WARP = 32
MAX_THREADS = 1024
MAX_REGISTERS = 255
"""Of one thread; the hardware's 256th is not for programs (CUDA C++ Programming Guide, Technical Specifications)."""
REGISTER_UNIT = 256
"""Registers handed to a warp at once, and PARTITIONS of the register file: cuda_occupancy.h, capabilities 7.5 to 12.0."""
PARTITIONS = 4


def occupancy(
    capability: tuple[int, int], *, threads_per_block: int, registers_per_thread: int, shared_bytes_per_block: int = 0
) -> Occupancy:
    """Resident blocks and warps of one multiprocessor, and what limits them.

    `shared_bytes_per_block`: static and dynamic together. No block fits where a block's registers exceed the register file:
    `blocks` is 0 then, as the launch would fail. Raises BadInput (plan.occupancy) for what no launch can ask for, and
    (plan.capability) for a compute capability that is not in the table.
    """
    limits = sm_limits(capability)
    most = limits.shared_kib_per_sm * 1024 - limits.reserved_shared_bytes
    _check("threads_per_block", threads_per_block, 1, MAX_THREADS)
    _check("registers_per_thread", registers_per_thread, 0, MAX_REGISTERS)
    _check("shared_bytes_per_block", shared_bytes_per_block, 0, most)
    warps = -(-threads_per_block // WARP)
    counted: tuple[tuple[Limiter, int | None], ...] = (
        ("threads", limits.warps_per_sm // warps),
        ("blocks", limits.blocks_per_sm),
        ("registers", _by_registers(limits, warps, registers_per_thread)),
        ("shared memory", _by_shared_memory(limits, shared_bytes_per_block)),
    )
    allowed = tuple((name, count) for name, count in counted if count is not None)
    blocks = min(count for _, count in allowed)
    return Occupancy(
        compute_capability=capability,
        threads_per_block=threads_per_block,
        registers_per_thread=registers_per_thread,
        shared_bytes_per_block=shared_bytes_per_block,
        blocks=blocks,
        warps=blocks * warps,
        share=blocks * warps / limits.warps_per_sm,
        limits=allowed,
        limiters=tuple(name for name, count in allowed if count == blocks),
    )


def _by_registers(limits: SmLimits, warps: int, registers: int) -> int | None:
    """Blocks that the register file allows; a launch is checked as if a block's warps filled all four parts evenly."""
    each = _up(registers * WARP, REGISTER_UNIT)
    if each == 0:
        return None
    if each * _up(warps, PARTITIONS) > limits.registers_per_sm:
        return 0
    return limits.registers_per_sm // PARTITIONS // each * PARTITIONS // warps


def _by_shared_memory(limits: SmLimits, shared_bytes: int) -> int | None:
    each = _up(shared_bytes + limits.reserved_shared_bytes, limits.shared_unit_bytes)
    return limits.shared_kib_per_sm * 1024 // each if each else None


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        what = f"{name} is outside what a launch can ask for"
        raise BadInput("plan.occupancy", what, got=value, allowed=f"{least} to {most}")
