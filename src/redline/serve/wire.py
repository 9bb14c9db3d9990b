"""A kept connection of one thread to a server on this machine. `http.client` costs more than Triton's own HTTP does, and every
measurement would have it in its latencies and, where cores are few, in its capacity."""

from __future__ import annotations

import socket

from redline.serve.http_head import Head, read_head

READ_BYTES = 1 << 18


class WireError(Exception):
    """The connection broke, or what came is not HTTP as it is spoken here."""


class Wire:
    """Raises OSError if it cannot connect, TimeoutError of `exchange` if the server takes longer than `timeout_s` to go on."""

    def __init__(self, port: int, timeout_s: float) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(self, *request: bytes) -> tuple[Head, bytes]:
        """Send one request, given in pieces; its answer's head and body. Raises OSError, TimeoutError, WireError."""
        self._socket.sendall(b"".join(request))
        received, found = bytearray(), None
        while found is None or len(received) < found.end:
            piece = self._socket.recv(READ_BYTES)
            if not piece:
                raise WireError("the connection was closed before the end of the answer")
            received += piece
            if found is None:
                try:
                    found = read_head(received)
                except (ValueError, IndexError, KeyError) as error:
                    raise WireError(f"not an answer in HTTP: {error}") from error
        if len(received) > found.end:
            raise WireError("more data than announced")
        return found, bytes(memoryview(received)[found.start :])

    def close(self) -> None:
        self._socket.close()
