"""Records to canonical JSON and back. The same values give the same bytes, and so the same digest."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from redline.errors import StoreError

T = TypeVar("T")


def plain(value: object) -> Any:
    """A record, or JSON with records inside, as JSON values; NaN and infinities become strings, as strict JSON has none.

    Raises TypeError for what has no canonical form (sets, arrays, open files): it cannot be a key or be stored.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("only string keys have a canonical JSON form")
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def dump(record: object, *, indent: int | None = None) -> bytes:
    """UTF-8 JSON with sorted keys. Without `indent`: the canonical bytes, whose sha256 is the record's digest."""
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(plain(record), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=separators, indent=indent)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StoreError(
            "store.text",
            "a text to be stored is not valid Unicode",
            got=ascii(error.object[error.start : error.end]),
            fix="rename files whose names are not UTF-8",
        ) from error


def load(type: type[T], data: bytes) -> T:
    """The record that `dump` wrote. Raises StoreError if `data` is not JSON or does not fit `type` (unknown fields too)."""
    from pydantic import ValidationError

    try:
        loaded: tuple[T] = _adapter(cast(Any, type)).validate_json(b"[" + data + b"]")
    except ValidationError as error:
        raise _mismatch(type, error) from error
    return loaded[0]


def digest_of(value: object) -> str:
    """sha256, hex, of bytes as they are or of a record's or JSON value's canonical JSON."""
    return hashlib.sha256(value if isinstance(value, bytes) else dump(value)).hexdigest()


@functools.cache
def _adapter(type: Any) -> Any:
    # Pydantic refuses a config for a bare dataclass; around a tuple it holds for every dataclass inside.
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(tuple[type], config=ConfigDict(extra="forbid"))


def _mismatch(type: Any, error: Any) -> StoreError:
    problems = error.errors(include_url=False)
    name = getattr(type, "__name__", str(type))
    if problems[0]["type"] == "json_invalid":
        return StoreError("store.json", f"a stored {name} is not JSON", got=problems[0]["msg"], fix="run again to make it anew")
    lines = [".".join(str(part) for part in problem["loc"][1:]) + ": " + problem["msg"] for problem in problems[:5]]
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    return StoreError(
        "store.schema",
        f"a stored {name} does not fit this version of redline",
        got="; ".join(lines) + more,
        fix="read it with the version of redline that wrote it, or run again to make it anew",
    )
