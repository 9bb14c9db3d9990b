"""HTTP/1.1 connections: requests one after the other, heads and chunks read by llhttp, errors as JSON like all others.

A request is handed on as soon as its last byte is there, in the same turn of the event loop, and its answer is written in the
turn in which it is known: there is no task for a request. A body of announced length does not go through the parser, so it is
not copied.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, Protocol, cast

import httptools

from redline.serve.gateway.body import Buffer, ended_early, keep, too_slow
from redline.serve.gateway.call import Call
from redline.serve.gateway.limits import Limits
from redline.serve.gateway.refusal import Refused

END: Final = b"\r\n\r\n"
"""Of a head, and of a chunked body. Nothing is parsed beyond it, so that a request never begins before the one before is
answered."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LINGER_S: Final = 1.0
"""How long bytes of a refused body are still taken, so that the client can read why."""


class Owner(Protocol):
    """Who answers. Each method may answer at once or later, through `Call.connection.send`."""

    limits: Limits
    buffer: Buffer
    connections: set[Connection]

    def begin(self, call: Call) -> None:
        """The head is there. `call.wanted` False: the body is not."""

    def whole(self, call: Call) -> None:
        """The body that was wanted is there."""

    def refuse(self, call: Call, refused: Refused) -> None: ...


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, owner: Owner) -> None:
        self._owner, self._limits = owner, owner.limits
        self._loop = asyncio.get_running_loop()
        self._transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpRequestParser(self)
        """Of one message."""
        self._used = False
        self._url = b""
        self._fields: dict[bytes, bytes] = {}
        self._lines = 0
        """Header lines of this message, trailers included."""
        self._unproductive = 0
        """Bytes since the parser last found something: a line without end must not be held for ever."""
        self._tail = b""
        """Last bytes that the parser had, where an `END` may have begun."""
        self._chunks: list[bytes] = []
        self._ended = False
        """The parser saw the end of the message."""
        self._call: Call | None = None
        self._left = 0
        """Bytes still to come of a body of announced length."""
        self._held = b""
        """Came before the answer that is due."""
        self._taking = self._clogged = self._deaf = self._half_closed = False
        self._timer: asyncio.TimerHandle | None = None
        """Of a slow upload, or of lingering."""
        self._idle_since = self._loop.time()
        self._idle_timer = self._loop.call_later(owner.limits.idle_s, self._idle)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._owner.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf, self._held = True, b""
        self._idle_timer.cancel()
        self._stop_timer()
        self._owner.connections.discard(self)
        self._cut_off("connection lost")

    def eof_received(self) -> bool:
        """Half-closed by the client: what it asked for in full is still answered."""
        call = self._call
        if (call is None and not self._held) or self._deaf or (call is not None and call.answered):
            return False
        self._half_closed = True
        self._cut_off("the sending side was closed")
        return True

    def pause_writing(self) -> None:
        self._clogged = True

    def resume_writing(self) -> None:
        self._clogged = False
        if self._call is None:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        self._taking = True
        try:
            self._take(data)
        except Refused as refused:
            self._broken(refused)
        finally:
            self._taking = False

    # the owner's side

    def send(self, call: Call, answer: bytes) -> bool:
        """Write the answer to `call`; False if the client has gone."""
        there = not self._transport.is_closing()
        if there:
            self._transport.write(answer)
        call.answered, call.wanted = True, False
        self._stop_timer()
        if call.whole:
            self._finish(call)
        elif there:
            if not call.keeps:
                self._deaf = True
                self._transport.write_eof()
            self._timer = self._loop.call_later(LINGER_S, self._transport.close)
        return there

    def end(self) -> None:
        """Close, after the answer that is due."""
        if self._call is None or self._call.answered:
            self._transport.close()
        else:
            self._call.keeps = False

    def abort(self) -> None:
        self._transport.abort()

    def prepare(self) -> None:
        """For the next request, while nothing waits."""
        if self._used and self._call is None:
            self._parser = httptools.HttpRequestParser(self)
            self._url, self._lines, self._unproductive, self._ended = b"", 0, 0, False
            self._fields = {}
            self._used = False

    # what the parser says

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > self._limits.line_bytes or self._call is not None:
            raise _unsound("the request line")

    def on_header(self, name: bytes, value: bytes) -> None:
        limits = self._limits
        self._lines += 1
        self._unproductive = 0
        if self._lines > limits.headers or len(name) + len(value) > limits.line_bytes:
            raise _unsound("too many headers, or too long ones")
        name, value, fields = name.lower(), value.strip(), self._fields
        fields[name] = value if name not in fields else fields[name] + b", " + value

    def on_headers_complete(self) -> None:
        parser, fields = self._parser, self._fields
        self._call = Call(self, parser.get_method(), self._url, fields, keeps=parser.should_keep_alive())
        self._left = int(fields.get(b"content-length") or 0)
        self._fields = {}  # of trailers, which mean nothing here
        self._unproductive = 0

    def on_body(self, data: bytes) -> None:
        self._chunks.append(data)

    def on_message_complete(self) -> None:
        self._ended = not self._left

    # in between

    def _take(self, data: bytes) -> None:
        at, size = 0, len(data)
        while at < size and not self._deaf:
            call = self._call
            if self._clogged or (call is not None and call.whole):
                self._held += data[at:]
                self._transport.pause_reading()
                return
            if call is not None and self._left:
                end = min(size, at + self._left)
                self._left -= end - at
                if call.wanted:
                    self._keep(call, memoryview(data)[at:end])
                if not self._left:
                    self._whole(call)
            else:
                end = self._segment_end(data, at)
                self._parse(data[at:end])
            at = end
        call = self._call
        if call is not None and call.wanted and not call.whole:
            self._await_body(call)

    def _segment_end(self, data: bytes, at: int) -> int:
        """Behind the next `END`, which may have begun in the data before."""
        if self._tail:
            found = (self._tail + data[at : at + 3]).find(END)
            if found >= 0:
                return at + found + len(END) - len(self._tail)
        found = data.find(END, at)
        return len(data) if found < 0 else found + len(END)

    def _parse(self, segment: bytes) -> None:
        """Raises Refused for what is not HTTP."""
        if self._used:
            self.prepare()
        had, self._unproductive = self._call, self._unproductive + len(segment)
        upgrade = False
        try:
            self._parser.feed_data(segment)
        except httptools.HttpParserUpgrade:
            upgrade = True
        except httptools.HttpParserError as error:
            raise _unsound(str(error)) from error
        last = (self._tail + segment[-4:])[-4:]
        self._tail = b"" if last == END else last[-3:]
        call = self._call
        if call is None:
            if self._unproductive == 0:  # a header was found: what follows it is of the next line
                self._unproductive = len(segment) - segment.rfind(b"\n")
            if self._unproductive > self._limits.line_bytes * 2:
                raise _unsound("a line without end")
            return
        if had is None:
            self._begin(call, upgrade=upgrade)
        for chunk in self._chunks:
            if call.wanted:
                self._keep(call, chunk)
        if self._chunks:
            self._chunks, self._unproductive = [], 0
        if self._ended:
            self._whole(call)
        elif self._unproductive > self._limits.line_bytes * 2:
            raise _unsound("a line without end")

    def _begin(self, call: Call, *, upgrade: bool) -> None:
        """Another protocol is never taken up: the request counts as if it had not been offered."""
        coding = call.fields.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or upgrade):
            raise _unsound("this transfer coding is not taken")
        if upgrade and not self._left:
            call.keeps = False  # what follows may be of that protocol
        self._owner.begin(call)

    def _keep(self, call: Call, piece: bytes | memoryview) -> None:
        try:
            keep(call, piece, self._limits, self._owner.buffer)
        except Refused as refused:
            self._owner.refuse(call, refused)

    def _whole(self, call: Call) -> None:
        call.whole = True
        self._stop_timer()
        if call.answered:
            self._finish(call)
        elif call.wanted:
            self._owner.whole(call)

    def _await_body(self, call: Call) -> None:
        if self._timer is not None:
            return
        self._timer = self._loop.call_later(self._limits.upload_s, self._slow)
        if b"expect" in call.fields:
            self._transport.write(CONTINUE)

    def _slow(self) -> None:
        if self._call is not None and self._call.wanted:
            self._owner.refuse(self._call, too_slow(self._limits))

    def _broken(self, refused: Refused) -> None:
        """What came is no HTTP, or no body of the kind that was announced. Nothing after it can be understood."""
        call = self._call
        if call is None:
            call = self._call = Call(self, b"", self._url, {}, keeps=False)
        self._deaf, call.keeps = True, False
        if call.answered:
            self._transport.close()
        elif not call.wanted:
            call.whole = True
        elif call.begun:
            self._owner.refuse(call, ended_early(str(refused.got)))
        else:
            self._owner.refuse(call, refused)

    def _finish(self, call: Call) -> None:
        """Both the request and its answer are whole."""
        self._idle_since = self._loop.time()
        if not call.keeps or (self._half_closed and not self._held and not self._taking):
            self._deaf, self._held = True, b""
            self._transport.close()
            return
        self._call, self._used = None, True
        if self._held and not self._taking and not self._clogged:
            self._go_on()

    def _go_on(self) -> None:
        held, self._held = self._held, b""
        if not self._half_closed:
            self._transport.resume_reading()
        if held:
            self.data_received(held)
        if self._half_closed and self._call is None:
            self._transport.close()
        elif self._half_closed:
            self._cut_off("the sending side was closed")

    def _cut_off(self, why: str) -> None:
        """Nothing more will come."""
        call = self._call
        if call is None or call.whole:
            return
        call.whole, call.keeps = True, False
        if call.wanted:
            self._owner.refuse(call, ended_early(why))

    def _idle(self) -> None:
        """Looks seldom, so that a request has no timer to move."""
        now, idle_s = self._loop.time(), self._limits.idle_s
        closing = self._transport.is_closing()
        due = self._idle_since + idle_s if self._call is None or closing else now + idle_s
        if now < due:
            self._idle_timer = self._loop.call_at(due, self._idle)
        elif self._clogged or closing:  # an answer that nobody takes
            self._transport.abort()
        else:
            self._transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _unsound(got: str) -> Refused:
    return Refused(400, "http-broken", "this is not a sound HTTP request", got=got, close=True)
