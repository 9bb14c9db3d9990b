"""Raw scores of a batch to the best candidates of every level: threshold, compaction, exact top-k. Triton kernels.

Every candidate has a key of its own: the bits of its float32 score above the complement of its flat (anchor, class) index.
Keys are distinct, so that the largest k of them are one set, whatever order blocks run in: descending score, ties by ascending
(anchor, class). A radix selection over the key's digits finds the k-th key exactly; only integers are counted, so that counts
are the same every time.

A `group` is one pyramid level of one image. `levels` has seven int32 a level: first tile of the filter, first and end element
in the image's (anchors x classes) scores, first slot and number of slots of the survivors' list, first and number of the
programs that select in it: as many as its part of the scores, for the largest level of a pyramid has three quarters of them.
"""

from __future__ import annotations

import triton.language as tl

import triton

INDEX_BITS = tl.constexpr(29)
"""Low bits of a key; above them are the 31 of a score that is not negative."""
INDEX_MASK = tl.constexpr((1 << 29) - 1)
KEY_BITS = tl.constexpr(60)
DIGIT_BITS = tl.constexpr(10)
BINS = tl.constexpr(1024)
PASSES = tl.constexpr(6)
"""Digits of a key."""
LEVEL_FIELDS = tl.constexpr(7)
PROGRAM = tl.constexpr(5)
"""Place among a level's fields of its first program, and after it of their number."""
ALIGNED = tl.constexpr(16)
"""Elements: 32 bytes of float16, two of the widest loads."""


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), float32, rounded as a division should be."""
    return tl.div_rn(1.0, 1.0 + tl.exp(-x))


@triton.jit
def _passing(
    raw, at, inside, whole, bound, threshold,
    classes: tl.constexpr, yolox: tl.constexpr, logits: tl.constexpr,
):  # fmt: skip
    """Values of the batch's score elements `at`, and which of them pass the threshold. NaN passes no comparison.

    retinanet: the value is the network's number itself, compared with `bound`, which for logits is the largest whose sigmoid is
    not above the threshold. yolox: the product, after both sigmoids if they are logits; either factor is at most 1, so that one
    below `bound` rules the product out. `whole`: every element may be loaded.
    """
    if yolox:
        row = raw + (at // classes).to(tl.int64) * (classes + 5)
        objectness = tl.load(row + 4, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(row + 5 + at % classes, mask=inside, other=0.0).to(tl.float32)
        if logits:
            inside = inside & (value > bound) & (objectness > bound)
            value = sigmoid(value) * sigmoid(objectness)
        else:
            value = value * objectness
        passed = inside & (value > threshold)
    else:
        if whole:  # noqa: SIM108 - a mask whose end is no multiple of the vector's width makes loads element by element
            value = tl.load(raw + at).to(tl.float32)
        else:
            value = tl.load(raw + at, mask=inside, other=0.0).to(tl.float32)
        passed = inside & (value > bound)
    return value, passed


@triton.jit
def _level_of(levels, at, field: tl.constexpr, level_count: tl.constexpr):
    """The level that `at` falls into, by `field`: the first tile or program of each."""
    level = 0
    for later in tl.static_range(1, level_count):
        level += (at >= tl.load(levels + later * LEVEL_FIELDS + field)).to(tl.int32)
    return level


@triton.jit
def filter_scores(
    raw, levels, counts, listed, total, bound, threshold,
    elements, slots, level_count: tl.constexpr, classes: tl.constexpr, yolox: tl.constexpr,
    logits: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, images): every score read once, those above the threshold appended to their group's list.

    counts (images, levels) int32, zero before: survivors, also those that the list has no slot for; whoever reads the list must
    then read the scores instead. listed (images, slots) int64: the flat index above the bits of the value. `total` is the
    number of scores of the batch.
    """
    tile_id, image = tl.program_id(0), tl.program_id(1)
    level = _level_of(levels, tile_id, 0, level_count)
    fields = levels + level * LEVEL_FIELDS
    origin = image * elements
    low, high = origin + tl.load(fields + 1), origin + tl.load(fields + 2)
    # Tiles start where a vector load may, a little before their group if need be.
    start = low // ALIGNED * ALIGNED + (tile_id - tl.load(fields)) * tile
    # Four rows share one scan: each row's running count has 16 bits of a word. More loads under way, fewer scans.
    columns: tl.constexpr = tile // 4
    row = tl.arange(0, 4)[:, None]
    at = start + row * columns + tl.arange(0, columns)[None, :]
    value, passed = _passing(
        raw, at, (at >= low) & (at < high), start + tile <= total, bound, threshold, classes, yolox, logits
    )
    packed = tl.sum(passed.to(tl.int64) << (row * 16), axis=0)
    counted = tl.sum(packed)
    first, second, third = counted & 0xFFFF, (counted >> 16) & 0xFFFF, (counted >> 32) & 0xFFFF
    count = (first + second + third + (counted >> 48)).to(tl.int32)
    if count > 0:
        before = tl.where(row > 0, first, 0) + tl.where(row > 1, second, 0) + tl.where(row > 2, third, 0)
        within = (tl.cumsum(packed)[None, :] >> (row * 16)) & 0xFFFF
        slot = tl.atomic_add(counts + image * level_count + level, count, sem="relaxed") + (before + within).to(tl.int32) - 1
        entry = ((at - origin).to(tl.int64) << 32) | value.to(tl.int32, bitcast=True).to(tl.uint32, bitcast=True).to(tl.int64)
        place = listed + image.to(tl.int64) * slots + tl.load(fields + 3) + slot
        tl.store(place, entry, mask=passed & (slot < tl.load(fields + 4)))


