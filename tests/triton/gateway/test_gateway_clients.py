"""The usual clients through the gateway, and the gateway's answer against Triton's own."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
import tritonclient.http as http
from probe_model import SERVICE, bytes_data, gateway_before, image_input, image_rows, tensor_inputs
from tritonclient.utils import InferenceServerException

from redline.records import Detections, Routes
from redline.serve.client import Endpoint
from redline.serve.server import TritonServer


def through(server: TritonServer, ask: Any, routes: Routes | None = None) -> Any:
    """`ask(port)` in a thread, with a gateway in front of the server."""

    async def whole() -> Any:
        async with gateway_before(server, routes) as wire:
            return await asyncio.to_thread(ask, wire.port)

    return asyncio.run(whole())


def image_tensor(*images: bytes, binary: bool = True) -> http.InferInput:
    given = http.InferInput("image", [len(images), 1], "BYTES")
    given.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(-1, 1), binary_data=binary)
    return given


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_sends_images_and_reads_detections(server: TritonServer, binary: bool) -> None:
    images = (b"a picture", b"BAD", b"another", b"")
    wanted = [http.InferRequestedOutput(name, binary_data=binary) for name in ("boxes", "scores", "labels", "count", "error")]

    def ask(port: int) -> http.InferResult:
        with http.InferenceServerClient(f"127.0.0.1:{port}") as client:
            return client.infer(SERVICE, [image_tensor(*images, binary=binary)], outputs=wanted, request_id="r7")

    result = through(server, ask)
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (f"{SERVICE}_r1", "1", "r7")
    counts = result.as_numpy("count").reshape(-1).tolist()
    errors = [bytes(text) if isinstance(text, bytes) else str(text).encode() for text in result.as_numpy("error").reshape(-1)]
    assert errors == [b"", b"image: not an image", b"", b""]
    for index, image in enumerate(images):
        rows = [] if image == b"BAD" else image_rows(image)
        assert counts[index] == len(rows)
        assert result.as_numpy("boxes")[index, : len(rows)].tolist() == [row[0] for row in rows]
        assert result.as_numpy("scores")[index, : len(rows)].tolist() == [row[1] for row in rows]
        assert result.as_numpy("labels")[index, : len(rows)].tolist() == [row[2] for row in rows]


def test_tritonclient_sends_tensors(server: TritonServer) -> None:
    values = np.random.default_rng(3).random((3, 3, 5, 8), np.float32)
    places = np.arange(24, dtype=np.float64).reshape(3, 8)

    def ask(port: int) -> http.InferResult:
        with http.InferenceServerClient(f"127.0.0.1:{port}") as client:
            inputs = [http.InferInput("images", [3, 3, 5, 8], "FP32"), http.InferInput("placement", [3, 8], "FP64")]
            inputs[0].set_data_from_numpy(values)
            inputs[1].set_data_from_numpy(places)
            return client.infer(f"{SERVICE}_tensor", inputs, model_version="1")

    result = through(server, ask)
    assert result.as_numpy("boxes")[:, 0].tolist() == places[:, :4].tolist()
    assert result.as_numpy("scores")[:, 0] == pytest.approx(values.mean(axis=(1, 2, 3)), rel=1e-5)


def test_tritonclient_sees_health_and_metadata(server: TritonServer) -> None:
    def ask(port: int) -> dict[str, Any]:
        with http.InferenceServerClient(f"127.0.0.1:{port}") as client:
            return {
                "live": client.is_server_live(),
                "ready": client.is_server_ready(),
                "model": client.is_model_ready(SERVICE),
                "version": client.is_model_ready(SERVICE, "2"),
                "none": client.is_model_ready(SERVICE, "3"),
                "inputs": [one["name"] for one in client.get_model_metadata(f"{SERVICE}_tensor")["inputs"]],
            }

    found = through(server, ask, Routes(active=1, previous=2))
    assert found == {
        "live": True, "ready": True, "model": True, "version": True, "none": False, "inputs": ["images", "placement"]
    }  # fmt: skip


def test_tritonclient_raises_with_the_reason(server: TritonServer) -> None:
    def ask(port: int) -> None:
        with http.InferenceServerClient(f"127.0.0.1:{port}") as client:
            client.infer(SERVICE, [image_tensor(*[b"x"] * 5)])

    with pytest.raises(InferenceServerException) as caught:
        through(server, ask)
    assert caught.value.status() == "400"
    assert caught.value.message() == "the batch is too large or empty (got: 5; allowed: 1 to 4; fix: send several requests)"


def test_our_own_client_works_on_the_gateway_as_on_triton(server: TritonServer) -> None:
    image = b"the same picture"

    def ask(port: int, model: str, version: int | None) -> Detections:
        with closing(Endpoint(port, model, version)) as endpoint:
            return endpoint.detect(image)

    direct = ask(server.known.http_port, f"{SERVICE}_r1", 1)
    found = through(server, lambda port: ask(port, SERVICE, None))
    assert len(direct.scores) == len(image) % 5
    for name in ("boxes", "scores", "labels"):
        assert (getattr(direct, name) == getattr(found, name)).all()


def test_a_binary_answer_is_tritons_byte_for_byte(server: TritonServer) -> None:
    images = [b"one image", b"another one"]
    fields = {"inputs": [image_input(images)], "parameters": {"binary_data_output": True}}
    header, data = json.dumps(fields).encode(), bytes_data(images)

    def ask(port: int, path: str) -> tuple[bytes, int]:
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("POST", path, header + data, {"Inference-Header-Content-Length": str(len(header))})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return body, int(answer.headers["Inference-Header-Content-Length"])

    direct, direct_length = ask(server.known.http_port, f"/v2/models/{SERVICE}_r1/versions/1/infer")
    found, length = through(server, lambda port: ask(port, f"/v2/models/{SERVICE}/infer"))
    assert found[length:] == direct[direct_length:]
    assert json.loads(found[:length]) == json.loads(direct[:direct_length])


def test_the_canary_answers_exactly_its_share_in_triton(server: TritonServer) -> None:
    async def whole() -> Counter[int]:
        async with gateway_before(server, Routes(active=1, canary=2, canary_share=0.25)) as wire:
            return Counter([(await wire.detect(b"a picture")).json["release"] for _ in range(40)])

    assert asyncio.run(whole()) == {1: 30, 2: 10}


def test_shadows_see_that_the_canary_labels_otherwise(server: TritonServer) -> None:
    async def whole(canary: int) -> tuple[int, int]:
        active = 3 - canary
        async with gateway_before(server, Routes(active=active, canary=canary, shadow=True), shadows=1) as wire:
            before = wire.gateway.metrics.snapshot(canary)
            for _ in range(5):
                assert (await wire.detect(b"123")).json["release"] == active
                await wire.gateway.shadows_done()
            inputs, data = tensor_inputs(np.full((2, 3, 1, 8), 0.5), np.asarray([[0, 0, 9, 9, 1, 1, 0, 0]] * 2))
            path = f"/v2/models/{SERVICE}_tensor/infer"
            assert (await wire.infer({"inputs": inputs}, data, path)).status == 200
            await wire.gateway.shadows_done()
            seen = wire.gateway.metrics.observation(canary, before)
            return seen.compared, seen.differing

    # Of the three boxes of an image one has a score of 0.3 or more, and a tensor has one box; both sides are counted.
    assert asyncio.run(whole(2)) == asyncio.run(whole(1)) == (5 * 2 + 2 * 2, 5 * 2 + 2 * 2)


def test_shadows_of_the_same_release_agree(server: TritonServer) -> None:
    async def whole() -> tuple[int, int]:
        async with gateway_before(server, Routes(active=1, canary=1, shadow=True)) as wire:
            before = wire.gateway.metrics.snapshot(1)
            assert (await wire.detect(b"1234")).status == 200
            assert (await wire.detect(b"12345")).status == 200  # no boxes on either side
            await wire.gateway.shadows_done()
            seen = wire.gateway.metrics.observation(1, before)
            return seen.compared, seen.differing

    assert asyncio.run(whole()) == (4 + 1, 0)
