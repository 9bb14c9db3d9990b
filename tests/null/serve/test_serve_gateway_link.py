"""The lean client: answers in any pieces, connections kept or not, and nothing of one request in another's answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise

import pytest
from gateway_case import run_as_served
from hypothesis import given, settings
from hypothesis import strategies as st

from redline.serve.gateway.link import IDLE, Answered, LinkDown, LinkError, LinkGarbage, LinkLate, LinkLost, Links

HEAD = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n"
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *lines)) + b"\r\n\r\n" + body


class Server:
    """`handle` serves one connection."""

    def __init__(self, handle: Handle) -> None:
        self._handle, self.connections, self.open = handle, 0, 0

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        while self.open:
            await asyncio.sleep(0.005)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            await self._handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self.open -= 1


def saying(*parts: bytes, pause_s: float = 0.0) -> Handle:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readexactly(len(HEAD) + 4)
            for part in parts:
                writer.write(part)
                if pause_s:
                    await asyncio.sleep(pause_s)

    return handle


async def ask(links: Links, port: int, seconds: float = 5.0) -> Answered:
    return await links.exchange("127.0.0.1", port, HEAD, (b"bo", memoryview(b"dy")), seconds)


async def left_open(server: Server, count: int) -> bool:
    """Whether the server comes to have so many connections."""
    end = asyncio.get_running_loop().time() + 3
    while server.open != count and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.005)
    return server.open == count


def run(handle: Handle, scenario: Callable[[Server, Links], Awaitable[None]]) -> None:
    async def whole() -> None:
        links = Links(1.0)
        async with Server(handle) as server:
            try:
                await scenario(server, links)
            finally:
                links.close()

    run_as_served(whole())


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=40), st.lists(st.integers(0, 130), max_size=6))
def test_an_answer_may_come_in_any_pieces(body: bytes, cuts: list[int]) -> None:
    raw = answer(body, b"X-One: a: b", b"EMPTY:")
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    parts = [raw[a:b] for a, b in pairwise(edges)]

    async def scenario(server: Server, links: Links) -> None:
        for _ in range(2):
            found = await ask(links, server.port)
            assert (found.status, found.body) == (200, body)
            assert (found.headers[b"x-one"], found.headers[b"empty"]) == (b"a: b", b"")
        assert server.connections == 1

    run(saying(*parts, pause_s=0.001), scenario)


@pytest.mark.parametrize(
    "raw",
    [
        answer(b"x") + b"y",
        answer(b"x") * 2,
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        b"\r\n\r\n",
        b"x" * 20_000,
    ],
)
def test_another_kind_of_answer_is_garbage_and_ends_the_connection(raw: bytes) -> None:
    async def scenario(server: Server, links: Links) -> None:
        with pytest.raises(LinkGarbage):
            await ask(links, server.port)
        with pytest.raises(LinkGarbage):
            await ask(links, server.port)
        assert server.connections == 2

    run(saying(raw), scenario)


def test_a_connection_that_the_server_will_close_is_not_kept() -> None:
    async def scenario(server: Server, links: Links) -> None:
        for _ in range(3):
            assert (await ask(links, server.port)).body == b"x"
        assert server.connections == 3

    run(saying(answer(b"x", b"Connection: Close")), scenario)


def test_a_connection_closed_while_idle_is_replaced() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(HEAD) + 4)
        writer.write(answer(b"x"))

    async def scenario(server: Server, links: Links) -> None:
        for _ in range(3):
            assert (await ask(links, server.port)).body == b"x"
            await asyncio.sleep(0.02)
        assert server.connections == 3

    run(once, scenario)


def test_data_that_nobody_asked_for_never_becomes_an_answer() -> None:
    async def talkative(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(HEAD) + 4)
        writer.write(answer(b"mine"))
        await asyncio.sleep(0.02)
        writer.write(answer(b"nobody's"))
        await reader.read()

    async def scenario(server: Server, links: Links) -> None:
        for _ in range(2):
            assert (await ask(links, server.port)).body == b"mine"
            await asyncio.sleep(0.05)
        assert server.connections == 2

    run(talkative, scenario)


def test_a_late_answer_meets_nobody_elses_request() -> None:
    async def slow_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(HEAD) + 4)
        if server_of[0].connections == 1:
            await asyncio.sleep(0.2)
            writer.write(answer(b"late"))
        else:
            writer.write(answer(b"mine"))
        await reader.read()

    server_of: list[Server] = []

    async def scenario(server: Server, links: Links) -> None:
        server_of.append(server)
        with pytest.raises(LinkLate):
            await ask(links, server.port, 0.05)
        assert (await ask(links, server.port)).body == b"mine"
        assert await left_open(server, 1)
        assert server.connections == 2

    run(slow_first, scenario)


def test_a_request_that_is_given_up_breaks_its_connection() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scenario(server: Server, links: Links) -> None:
        task = asyncio.ensure_future(ask(links, server.port))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await left_open(server, 0)
        assert server.connections == 1

    run(silent, scenario)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-", answer(b"x" * 100)[:-1]])
def test_an_answer_that_breaks_off_is_lost(sent: bytes) -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(HEAD) + 4)
        writer.write(sent)

    async def scenario(server: Server, links: Links) -> None:
        with pytest.raises(LinkLost):
            await ask(links, server.port)

    run(broken, scenario)


def test_a_connection_that_breaks_as_soon_as_it_is_made_is_noticed_at_once() -> None:
    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def scenario(server: Server, links: Links) -> None:
        for _ in range(20):
            with pytest.raises(LinkError):
                await asyncio.wait_for(ask(links, server.port), 1.0)

    run(refusing, scenario)


def test_no_connection_is_down() -> None:
    async def scenario(server: Server, links: Links) -> None:
        server._server.close()
        await server._server.wait_closed()
        with pytest.raises(LinkDown):
            await ask(links, server.port)

    run(saying(b""), scenario)


def test_a_burst_leaves_no_more_connections_than_are_kept() -> None:
    async def scenario(server: Server, links: Links) -> None:
        await asyncio.gather(*(ask(links, server.port) for _ in range(IDLE + 20)))
        assert await left_open(server, IDLE)
        assert server.connections == IDLE + 20
        links.close()
        assert await left_open(server, 0)

    run(saying(b"HTTP/1.1 200 OK\r\n", b"Content-Length: 1\r\n\r\nx", pause_s=0.05), scenario)


def test_a_connection_in_use_when_all_are_closed_still_answers_and_is_closed_after() -> None:
    async def scenario(server: Server, links: Links) -> None:
        task = asyncio.ensure_future(ask(links, server.port))
        await asyncio.sleep(0.05)
        links.close()
        assert (await task).body == b"x"
        assert await left_open(server, 0)

    run(saying(b"HTTP/1.1 200 OK\r\n", b"Content-Length: 1\r\n\r\nx", pause_s=0.1), scenario)
