"""JSON from strangers: bounded in size and depth before it is parsed, and strict where Python's parser is lenient."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

import numpy as np

from redline.serve.gateway.limits import Limits
from redline.serve.gateway.refusal import Refused

BLANKS = " \t\r\n"


def parse(data: bytes, limits: Limits) -> dict[str, Any]:
    """The JSON object in `data`, UTF-8. Numbers may still be infinite (1e999). Raises Refused 413 (size) or 400.

    Refused beside broken JSON: nesting beyond the limit, a name given twice in an object, NaN and Infinity.
    """
    check_size(len(data), limits)
    openings = data.count(b"[") + data.count(b"{")
    if openings > limits.json_depth and (depth := nesting(data)) > limits.json_depth:
        raise Refused(400, "json-depth", "the JSON is nested too deeply", got=depth, allowed=limits.json_depth)
    try:
        text = data.decode("utf-8").strip(BLANKS)
        found, end = _DECODER.raw_decode(text)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except UnicodeDecodeError as error:
        raise _broken(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise _broken(f"{error.msg}, at character {error.pos}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise _broken("a number with too many digits") from error
    if not isinstance(found, dict):
        raise Refused(400, "json-object", "the JSON must be an object", got=type(found).__name__, allowed="{...}")
    return found


def check_size(size: int, limits: Limits) -> None:
    """Raises Refused 413 if the JSON part is longer than the limit."""
    if size > limits.json_bytes:
        raise Refused(
            413,
            "json-size",
            "the JSON part is too large",
            got=f"{size:,} bytes",
            allowed=f"{limits.json_bytes:,} bytes",
            fix="send tensors as binary data (Inference-Header-Content-Length), not as JSON numbers",
        )


def nesting(data: bytes) -> int:
    """Deepest nesting of brackets outside texts, without recursion; of broken JSON, at least that of its sound beginning."""
    # Of a run of backslashes the pairs go first, so that what is left before a quote escapes it.
    outside = b"".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    found = np.frombuffer(outside, np.uint8)
    steps = np.zeros(len(found) + 1, np.int32)
    steps[1:] += (found == ord("[")) | (found == ord("{"))
    steps[1:] -= (found == ord("]")) | (found == ord("}"))
    return int(np.cumsum(steps).max())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise Refused(400, "json-duplicate", "a name is given twice in one JSON object", got=twice)
    return found


def _no_constant(text: str) -> NoReturn:
    raise Refused(400, "json-number", "JSON has no such number", got=text, allowed="finite numbers")


def _broken(got: str) -> Refused:
    return Refused(400, "json-broken", "the request is not valid JSON", got=got, fix="send UTF-8 JSON as KServe v2 defines it")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
