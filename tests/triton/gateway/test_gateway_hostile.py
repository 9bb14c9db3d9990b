"""What crashed Triton 2.51, and all malformed requests that were tried on it: through the gateway each is a clean 4xx."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from typing import Any

import numpy as np
import pytest
from probe_model import SERVICE, Reply, Wire, bytes_data, gateway_before, image_input, image_rows, load_models, tensor_inputs

from redline.records import Routes
from redline.serve.server import TritonServer

IMAGES = (b"first image", b"second")
DATA = bytes_data(IMAGES)
TENSORS, TENSOR_DATA = tensor_inputs(np.full((2, 3, 2, 8), 0.25), np.arange(16.0).reshape(2, 8))
TENSOR_PATH = f"/v2/models/{SERVICE}_tensor/infer"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def asked(server: TritonServer, ask: Callable[[Wire], Awaitable[Reply]], **how: Any) -> Reply:
    async def whole() -> Reply:
        async with gateway_before(server, **how) as wire:
            return await ask(wire)

    return asyncio.run(whole())


def test_crash_1_a_large_form_body(server: TritonServer) -> None:
    """The default type of `curl --data-binary` and of Python's urllib; 4.3 MB of it kill Triton 2.51."""
    body = b"x" * 9_000_000
    reply = asked(server, lambda wire: wire.detect(body, FORM))
    assert reply.status == 200
    found = [(one["box"], one["score"], one["label"]) for one in reply.json["detections"]]
    assert found == image_rows(body)
    values = np.full((4, 3, 12_000, 8), 0.5)
    inputs, data = tensor_inputs(values, np.ones((4, 8)))
    header = json.dumps({"inputs": inputs}).encode()
    assert len(data) > 4_300_000
    headers = FORM | {"Inference-Header-Content-Length": str(len(header))}
    assert asked(server, lambda wire: wire.post(TENSOR_PATH, header + data, headers)).status == 200


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"inputs":[{"data":['])
def test_crash_2_json_nested_200_000_deep(server: TritonServer, opening: str) -> None:
    body = (opening * 200_000).encode()
    reply = asked(server, lambda wire: wire.infer(body))
    assert reply.code in ("json-depth", "json-size")
    assert reply.status in (400, 413)
    short = (opening * 50_000).encode()
    assert asked(server, lambda wire: wire.infer(short, b"")).status in (400, 413)


@pytest.mark.parametrize(
    ("body", "headers"),
    [(b"x" * 6_000_000, FORM), (b'{"inputs":' + b"[" * 200_000, {"Content-Type": "application/json"})],
    ids=["form", "nested"],
)
def test_without_the_gateway_each_of_the_two_kills_the_server(
    own_triton: TritonServer, body: bytes, headers: dict[str, str]
) -> None:
    """So that the two tests above prove something. When a newer server survives, its limits may be looked at again."""
    port = own_triton.start().http_port
    load_models(own_triton)
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection, suppress(OSError, HTTPException):
        connection.request("POST", f"/v2/models/{SERVICE}_r1/infer", body, headers)
        connection.getresponse().read()
    end_s = time.monotonic() + 10
    while own_triton.alive and time.monotonic() < end_s:
        time.sleep(0.05)
    # A signal, or 127 when the server's own handler of it ends the process.
    assert own_triton.exit_code not in (None, 0)


def image(**changes: Any) -> dict[str, Any]:
    return {"inputs": [image_input(IMAGES, **changes)]}


def sized(size: int) -> dict[str, Any]:
    return image(parameters={"binary_data_size": size})


def tensors(**changes: Any) -> dict[str, Any]:
    return {"inputs": [TENSORS[0] | changes, TENSORS[1]]}


@pytest.mark.parametrize(
    ("fields", "data", "code"),
    [
        (image(datatype="FP32"), DATA, "datatype"),
        (image(datatype="WAT"), DATA, "datatype"),
        (image(shape=[2]), DATA, "shape"),
        (image(shape=[1]), DATA, "shape"),
        (image(shape=[2, 2]), DATA, "shape"),
        (image(shape=[5, 1]), bytes_data([b"x"] * 5), "batch"),
        (image(shape=[9, 1]), DATA, "batch"),
        (image(shape=[0, 1]), DATA, "batch"),
        (image(shape=[-1, 1]), DATA, "batch"),
        (image(shape=[1, 2**40]), DATA, "shape"),
        (image(shape=[2**40, 1]), DATA, "batch"),
        (sized(len(DATA) + 100), DATA, "binary-size"),
        (sized(len(DATA) - 1), DATA, "bytes-length"),
        (sized(len(DATA)), DATA + b"extra", "binary-size"),
        (image(name="picture"), DATA, "input-unknown"),
        ({"inputs": []}, DATA, "input-missing"),
        ({}, DATA, "input-missing"),
        ({"inputs": [image_input(IMAGES), image_input(IMAGES)]}, DATA + DATA, "input-duplicate"),
        (image(), b"\xff\xff\xff\xff" + DATA[4:], "bytes-length"),
        (image(shape=[3, 1]), DATA, "bytes-count"),
        (image(shape=[1, 1]), DATA, "bytes-count"),
        (b'{"inputs": [', DATA, "json-broken"),
        (b"\x00\xff", DATA, "json-broken"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2, 1], "data": ["a"]}]}, None, "data-count"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [5]}]}, None, "data-type"),
    ],
)
def test_a_malformed_image_request(server: TritonServer, fields: Any, data: bytes | None, code: str) -> None:
    reply = asked(server, lambda wire: wire.infer(fields, data))
    assert (reply.status, reply.code) == (400, code)


