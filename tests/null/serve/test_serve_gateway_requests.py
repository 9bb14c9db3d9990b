"""KServe requests, judged: each case is the sound request with one thing wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gateway_case import release_limits
from hypothesis import given
from hypothesis import strategies as st

from redline.serve.gateway import Limits
from redline.serve.gateway.body import Body
from redline.serve.gateway.infer_request import InferRequest, read_request
from redline.serve.gateway.refusal import Refused

LIMITS = Limits()
RELEASE = release_limits(1)
IMAGES = np.arange(2 * 3 * 4 * 8, dtype="<f4").reshape(2, 3, 4, 8)
PLACEMENT = np.arange(16, dtype="<f8").reshape(2, 8)
JPEGS = (b"one", b"the second")
DATA = b"".join(struct.pack("<I", len(jpeg)) + jpeg for jpeg in JPEGS)


def image(**changes: Any) -> dict[str, Any]:
    size = changes.pop("size", len(DATA))
    return {"name": "image", "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": size}} | changes


def images(**changes: Any) -> dict[str, Any]:
    size = {"binary_data_size": IMAGES.nbytes}
    return {"name": "images", "datatype": "FP32", "shape": [2, 3, 4, 8], "parameters": size} | changes


def placement(**changes: Any) -> dict[str, Any]:
    return {"name": "placement", "datatype": "FP64", "shape": [2, 8], "data": PLACEMENT.tolist()} | changes


def judged(
    fields: Any, data: bytes = b"", *, entry: bool = True, length: Sequence[str] | None = None, cut: int = 7
) -> InferRequest:
    """`fields` as JSON with `data` after it, in pieces of `cut` bytes."""
    header = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    whole = header + data
    body = Body([whole[at : at + cut] for at in range(0, len(whole), cut)])
    given_length = ([str(len(header))] if data else []) if length is None else length
    return read_request(body, given_length, RELEASE.entry if entry else RELEASE.tensor, LIMITS)


def code(fields: Any, data: bytes = b"", **how: Any) -> str:
    with pytest.raises(Refused) as caught:
        judged(fields, data, **how)
    assert caught.value.status == 400
    assert caught.value.what
    return caught.value.code


def sent(request: InferRequest) -> tuple[dict[str, Any], bytes]:
    return json.loads(request.header), b"".join(request.pieces)


@pytest.mark.parametrize("cut", [1, 3, 50, 10_000])
def test_a_sound_binary_request_reaches_triton_as_it_was_meant(cut: int) -> None:
    fields = {"id": "a-7", "inputs": [image()], "outputs": [{"name": "boxes"}], "parameters": {"binary_data_output": True}}
    request = judged(fields, DATA, cut=cut)
    header, data = sent(request)
    assert header == {"inputs": [image()], "parameters": {"binary_data_output": True}}
    assert data == DATA
    assert (request.batch, request.id) == (2, "a-7")
    assert [(output.name, output.binary) for output in request.wanted] == [("boxes", True)]


def test_binary_and_json_inputs_may_be_mixed_in_any_order() -> None:
    for inputs in ([images(), placement()], [placement(), images()]):
        header, data = sent(judged({"inputs": inputs}, IMAGES.tobytes(), entry=False))
        by_name = {"images": IMAGES.tobytes(), "placement": PLACEMENT.tobytes()}
        assert data == b"".join(by_name[field["name"]] for field in header["inputs"])
        assert [f["parameters"]["binary_data_size"] for f in header["inputs"]] == [
            len(by_name[f["name"]]) for f in header["inputs"]
        ]


@pytest.mark.parametrize("flat", [True, False])
def test_json_numbers_become_the_tensors_bytes(flat: bool) -> None:
    values = IMAGES.reshape(-1).tolist() if flat else IMAGES.tolist()
    inputs = [{"name": "images", "datatype": "FP32", "shape": [2, 3, 4, 8], "data": values}, placement()]
    header, data = sent(judged({"inputs": inputs}, entry=False))
    assert data == IMAGES.tobytes() + PLACEMENT.tobytes()
    assert header["inputs"][0]["parameters"] == {"binary_data_size": IMAGES.nbytes}


def test_json_texts_become_bytes_with_their_length() -> None:
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [2, 1], "data": ["é", ""]}]
    assert sent(judged({"inputs": inputs}))[1] == b"\x02\x00\x00\x00\xc3\xa9\x00\x00\x00\x00"


def test_without_outputs_all_are_wanted_in_json() -> None:
    for fields in ({"inputs": [image()]}, {"inputs": [image()], "outputs": []}):
        assert [(w.name, w.binary) for w in judged(fields, DATA).wanted] == [
            ("boxes", False), ("scores", False), ("labels", False), ("count", False), ("error", False)
        ]  # fmt: skip
    outputs = [{"name": "count", "parameters": {"binary_data": False}}, {"name": "error"}]
    wanted = judged({"inputs": [image()], "outputs": outputs, "parameters": {"binary_data_output": True}}, DATA).wanted
    assert [(w.name, w.binary) for w in wanted] == [("count", False), ("error", True)]


def test_a_body_without_json_is_one_image_for_the_entry_alone() -> None:
    request = judged(b"", b"JPEG", length=["0"])
    assert (request.header, b"".join(request.pieces), request.batch) == (b"", b"JPEG", 1)
    assert code(b"", b"x" * 40, length=["0"], entry=False) == "raw-binary"
    assert code(b"", b"", length=["0"]) == "body-empty"


@pytest.mark.parametrize("length", [["-1"], ["1e1"], ["abc"], [""], [" 5"], ["+5"], ["٣"], ["5", "5"], ["0x10"], ["9" * 40]])
def test_a_header_length_that_is_no_number_is_refused(length: list[str]) -> None:
    assert code({"inputs": [image()]}, DATA, length=length) == "header-length"


def test_a_header_length_beyond_the_body_is_refused() -> None:
    assert code({"inputs": [image()]}, DATA, length=["999"]) == "header-length"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "picture"}, "input-unknown"),
        ({"name": ["image"]}, "input-unknown"),
        ({"datatype": "FP32"}, "datatype"),
        ({"datatype": "bytes"}, "datatype"),
        ({"datatype": None}, "datatype"),
        ({"shape": [2]}, "shape"),
        ({"shape": [2, 1, 1]}, "shape"),
        ({"shape": [2, 2]}, "shape"),
        ({"shape": [2, 1.0]}, "shape"),
        ({"shape": [True, 1]}, "shape"),
        ({"shape": ["2", 1]}, "shape"),
        ({"shape": None}, "shape"),
        ({"shape": 2}, "shape"),
        ({"shape": [2, -1]}, "shape"),
        ({"shape": [0, 1]}, "batch"),
        ({"shape": [-2, 1]}, "batch"),
        ({"shape": [5, 1]}, "batch"),
        ({"shape": [2**40, 1]}, "batch"),
        ({"shape": [1, 1]}, "bytes-count"),
        ({"shape": [3, 1]}, "bytes-count"),
        ({"size": len(DATA) - 1}, "bytes-length"),
        ({"size": len(DATA) + 1}, "binary-size"),
        ({"size": 7}, "bytes-count"),
        ({"size": 0}, "bytes-count"),
        ({"size": -1}, "binary-size"),
        ({"size": True}, "binary-size"),
        ({"size": 21.0}, "binary-size"),
        ({"size": 2**62}, "binary-size"),
        ({"data": ["a", "b"]}, "data-twice"),
        ({"parameters": {}, "data": ["a", "b"]}, "binary-size"),
        ({"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 9}}, "shared-memory"),
        ({"parameters": {"binary_data_size": 21, "shared_memory_offset": 0}}, "shared-memory"),
        ({"parameters": {"binary_data_size": 21, "other": 1}}, "field-unknown"),
        ({"parameters": [1]}, "field-type"),
        ({"extra": 1}, "field-unknown"),
    ],
)
def test_a_wrong_input_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert code({"inputs": [image(**changes)]}, DATA) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"inputs": []}, "input-missing"),
        ({"inputs": None}, "input-missing"),
        ({"inputs": {}}, "field-type"),
        ({"inputs": [1]}, "field-type"),
        ({"inputs": [image(), image(size=0)]}, "input-duplicate"),
        ({"id": 5}, "request-id"),
        ({"id": "x" * 129}, "request-id"),
        ({"id": "a\r\nb"}, "request-id"),
        ({"id": "\ud800"}, "request-id"),
        ({"model": "x"}, "field-unknown"),
        ({"parameters": 1}, "field-type"),
        ({"parameters": {"sequence_id": 1}}, "sequence"),
        ({"parameters": {"sequence_start": True}}, "sequence"),
        ({"parameters": {"priority": 1}}, "field-unknown"),
        ({"parameters": {"timeout": 1}}, "field-unknown"),
        ({"parameters": {"binary_data_output": 1}}, "parameter"),
        ({"outputs": "boxes"}, "field-type"),
        ({"outputs": [{"name": "masks"}]}, "output-unknown"),
        ({"outputs": [{}]}, "output-unknown"),
        ({"outputs": [{"name": "boxes"}, {"name": "boxes"}]}, "output-duplicate"),
        ({"outputs": [{"name": "scores", "parameters": {"classification": 3}}]}, "classification"),
        ({"outputs": [{"name": "boxes", "parameters": {"shared_memory_region": "r"}}]}, "shared-memory"),
        ({"outputs": [{"name": "boxes", "parameters": {"binary_data": "yes"}}]}, "parameter"),
        ({"outputs": [{"name": "boxes", "parameters": {"size": 1}}]}, "field-unknown"),
        ({"outputs": [{"name": "boxes", "datatype": "FP32"}]}, "field-unknown"),
    ],
)
def test_a_wrong_field_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert code({"inputs": [image()]} | changes, DATA) == expected


def test_bytes_after_the_last_input_are_refused() -> None:
    assert code({"inputs": [image()]}, DATA + b"\0") == "binary-size"


def test_a_length_inside_the_data_cannot_reach_beyond_it() -> None:
    for length in (11, 2**31, 2**32 - 1):
        data = DATA[:7] + struct.pack("<I", length) + b"the second"
        assert code({"inputs": [image()]}, data) == "bytes-length"


def test_a_length_that_is_too_short_leaves_bytes_over() -> None:
    assert code({"inputs": [image()]}, DATA[:7] + struct.pack("<I", 9) + b"the second") == "bytes-count"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"shape": [2, 3, 4, 9]}, "shape"),  # the width is fixed
        ({"shape": [2, 1, 4, 8]}, "shape"),
        ({"shape": [2, 3, 0, 8]}, "shape"),
        ({"shape": [2, 3, -1, 8]}, "shape"),
        ({"shape": [2, 3, 5, 8]}, "binary-size"),  # the height is free, but the data do not fit
        ({"shape": [2, 3, 2**40, 8]}, "binary-size"),
        ({"shape": [1, 3, 8, 8]}, "batch-differs"),
        ({"parameters": {}, "data": IMAGES.reshape(-1).tolist()[:-1]}, "data-count"),
        ({"parameters": {}, "data": []}, "data-count"),
        ({"parameters": {}, "data": None}, "data-count"),
        ({"parameters": {}}, "data-count"),
        ({"parameters": {}, "data": 1.0}, "data-count"),
        ({"parameters": {}, "data": IMAGES.reshape(2, 3, 8, 4).tolist()}, "data-count"),
        ({"parameters": {}, "data": [*IMAGES.reshape(-1).tolist()[:-1], [1.0]]}, "data-count"),
        ({"parameters": {}, "data": ["1"] * 192}, "data-type"),
        ({"parameters": {}, "data": [True] * 192}, "data-type"),
        ({"parameters": {}, "data": [None] * 192}, "data-type"),
        ({"parameters": {}, "data": [10**400] + [0] * 191}, "data-range"),
        ({"parameters": {}, "data": [1e39] + [0] * 191}, "data-range"),
    ],
)
def test_a_wrong_tensor_is_refused(changes: dict[str, Any], expected: str) -> None:
    data = IMAGES.tobytes() if "data" not in changes and "parameters" not in changes else b""
    assert code({"inputs": [images(**changes), placement()]}, data, entry=False) == expected


def test_json_that_is_finite_in_text_but_not_in_a_float_is_refused() -> None:
    header = json.dumps({"inputs": [images(parameters={}, data=[7.25] * 192), placement()]}).replace("7.25", "1e999", 1)
    assert code(header.encode(), entry=False) == "data-range"


def test_an_input_that_is_missing_is_named() -> None:
    with pytest.raises(Refused) as caught:
        judged({"inputs": [placement()]}, entry=False)
    assert caught.value.code == "input-missing"
    assert "images" in str(caught.value.fix)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4), st.integers(1, 40))
def test_any_images_in_any_pieces_come_through_unchanged(jpegs: list[bytes], cut: int) -> None:
    data = b"".join(struct.pack("<I", len(jpeg)) + jpeg for jpeg in jpegs)
    header, passed = sent(judged({"inputs": [image(shape=[len(jpegs), 1], size=len(data))]}, data, cut=cut))
    assert passed == data
    assert header["inputs"][0]["shape"] == [len(jpegs), 1]


@given(st.binary(max_size=60), st.integers(1, 9), st.integers(0, 70), st.integers(0, 70))
def test_a_body_in_pieces_reads_like_one_in_one_piece(data: bytes, cut: int, start: int, count: int) -> None:
    body = Body([data[at : at + cut] for at in range(0, len(data), cut)])
    assert body.size == len(data)
    assert body.read(start, count) == data[start : start + count]


def test_more_bytes_than_the_shape_needs_are_refused_even_if_announced() -> None:
    inputs = [images(parameters={"binary_data_size": IMAGES.nbytes + 4}), placement()]
    assert code({"inputs": inputs}, IMAGES.tobytes() + bytes(4), entry=False) == "binary-size"
