"""The chosen candidates to detections: order, boxes, pairwise overlaps as bits, greedy suppression. Triton kernels.

The arithmetic is that of `redline.vision`, operation for operation in float32 (float64 where boxes go back to the source),
with IEEE division; launch with `enable_fp_fusion=False`, as a fused multiply-add rounds once where the reference rounds twice.
exp alone differs, by less than a rounding: it is taken in float64.
"""

from __future__ import annotations

import triton.language as tl

import triton
from redline.kernels.postprocess_select import INDEX_BITS, INDEX_MASK

GEOMETRY = tl.constexpr(10)
"""float64 an image: least and greatest x, y, x, y a box is clipped to; offset x, y; scale x, y; source width, height."""


@triton.jit
def _axis(codes, bases, middle: tl.constexpr, mask, yolox: tl.constexpr, largest: tl.constexpr):
    """Low and high corner along x (`middle` 0) or y (1) of the boxes coded at `codes`, one row a candidate.

    bases: anchors x1, y1, x2, y2 (retinanet); column and row of the cell, and twice the stride (yolox).
    """
    shift = tl.load(codes + middle, mask=mask, other=0.0).to(tl.float32)
    ratio = tl.load(codes + middle + 2, mask=mask, other=0.0).to(tl.float32)
    first = tl.load(bases + middle, mask=mask, other=0.0)
    second = tl.load(bases + middle + 2, mask=mask, other=0.0)
    if yolox:
        centre = (shift + first) * second
        half = tl.exp(ratio.to(tl.float64)).to(tl.float32) * second * 0.5
    else:
        size = second - first
        centre = shift * size + (first + 0.5 * size)
        ratio = tl.where(ratio > largest, largest, ratio)  # NaN stays NaN
        half = 0.5 * (tl.exp(ratio.to(tl.float64)).to(tl.float32) * size)
    return centre - half, centre + half


