"""The lean connection against a server that answers as a test says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from redline.errors import StoreError, TrialError
from redline.serve.client import Endpoint
from redline.serve.http_head import HEAD_BYTES, read_head
from redline.serve.wire import Wire, WireError

SOUND = b"HTTP/1.1 200 OK\r\nContent-Type: x\r\nCONTENT-LENGTH: 5\r\n\r\nhello"


@contextmanager
def server(*answers: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Each connection gets one answer, sent piece by piece, and is then closed. (port, what was received of each)."""
    received: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for pieces in answers:
            connection, _ = listener.accept()
            with connection:
                received.append(connection.recv(65536))
                for piece in pieces:
                    connection.sendall(piece)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], received
    finally:
        thread.join(5)
        listener.close()


@pytest.mark.parametrize("cut", range(1, len(SOUND)))
def test_an_answer_may_come_in_any_pieces(cut: int) -> None:
    with server([SOUND[:cut], SOUND[cut:]]) as (port, received):
        wire = Wire(port, 5)
        head, body = wire.exchange(b"POST / HTTP/1.1\r\n", b"\r\n", b"body")
        wire.close()
    assert (head.status, head.keeps, body) == (200, True, b"hello")
    assert received == [b"POST / HTTP/1.1\r\n\r\nbody"]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        SOUND[:-1],
        SOUND + b"x",
        SOUND.replace(b"1.1", b"1.0"),
        SOUND.replace(b"CONTENT-LENGTH: 5", b"Transfer-Encoding: chunked"),
        SOUND.replace(b": 5", b": -5"),
        SOUND.replace(b"200", b"OK"),
        b"no http at all\r\n\r\n",
        b"x" * (HEAD_BYTES + 5),
    ],
)
def test_anything_else_is_an_error(answer: bytes) -> None:
    with server([answer]) as (port, _):
        wire = Wire(port, 5)
        with pytest.raises(WireError):
            wire.exchange(b"GET / HTTP/1.1\r\n\r\n")
        wire.close()


def test_a_head_is_none_until_its_end() -> None:
    assert read_head(bytearray(SOUND[:-7])) is None
    head = read_head(bytearray(SOUND))
    assert head is not None
    assert (head.start, head.end) == (len(SOUND) - 5, len(SOUND))


def test_a_server_that_closes_its_connection_is_asked_again_once() -> None:
    closing = SOUND.replace(b"200 OK", b"200 OK\r\nConnection: close")
    with server([closing], [SOUND], [b""]) as (port, received):
        endpoint = Endpoint(port, "detector")
        assert endpoint.post(b"{}")[0] == b"hello"
        assert endpoint.post(b"{}", b"image")[0] == b"hello"  # not over the connection that was closed
        with pytest.raises(StoreError, match="does not answer"):
            endpoint.post(b"{}")
        endpoint.close()
    assert len(received) == 3
    assert received[1].startswith(b"POST /v2/models/detector/infer HTTP/1.1\r\n")
    assert received[1].endswith(b"Inference-Header-Content-Length: 2\r\nContent-Length: 7\r\n\r\n{}image")


def test_what_a_server_refuses_is_told_from_what_it_fails_at() -> None:
    failing = SOUND.replace(b"200", b"500")
    with server([failing]) as (port, _), closing(Endpoint(port, "detector")) as endpoint, pytest.raises(TrialError):
        endpoint.post(b"{}")


def test_a_server_that_takes_too_long_is_not_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = Endpoint(listener.getsockname()[1], "detector", timeout_s=0.05)
        with pytest.raises(StoreError, match="does not answer"):
            endpoint.post(b"{}")
        endpoint.close()
