"""The head of an HTTP/1.1 answer, strictly: only with a Content-Length, which all of Triton's and the gateway's have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

HEAD_BYTES: Final = 16_384
"""Longest head of an answer."""


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    start: int
    """Where the body begins in what was received."""
    end: int
    """Where it ends."""

    @property
    def keeps(self) -> bool:
        """The connection takes another request after this answer."""
        return self.headers.get(b"connection", b"").lower() != b"close"


def read_head(received: bytes | bytearray) -> Head | None:
    """None: not all of it is there yet. Raises ValueError, IndexError or KeyError for a head that is not taken."""
    end = head_end(received)
    return None if end is None else parse_head(bytes(received[:end]))


def head_end(received: bytes | bytearray) -> int | None:
    """Where the empty line after the head begins; None: not there yet. Raises ValueError if it should be."""
    end = received.find(b"\r\n\r\n")
    if end >= 0:
        return end
    if len(received) > HEAD_BYTES:
        raise ValueError("a head without end")
    return None


def parse_head(head: bytes) -> Head:
    """`head`: without its empty line. Raises as `read_head`."""
    first, *lines = head.split(b"\r\n")
    version, status, *_ = first.split(b" ", 2)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError("a header without a colon")
        headers[name.lower()] = value.strip()
    length = headers[b"content-length"]
    if version != b"HTTP/1.1" or not length.isdigit() or b"transfer-encoding" in headers or not 200 <= int(status) < 600:
        raise ValueError("another kind of answer")
    start = len(head) + 4
    return Head(int(status), headers, start, start + int(length))
