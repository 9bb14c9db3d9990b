"""The roofline of a network on a device: each kernel at the roof, and as expected from what kernels of its kind reach."""

from __future__ import annotations

import math

from redline.errors import BadInput
from redline.plan.efficiency import shipped_table
from redline.records.cost import (
    WIDTH,
    Convention,
    EfficiencyTable,
    FusionGroup,
    GroupTime,
    LayerCost,
    Limit,
    ModelCosts,
    Roofline,
)
from redline.records.device import Arithmetic, DeviceFacts

PRODUCTS = ("conv", "depthwise", "matmul")
LAYERS = (*PRODUCTS, "pool")
"""Kinds that the public roofline tables charge; they take the rest to be free."""
TERA, GIGA, MICRO = 1e12, 1e9, 1e6
BLOCK = 8192
"""Results that a block of a convolution or product on tensor cores makes, 128 x 64: of 4,096, 8,192 and 16,384 the one whose
predictions of engines left out of the fit came nearest (errors_by_block of 2026-11-29-plan-predictions-second.json)."""
FLOOR_BUSY = 0.5
"""Part of a kernel's fixed time in which the device is full all the same. By this the two lanes of RetinaNet-R50 at 800 x 800
give 1.2 times one lane on an H100; measured: 749 images/s against 638 (2026-11-25-h100-tensorrt-pair.json)."""


def roofline(
    costs: ModelCosts,
    device: DeviceFacts,
    arithmetic: Arithmetic,
    n: int,
    h: int,
    w: int,
    *,
    convention: Convention = "fused",
    cuda_graph: bool = True,
    table: EfficiencyTable | None = None,
) -> Roofline:
    """Time of `n` images of `h` x `w` pixels.

    fused: every group is a kernel, charged max(FLOPs / dense peak, bytes / bandwidth, launch floor); depthwise convolutions run
    at the ordinary cores' FP32 peak. layers: convolutions, products and pools only, with the residual they read, all at the
    peak of `arithmetic` and without a launch floor: the convention of published tables, pessimistic as every tensor goes to
    memory once and optimistic as everything else is free. What is expected is meant for the fused one.
    Raises BadInput: plan.no-peak, plan.no-bandwidth (the device's are unknown), plan.size (not the size the graph fixes).
    """
    _check(costs, n, h, w)
    table = table or shipped_table()
    bandwidth = device.bandwidth_gb_s.value
    if bandwidth is None:
        raise BadInput(
            "plan.no-bandwidth", f"The memory bandwidth of {device.title} is unknown", fix="measure it on the device"
        )
    peak, cores = _peak(device, arithmetic), device.peak("fp32")
    heads = {layer.name: layer for layer in costs.layers}
    counted = [group for group in costs.groups if convention == "fused" or group.kind in LAYERS]
    floor = table.launch_floor_us + (0.0 if cuda_graph else table.stream_us) if convention == "fused" else 0.0
    times, compute = [], 0.0
    for group in counted:
        ordinary = convention == "fused" and group.kind == "depthwise" and cores is not None
        rate = min(peak, cores) if ordinary and cores is not None else peak
        at_once = device.sms.value if group.kind in ("conv", "matmul") and arithmetic != "fp32" else None
        spread = _spread(group.output_elements.at(n, h, w), at_once)
        time, alone = _time(group, heads[group.name], arithmetic, (n, h, w), rate, bandwidth, floor, table, cuda_graph, spread)
        times.append(time)
        compute += alone
    moved = sum(time.bytes for time in times)
    return Roofline(
        graph_digest=costs.graph_digest,
        device=device.name,
        arithmetic=arithmetic,
        size=(n, h, w),
        convention=convention,
        cuda_graph=cuda_graph,
        groups=tuple(times),
        flops=sum(time.flops for time in times),
        bytes=moved,
        unfused_bytes=_unfused(costs, arithmetic, n, h, w),
        compute_us=compute,
        memory_us=moved / (bandwidth * GIGA) * MICRO,
        roof_us=math.fsum(time.roof_us for time in times),
        expected_us=table.step_us + math.fsum(time.expected_us for time in times),
        notes=_notes(costs, arithmetic, n, h, w, bandwidth),
    )