@triton.jit
def _keys(flat, value, lazy: tl.constexpr):
    """Keys of candidates; `lazy`: the list has logits, whose sigmoid is taken only now, of the few that survived."""
    score = sigmoid(value) if lazy else value
    bits = score.to(tl.int32, bitcast=True).to(tl.int64)
    return (bits << INDEX_BITS) | (flat.to(tl.int64) ^ INDEX_MASK)


@triton.jit
def _narrowed(state, histogram, group, groups, digits: tl.constexpr, limit):
    """Threshold key and number still wanted after `digits` digits; 0 wanted: all keys from the threshold on are `limit` many.

    state (groups, PASSES, 2) int64 has both from before the last digit, histogram (PASSES, groups, BINS) counts it.
    """
    floor = tl.zeros((), tl.int64)
    wanted = tl.zeros((), tl.int64) + limit
    if digits > 0:
        before = state + (group * PASSES + digits - 1) * 2
        floor, wanted = tl.load(before), tl.load(before + 1)
        order = tl.arange(0, BINS)
        counts = tl.load(histogram + ((digits - 1) * groups + group) * BINS + (order ^ (BINS - 1)))
        reached = tl.cumsum(counts).to(tl.int64)
        passed = tl.sum((reached < wanted).to(tl.int32))  # bins above the one in which the last wanted key lies
        taken = tl.max(tl.where(reached < wanted, reached, 0))
        inside = tl.sum(tl.where(order == passed, counts, 0))
        digit = (passed ^ (BINS - 1)).to(tl.int64)
        left = wanted - taken
        floor = tl.where(wanted > 0, floor | (digit << (KEY_BITS - digits * DIGIT_BITS)), floor)
        wanted = tl.where((wanted > 0) & (left < inside), left, 0)
    return floor, wanted


