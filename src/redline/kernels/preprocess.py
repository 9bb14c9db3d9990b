"""Resize, channel order, normalisation, padding, cast and layout of a batch in one pass, as an OpenAI Triton kernel.

A program makes `rows` x `columns` pixels, all three channels, of one network input. Pixels of 3 bytes lie at any address: they
are read as aligned 32-bit words, of which only those with a needed byte are touched, and shifted into place.
The arithmetic of "linear-uint8" is that of OpenCV's uint8 resize, bit by bit: 11-bit weights, two truncations, one rounding.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# What Triton compiles has tensors of its own for arguments, which have no types here.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton.language as tl

import triton
from redline.kernels.table import ROW_WORDS, Constants
from redline.records import PreprocessTile

if TYPE_CHECKING:
    import torch

TILE = PreprocessTile(columns=128, rows=4, warps=4)


def launch(table: torch.Tensor, out: torch.Tensor, chosen: Constants, tile: PreprocessTile = TILE) -> Any:
    """Enqueue on torch's current stream: nothing is allocated and nothing waits, so that a CUDA graph can capture it.

    `table`: (N, ROW_WORDS) int64 in device memory as `table.fill_rows` writes it. `out`: (N, 3, H, W) float32 or float16 there,
    C-contiguous, written whole. Returns the compiled kernel, which knows its registers. The first launch compiles.
    """
    count, _, height, width = out.shape
    grid = (triton.cdiv(width, tile.columns), triton.cdiv(height, tile.rows), count)
    return _preprocess[grid](
        table, out, height, width, *chosen.gain, *chosen.bias, *chosen.level,
        sampling=chosen.sampling, bgr=chosen.bgr, row_words=ROW_WORDS, rows=tile.rows, columns=tile.columns,
        num_warps=tile.warps, enable_fp_fusion=False,  # the reference rounds the product before it subtracts
    )  # fmt: skip


@triton.jit
def _preprocess(
    table, out, height, width, gain0, gain1, gain2, bias0, bias1, bias2, level0, level1, level2,
    sampling: tl.constexpr, bgr: tl.constexpr, row_words: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """See `launch`; the three constants of each kind are by output channel."""
    image = tl.program_id(2).to(tl.int64)
    y = tl.program_id(1) * rows + tl.arange(0, rows)
    x = tl.program_id(0) * columns + tl.arange(0, columns)
    row = table + image * row_words
    pixels = tl.load(row)
    source_h, source_w, row_bytes = tl.load(row + 1).to(tl.int32), tl.load(row + 2).to(tl.int32), tl.load(row + 3)
    resized_h, resized_w = tl.load(row + 4).to(tl.int32), tl.load(row + 5).to(tl.int32)
    in_y, in_x = y - tl.load(row + 6).to(tl.int32), x - tl.load(row + 7).to(tl.int32)
    step_y, step_x = tl.load(row + 8).to(tl.float64, bitcast=True), tl.load(row + 9).to(tl.float64, bitcast=True)
    covered = ((in_y >= 0) & (in_y < resized_h))[:, None] & ((in_x >= 0) & (in_x < resized_w))[None, :]
    if sampling == "nearest":
        red, green, blue = _nearest(pixels, row_bytes, source_h, source_w, resized_h, resized_w, in_y, in_x, covered)
    elif sampling == "linear-uint8":
        red, green, blue = _linear_uint8(pixels, row_bytes, source_h, source_w, step_y, step_x, in_y, in_x, covered)
    elif sampling == "linear-float":
        red, green, blue = _linear_float(pixels, row_bytes, source_h, source_w, step_y, step_x, in_y, in_x, covered)
    else:
        whole: tl.constexpr = sampling == "antialias-uint8"
        red, green, blue = _antialias(pixels, row_bytes, source_h, source_w, step_y, step_x, in_y, in_x, covered, whole)
    first, last = (blue, red) if bgr else (red, blue)
    plane = height.to(tl.int64) * width
    spot = out + image * 3 * plane + y.to(tl.int64)[:, None] * width + x[None, :]
    inside = (y < height)[:, None] & (x < width)[None, :]
    tl.store(spot, tl.where(covered, first * gain0 - bias0, level0).to(out.dtype.element_ty), mask=inside)
    tl.store(spot + plane, tl.where(covered, green * gain1 - bias1, level1).to(out.dtype.element_ty), mask=inside)
    tl.store(spot + 2 * plane, tl.where(covered, last * gain2 - bias2, level2).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _pair(address, two, wanted):
    """The pixel at each address, and the one after it where `two`: 6 bytes in (low word, high half-word), RGBRGB.

    Addresses are int64. Words without a byte of the wanted pixels are not read.
    """
    start = (address & 3).to(tl.int32)
    end = start + tl.where(two, 6, 3)
    word = (address - start).to(tl.pointer_type(tl.uint32))
    shift = (start * 8).to(tl.uint64)
    low = tl.load(word, mask=wanted, other=0).to(tl.uint64)
    middle = tl.load(word + 1, mask=wanted & (end > 4), other=0).to(tl.uint64)
    high = tl.load(word + 2, mask=wanted & (end > 8), other=0).to(tl.uint64)
    both = ((low | (middle << 32)) >> shift) & 0xFFFFFFFF
    rest = ((middle | (high << 32)) >> shift) & 0xFFFF
    return both.to(tl.int32, bitcast=False), rest.to(tl.int32)


@triton.jit
def _first(low):
    return low & 0xFF, (low >> 8) & 0xFF, (low >> 16) & 0xFF


@triton.jit
def _second(low, high):
    return (low >> 24) & 0xFF, high & 0xFF, (high >> 8) & 0xFF


@triton.jit
def _left(position, weight, size):
    """Columns at the edges: the weight goes to the edge's pixel, and the pair stays inside the row if it has two pixels."""
    weight = tl.where(position < 0, 0.0, tl.where(position >= size - 1, tl.where(size > 1, 1.0, 0.0), weight))
    return tl.maximum(tl.minimum(position, size - 2), 0), weight


