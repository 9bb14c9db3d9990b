"""A request's body: read within a size and a time, kept in the pieces in which it came."""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError

from redline.serve.gateway.limits import Limits
from redline.serve.gateway.refusal import Refused

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout  # aiohttp's own dependency there

Piece = bytes | memoryview


class Body:
    """Bytes in the pieces in which the socket gave them. They are never joined: a 5 MB tensor is not copied."""

    __slots__ = ("_ends", "pieces", "size")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces: Final = pieces
        self._ends: Final = list(accumulate(len(piece) for piece in pieces))
        self.size: Final = self._ends[-1] if self._ends else 0

    def views(self, start: int, count: int) -> list[Piece]:
        """`count` bytes from `start`, not copied; fewer at the end of the body."""
        found: list[Piece] = []
        index = bisect_right(self._ends, start)
        while count > 0 and index < len(self.pieces):
            piece = self.pieces[index]
            offset = start - (self._ends[index] - len(piece))
            found.append(memoryview(piece)[offset : offset + count])
            count -= len(found[-1])
            start = self._ends[index]
            index += 1
        return found

    def read(self, start: int, count: int) -> bytes:
        """The same as one copy."""
        return b"".join(self.views(start, count))


class Buffer:
    """Bytes of all bodies held at once, so that many large uploads cannot exhaust the memory."""

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self.used = 0

    def take(self, count: int) -> None:
        if self.used + count > self.limit:
            raise Refused(
                503,
                "gateway-full",
                "the gateway holds as many request bytes as it may",
                allowed=f"{self.limit:,} bytes at once",
                fix="send again later",
                retry_after_s=1,
                close=True,
            )
        self.used += count

    def give(self, count: int) -> None:
        self.used -= count


async def read_body(request: web.BaseRequest, limits: Limits, buffer: Buffer) -> Body:
    """The whole body, encoded as it came. The caller gives its size back to `buffer`.

    Raises Refused: 413 as soon as the limit is passed (before reading, if the client said the length), 408 if it comes too
    slowly, 400 if it ends early, 415 for a compressed one, 417, 503 if too much is held already.
    """
    _check_headers(request, limits)
    content = request.content
    if request.headers.get("Expect") and not content.at_eof():
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer, whose headers are still to come
    pieces: list[bytes] = []
    held = 0
    try:
        async with timeout(limits.upload_s):
            while not content.at_eof():
                piece, _ = await content.readchunk()
                if held + len(piece) > limits.body_bytes:
                    raise _too_large(f"more than {held:,} bytes", limits)
                buffer.take(len(piece))
                held += len(piece)
                if piece:
                    pieces.append(piece)
        if (broken := content.exception()) is not None:  # of a body that ended before its end
            raise broken
    except BaseException as error:
        buffer.give(held)
        if isinstance(error, asyncio.TimeoutError):
            raise _too_slow(limits) from error
        if isinstance(error, web.RequestPayloadError | PayloadEncodingError | ConnectionError):
            raise _ended_early(error) from error
        raise
    return Body(pieces)


def _check_headers(request: web.BaseRequest, limits: Limits) -> None:
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refused(
            415,
            "content-encoding",
            "compressed bodies are not taken",
            got=encoding,
            allowed="identity",
            fix="send the bytes as they are: images are compressed already",
            close=True,
        )
    length = request.content_length
    if length is not None and length > limits.body_bytes:
        raise _too_large(f"{length:,} bytes", limits)
    expect = request.headers.get("Expect", "100-continue").strip().lower()
    if expect != "100-continue":
        raise Refused(417, "expectation", "this expectation cannot be met", got=expect, allowed="100-continue", close=True)


def _too_large(got: str, limits: Limits) -> Refused:
    return Refused(
        413,
        "body-size",
        "the body is too large",
        got=got,
        allowed=f"{limits.body_bytes:,} bytes",
        fix="send fewer images in a request, or smaller ones",
        close=True,
    )


def _too_slow(limits: Limits) -> Refused:
    allowed = f"{limits.upload_s:g} s from the headers to the last byte"
    return Refused(408, "upload-slow", "the body did not arrive in time", allowed=allowed, close=True)


def _ended_early(error: Exception) -> Refused:
    what = "the body ended before its announced end, or is framed wrongly"
    return Refused(400, "body-incomplete", what, got=type(error).__name__, close=True)
