"""Heads of answers."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from redline.serve.gateway.call import Call

JSON: Final = b"application/json"
OCTETS: Final = b"application/octet-stream"
STATUS: Final = {status.value: b"%d %b" % (status.value, status.phrase.encode()) for status in HTTPStatus}
HEAD: Final = (
    b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nX-Request-Id: %b\r\n%bServer: redline\r\nDate: %b\r\n\r\n"
)


class Heads:
    """Writes them. The date is written anew once a second."""

    def __init__(self) -> None:
        self._second, self._date = 0, b""

    def head(self, call: Call, status: int, kind: bytes, size: int, more: bytes = b"") -> bytes:
        """`more`: header lines, each with its end."""
        now = int(time.time())
        if now != self._second:
            self._second, self._date = now, formatdate(now, usegmt=True).encode()
        if call.release is not None:
            more += b"X-Redline-Release: %d\r\n" % call.release
        if not call.keeps:
            more += b"Connection: close\r\n"
        elif b"connection" in call.fields:  # HTTP/1.0 wants to be told
            more += b"Connection: keep-alive\r\n"
        return HEAD % (STATUS[status], kind, size, call.id.encode(), more, self._date)
