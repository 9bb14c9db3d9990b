"""HTTP/1.1 as it may come: in any pieces, several requests at once, framed in every lawful way, from clients of every pace."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from gateway_case import Asked, Case, Reply, good, infer_answer, run_as_served, served
from hypothesis import given, settings
from hypothesis import strategies as st

from redline.serve.gateway.body import JOINED_BYTES, SMALL_BYTES, Buffer, keep
from redline.serve.gateway.call import Call
from redline.serve.gateway.connection import LINGER_S
from redline.serve.gateway.limits import Limits

POST = b"POST /detect HTTP/1.1\r\nHost: x\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
IMAGE = b"JPEG\r\n\r\nGET / HTTP/1.1\r\n\r\n"
"""Has in it what ends a head."""


def sized(body: bytes, *lines: bytes) -> bytes:
    return POST + b"".join(line + b"\r\n" for line in (*lines, b"Content-Length: %d" % len(body))) + b"\r\n" + body


def chunked(*chunks: bytes, lines: bytes = b"", trailers: bytes = b"") -> bytes:
    parts = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return POST + lines + b"Transfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n" + trailers + b"\r\n"


def run(scenario: Callable[[Case], Awaitable[None]], **limits: Any) -> None:
    async def whole() -> None:
        async with served(**limits) as case:
            await scenario(case)
            assert (await case.detect()).status == 200, "it must be alive afterwards"
            assert (case.gateway.answering, case.gateway.buffer.used) == (0, 0)

    run_as_served(whole())


class Client:
    """One connection, which reads an answer at a time."""

    def __init__(self, case: Case) -> None:
        self._case = case

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._case.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def answer(self) -> Reply:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in head[1:] if line)}
        body = await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), 5)
        return Reply(int(head[0].split(" ")[1]), headers, body)

    async def ask(self, raw: bytes) -> Reply:
        self.writer.write(raw)
        return await self.answer()

    async def closed(self, wait_s: float = 3.0) -> bool:
        return await asyncio.wait_for(self.reader.read(), wait_s) == b""


MIXED = (
    sized(IMAGE, b"X-Request-Id: a")
    + chunked(IMAGE, b"y" * 40, lines=b"X-Request-Id: b\r\n", trailers=b"X-Request-Id: evil\r\n")
    + LIVE
    + sized(b"PNG", b"X-Request-Id: c")
)


def check_mixed(raw: bytes, case: Case) -> None:
    assert raw.count(b"HTTP/1.1 200 OK\r\n") == 4
    found = [raw.index(text) for text in (b'"request_id":"a"', b'"request_id":"b"', b'{"live":true}', b'"request_id":"c"')]
    assert found == sorted(found)
    assert b"evil" not in raw
    assert [asked.body for asked in case.triton.asked] == [IMAGE, IMAGE + b"y" * 40, b"PNG"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, len(MIXED) - 1), max_size=6))
def test_requests_may_come_in_any_pieces_and_several_at_once(cuts: list[int]) -> None:
    edges = [0, *sorted(set(cuts)), len(MIXED)]

    async def scenario(case: Case) -> None:
        async with Client(case) as client:
            for start, end in itertools.pairwise(edges):
                client.writer.write(MIXED[start:end])
                await asyncio.sleep(0.002)
            client.writer.write_eof()
            check_mixed(await asyncio.wait_for(client.reader.read(), 5), case)

    run(scenario)


def test_requests_may_come_a_byte_at_a_time() -> None:
    async def scenario(case: Case) -> None:
        async with Client(case) as client:
            for at in range(len(MIXED)):
                client.writer.write(MIXED[at : at + 1])
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            client.writer.write_eof()
            check_mixed(await asyncio.wait_for(client.reader.read(), 5), case)

    run(scenario)


def test_requests_that_wait_their_turn_are_answered_in_order_and_not_asked_before() -> None:
    async def slow(asked: Asked) -> bytes:
        await asyncio.sleep(0.1)
        return await good(asked)

    async def scenario(case: Case) -> None:
        async with Client(case) as client:
            client.writer.write(b"".join(sized(b"%d" % index) for index in range(4)))
            await asyncio.sleep(0.05)
            assert [asked.body for asked in case.triton.asked] == [b"0"]
            client.writer.write(LIVE)
            for _ in range(4):
                assert len((await client.answer()).json["detections"]) == 2
            assert (await client.answer()).json == {"live": True}
            assert [asked.body for asked in case.triton.asked] == [b"0", b"1", b"2", b"3"]

    run(scenario, answer=slow)


def test_thousands_of_small_requests_in_a_packet_are_answered() -> None:
    async def scenario(case: Case) -> None:
        raw = await case.send((LIVE + b"GET /none HTTP/1.1\r\n\r\n") * 2000, half_close=True, wait_s=30)
        assert (raw.count(b"HTTP/1.1 200"), raw.count(b"HTTP/1.1 404")) == (2000, 2000)

    run(scenario)


def test_a_client_that_does_not_read_is_not_read_from_either() -> None:
    async def large(asked: Asked) -> bytes:
        return infer_answer(asked, errors=["x" * 1_000_000])

    asking = json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["JPEG"]}]}).encode()
    head = b"POST /v2/models/detector/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(asking)

    async def scenario(case: Case) -> None:
        async with Client(case) as client:
            client.writer.transport.pause_reading()
            client.writer.write((head + asking) * 60)
            await asyncio.sleep(0.6)
            first = len(case.triton.asked)
            await asyncio.sleep(0.2)
            assert len(case.triton.asked) == first < 60
            client.writer.transport.resume_reading()
            for _ in range(60):
                assert (await client.answer()).status == 200
        case.triton.answer = good

    run(scenario, answer=large)


def test_an_answer_that_nobody_reads_does_not_hold_its_connection_for_ever() -> None:
    async def large(asked: Asked) -> bytes:
        return infer_answer(asked, errors=["x" * 9_000_000])

    asking = json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["JPEG"]}]}).encode()
    head = b"POST /v2/models/detector/infer HTTP/1.1\r\nHost: x\r\nConnection: %b\r\nContent-Length: %d\r\n\r\n"

    async def scenario(case: Case) -> None:
        for kind in (b"close", b"keep-alive"):
            async with Client(case) as client:
                client.writer.transport.pause_reading()
                client.writer.write(head % (kind, len(asking)) + asking)
                while not case.gateway.connections:
                    await asyncio.sleep(0.01)
                end_s = asyncio.get_running_loop().time() + 3
                while case.gateway.connections and asyncio.get_running_loop().time() < end_s:
                    await asyncio.sleep(0.01)
                assert not case.gateway.connections
        case.triton.answer = good

    run(scenario, answer=large, idle_s=0.3)


def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    async def slow(asked: Asked) -> bytes:
        await asyncio.sleep(0.5)
        return await good(asked)

    async def scenario(case: Case) -> None:
        async with Client(case) as client:
            assert (await client.ask(sized(b"JPEG"))).status == 200
            started = asyncio.get_running_loop().time()
            assert await client.closed()
            assert 0.1 < asyncio.get_running_loop().time() - started < 1.0

    run(scenario, answer=slow, idle_s=0.2)


@pytest.mark.parametrize(
    "offer",
    [
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n",
        b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    ],
)
def test_another_protocol_is_never_taken_up(offer: bytes) -> None:
    async def scenario(case: Case) -> None:
        async with Client(case) as client:
            for _ in range(2):
                reply = await client.ask(POST + offer + b"Content-Length: 4\r\n\r\nJPEG")
                assert (reply.status, case.triton.asked[-1].body) == (200, b"JPEG")
            reply = await client.ask(LIVE.replace(b"\r\n\r\n", b"\r\n" + offer + b"\r\n"))
            assert (reply.json, reply.headers["connection"]) == ({"live": True}, "close")
            assert await client.closed()
            raw = await case.send(chunked(b"JPEG", lines=offer))
            assert raw.startswith(b"HTTP/1.1 400")

    run(scenario)


def test_a_url_may_have_its_host_in_it() -> None:
    async def scenario(case: Case) -> None:
        for url, status in (
            (b"http://x:1/detect", 200),
            (b"/detect#part", 200),
            (b"/detect?", 200),
            (b"http://x/none", 404),
            (b"*", 404),
        ):
            async with Client(case) as client:
                assert (await client.ask(sized(b"JPEG").replace(b"/detect", url))).status == status

    run(scenario)


def test_an_old_client_is_told_whether_the_connection_is_kept() -> None:
    async def scenario(case: Case) -> None:
        old = sized(b"JPEG").replace(b"HTTP/1.1", b"HTTP/1.0")
        async with Client(case) as client:
            reply = await client.ask(old.replace(b"Host: x", b"Connection: keep-alive"))
            assert (reply.status, reply.headers["connection"]) == (200, "keep-alive")
            reply = await client.ask(old)
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert await client.closed()

    run(scenario)


def test_a_head_alone_is_asked_for_and_gets_no_body() -> None:
    async def scenario(case: Case) -> None:
        async with Client(case) as client:
            client.writer.write(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 405")
            assert (await client.ask(LIVE)).json == {"live": True}

    run(scenario)


def test_the_body_of_a_refused_request_is_skipped_and_the_connection_kept() -> None:
    async def scenario(case: Case) -> None:
        for wrong in (sized(IMAGE * 90_000), chunked(*[IMAGE * 3000] * 30)):
            async with Client(case) as client:
                client.writer.write(wrong.replace(b"/detect", b"/none"))
                assert (await client.answer()).status == 404
                assert (await client.ask(sized(b"JPEG"))).status == 200
        assert [asked.body for asked in case.triton.asked] == [b"JPEG", b"JPEG"]

    run(scenario)


def test_the_rest_of_a_refused_body_is_not_waited_for_for_ever() -> None:
    async def scenario(case: Case) -> None:
        async with Client(case) as client:
            client.writer.write(POST.replace(b"/detect", b"/none") + b"Content-Length: 100\r\n\r\nx")
            assert (await client.answer()).status == 404
            started = asyncio.get_running_loop().time()
            assert await client.closed()
            assert asyncio.get_running_loop().time() - started == pytest.approx(LINGER_S, abs=0.5)

    run(scenario)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /" + b"a" * 40_000,
        POST + b"X: " + b"a" * 40_000,
        POST + b"X" * 40_000,
        b"\r\n" * 20_000,
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"e" * 40_000,
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 40_000,
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 500,
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"X: a\r\n folded\r\n\r\n",
        POST.replace(b"\r\n", b"\n") + b"\n",
        sized(b"JPEG", b"X: \x00"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    ],
)
def test_a_line_without_end_and_lax_framing_are_refused_at_once(raw: bytes) -> None:
    async def scenario(case: Case) -> None:
        answer = await case.send(raw, wait_s=3.0)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"Connection: close\r\n" in answer
        assert case.triton.asked == []

    run(scenario)


def test_what_follows_a_broken_request_is_never_taken_for_one() -> None:
    async def scenario(case: Case) -> None:
        raw = await case.send(POST + b"Content-Length: 4\r\nContent-Length: 3\r\n\r\nJPEG" + sized(b"smuggled"))
        assert (raw.count(b"HTTP/1.1"), case.triton.asked) == (1, [])
        raw = await case.send(sized(b"JPEG", b"Connection: close") + sized(b"after the end"))
        assert raw.count(b"HTTP/1.1") == 1
        assert [asked.body for asked in case.triton.asked] == [b"JPEG"]

    run(scenario)


def test_a_fault_of_the_gateway_is_a_500_without_its_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    async def scenario(case: Case) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("redline.serve.gateway.app.found_in", broken)
            reply = await case.detect()
        assert (reply.status, reply.code, case.count(500)) == (500, "gateway-fault", 1)
        assert b"secret" not in reply.body
        assert case.gateway.in_flight(1) == 0

    with caplog.at_level(logging.WARNING):
        run(scenario)
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_stop_does_not_wait_for_idle_clients_and_not_for_ever_for_slow_ones() -> None:
    async def scenario() -> None:
        async with served(answer_s=0.3) as case, Client(case) as idle, Client(case) as slow:
            assert (await idle.ask(LIVE)).status == 200
            slow.writer.write(POST + b"Content-Length: 4\r\n\r\nJP")
            await asyncio.sleep(0.05)
            started = asyncio.get_running_loop().time()
            await case.gateway.stop()
            assert asyncio.get_running_loop().time() - started < 1.0
            assert await idle.closed()
            assert case.gateway.answering == 0

    run_as_served(scenario())


@given(st.lists(st.binary(min_size=1, max_size=30) | st.just(b"x" * SMALL_BYTES), min_size=1, max_size=40))
def test_small_pieces_of_a_body_are_held_together(pieces: list[bytes]) -> None:
    call, buffer = Call(None, b"POST", b"/detect", {}, keeps=True), Buffer(10**9)  # type: ignore[arg-type]
    for piece in pieces:
        keep(call, piece, Limits(), buffer)
    assert b"".join(call.pieces) == b"".join(pieces)
    assert call.size == buffer.used == sum(map(len, pieces))
    assert len(call.pieces) <= 2 + 2 * sum(len(piece) >= SMALL_BYTES for piece in pieces)


def test_a_million_small_pieces_take_few_objects() -> None:
    call, buffer = Call(None, b"POST", b"/detect", {}, keeps=True), Buffer(10**9)  # type: ignore[arg-type]
    for _ in range(1_000_000):
        keep(call, b"xy", Limits(), buffer)
    assert len(call.pieces) <= 2 + 2_000_000 // JOINED_BYTES
