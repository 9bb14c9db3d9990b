"""Kept connections to Triton. A lean HTTP/1.1 client, because what a general one costs is a third of what the gateway adds.

It takes only answers with a Content-Length, which all of Triton's have; anything else is an error and ends the connection.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, cast

from redline.serve.gateway.body import Piece
from redline.serve.http_head import Head, head_end, parse_head

IDLE: Final = 64
"""Connections kept while nothing is asked; those of a burst beyond it are closed."""


JOINED_BYTES: Final = 1 << 16
"""A shorter request is sent in one piece: a copy costs less than the system call for many."""


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


class Answered(NamedTuple):
    status: int
    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    body: bytes | memoryview


Outcome = Answered | LinkError
Done = Callable[[Outcome], None]


class Link(asyncio.Protocol):
    """One connection; one exchange at a time. `idle` is told when it can take another."""

    def __init__(self, idle: Callable[[Link], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._done: Done | None = None
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        """Set by the first exchange and left to run: it looks whether another is due."""
        self._received = bytearray()
        """Of an answer that comes in several pieces."""
        self._head: Head | None = None
        self.place: tuple[str, int] | None = None
        self.usable = False
        """Open, and nothing of an earlier exchange is left in it."""

    def ask(self, head: bytes, pieces: Sequence[Piece], seconds: float, done: Done) -> None:
        """Send one request. `done` is called once, in the turn of the event loop in which the outcome is known."""
        if not self.usable:
            done(LinkLost("closed before it was used"))
            return
        self._done, self.usable = done, False
        transport = cast(asyncio.Transport, self._transport)
        if sum(map(len, pieces)) < JOINED_BYTES:
            transport.write(b"".join((head, *pieces)))
        else:
            transport.writelines((head, *pieces))
        self._due_s = due_s = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > due_s:
            self._watch(due_s)

    def give_up(self) -> None:
        self._fail(LinkLost("given up"))

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.usable = cast(asyncio.Transport, transport), True

    def eof_received(self) -> None:
        self.usable = False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fail(LinkLost(str(exc or "closed")))

    def data_received(self, data: bytes) -> None:
        if self._done is None:
            return self._fail(LinkGarbage("data that nobody asked for"))
        received: bytes | bytearray = data
        if self._received:
            self._received += data
            received = self._received
        head = self._head
        if head is None:
            try:
                end = head_end(received)
                head = self._head = None if end is None else _parse(bytes(received[:end]))
            except (ValueError, IndexError, KeyError) as error:
                return self._fail(LinkGarbage(str(error)))
        if head is None or len(received) < head.end:
            if received is data:
                self._received += data
            return None
        if len(received) > head.end:
            return self._fail(LinkGarbage("more data than announced"))
        return self._settle(Answered(head.status, head.headers, memoryview(received)[head.start :]), usable=head.keeps)

    def _settle(self, outcome: Outcome, *, usable: bool) -> None:
        done, self._done, self._head, self.usable = self._done, None, None, usable
        if self._received:
            self._received = bytearray()
        if done is None:
            return
        if usable:
            self._idle(self)
        elif self._transport is not None:
            self._transport.close()
        done(outcome)

    def _watch(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._done is None:
            return
        if self._loop.time() < self._due_s:
            self._watch(self._due_s)
        else:
            self._fail(LinkLate("no answer in time"))

    def _fail(self, error: LinkError) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._settle(error, usable=False)


class Links:
    """The connections to one server, which may come back elsewhere."""

    def __init__(self, connect_s: float) -> None:
        self._connect_s = connect_s
        self._idle: list[Link] = []
        self._place: tuple[str, int] | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    def ask(self, host: str, port: int, head: bytes, pieces: Sequence[Piece], seconds: float, done: Done) -> None:
        """Send one request; `done` is called once, with its answer or with why there is none."""
        place = host, port
        link = self._take(place)
        if link is not None:
            link.ask(head, pieces, seconds, done)
            return
        task = asyncio.get_running_loop().create_task(self._connect_and_ask(place, head, pieces, seconds, done))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def exchange(self, host: str, port: int, head: bytes, pieces: Sequence[Piece], seconds: float) -> Answered:
        """The same, awaited. Raises LinkDown, LinkLost, LinkLate, LinkGarbage. Cancelled, it breaks its connection off."""
        place = host, port
        link = self._take(place) or await self._connect(place)
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        link.ask(head, pieces, seconds, partial(_settle, waiter))
        try:
            outcome = await waiter
        except asyncio.CancelledError:
            link.give_up()
            raise
        if isinstance(outcome, LinkError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Close what is kept; connections in use are closed after their answer."""
        self._place = None
        while self._idle:
            self._idle.pop().close()

    def _take(self, place: tuple[str, int]) -> Link | None:
        if place != self._place:
            self.close()
            self._place = place
        while self._idle:
            if (link := self._idle.pop()).usable:
                return link
        return None

    def _keep(self, link: Link) -> None:
        if link.usable and link.place == self._place and len(self._idle) < IDLE:
            self._idle.append(link)
        else:
            link.close()

    async def _connect(self, place: tuple[str, int]) -> Link:
        connecting = asyncio.get_running_loop().create_connection(partial(Link, self._keep), *place)
        try:
            link = (await asyncio.wait_for(connecting, self._connect_s))[1]
        except (OSError, asyncio.TimeoutError) as error:
            raise LinkDown(str(error)) from error
        link.place = place
        return link

    async def _connect_and_ask(
        self, place: tuple[str, int], head: bytes, pieces: Sequence[Piece], seconds: float, done: Done
    ) -> None:
        try:
            link = await self._connect(place)
        except LinkDown as error:
            done(error)
        else:
            link.ask(head, pieces, seconds, done)


_parse = functools.lru_cache(maxsize=256)(parse_head)
"""A model's answers all have one head, or a few."""


def _settle(waiter: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not waiter.done():
        waiter.set_result(outcome)
