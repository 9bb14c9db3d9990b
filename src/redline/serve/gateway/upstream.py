"""The way to Triton: a keep-alive pool, one normal form of request, and its failures as what a client may see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from types import MappingProxyType

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from redline.serve.gateway.body import Piece
from redline.serve.gateway.infer_answer import Answer, garbage, read_answer
from redline.serve.gateway.infer_request import InferRequest
from redline.serve.gateway.limits import Limits
from redline.serve.gateway.refusal import Refused, clean

LENGTH = "Inference-Header-Content-Length"
BINARY = MappingProxyType({"Content-Type": "application/octet-stream"})
"""Of every request to Triton, whatever the client said: 2.51 dies of 4.3 MB as a form, the default type of curl."""
RETRY_S = 1


class Address:
    """Where Triton's HTTP is. `port` is None while its process is down; assign to both after a restart."""

    __slots__ = ("host", "port")

    def __init__(self, host: str = "127.0.0.1", port: int | None = None) -> None:
        self.host = host
        self.port = port


class LostRequest(Refused):
    """The connection broke after the request was sent: Triton may have died with it."""


class Pieces(aiohttp.Payload):
    """A body written piece by piece."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__(pieces, content_type="application/octet-stream")
        self._size = sum(len(piece) for piece in pieces)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for piece in self._value:
            await writer.write(piece)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._value).decode(encoding, errors)


class Upstream:
    """Asks Triton. One per event loop; `close` when done."""

    def __init__(self, address: Address, limits: Limits) -> None:
        self.address = address
        self._limits = limits
        self._timeout = aiohttp.ClientTimeout(total=limits.answer_s, sock_connect=limits.connect_s)
        self._probe = aiohttp.ClientTimeout(total=limits.probe_s)
        self._session: aiohttp.ClientSession | None = None

    async def infer(self, model: str, version: int, request: InferRequest) -> Answer:
        """Raises Refused: 400 as the model says, 502, 503 (down, lost, full, not loaded), 504."""
        headers = {**BINARY, LENGTH: str(len(request.header))}
        body = Pieces((request.header, *request.pieces) if request.header else request.pieces)
        url = self._url(f"/v2/models/{model}/versions/{version}/infer")
        try:
            async with self._open().post(
                url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                answer = await response.read()
                status, length = response.status, response.headers.get(LENGTH)
        except asyncio.TimeoutError as error:
            raise _late(self._limits) from error
        except aiohttp.ClientConnectorError as error:
            raise _down("the server cannot be reached") from error
        except aiohttp.ClientResponseError as error:
            raise garbage("the server's answer is not HTTP") from error
        except (aiohttp.ClientError, OSError) as error:
            raise LostRequest(
                503, "server-lost", "the server went away with this request", fix="send it again", retry_after_s=RETRY_S
            ) from error
        if status != 200:
            raise failure(status, answer)
        return read_answer(length, answer, request.batch)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a question that costs Triton nothing. Raises Refused 503."""
        try:
            async with self._open().get(self._url(path), timeout=self._probe, allow_redirects=False) as response:
                return response.status, await response.read()
        except asyncio.TimeoutError as error:
            raise _down(f"the server did not answer within {self._limits.probe_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _down("the server cannot be reached") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _url(self, path: str) -> URL:
        if (port := self.address.port) is None:
            raise _down("the server is being started")
        return URL.build(scheme="http", host=self.address.host, port=port, path=path, encoded=True)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=self._limits.idle_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
                auto_decompress=False,
            )
        return self._session


def failure(status: int, body: bytes) -> Refused:
    """What Triton's error means for the client."""
    try:
        text = clean(str(json.loads(body)["error"]))
    except (ValueError, KeyError, TypeError):
        text = "no reason given"
    if status == 400:
        return Refused(400, "model-refused", text, fix="send another image")
    # 503 and not 429: the client did nothing wrong, another replica may have room, and the objective must count it.
    if status == 503 and "maximum queue size" in text:
        return Refused(503, "queue-full", "more requests wait than may", fix="send it again later", retry_after_s=RETRY_S)
    if "timeout" in text.lower() and status in (408, 503, 504):
        return Refused(504, "queue-timeout", "the request waited too long for its turn", fix="send it again later")
    if status in (404, 503):
        return unavailable()
    return Refused(502, "model-failed", "the release failed on this request", fix="tell whoever runs this service")


def unavailable() -> Refused:
    """A release that the routes name and Triton has not (yet, or any more)."""
    return Refused(
        503, "release-unavailable", "the release is not loaded just now", fix="send it again later", retry_after_s=RETRY_S
    )


def _down(what: str) -> Refused:
    return Refused(503, "server-down", what, fix="send it again later", retry_after_s=RETRY_S)


def _late(limits: Limits) -> Refused:
    return Refused(
        504, "answer-late", "the server did not answer in time", allowed=f"{limits.answer_s:g} s", fix="send it again later"
    )
