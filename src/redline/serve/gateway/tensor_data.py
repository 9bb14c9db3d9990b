"""Data of one input: binary bytes that must add up, or JSON values that become such bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from redline.serve.gateway.body import Body
from redline.serve.gateway.limits import DTYPES, ITEM_BYTES, TensorLimit
from redline.serve.gateway.refusal import Refused

PREFIX_BYTES = 4
"""Little-endian length before each element of a BYTES tensor."""


def check_binary(body: Body, start: int, size: int, shape: Sequence[int], tensor: TensorLimit) -> None:
    """That the `size` bytes from `start` are exactly the elements of `shape`. Raises Refused 400."""
    name, end = tensor.name, start + size
    if end > body.size:
        raise bad(
            "binary-size", f"the body ends before the data of {name}", got=f"{body.size - start:,} bytes", allowed=f"{size:,}"
        )
    count = math.prod(shape)
    least = count * ITEM_BYTES[tensor.datatype]
    if tensor.datatype != "BYTES":
        if size != least:
            raise bad("binary-size", f"the data of {name} does not fit its shape", got=f"{size:,} bytes", allowed=f"{least:,}")
        return
    if size < least:
        raise bad(
            "bytes-count", f"{name} has fewer elements than its shape says", got=f"{size:,} bytes for shape {list(shape)}"
        )
    for _ in range(count):
        if start + PREFIX_BYTES > end:
            raise bad("bytes-count", f"{name} has fewer elements than its shape says", allowed=f"{count} elements")
        length = int.from_bytes(body.read(start, PREFIX_BYTES), "little")
        start += PREFIX_BYTES + length
        if start > end:
            raise bad("bytes-length", f"an element of {name} is longer than the data", got=f"a length of {length:,} bytes")
    if start != end:
        raise bad("bytes-count", f"{name} has more data than its elements", got=f"{end - start:,} bytes too many")


def json_bytes(data: object, shape: Sequence[int], tensor: TensorLimit) -> bytes:
    """JSON `data`, flat or nested exactly as `shape`, in the binary form. Raises Refused 400."""
    items = _leaves(data, shape, tensor.name)
    if tensor.datatype == "BYTES":
        return b"".join(_element(item, tensor.name) for item in items)
    if not all(type(item) in (int, float) for item in items):
        raise bad("data-type", f"the data of {tensor.name} must be numbers", allowed=tensor.datatype)
    try:
        with np.errstate(over="ignore"):
            found = np.asarray(items, np.float64).astype(DTYPES[tensor.datatype])
    except OverflowError:  # an integer beyond float64
        found = np.asarray([math.inf])
    if not np.isfinite(found).all():
        raise bad("data-range", f"a number of {tensor.name} is beyond its datatype", allowed=f"finite {tensor.datatype}")
    return found.tobytes()


def bad(code: str, what: str, *, got: object = None, allowed: object = None, fix: str | None = None) -> Refused:
    """A request that is not what it says: 400."""
    return Refused(400, code, what, got=got, allowed=allowed, fix=fix)


def _leaves(data: object, shape: Sequence[int], name: str) -> list[Any]:
    count = math.prod(shape)
    if isinstance(data, list) and len(data) == count and not any(isinstance(item, list | dict) for item in data):
        return data
    level: list[Any] = [data]
    for size in shape:
        if not all(isinstance(item, list) and len(item) == size for item in level):
            raise bad(
                "data-count",
                f"the data of {name} does not fit its shape",
                allowed=f"{count:,} values, flat or nested as {list(shape)}",
            )
        level = list(chain.from_iterable(level))
    return level


def _element(item: object, name: str) -> bytes:
    if not isinstance(item, str):
        raise bad("data-type", f"the data of {name} must be texts", got=type(item).__name__, fix="send images as binary data")
    try:
        text = item.encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad("data-type", f"a text of {name} is not valid Unicode", fix="send images as binary data") from error
    return len(text).to_bytes(PREFIX_BYTES, "little") + text