@triton.jit
def _whole(value):
    """The nearest whole number, ties to even, for 0 <= value < 2 ** 22: what adding 1.5 * 2 ** 23 does to a float32."""
    return ((value + 12582912.0) - 12582912.0).to(tl.int32)


@triton.jit
def _nearest(pixels, row_bytes, source_h, source_w, resized_h, resized_w, in_y, in_x, covered):
    """The source pixel in which the centre of the resized pixel lies, in exact integer arithmetic."""
    at_y = ((2 * in_y + 1).to(tl.int64) * source_h) // tl.maximum(2 * resized_h, 1)
    at_x = ((2 * in_x + 1).to(tl.int64) * source_w) // tl.maximum(2 * resized_w, 1)
    low, _ = _pair(pixels + at_y[:, None] * row_bytes + at_x[None, :] * 3, False, covered)
    red, green, blue = _first(low)
    return red.to(tl.float32), green.to(tl.float32), blue.to(tl.float32)


@triton.jit
def _linear_uint8(pixels, row_bytes, source_h, source_w, step_y, step_x, in_y, in_x, covered):
    """OpenCV's fixed point, to the bit: rows keep their weights at the edges, where both are the same row; columns do not."""
    at_y = ((in_y.to(tl.float64) + 0.5) * step_y - 0.5).to(tl.float32)
    at_x = ((in_x.to(tl.float64) + 0.5) * step_x - 0.5).to(tl.float32)
    top, left = tl.floor(at_y).to(tl.int32), tl.floor(at_x).to(tl.int32)
    down = at_y - top.to(tl.float32)
    left, right = _left(left, at_x - left.to(tl.float32), source_w)
    below, beside = _whole(down * 2048.0)[:, None], _whole(right * 2048.0)[None, :]
    above, before = _whole((1.0 - down) * 2048.0)[:, None], _whole((1.0 - right) * 2048.0)[None, :]
    last = tl.maximum(source_h - 1, 0)
    upper = tl.minimum(tl.maximum(top, 0), last).to(tl.int64)[:, None]
    lower = tl.minimum(tl.maximum(top + 1, 0), last).to(tl.int64)[:, None]
    address = pixels + left.to(tl.int64)[None, :] * 3
    low0, high0 = _pair(address + upper * row_bytes, beside != 0, covered & (above != 0))
    low1, high1 = _pair(address + lower * row_bytes, beside != 0, covered & (below != 0))
    red0, green0, blue0 = _first(low0)
    red1, green1, blue1 = _second(low0, high0)
    red2, green2, blue2 = _first(low1)
    red3, green3, blue3 = _second(low1, high1)
    red = _fixed(red0 * before + red1 * beside, red2 * before + red3 * beside, above, below)
    green = _fixed(green0 * before + green1 * beside, green2 * before + green3 * beside, above, below)
    blue = _fixed(blue0 * before + blue1 * beside, blue2 * before + blue3 * beside, above, below)
    return red, green, blue


@triton.jit
def _fixed(upper, lower, above, below):
    """Two rows with 11 fractional bits, weighted by 11 bits more: a pixel level."""
    total = ((above * (upper >> 4)) >> 16) + ((below * (lower >> 4)) >> 16)
    return ((total + 2) >> 2).to(tl.float32)


