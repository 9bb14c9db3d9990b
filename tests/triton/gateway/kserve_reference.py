"""Whether a request is sound, said a second time: written from the protocol and the gateway's page, without its code."""

from __future__ import annotations

import json
import struct
from typing import Any, NoReturn

import numpy as np

OUTPUTS = {"boxes", "scores", "labels", "count", "error"}
ENTRY = {"image": ("BYTES", (1,))}
TENSOR = {"images": ("FP32", (3, None, 8)), "placement": ("FP64", (8,))}
DEPTH, JSON_BYTES, BATCH, ID_CHARACTERS = 16, 1 << 20, 4, 128
WRONG = (AssertionError, ValueError, KeyError, TypeError, RecursionError, OverflowError, struct.error, IndexError)


def is_sound(entry: bool, lengths: list[str], body: bytes) -> bool:
    """`lengths`: every Inference-Header-Content-Length of the request."""
    try:
        _check(ENTRY if entry else TENSOR, lengths, body)
    except WRONG:
        return False
    return True


def images_of(lengths: list[str], body: bytes) -> list[bytes]:
    """The images of a sound request to the entry."""
    if lengths == ["0"]:
        return [body]
    size = int(lengths[0]) if lengths else len(body)
    one = json.loads(body[:size])["inputs"][0]
    if "data" not in one:
        return list(_texts(body[size:]))
    data = one["data"]
    return [text.encode() for text in (data if isinstance(data[0], str) else [row[0] for row in data])]


def _check(inputs: dict[str, Any], lengths: list[str], body: bytes) -> None:
    assert len(lengths) <= 1
    size = len(body)
    if lengths:
        assert lengths[0].isascii()
        assert lengths[0].isdigit()
        size = int(lengths[0])
        assert size <= len(body)
        if size == 0:
            assert inputs is ENTRY
            assert body
            return
    assert size <= JSON_BYTES
    request = json.loads(body[:size].decode("utf-8"), object_pairs_hook=_once, parse_constant=_none)
    assert _depth(request) <= DEPTH
    assert set(request) <= {"id", "parameters", "inputs", "outputs"}
    name = request.get("id") or ""
    assert isinstance(name, str)
    assert len(name) <= ID_CHARACTERS
    assert name.isprintable()
    assert request.get("id") is None or isinstance(request["id"], str)
    _flags(request.get("parameters"), "binary_data_output")
    seen = []
    for output in request.get("outputs") or _empty(request.get("outputs")):
        assert set(output) <= {"name", "parameters"}
        seen.append(output["name"])
        _flags(output.get("parameters"), "binary_data")
    assert set(seen) <= OUTPUTS
    assert len(seen) == len(set(seen))
    rest = _inputs(inputs, request, body[size:] if lengths else None)
    assert not rest


def _inputs(known: dict[str, Any], request: Any, rest: bytes | None) -> bytes | None:
    """What no input takes of the binary data."""
    batches: dict[str, int] = {}
    for one in request["inputs"]:
        assert set(one) <= {"name", "datatype", "shape", "parameters", "data"}
        datatype, dims = known[one["name"]]
        assert one["name"] not in batches
        assert one["datatype"] == datatype
        shape = one["shape"]
        assert all(type(side) is int and side > 0 for side in shape)
        assert isinstance(shape, list)
        batch, *sides = shape
        assert batch <= BATCH
        assert len(sides) == len(dims)
        assert all(dim in (None, side) for dim, side in zip(dims, sides, strict=True))
        batches[one["name"]] = batch
        parameters = one.get("parameters") or _empty(one.get("parameters"), {})
        assert set(parameters) <= {"binary_data_size"}
        if "binary_data_size" in parameters:
            assert "data" not in one
            assert rest is not None
            size = parameters["binary_data_size"]
            assert type(size) is int
            assert 0 <= size <= len(rest)
            mine, rest = rest[:size], rest[size:]
            if datatype == "BYTES":
                assert len(list(_texts(mine))) == int(np.prod(shape))
            else:
                assert size == int(np.prod(shape)) * (4 if datatype == "FP32" else 8)
        else:
            _numbers(one["data"], shape, datatype)
    assert set(batches) == set(known)
    assert len(set(batches.values())) == 1
    return rest


def _numbers(data: Any, shape: list[int], datatype: str) -> None:
    assert isinstance(data, list)
    table = np.array(data, dtype=object)
    assert table.shape in (tuple(shape), (int(np.prod(shape)),))
    for value in table.reshape(-1):
        if datatype == "BYTES":
            assert isinstance(value, str)
            value.encode()
        else:
            assert type(value) in (int, float)
            with np.errstate(over="ignore"):
                assert np.isfinite((np.float32 if datatype == "FP32" else np.float64)(float(value)))


def _texts(data: bytes) -> Any:
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        assert at + 4 + length <= len(data)
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


def _flags(parameters: Any, name: str) -> None:
    if parameters is not None:
        assert set(parameters) <= {name}
        assert isinstance(parameters, dict)
        assert all(isinstance(value, bool) for value in parameters.values())


def _empty(value: Any, kind: Any = ()) -> Any:
    """Nothing given, or something empty of the right kind."""
    assert value is None or value == (list(kind) if kind == () else kind)
    assert value is None or type(value) is type(list(kind) if kind == () else kind)
    return kind


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def _none(text: str) -> NoReturn:
    raise ValueError(text)