@triton.jit
def count_digits(
    raw, levels, counts, listed, state, histogram, bound,
    threshold, elements, slots, limit, digits: tl.constexpr, level_count: tl.constexpr,
    classes: tl.constexpr, yolox: tl.constexpr, logits: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Grid (programs, images): histogram of digit `digits` of the keys that agree with the threshold so far.

    Nothing is done in groups of at most `limit` survivors, or once the threshold is known.
    """
    image, level = tl.program_id(1), _level_of(levels, tl.program_id(0), PROGRAM, level_count)
    fields = levels + level * LEVEL_FIELDS
    group, groups = image * level_count + level, tl.num_programs(1) * level_count
    mine, programs = tl.program_id(0) - tl.load(fields + PROGRAM), tl.load(fields + PROGRAM + 1)
    found = tl.load(counts + group)
    if found > limit:
        floor, wanted = _narrowed(state, histogram, group, groups, digits, limit)
        if mine == 0:
            tl.store(state + (group * PASSES + digits) * 2, floor)
            tl.store(state + (group * PASSES + digits) * 2 + 1, wanted)
        if wanted > 0:
            low, complete = tl.load(fields + 1), found <= tl.load(fields + 4)
            stop = tl.where(complete, found, tl.load(fields + 2) - low)
            place = listed + image.to(tl.int64) * slots + tl.load(fields + 3)
            shift: tl.constexpr = KEY_BITS - (digits + 1) * DIGIT_BITS
            seen = tl.zeros((BINS,), tl.int32)
            start = mine * tile
            while start < stop:
                at = start + tl.arange(0, tile)
                inside = at < stop
                if complete:
                    entry = tl.load(place + at, mask=inside, other=0)
                    flat = (entry >> 32).to(tl.int32)
                    value = entry.to(tl.int32).to(tl.float32, bitcast=True)
                else:
                    flat = low + at
                    value, inside = _passing(
                        raw, image * elements + flat, inside, False, bound, threshold, classes, yolox, logits
                    )
                keys = _keys(flat, value, logits and not yolox)
                inside = inside & ((keys >> (shift + DIGIT_BITS)) == (floor >> (shift + DIGIT_BITS)))
                # From the third digit on few tiles have a key left, and a histogram costs the same for none.
                if tl.max(inside.to(tl.int32)) > 0:
                    seen += tl.histogram(((keys >> shift) & (BINS - 1)).to(tl.int32), BINS, mask=inside)
                start += programs * tile
            target = histogram + (digits * groups + group) * BINS + tl.arange(0, BINS)
            tl.atomic_add(target, seen, mask=seen > 0, sem="relaxed")


@triton.jit
def collect(
    raw, levels, counts, listed, state, histogram, chosen,
    chosen_count, bound, threshold, elements, slots, limit, capacity,
    level_count: tl.constexpr, classes: tl.constexpr, yolox: tl.constexpr,
    logits: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Grid (programs, images): the keys of each image's chosen candidates, in no order.

    chosen (images, capacity) int64; chosen_count (images,) int32, zero before; `capacity` >= level_count * limit.
    """
    image, level = tl.program_id(1), _level_of(levels, tl.program_id(0), PROGRAM, level_count)
    fields = levels + level * LEVEL_FIELDS
    group, groups = image * level_count + level, tl.num_programs(1) * level_count
    found = tl.load(counts + group)
    floor = tl.zeros((), tl.int64)
    if found > limit:
        floor, _ = _narrowed(state, histogram, group, groups, PASSES, limit)
    low, complete = tl.load(fields + 1), found <= tl.load(fields + 4)
    stop = tl.where(complete, found, tl.load(fields + 2) - low)
    place = listed + image.to(tl.int64) * slots + tl.load(fields + 3)
    start = (tl.program_id(0) - tl.load(fields + PROGRAM)) * tile
    while start < stop:
        at = start + tl.arange(0, tile)
        inside = at < stop
        if complete:
            entry = tl.load(place + at, mask=inside, other=0)
            flat = (entry >> 32).to(tl.int32)
            value = entry.to(tl.int32).to(tl.float32, bitcast=True)
        else:
            flat = low + at
            value, inside = _passing(raw, image * elements + flat, inside, False, bound, threshold, classes, yolox, logits)
        keys = _keys(flat, value, logits and not yolox)
        hits = (inside & (keys >= floor)).to(tl.int32)
        count = tl.sum(hits)
        if count > 0:
            slot = tl.atomic_add(chosen_count + image, count, sem="relaxed") + tl.cumsum(hits) - 1
            tl.store(chosen + image.to(tl.int64) * capacity + slot, keys, mask=hits > 0)
        start += tl.load(fields + PROGRAM + 1) * tile
