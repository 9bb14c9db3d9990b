"""A request's body: held within a size, kept in the pieces in which it came."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from redline.serve.gateway.limits import Limits
from redline.serve.gateway.refusal import Refused

if TYPE_CHECKING:
    from redline.serve.gateway.call import Call

Piece = bytes | bytearray | memoryview
SMALL_BYTES: Final = 4096
JOINED_BYTES: Final = 1 << 16


class Body:
    """Bytes in the pieces in which the socket gave them. They are never joined: a 5 MB tensor is not copied."""

    __slots__ = ("_ends", "pieces", "size")

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces: Final = pieces
        self._ends: Final = list(accumulate(map(len, pieces)))
        self.size: Final = self._ends[-1] if self._ends else 0

    def views(self, start: int, count: int) -> list[Piece]:
        """`count` bytes from `start`, not copied; fewer at the end of the body."""
        if self._ends and start + count <= self._ends[0]:
            return [memoryview(self.pieces[0])[start : start + count]]
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


def keep(call: Call, piece: Piece, limits: Limits, buffer: Buffer) -> None:
    """Add what came of a body. `call.size` is what must be given back to `buffer`. Raises Refused 413, 503."""
    count = len(piece)
    if call.size + count > limits.body_bytes:
        raise _too_large(f"more than {call.size:,} bytes", limits)
    buffer.take(count)
    call.size += count
    if count >= SMALL_BYTES or not call.pieces:
        call.pieces.append(piece)
        return
    # A client may send a byte at a time: an object for each would take many times the memory that is counted.
    last = call.pieces[-1]
    if isinstance(last, bytearray) and len(last) < JOINED_BYTES:
        last += piece
    else:
        call.pieces.append(bytearray(piece))


def check_fields(call: Call, limits: Limits) -> None:
    """Raises Refused 413 by the length that the client says, 415 for a compressed body, 417; all before it is read."""
    fields = call.fields
    encoding = fields.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise Refused(
            415,
            "content-encoding",
            "compressed bodies are not taken",
            got=encoding.decode("latin-1"),
            allowed="identity",
            fix="send the bytes as they are: images are compressed already",
            close=True,
        )
    length = fields.get(b"content-length")
    if length is not None and int(length) > limits.body_bytes:
        raise _too_large(f"{int(length):,} bytes", limits)
    expect = fields.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        got = expect.decode("latin-1")
        raise Refused(417, "expectation", "this expectation cannot be met", got=got, allowed="100-continue", close=True)


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


def too_slow(limits: Limits) -> Refused:
    allowed = f"{limits.upload_s:g} s from the headers to the last byte"
    return Refused(408, "upload-slow", "the body did not arrive in time", allowed=allowed, close=True)


def ended_early(got: str) -> Refused:
    what = "the body ended before its announced end, or is framed wrongly"
    return Refused(400, "body-incomplete", what, got=got, close=True)