@triton.jit
def _clipped(x, low, high):
    """x between `low` and `high`; NaN stays NaN."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def order_and_decode(
    chosen, chosen_count, codes, bases, geometry, boxes, scores, labels,
    anchors, capacity, classes: tl.constexpr, code_width: tl.constexpr, yolox: tl.constexpr,
    largest: tl.constexpr, rows: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """Grid (capacity / rows, images): each candidate's rank is the number of greater keys; its box is decoded to that place.

    boxes (images, 4, capacity) float32 in network-input pixels, scores and labels (images, capacity) float32, int32, by
    descending key. A candidate whose score or box is not finite gets the label -1.
    """
    image, first = tl.program_id(1), tl.program_id(0) * rows
    count = tl.load(chosen_count + image)
    if first < count:
        row = first + tl.arange(0, rows)
        mine = row < count
        base = image.to(tl.int64) * capacity
        key = tl.load(chosen + base + row, mask=mine, other=0)
        rank = tl.zeros((rows,), tl.int32)
        start = 0
        while start < count:
            other = start + tl.arange(0, chunk)
            keys = tl.load(chosen + base + other, mask=other < count, other=-1)
            rank += tl.sum((keys[None, :] > key[:, None]).to(tl.int32), axis=1)
            start += chunk
        flat = ((key & INDEX_MASK) ^ INDEX_MASK).to(tl.int32)
        score = (key >> INDEX_BITS).to(tl.int32).to(tl.float32, bitcast=True)
        anchor, label = flat // classes, flat % classes
        code = codes + (image.to(tl.int64) * anchors + anchor) * code_width
        sound = score < float("inf")
        where = boxes + base * 4 + rank
        for axis in tl.static_range(2):
            low, high = _axis(code, bases + anchor * 4, axis, mine, yolox, largest)
            least = tl.load(geometry + image * GEOMETRY + axis).to(tl.float32)
            most = tl.load(geometry + image * GEOMETRY + 2 + axis).to(tl.float32)
            low, high = _clipped(low, least, most), _clipped(high, least, most)
            sound = sound & (tl.abs(low) < float("inf")) & (tl.abs(high) < float("inf"))
            tl.store(where + axis * capacity, low, mask=mine)
            tl.store(where + (axis + 2) * capacity, high, mask=mine)
        tl.store(scores + base + rank, score, mask=mine)
        tl.store(labels + base + rank, tl.where(sound, label, -1), mask=mine)


@triton.jit
def overlap_bits(
    chosen_count, boxes, labels, bits, capacity, words, iou,
    class_aware: tl.constexpr, rows: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """Grid (capacity / rows, words / group, images): bit j of word w of row i is set if candidate i suppresses 32 w + j.

    bits (images, capacity, words) int32. `words` is a multiple of `group`. Words left of
    the diagonal, and beyond the candidates, are left as they are.
    """
    image, first, word = tl.program_id(2), tl.program_id(0) * rows, tl.program_id(1) * group
    count = tl.load(chosen_count + image)
    if (first < count) & (word * 32 < count) & ((word + group) * 32 > first):
        base = image.to(tl.int64) * capacity
        row = first + tl.arange(0, rows)
        mine = row < count
        x1 = tl.load(boxes + base * 4 + row, mask=mine, other=0.0)[:, None]
        y1 = tl.load(boxes + base * 4 + capacity + row, mask=mine, other=0.0)[:, None]
        x2 = tl.load(boxes + base * 4 + 2 * capacity + row, mask=mine, other=0.0)[:, None]
        y2 = tl.load(boxes + base * 4 + 3 * capacity + row, mask=mine, other=0.0)[:, None]
        label = tl.load(labels + base + row, mask=mine, other=-1)[:, None]
        area = tl.maximum(x2 - x1, 0.0) * tl.maximum(y2 - y1, 0.0)
        bit = tl.arange(0, 32)
        for offset in tl.static_range(group):
            column = (word + offset) * 32 + bit
            theirs = column < count
            u1 = tl.load(boxes + base * 4 + column, mask=theirs, other=0.0)[None, :]
            v1 = tl.load(boxes + base * 4 + capacity + column, mask=theirs, other=0.0)[None, :]
            u2 = tl.load(boxes + base * 4 + 2 * capacity + column, mask=theirs, other=0.0)[None, :]
            v2 = tl.load(boxes + base * 4 + 3 * capacity + column, mask=theirs, other=0.0)[None, :]
            width = tl.maximum(tl.minimum(x2, u2) - tl.maximum(x1, u1), 0.0)
            height = tl.maximum(tl.minimum(y2, v2) - tl.maximum(y1, v1), 0.0)
            common = width * height
            areas = area + tl.maximum(u2 - u1, 0.0) * tl.maximum(v2 - v1, 0.0)
            above = tl.div_rn(common, areas - common) > iou  # 0 / 0 is NaN, which is not above
            if class_aware:
                above = above & (label == tl.load(labels + base + column, mask=theirs, other=-1)[None, :])
            packed = tl.sum(above.to(tl.int32) << bit[None, :], axis=1)
            tl.store(bits + (base + row) * words + word + offset, packed, mask=mine)


@triton.jit
def _undefeated(bits, words, rank, alive, block: tl.constexpr):
    """Greedy suppression within one block of ranks, 1 or 0 each.

    A candidate stays if none that stays comes before it and suppresses it. Applying this to a guess until nothing changes gives
    the greedy result, the only fixed point: each round makes at least one more link of every chain of suppressions right.
    """
    pair = tl.load(bits + rank[:, None] * words + (rank // 32)[None, :], mask=(alive[:, None] & alive[None, :]) > 0, other=0)
    order = tl.arange(0, block)
    beats = tl.where(order[:, None] < order[None, :], (pair >> (rank % 32)[None, :]) & 1, 0)
    stays = alive
    changed = 1
    while changed > 0:
        beaten = tl.max(beats * stays[:, None], axis=0)
        settled = alive * (1 - beaten)
        changed = tl.sum((settled != stays).to(tl.int32))
        stays = settled
    return stays


@triton.jit
def _emit(
    boxes, scores, labels, geometry, out_boxes, out_scores, out_labels, capacity,
    rank, position, given,
):  # fmt: skip
    """Detections at `rank` to `position`, boxes in pixels of the source image: `vision.to_source` in float64."""
    for corner in tl.static_range(4):
        box = tl.load(boxes + corner * capacity + rank, mask=given, other=0.0).to(tl.float64)
        scale = tl.load(geometry + 6 + corner % 2)
        mapped = (box - tl.load(geometry + 4 + corner % 2)) / scale
        mapped = _clipped(mapped, 0.0, tl.load(geometry + 8 + corner % 2))
        tl.store(out_boxes + position * 4 + corner, mapped.to(tl.float32), mask=given)
    tl.store(out_scores + position, tl.load(scores + rank, mask=given, other=0.0), mask=given)
    tl.store(out_labels + position, tl.load(labels + rank, mask=given, other=-1), mask=given)


@triton.jit
def suppress(
    chosen_count, boxes, scores, labels, bits, geometry, out_boxes, out_scores,
    out_labels, out_count, capacity, words, limit, word_block: tl.constexpr,
    block: tl.constexpr, limit_block: tl.constexpr,
):  # fmt: skip
    """Grid (images,): blocks of ranks in order until all are seen or `limit` are kept; unused places get 0, 0 and label -1.

    out_boxes (images, limit, 4) float32 in source pixels, out_scores, out_labels (images, limit), out_count (images,) int32.
    """
    image = tl.program_id(0)
    count = tl.load(chosen_count + image)
    base = image.to(tl.int64) * capacity
    bits += base * words
    place = tl.arange(0, limit_block)
    out_boxes += image * limit * 4
    out_scores += image * limit
    out_labels += image * limit
    removed = tl.zeros((word_block,), tl.int32)
    word = tl.arange(0, word_block)
    kept = 0
    first = 0
    while (first < count) & (kept < limit):
        rank = first + tl.arange(0, block)
        label = tl.load(labels + base + rank, mask=rank < count, other=-1)
        gone = (tl.gather(removed, rank // 32, 0) >> (rank % 32)) & 1
        alive = ((label >= 0) & (gone == 0)).to(tl.int32)
        if tl.sum(alive) > 0:
            stays = _undefeated(bits, words, rank, alive, block)
            position = kept + tl.cumsum(stays) - 1
            _emit(
                boxes + base * 4, scores + base, labels + base, geometry + image * GEOMETRY, out_boxes, out_scores,
                out_labels, capacity, rank, position, (stays > 0) & (position < limit),
            )  # fmt: skip
            kept += tl.sum(stays)
            wanted = (stays[:, None] > 0) & (word < words)[None, :] & (word >= first // 32)[None, :]
            rows = tl.load(bits + rank[:, None] * words + word[None, :], mask=wanted, other=0)
            removed = removed | tl.reduce_or(rows, axis=0)
        first += block
    kept = tl.minimum(kept, limit)
    tl.store(out_count + image, kept)
    unused = (place >= kept) & (place < limit)
    for corner in tl.static_range(4):
        tl.store(out_boxes + place * 4 + corner, tl.zeros((limit_block,), tl.float32), mask=unused)
    tl.store(out_scores + place, tl.zeros((limit_block,), tl.float32), mask=unused)
    tl.store(out_labels + place, tl.full((limit_block,), -1, tl.int32), mask=unused)
