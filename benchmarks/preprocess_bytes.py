"""Bytes that a preprocessing kernel must move, counted and not estimated.

Input, three counts, all of the source images in device memory:
  needed   bytes of the pixels that have a weight other than zero in some output pixel (without antialiasing, downscaling leaves
           whole rows and columns unread);
  sectors  32-byte sectors of memory that hold at least one needed byte: the least that can come out of device memory, since
           it is fetched in sectors. This is the input of "unique bytes";
  all      every byte of the images.
Output: every byte of the network inputs, padding too. Each byte is counted once, however often a kernel reads it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.records import DeviceImage, Placement, Preprocess
from redline.vision.geometry import resized_size

SECTOR = 32


def input_bytes(image: DeviceImage, placement: Placement, preprocess: Preprocess) -> dict[str, int]:
    rows, columns = (needed(size, resized, preprocess) for size, resized in zip(
        placement.source_hw, resized_size(placement), strict=True))  # fmt: skip
    starts = image.pointer + np.flatnonzero(rows).astype(np.int64) * image.row_bytes
    touched = sum(sectors(int(start) % SECTOR, columns.tobytes()) for start in starts)
    return {
        "needed": int(rows.sum()) * int(columns.sum()) * 3,
        "sectors": touched * SECTOR,
        "all": image.height * image.width * 3,
    }


def needed(size: int, resized: int, preprocess: Preprocess) -> NDArray[np.bool_]:
    """(size,): which source rows or columns have a weight in some resized one."""
    used = np.zeros(size, np.bool_)
    index = np.arange(resized)
    if preprocess.interpolation == "nearest":
        used[(2 * index + 1) * size // (2 * resized)] = True
        return used
    if preprocess.antialias:
        used[:] = True
        return used
    at = (index + 0.5) * (1 / (resized / size)) - 0.5
    if preprocess.round_to_uint8:
        at = at.astype(np.float32)
    low = np.floor(at)
    weight = at - low
    if preprocess.round_to_uint8:
        weight = np.rint(weight * 2048) / 2048
    first, second = low.clip(0, size - 1).astype(np.int64), (low + 1).clip(0, size - 1).astype(np.int64)
    used[first[weight < 1]] = True
    used[second[weight > 0]] = True
    return used


@cache
def sectors(phase: int, columns: bytes) -> int:
    """Sectors of one row that hold a needed byte; the row starts `phase` bytes into a sector."""
    pixels = np.flatnonzero(np.frombuffer(columns, np.bool_)).astype(np.int64) * 3 + phase
    return len(np.unique(np.concatenate([(pixels + byte) // SECTOR for byte in range(3)])))


def summed(counts: list[dict[str, int]], output_bytes: int) -> dict[str, Any]:
    """Totals of a batch, with `unique` = sectors + output."""
    total = {name: sum(count[name] for count in counts) for name in ("needed", "sectors", "all")}
    return {f"input_{name}": value for name, value in total.items()} | {
        "output": output_bytes,
        "unique": total["sectors"] + output_bytes,
    }
