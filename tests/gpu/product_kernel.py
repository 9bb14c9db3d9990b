"""A matrix product in Triton whose registers and shared memory grow with its warps and stages."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

import triton

SIDE, TILE, DEPTH = 512, 64, 32


@triton.jit
def _kernel(left, right, out, side: tl.constexpr, tile: tl.constexpr, depth: tl.constexpr):
    rows = tl.program_id(0) * tile + tl.arange(0, tile)
    columns = tl.program_id(1) * tile + tl.arange(0, tile)
    inner = tl.arange(0, depth)
    total = tl.zeros((tile, tile), dtype=tl.float32)
    for start in range(0, side, depth):
        a = tl.load(left + rows[:, None] * side + (start + inner)[None, :])
        b = tl.load(right + (start + inner)[:, None] * side + columns[None, :])
        total += tl.dot(a, b)
    tl.store(out + rows[:, None] * side + columns[None, :], total)


def product(warps: int, stages: int) -> Any:
    """The compiled kernel, launched once, as its registers are known only when it is loaded."""
    left, right = (torch.rand(SIDE, SIDE, device="cuda", dtype=torch.float16) for _ in range(2))
    out = torch.empty(SIDE, SIDE, device="cuda")
    grid = (SIDE // TILE, SIDE // TILE)
    kernel = _kernel[grid](left, right, out, SIDE, TILE, DEPTH, num_warps=warps, num_stages=stages)
    torch.testing.assert_close(out, left.float() @ right.float(), rtol=2e-2, atol=2e-1)
    return kernel
