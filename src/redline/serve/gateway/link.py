"""Kept connections to Triton. A lean HTTP/1.1 client, because what a general one costs is a third of what the gateway adds.

It takes only answers with a Content-Length, which all of Triton's have; anything else is an error and ends the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from redline.serve.gateway.body import Piece
from redline.serve.http_head import Head, read_head

IDLE: Final = 64
"""Connections kept while nothing is asked; those of a burst beyond it are closed."""


class LinkError(Exception):
    """Triton could not be asked, or did not answer."""


class LinkDown(LinkError):
    """No connection could be made: nothing was sent."""


class LinkLost(LinkError):
    """The connection broke before the answer was complete."""


class LinkLate(LinkError):
    """No answer in time. The connection was broken off, so that the late answer meets nobody else's request."""


class LinkGarbage(LinkError):
    """The answer is not the HTTP that is spoken here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    status: int
    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    body: bytes


class Link(asyncio.Protocol):
    """One connection; one exchange at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answered] | None = None
        self._received = bytearray()
        self._head: Head | None = None
        self.usable = False
        """Open, and nothing of an earlier exchange is left in it."""

    async def exchange(self, head: bytes, pieces: Sequence[Piece], seconds: float) -> Answered:
        """Raises LinkLost, LinkLate, LinkGarbage."""
        if not self.usable:
            raise LinkLost("closed before it was used")
        loop = asyncio.get_running_loop()
        self._waiter, self.usable = loop.create_future(), False
        late = loop.call_later(seconds, self._fail, LinkLate(f"{seconds:g} s"))
        try:
            cast(asyncio.Transport, self._transport).writelines((head, *pieces))
            return await self._waiter
        except asyncio.CancelledError:
            self._fail(LinkLost("given up"))
            raise
        finally:
            late.cancel()

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.usable = cast(asyncio.Transport, transport), True

    def eof_received(self) -> None:
        self.usable = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(LinkLost(str(exc or "closed")))

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            return self._fail(LinkGarbage("data that nobody asked for"))
        self._received += data
        if self._head is None:
            try:
                self._head = read_head(self._received)
            except (ValueError, IndexError, KeyError) as error:
                return self._fail(LinkGarbage(str(error)))
        if self._head is None or len(self._received) < self._head.end:
            return None
        if len(self._received) > self._head.end:
            return self._fail(LinkGarbage("more data than announced"))
        head, body = self._head, bytes(memoryview(self._received)[self._head.start :])
        self._received, self._head = bytearray(), None
        self.usable = head.keeps
        self._waiter.set_result(Answered(status=head.status, headers=head.headers, body=body))
        return None

    def _fail(self, error: LinkError) -> None:
        self.usable = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        if self._transport is not None:
            self._transport.abort()


class Links:
    """The connections to one server, which may come back elsewhere."""

    def __init__(self, connect_s: float) -> None:
        self._connect_s = connect_s
        self._idle: list[Link] = []
        self._place: tuple[str, int] | None = None

    async def exchange(self, host: str, port: int, head: bytes, pieces: Sequence[Piece], seconds: float) -> Answered:
        """Send one request and await its answer. Raises LinkDown, LinkLost, LinkLate, LinkGarbage."""
        link = await self._take(host, port)
        answered = await link.exchange(head, pieces, seconds)
        if link.usable and (host, port) == self._place and len(self._idle) < IDLE:
            self._idle.append(link)
        else:
            link.close()
        return answered

    def close(self) -> None:
        """Close what is kept; connections in use are closed after their answer."""
        self._place = None
        while self._idle:
            self._idle.pop().close()

    async def _take(self, host: str, port: int) -> Link:
        if (host, port) != self._place:
            self.close()
            self._place = host, port
        while self._idle:
            if (link := self._idle.pop()).usable:
                return link
        connecting = asyncio.get_running_loop().create_connection(Link, host, port)
        try:
            return (await asyncio.wait_for(connecting, self._connect_s))[1]
        except (OSError, asyncio.TimeoutError) as error:
            raise LinkDown(str(error)) from error
