"""Pixels that are in device memory already: what decoding, preprocessing and the network hand each other there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TensorType = Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceImage:
    """A decoded, upright image in device memory: (height, width, 3) uint8 RGB, its rows `row_bytes` apart.

    Whoever made it owns the memory, which must be readable to the multiple of 4 bytes that follows the last pixel (every
    allocator of device memory hands out more than that).
    """

    pointer: int
    """Device address of the first pixel; of any alignment."""
    height: int
    width: int
    row_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBatch:
    """A C-contiguous (N, 3, H, W) network input in device memory that the caller owns."""

    pointer: int
    """Device address; a multiple of 16."""
    shape: tuple[int, int, int, int]
    dtype: TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessTile:
    """How a preprocessing kernel cuts the network input among its threads; changes the time alone, never the values."""

    columns: int
    """Of the network input: a thread's for the CUDA kernel, a program's for the Triton kernel."""
    rows: int
    warps: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodedImage:
    """What became of one encoded image of a batch: pixels in device memory, or why there are none."""

    image: DeviceImage | None
    by: Literal["device", "host"]
    """host: the reference decoder, for what the device's cannot take."""
    failure: Exception | None = None
    """A RedlineError about this image alone: the others of its batch are not touched by it."""