@pytest.mark.parametrize(
    ("fields", "data", "code"),
    [
        (tensors(datatype="FP64"), TENSOR_DATA, "datatype"),
        (tensors(shape=[2, 3, 2, 9]), TENSOR_DATA, "shape"),
        (tensors(shape=[3, 2, 8]), TENSOR_DATA, "shape"),
        (tensors(shape=[2, 3, -2, 8]), TENSOR_DATA, "shape"),
        (tensors(shape=[2, 3, 2**40, 8]), TENSOR_DATA, "binary-size"),
        (tensors(shape=[1, 3, 4, 8]), TENSOR_DATA, "batch-differs"),
        (tensors(), TENSOR_DATA[:-1], "binary-size"),
        (tensors(), TENSOR_DATA + b"x", "binary-size"),
        ({"inputs": [TENSORS[0]]}, TENSOR_DATA[:384], "input-missing"),
        ({"inputs": [TENSORS[0] | {"parameters": {}, "data": [1.0] * 95}, TENSORS[1]]}, TENSOR_DATA[384:], "data-count"),
    ],
)
def test_a_malformed_tensor_request(server: TritonServer, fields: Any, data: bytes, code: str) -> None:
    reply = asked(server, lambda wire: wire.infer(fields, data, TENSOR_PATH))
    assert (reply.status, reply.code) == (400, code)


@pytest.mark.parametrize(("bad", "code"), [(np.nan, "model-refused"), (np.inf, "model-refused")])
def test_numbers_that_are_not_finite_are_refused_by_the_model(server: TritonServer, bad: float, code: str) -> None:
    values = np.full((1, 3, 1, 8), bad)
    inputs, data = tensor_inputs(values, np.ones((1, 8)))
    reply = asked(server, lambda wire: wire.infer({"inputs": inputs}, data, TENSOR_PATH))
    assert (reply.status, reply.code, reply.json["reason"]["what"]) == (400, code, "images: not finite")


@pytest.mark.parametrize("length", ["abc", "-1", "1e3", "999999", "12 34", "0x10", "18446744073709551617"])
def test_a_wrong_header_length(server: TritonServer, length: str) -> None:
    body = json.dumps(image()).encode() + DATA
    path = f"/v2/models/{SERVICE}/infer"
    reply = asked(server, lambda wire: wire.post(path, body, {"Inference-Header-Content-Length": length}))
    assert (reply.status, reply.code) == (400, "header-length")


def test_a_header_length_inside_the_json_or_the_data(server: TritonServer) -> None:
    header = json.dumps(image()).encode()
    path = f"/v2/models/{SERVICE}/infer"
    for length in (1, len(header) - 1, len(header) + 1, len(header) + len(DATA)):
        given = {"Inference-Header-Content-Length": str(length)}
        reply = asked(server, lambda wire, given=given: wire.post(path, header + DATA, given))
        assert (reply.status, reply.code) == (400, "json-broken")