@triton.jit
def _linear_float(pixels, row_bytes, source_h, source_w, step_y, step_x, in_y, in_x, covered):
    at_y = (in_y.to(tl.float64) + 0.5) * step_y - 0.5
    at_x = (in_x.to(tl.float64) + 0.5) * step_x - 0.5
    top, left = tl.floor(at_y).to(tl.int32), tl.floor(at_x).to(tl.int32)
    below = (at_y - top.to(tl.float64)).to(tl.float32)[:, None]
    left, right = _left(left, (at_x - left.to(tl.float64)).to(tl.float32), source_w)
    beside = right[None, :]
    above, before = 1.0 - below, 1.0 - beside
    last = tl.maximum(source_h - 1, 0)
    upper = tl.minimum(tl.maximum(top, 0), last).to(tl.int64)[:, None]
    lower = tl.minimum(tl.maximum(top + 1, 0), last).to(tl.int64)[:, None]
    address = pixels + left.to(tl.int64)[None, :] * 3
    low0, high0 = _pair(address + upper * row_bytes, beside != 0, covered)
    low1, high1 = _pair(address + lower * row_bytes, beside != 0, covered & (below != 0))
    weights = above * before, above * beside, below * before, below * beside
    red0, green0, blue0 = _first(low0)
    red1, green1, blue1 = _second(low0, high0)
    red2, green2, blue2 = _first(low1)
    red3, green3, blue3 = _second(low1, high1)
    red = _weighted(red0, red1, red2, red3, weights)
    green = _weighted(green0, green1, green2, green3, weights)
    blue = _weighted(blue0, blue1, blue2, blue3, weights)
    return red, green, blue


@triton.jit
def _weighted(first, second, third, fourth, weights):
    total = _float(first) * weights[0]
    total = tl.fma(_float(second), weights[1], total)
    total = tl.fma(_float(third), weights[2], total)
    return tl.fma(_float(fourth), weights[3], total)


@triton.jit
def _float(byte):
    """0 to 255 as a float32 by way of the low bits of 2 ** 23: a conversion runs at an eighth of this rate."""
    return (byte | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _window(index, step, size):
    """Pillow's triangle filter on an axis: first source pixel, how many, its distance from the centre, the scale."""
    wide = tl.maximum(step, 1.0)
    centre = (index.to(tl.float64) + 0.5) * step
    start = tl.maximum((centre - wide + 0.5).to(tl.int32), 0)
    count = tl.minimum((centre + wide + 0.5).to(tl.int32), size) - start
    return start, count, start.to(tl.float64) - centre, 1.0 / wide


@triton.jit
def _weight(tap, count, distance, narrow):
    weight = tl.maximum(1.0 - tl.abs((distance + tap + 0.5) * narrow), 0.0)
    return tl.where(tap < count, weight, 0.0)


@triton.jit
def _total(count, distance, narrow, most):
    """Sum of the weights of each window."""
    total = distance * 0.0
    for tap in range(0, most):
        total += _weight(tap, count, distance, narrow)
    return tl.where(total > 0.0, total, 1.0)


@triton.jit
def _scaled(weight, whole: tl.constexpr):
    """As the pass multiplies with: float32, or whole numbers of 22 fractional bits."""
    return (weight * 4194304.0 + 0.5).to(tl.int32) if whole else weight.to(tl.float32)


@triton.jit
def _level(total, whole: tl.constexpr):
    """What a pass ends in: a float32 level, or a whole one of the sum with 22 fractional bits and a half."""
    return (total + 2097152) >> 22 if whole else total


@triton.jit
def _antialias(pixels, row_bytes, source_h, source_w, step_y, step_x, in_y, in_x, covered, whole: tl.constexpr):
    """Columns first, then rows, as Pillow does; with `whole` in its fixed point, each pass ending in whole pixel levels."""
    top, count_y, distance_y, narrow_y = _window(in_y, step_y, source_h)
    left, count_x, distance_x, narrow_x = _window(in_x, step_x, source_w)
    most_y = tl.minimum(2 * tl.maximum(step_y, 1.0).to(tl.int32) + 3, source_h)
    most_x = tl.minimum(2 * tl.maximum(step_x, 1.0).to(tl.int32) + 3, source_w)
    total_y = _total(count_y, distance_y, narrow_y, most_y)
    total_x = _total(count_x, distance_x, narrow_x, most_x)
    zero = covered.to(tl.int32) * 0 if whole else covered.to(tl.float32) * 0
    red, green, blue = zero, zero, zero
    for tap_y in range(0, most_y):
        weight_y = _scaled(_weight(tap_y, count_y, distance_y, narrow_y) / total_y, whole)[:, None]
        needed = covered & (tap_y < count_y)[:, None]
        start = pixels + (top + tap_y).to(tl.int64)[:, None] * row_bytes
        row_red, row_green, row_blue = zero, zero, zero
        for tap_x in range(0, most_x):
            weight_x = _scaled(_weight(tap_x, count_x, distance_x, narrow_x) / total_x, whole)[None, :]
            low, _ = _pair(start + (left + tap_x).to(tl.int64)[None, :] * 3, False, needed & (tap_x < count_x)[None, :])
            r, g, b = _first(low)
            row_red += r * weight_x
            row_green += g * weight_x
            row_blue += b * weight_x
        red += _level(row_red, whole) * weight_y
        green += _level(row_green, whole) * weight_y
        blue += _level(row_blue, whole) * weight_y
    red, green, blue = _level(red, whole), _level(green, whole), _level(blue, whole)
    return red.to(tl.float32), green.to(tl.float32), blue.to(tl.float32)
