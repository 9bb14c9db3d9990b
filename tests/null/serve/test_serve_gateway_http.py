"""The HTTP side: paths, methods, sizes, times, headers, half-closed and broken connections."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time

import pytest
from gateway_case import Asked, Case, good, parsed, run, run_as_served, served

from redline.errors import BadInput

POST = b"POST /detect HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "image/jpeg", "text/plain", "\xff\xfe", ""]
)
def test_any_content_type_is_taken_and_none_is_passed_on(kind: str) -> None:
    async def scenario(case: Case) -> None:
        assert (await case.detect(b"JPEG" * 2_000_000, {"Content-Type": kind})).status == 200
        asked = case.triton.asked[-1]
        assert asked.headers["content-type"] == "application/octet-stream"
        assert len(asked.body) == 8_000_000
        assert asked.headers["inference-header-content-length"] == "0"

    run(scenario)


def test_nothing_of_the_clients_headers_reaches_triton() -> None:
    async def scenario(case: Case) -> None:
        await case.detect(headers={"x-admin": "k", "X-Forwarded-For": "y", "Cookie": "c=1", "Accept-Encoding": "gzip"})
        assert set(case.triton.asked[-1].headers) == {
            "host",
            "content-type",
            "inference-header-content-length",
            "content-length",
        }

    run(scenario)


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2_Z", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("<b>", False), ("é", False)]
)
def test_the_request_id_is_the_clients_if_it_is_sound(given: str, kept: bool) -> None:
    async def scenario(case: Case) -> None:
        reply = await case.detect(headers={"X-Request-Id": given})
        found = reply.headers["x-request-id"]
        assert reply.json["request_id"] == found
        assert (found == given) if kept else len(found) == 32
        refused = await case.ask("GET", "/none", headers={"X-Request-Id": given})
        assert refused.json["request_id"] == refused.headers["x-request-id"]
        assert (refused.headers["x-request-id"] == given) is kept

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "path-unknown"),
        ("POST", "/detect/", 404, "path-unknown"),
        ("POST", "//detect", 404, "path-unknown"),
        ("POST", "/v2/repository/index", 404, "path-unknown"),
        ("POST", "/v2/repository/models/detector/load", 404, "path-unknown"),
        ("POST", "/v2/repository/models/detector_r1/unload", 404, "path-unknown"),
        ("GET", "/v2/models/detector/config", 404, "path-unknown"),
        ("GET", "/v2/systemsharedmemory/status", 404, "path-unknown"),
        ("POST", "/v2/models/../repository/index", 404, "path-unknown"),
        ("POST", "/v2/models/detector%2Finfer", 404, "path-unknown"),
        ("POST", "/v2/models/detector/versions/-1/infer", 404, "path-unknown"),
        ("POST", "/v2/models/detector/versions/1x/infer", 404, "path-unknown"),
        ("POST", "/v2/models/detector/versions/9999999999/infer", 404, "path-unknown"),
        ("POST", "/v2/models/detector/versions/9/infer", 404, "version-unknown"),
        ("GET", "/v2/models/detector/versions/9/ready", 404, "version-unknown"),
        ("POST", "/v2/models/detector_r1/infer", 404, "model-unknown"),
        ("GET", "/v2/models/other/ready", 404, "model-unknown"),
        ("POST", "/detect?score=0.5", 400, "query"),
        ("GET", "/detect", 405, "method"),
        ("DELETE", "/detect", 405, "method"),
        ("HEAD", "/health", 405, "method"),
        ("POST", "/health", 405, "method"),
        ("POST", "/metrics", 405, "method"),
        ("GET", "/v2/models/detector/infer", 405, "method"),
        ("POST", "/v2/models/detector/ready", 405, "method"),
        ("POST", "/v2/models/detector", 405, "method"),
    ],
)
def test_wrong_paths_and_methods(method: str, path: str, status: int, code: str) -> None:
    async def scenario(case: Case) -> None:
        reply = await case.ask(method, path)
        assert reply.status == status
        if method != "HEAD":
            assert reply.code == code
        if status == 405:
            assert reply.headers["allow"] in ("GET", "POST")
        assert case.triton.asked == []

    run(scenario)


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    async def scenario(case: Case) -> None:
        reply = parsed(await case.send(POST + b"Content-Length: 1000001\r\n\r\n" + b"x" * 100))
        assert (reply.status, reply.code, reply.headers["connection"]) == (413, "body-size", "close")
        assert case.count(413, release="") == 1

    run(scenario, body_bytes=1_000_000)


def test_a_chunked_body_is_cut_off_at_the_limit() -> None:
    async def scenario(case: Case) -> None:
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        sound = await case.send(POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 2 + b"0\r\n\r\n")
        assert parsed(sound).status == 200
        assert len(case.triton.asked[-1].body) == 0x10000
        reply = parsed(await case.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 4))
        assert (reply.status, reply.code) == (413, "body-size")

    run(scenario, body_bytes=100_000)


def test_a_body_of_exactly_the_limit_passes() -> None:
    async def scenario(case: Case) -> None:
        assert (await case.detect(b"x" * 100_000)).status == 200

    run(scenario, body_bytes=100_000)


def test_no_body_is_no_image() -> None:
    async def scenario(case: Case) -> None:
        assert (await case.detect(b"")).code == "body-empty"
        assert parsed(await case.send(POST + b"Connection: close\r\n\r\n")).code == "body-empty"

    run(scenario)


def test_a_slow_upload_is_ended() -> None:
    async def scenario(case: Case) -> None:
        started = time.perf_counter()
        reply = parsed(await case.send(POST + b"Content-Length: 100\r\n\r\n" + b"x" * 99))
        assert (reply.status, reply.code, reply.headers["connection"]) == (408, "upload-slow", "close")
        assert 0.2 <= time.perf_counter() - started < 3.0

    run(scenario, upload_s=0.2)


def test_a_client_that_says_nothing_is_cut_off() -> None:
    async def scenario(case: Case) -> None:
        assert await case.send(b"") == b""
        assert await case.send(b"POST /detect HT") == b""

    run(scenario, idle_s=0.3)


def test_an_upload_that_is_half_closed_too_early_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(case: Case) -> None:
        for raw in (b"Content-Length: 100\r\n\r\n" + b"x" * 40, b"Transfer-Encoding: chunked\r\n\r\n5\r\nxx"):
            reply = parsed(await case.send(POST + raw, half_close=True))
            assert (reply.status, reply.code) == (400, "body-incomplete")
        assert case.triton.asked == []

    with caplog.at_level(logging.WARNING):
        run(scenario)
    assert caplog.records == []


def test_a_whole_request_that_is_half_closed_is_answered() -> None:
    async def slow(asked: Asked) -> bytes:
        await asyncio.sleep(0.1)
        return await good(asked)

    async def scenario(case: Case) -> None:
        assert parsed(await case.send(POST + b"Content-Length: 4\r\n\r\nJPEG", half_close=True)).status == 200

    run(scenario, answer=slow)


def test_a_client_that_goes_away_leaves_no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(case: Case) -> None:
        for raw in (b"Content-Length: 100\r\n\r\nxx", b"Content-Length: 4\r\n\r\nJPEG"):
            _, writer = await asyncio.open_connection("127.0.0.1", case.port)
            writer.write(POST + raw)
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.transport.abort()
        await asyncio.sleep(0.1)
        assert case.gateway.answering == 0

    with caplog.at_level(logging.WARNING):
        run(scenario)
    assert caplog.records == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "GZIP"])
def test_compressed_bodies_are_refused_unread(encoding: str) -> None:
    async def scenario(case: Case) -> None:
        reply = await case.detect(b"\x1f\x8b\x08\0", {"Content-Encoding": encoding})
        assert (reply.status, reply.code) == (415, "content-encoding")
        assert (await case.detect(b"JPEG", {"Content-Encoding": "identity"})).status == 200

    run(scenario)


def test_100_continue_is_said_only_to_a_body_that_will_be_read() -> None:
    async def scenario(case: Case) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", case.port)
        writer.write(POST + b"Connection: close\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"JPEG")
        assert parsed(await asyncio.wait_for(reader.read(), 5)).status == 200
        writer.close()
        large = await case.send(POST + b"Content-Length: 2000000\r\nExpect: 100-continue\r\n\r\n", half_close=True)
        assert parsed(large).status == 413
        other = parsed(await case.send(POST + b"Content-Length: 4\r\nExpect: tea\r\n\r\nJPEG"))
        assert (other.status, other.code) == (417, "expectation")

    run(scenario, body_bytes=1_000_000)


@pytest.mark.parametrize(
    "raw",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60) + b"\r\n\r\n",
        b"POST /detect HTTP/9.9\r\nHost: x\r\n\r\n",
        POST + b"Content-Length: abc\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nJPEG",
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Bad Header: x\r\n\r\n",
        POST + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
        POST + b"".join(b"X%d: y\r\n" % index for index in range(500)) + b"\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: gzip, chunked, gzip\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_json_and_the_connection_is_closed(raw: bytes) -> None:
    async def scenario(case: Case) -> None:
        reply = parsed(await case.send(raw))
        assert reply.status == 400
        assert reply.code in ("http-broken", "body-incomplete")
        assert case.triton.asked == []

    run(scenario)


def test_two_requests_in_one_packet_are_answered_in_order() -> None:
    async def scenario(case: Case) -> None:
        one = POST + b"X-Request-Id: a\r\nContent-Length: 4\r\n\r\nJPEG"
        other = POST + b"X-Request-Id: b\r\nConnection: close\r\nContent-Length: 3\r\n\r\nPNG"
        raw = await case.send(one + other)
        assert raw.count(b"HTTP/1.1 200") == 2
        assert raw.index(b'"request_id":"a"') < raw.index(b'"request_id":"b"')
        assert [asked.body for asked in case.triton.asked] == [b"JPEG", b"PNG"]

    run(scenario)


def test_a_connection_is_kept_after_a_clients_error() -> None:
    async def scenario(case: Case) -> None:
        bad = b"POST /v2/models/detector/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
        raw = await case.send(bad + POST + b"Connection: close\r\nContent-Length: 4\r\n\r\nJPEG")
        assert raw.startswith(b"HTTP/1.1 400")
        assert b"HTTP/1.1 200" in raw

    run(scenario)


def test_an_error_says_what_was_got_and_what_is_allowed() -> None:
    async def scenario(case: Case) -> None:
        fields = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [9, 1], "data": ["x"] * 9}]}
        reply = await case.infer(fields)
        assert reply.status == 400
        assert reply.json["error"] == "the batch is too large or empty (got: 9; allowed: 1 to 4; fix: send several requests)"
        assert reply.json["reason"] == {
            "code": "batch",
            "what": "the batch is too large or empty",
            "got": "9",
            "allowed": "1 to 4",
            "fix": "send several requests",
        }
        assert case.count(400) == 1
        long = await case.infer({"x" * 5000: 1})
        assert len(long.body) < 2000

    run(scenario)


def test_a_port_that_is_taken_is_named() -> None:
    async def scenario() -> None:
        async with served() as case:
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                port = taken.getsockname()[1]
                await case.gateway.stop()
                with pytest.raises(BadInput, match=str(port)) as caught:
                    await case.gateway.start(port=port)
            assert caught.value.code == "gateway-port"
            case.port = await case.gateway.start()
            assert (await case.detect()).status == 200

    run_as_served(scenario())


def test_it_listens_on_loopback_alone() -> None:
    async def scenario(case: Case) -> None:
        assert case.gateway.addresses == [("127.0.0.1", case.port)]

    run(scenario)


def test_a_stop_answers_what_is_in_flight() -> None:
    async def slow(asked: Asked) -> bytes:
        await asyncio.sleep(0.3)
        return await good(asked)

    async def scenario() -> None:
        async with served(slow) as case:
            waiting = asyncio.ensure_future(case.detect())
            while not case.triton.asked:
                await asyncio.sleep(0.01)
            await case.gateway.stop()
            assert (await waiting).status == 200
            with pytest.raises(ConnectionRefusedError):
                await case.detect()

    run_as_served(scenario())


def test_errors_are_json_with_a_content_type() -> None:
    async def scenario(case: Case) -> None:
        reply = await case.ask("GET", "/none")
        assert reply.headers["content-type"].startswith("application/json")
        assert json.loads(reply.body)["error"]["code"] == "path-unknown"
        assert json.loads((await case.ask("GET", "/v2/none")).body)["reason"]["code"] == "path-unknown"
        assert reply.headers["server"] == "redline"

    run(scenario)
