"""What the gateway makes of Triton's answers: believed only if sound, NaN never passed on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from gateway_case import BOXES, CLASSES, ROWS, Asked, Case, Reply, binary_answer, failed, good, http, infer_answer, served
from hypothesis import given
from hypothesis import strategies as st

from redline.serve.gateway.infer_answer import Found, detections_json
from redline.serve.gateway.refusal import LONGEST_TEXT, clean

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def answered(answer: Any, *, path: str = "/detect", fields: Any = None, data: bytes = b"") -> Reply:
    async def scenario() -> Reply:
        async with served(answer) as case:
            return await (case.detect() if path == "/detect" else case.infer(fields, data, path))

    return asyncio.run(scenario())


def one_image(**changes: Any) -> dict[str, Any]:
    fields = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 8}}
    return {"inputs": [fields]} | changes


def infer(answer: Any, **changes: Any) -> Reply:
    return answered(answer, path="/v2/models/detector/infer", fields=one_image(**changes), data=b"\x04\0\0\0JPEG")


def test_detections_have_boxes_scores_labels_and_names() -> None:
    reply = answered(good)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-redline-release"] == "1"
    assert reply.json == {
        "request_id": reply.headers["x-request-id"],
        "release": 1,
        "detections": [
            {"box": [1.5, 2.0, 30.25, 40.0], "score": 0.75, "label": 1, "name": 'nut "M4"'},
            {"box": [5.0, 6.0, 20.0, 21.0], "score": 0.5, "label": 2, "name": "washer"},
        ],
    }


@given(st.lists(st.tuples(FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, st.integers(-3, 9)), max_size=6), st.sampled_from([0, 3]))
def test_the_json_text_holds_the_float32_values_exactly(rows: list[tuple[Any, ...]], classes: int) -> None:
    table = np.asarray(rows, np.float64).reshape(-1, 6)
    boxes, scores = table[:, :4].astype(np.float32), table[:, 4].astype(np.float32)
    labels = table[:, 5].astype(np.int32)
    read = json.loads(detections_json(Found(boxes=boxes, scores=scores, labels=labels, error=""), CLASSES[:classes], 7, "id"))
    assert (read["request_id"], read["release"], len(read["detections"])) == ("id", 7, len(rows))
    for row, box, score, label in zip(read["detections"], boxes, scores, labels, strict=True):
        assert list(row) == ["box", "score", "label", "name"]
        assert (np.float32(row["box"]) == box).all()
        assert np.float32(row["score"]) == score
        assert (row["label"], row["name"]) == (label, CLASSES[label] if 0 <= label < classes else "")


def test_no_detections_are_an_empty_list() -> None:
    async def answer(asked: Asked) -> bytes:
        return infer_answer(asked, [()])

    assert answered(answer).json["detections"] == []


def test_a_json_answer_is_triton_s_as_kserve_has_it() -> None:
    reply = infer(good, id="q1")
    found = reply.json
    assert (found["model_name"], found["model_version"], found["id"]) == ("detector_r1", "1", "q1")
    by_name = {output["name"]: output for output in found["outputs"]}
    assert by_name["boxes"]["shape"] == [1, ROWS, 4]
    assert by_name["boxes"]["data"][:8] == [1.5, 2.0, 30.25, 40.0, 5.0, 6.0, 20.0, 21.0]
    assert by_name["count"] == {"name": "count", "datatype": "INT32", "shape": [1, 1], "data": [2]}
    assert by_name["error"]["data"] == [""]


def test_binary_and_json_outputs_come_as_asked() -> None:
    outputs = [{"name": "labels"}, {"name": "scores", "parameters": {"binary_data": True}}]
    reply = infer(good, outputs=outputs)
    length = int(reply.headers["inference-header-content-length"])
    assert reply.headers["content-type"] == "application/octet-stream"
    labels, scores = json.loads(reply.body[:length])["outputs"]
    assert labels["data"] == [1, 2, 0, 0]
    assert scores["parameters"] == {"binary_data_size": 4 * ROWS}
    assert np.frombuffer(reply.body[length:], "<f4").tolist() == [0.75, 0.5, 0, 0]


def test_one_bad_image_of_a_batch_fails_alone() -> None:
    async def answer(asked: Asked) -> bytes:
        return infer_answer(asked, [BOXES, ()], ["", "not an image"])

    fields = one_image()
    fields["inputs"][0] |= {"shape": [2, 1], "parameters": {"binary_data_size": 16}}
    data = b"\x04\0\0\0JPEG\x04\0\0\0BAD!"
    reply = answered(answer, path="/v2/models/detector/infer", fields=fields, data=data)
    by_name = {output["name"]: output["data"] for output in reply.json["outputs"]}
    assert reply.status == 200
    assert (by_name["count"], by_name["error"]) == ([2, 0], ["", "not an image"])


def outputs(asked: Asked, **changes: tuple[str, list[int], bytes]) -> bytes:
    sound: dict[str, tuple[str, list[int], bytes]] = {
        "boxes": ("FP32", [1, ROWS, 4], bytes(16 * ROWS)),
        "scores": ("FP32", [1, ROWS], bytes(4 * ROWS)),
        "labels": ("INT32", [1, ROWS], bytes(4 * ROWS)),
        "count": ("INT32", [1, 1], bytes(4)),
        "error": ("BYTES", [1, 1], bytes(4)),
    }
    return binary_answer(asked, [(name, *output) for name, output in (sound | changes).items()])


NAN = np.full(ROWS, np.nan, "<f4").tobytes()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"scores": ("FP32", [1, ROWS], NAN)}, "answer-not-finite"),
        ({"boxes": ("FP32", [1, ROWS, 4], np.full(4 * ROWS, np.inf, "<f4").tobytes())}, "answer-not-finite"),
        ({"scores": ("FP32", [1, ROWS], bytes(4 * ROWS - 4))}, "upstream-garbage"),
        ({"scores": ("FP32", [1, -1], b"")}, "upstream-garbage"),
        ({"scores": ("FP99", [1, 1], bytes(4))}, "upstream-garbage"),
        ({"count": ("INT32", [1, 1], b"\x05\0\0\0")}, "upstream-garbage"),
        ({"count": ("INT32", [1, 1], b"\xff\xff\xff\xff")}, "upstream-garbage"),
        ({"labels": ("INT32", [1, 2], bytes(8)), "count": ("INT32", [1, 1], b"\x03\0\0\0")}, "upstream-garbage"),
        ({"boxes": ("FP32", [1, ROWS], bytes(4 * ROWS)), "count": ("INT32", [1, 1], b"\x01\0\0\0")}, "upstream-garbage"),
        ({"error": ("BYTES", [1, 1], b"\x09\0\0\0x")}, "upstream-garbage"),
        ({"error": ("BYTES", [1, 1], b"")}, "upstream-garbage"),
        ({"count": ("INT32", [2, 1], bytes(8))}, "upstream-garbage"),
        ({"count": ("INT32", [], bytes(4))}, "upstream-garbage"),
    ],
)
def test_an_answer_that_is_not_sound_is_a_clean_502(changes: dict[str, Any], code: str) -> None:
    async def answer(asked: Asked) -> bytes:
        return outputs(asked, **changes)

    reply = answered(answer)
    assert (reply.status, reply.code) == (502, code)


@pytest.mark.parametrize("binary", [True, False])
def test_nan_leaves_in_no_form(binary: bool) -> None:
    async def answer(asked: Asked) -> bytes:
        return outputs(asked, scores=("FP32", [1, ROWS], NAN))

    reply = infer(answer, parameters={"binary_data_output": binary}, outputs=[{"name": "count"}])
    assert (reply.status, reply.code) == (502, "answer-not-finite")


@pytest.mark.parametrize(
    "raw",
    [
        http(200, b"hello", {"Inference-Header-Content-Length": "5"}),
        http(200, b"{}", {"Inference-Header-Content-Length": "2"}),
        http(200, b"[]", {"Inference-Header-Content-Length": "2"}),
        http(200, b"{}"),
        http(200, b""),
        http(200, b"{}", {"Inference-Header-Content-Length": "-2"}),
        http(200, b"{}", {"Inference-Header-Content-Length": "99"}),
        http(200, b'{"outputs": [{"name": 1}]}', {"Inference-Header-Content-Length": "26"}),
        http(204, b""),
        http(302, b"", {"Location": "http://127.0.0.1:1/"}),
        http(500, b"<html>/opt/server/secret"),
        http(500, b'{"error": "Failed: /srv/models/x/model.py"}'),
        http(501, b'{"error": "x"}'),
        http(403, b'{"error": "x"}'),
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    ],
)
def test_garbage_from_upstream_never_reaches_the_client(raw: bytes) -> None:
    async def answer(asked: Asked) -> bytes:
        return raw

    async def scenario() -> None:
        async with served(answer) as case:
            reply = await case.detect()
            assert reply.status in (502, 503)
            assert reply.json["error"]["what"]
            assert b"/" not in reply.body
            case.triton.answer = good
            assert (await case.detect()).status == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("raw", "status", "code", "retry"),
    [
        (failed(400, "image: not a JPEG, PNG, BMP or WebP file"), 400, "model-refused", False),
        (failed(503, "in ensemble 'x', [request id: <id_unknown>] Exceeds maximum queue size"), 503, "queue-full", True),
        (failed(503, "[request id: <id_unknown>] Request timeout expired"), 504, "queue-timeout", False),
        (failed(404, "Request for unknown model: 'detector_r1' has no available versions"), 503, "release-unavailable", True),
        (failed(503, "model not ready"), 503, "release-unavailable", True),
        (failed(500, "Failed, message: ValueError: x\n\nAt:\n  /a/model.py(3): execute"), 502, "model-failed", False),
    ],
)
def test_triton_s_errors_become_what_they_mean(raw: bytes, status: int, code: str, retry: bool) -> None:
    async def answer(asked: Asked) -> bytes:
        return raw

    reply = answered(answer)
    assert (reply.status, reply.code, "retry-after" in reply.headers) == (status, code, retry)
    assert b"model.py" not in reply.body


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("bad value\n\nAt:\n  /srv/x/model.py(10): execute\n", "bad value"),
        ("Traceback (most recent call last):\n  File ...", "no reason given"),
        ("no file /srv/models/a.onnx here", "no file <path> here"),
        (
            "Failed to process the request(s) for model instance 'd_r1_0_0', message: Stub process is gone",
            "Stub process is gone",
        ),
        ("a\n  b\tc", "a b c"),
        ("", "no reason given"),
        ("1/2 of 3 and and/or", "1/2 of 3 and and/or"),
    ],
)
def test_clean_texts(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_long_texts_are_cut() -> None:
    assert len(clean("x" * 5000)) == LONGEST_TEXT


def test_an_error_in_the_only_image_is_the_clients_even_if_triton_says_200() -> None:
    async def answer(asked: Asked) -> bytes:
        return infer_answer(asked, [()], ["not an image"])

    async def scenario(case: Case) -> None:
        reply = await case.detect()
        assert (reply.status, reply.json["error"]["what"]) == (400, "not an image")
        assert case.count(400) == 1

    async def run() -> None:
        async with served(answer) as case:
            await scenario(case)

    asyncio.run(run())