def test_an_unknown_model(server: TritonServer) -> None:
    for path in ("/v2/models/none/infer", f"/v2/models/{SERVICE}_r1/infer", f"/v2/models/{SERVICE}/versions/7/infer"):
        assert asked(server, lambda wire, path=path: wire.infer(image(), DATA, path)).status == 404


def test_a_half_closed_upload(server: TritonServer) -> None:
    head = f"POST /v2/models/{SERVICE}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n".encode()
    reply = asked(server, lambda wire: wire.raw(head + b"{" * 100, half_close=True))
    assert (reply.status, reply.code) == (400, "body-incomplete")


def test_compressed_bodies_whole_and_truncated(server: TritonServer) -> None:
    whole = gzip.compress(b"image" * 1000)
    for body in (whole, whole[:20]):
        reply = asked(server, lambda wire, body=body: wire.detect(body, {"Content-Encoding": "gzip"}))
        assert (reply.status, reply.code) == (415, "content-encoding")


def test_shared_memory_administration_and_overrides_are_out_of_reach(server: TritonServer) -> None:
    for path in (
        "/v2/systemsharedmemory/region/a/register",
        "/v2/cudasharedmemory/region/a/register",
        f"/v2/repository/models/{SERVICE}_r1/load",
        "/v2/repository/index",
        "/v2/trace/setting",
        "/v2/logging",
        f"/v2/models/{SERVICE}/trace/setting",
    ):
        assert asked(server, lambda wire, path=path: wire.post(path, b"{}")).status == 404
    shared = image(parameters={"shared_memory_region": "a", "shared_memory_byte_size": 8})
    reply = asked(server, lambda wire: wire.infer(shared))
    assert (reply.status, reply.code) == (400, "shared-memory")


def test_a_bad_image_alone_is_the_clients_error(server: TritonServer) -> None:
    reply = asked(server, lambda wire: wire.detect(b"BAD image"))
    assert (reply.status, reply.code, reply.json["error"]["what"]) == (400, "model-refused", "image: not an image")


def test_one_bad_image_of_a_batch_fails_alone(server: TritonServer) -> None:
    images = (b"one", b"BAD two", b"three!", b"four")
    fields = {"inputs": [image_input(images)]}
    reply = asked(server, lambda wire: wire.infer(fields, bytes_data(images)))
    found = {output["name"]: output["data"] for output in reply.json["outputs"]}
    assert reply.status == 200
    assert found["error"] == ["", "image: not an image", "", ""]
    assert found["count"] == [len(one) % 5 if not one.startswith(b"BAD") else 0 for one in images]


def test_a_defect_of_the_model_is_a_502_without_its_secrets(server: TritonServer) -> None:
    reply = asked(server, lambda wire: wire.detect(b"RAISE"))
    assert (reply.status, reply.code) == (502, "model-failed")
    assert b"secret" not in reply.body
    assert b"Traceback" not in reply.body


def test_nan_in_an_answer_never_leaves(server: TritonServer) -> None:
    assert asked(server, lambda wire: wire.detect(b"NAN")).code == "answer-not-finite"
    data = bytes_data([b"NAN"])
    fields = {"inputs": [image_input([b"NAN"])]}
    for binary in (False, True):
        asking = fields | {"parameters": {"binary_data_output": binary}}
        reply = asked(server, lambda wire, asking=asking: wire.infer(asking, data))
        assert (reply.status, reply.code) == (502, "answer-not-finite")


def test_a_full_queue_is_a_503_with_a_time_to_come_back(server: TritonServer) -> None:
    async def flood() -> list[Reply]:
        async with gateway_before(server, Routes(active=2)) as wire:
            wires = [Wire(wire.port, wire.gateway) for _ in range(8)]
            replies = await asyncio.gather(*(one.detect(b"SLEEP") for one in wires))
            for one in wires:
                await one.close()
            return list(replies)

    replies = asyncio.run(flood())
    refused = [reply for reply in replies if reply.status != 200]
    assert 1 <= len(refused) < 8
    assert {(reply.status, reply.code, reply.headers["retry-after"]) for reply in refused} == {(503, "queue-full", "1")}


def test_a_late_answer_is_a_504(server: TritonServer) -> None:
    reply = asked(server, lambda wire: wire.detect(b"SLEEP"), answer_s=0.1)
    assert (reply.status, reply.code) == (504, "answer-late")