def busy(found: Roofline, table: EfficiencyTable) -> float:
    """Share of the expected time in which the device has no room for another inference: 0 to 1."""
    work = math.fsum(group.work_us / table.share(group.kind, found.arithmetic, group.limit)[0] for group in found.groups)
    kernels = math.fsum(group.expected_us for group in found.groups)
    return min(1.0, (work + FLOOR_BUSY * (kernels - work)) / found.expected_us)


def _time(
    group: FusionGroup,
    head: LayerCost,
    arithmetic: Arithmetic,
    size: tuple[int, int, int],
    peak: float,
    bandwidth: float,
    floor: float,
    table: EfficiencyTable,
    cuda_graph: bool,
    spread: float,
) -> tuple[GroupTime, float]:
    """And the time of its operations alone, us. `spread`: of `_spread`."""
    flops = 2 * group.macs.at(*size)
    elements = group.input_elements.at(*size) + group.output_elements.at(*size) + group.weight_elements
    moved = elements * WIDTH[arithmetic] + group.fixed_bytes.at(*size)
    compute, memory = flops / (peak * TERA) * MICRO, moved / (bandwidth * GIGA) * MICRO
    work = max(compute, memory)
    limit: Limit = "compute" if compute * spread > memory else "memory"
    waves = max(compute * spread, memory) / work if work else 1.0
    share, _ = table.share(group.kind, arithmetic, limit)
    extra = 0.0 if cuda_graph else table.stream_us
    reason = head.no_tensor_core(arithmetic) if group.kind in PRODUCTS and arithmetic != "fp32" else ""
    time = GroupTime(
        name=group.name,
        kind=group.kind,
        bound="launch" if floor > work else limit,
        limit=limit,
        flops=flops,
        bytes=moved,
        intensity=flops / moved if moved else 0.0,
        roof_us=max(work, floor),
        work_us=work,
        waves=waves,
        expected_us=table.floor_us(group.kind) + extra + work * waves / share,
        no_tensor_core=reason,
    )
    return time, compute


def _spread(elements: int, sms: int | float | None) -> float:
    """Whole waves over waves, of blocks of BLOCK results on so many multiprocessors, one each at a time."""
    if not sms or elements <= 0:
        return 1.0
    blocks = math.ceil(elements / BLOCK)
    return math.ceil(blocks / sms) * sms / blocks


def _peak(device: DeviceFacts, arithmetic: Arithmetic) -> float:
    peak = device.peak(arithmetic)
    if peak is None:
        known = ", ".join(name for name, rate in device.peaks if rate.value is not None) or "none"
        raise BadInput("plan.no-peak", f"{device.title} has no known peak in {arithmetic}", got=arithmetic, allowed=known)
    return peak


def _check(costs: ModelCosts, n: int, h: int, w: int) -> None:
    if min(n, h, w) < 1:
        raise BadInput("plan.size", "Images and pixels are counted from 1", got=f"{n} x {h} x {w}")
    wanted = tuple(size or given for size, given in zip(costs.size, (n, h, w), strict=True))
    if wanted != (n, h, w):
        allowed = " x ".join(str(size or name) for size, name in zip(costs.size, "NHW", strict=True))
        raise BadInput("plan.size", "The graph fixes the size of its input", got=f"{n} x {h} x {w}", allowed=allowed)


def _unfused(costs: ModelCosts, arithmetic: Arithmetic, n: int, h: int, w: int) -> int:
    elements = sum(group.unfused_elements.at(n, h, w) + group.weight_elements for group in costs.groups)
    return elements * WIDTH[arithmetic] + sum(layer.fixed_bytes.at(n, h, w) for layer in costs.layers)


def _notes(costs: ModelCosts, arithmetic: Arithmetic, n: int, h: int, w: int, bandwidth: float) -> tuple[str, ...]:
    found = []
    if costs.unknown:
        moved = sum(row.elements.at(n, h, w) * WIDTH[arithmetic] + row.fixed_bytes.at(n, h, w) for row in costs.unknown)
        names = ", ".join(f"{row.count} x {row.operator}" for row in costs.unknown)
        text = f"operators of unknown cost: {names}; they read and write at most {moved:,} bytes, "
        text += f"{moved / (bandwidth * GIGA) * MICRO:.1f} us of bandwidth"
        assumed = {row.assumed for row in costs.unknown if row.assumed}
        found.append("; ".join((text, *sorted(assumed))))
    if costs.unsized:
        found.append(f"tensors of unknown size count as nothing at {len(costs.unsized)} layers: {', '.join(costs.unsized[:5])}")
    return tuple(found)
