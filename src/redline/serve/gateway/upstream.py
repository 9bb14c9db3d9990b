"""The way to Triton: one normal form of request, and its failures as what a client may see."""

from __future__ import annotations

import json
from collections.abc import Sequence

from redline.serve.gateway.body import Piece
from redline.serve.gateway.infer_answer import Answer, garbage, read_answer
from redline.serve.gateway.infer_request import InferRequest
from redline.serve.gateway.limits import Limits
from redline.serve.gateway.link import Done, LinkDown, LinkError, LinkGarbage, LinkLate, Links, Outcome
from redline.serve.gateway.refusal import Refused, clean

LENGTH = b"inference-header-content-length"
INFER = (
    b" HTTP/1.1\r\nHost: triton\r\nContent-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
)
"""The content type is the same whatever the client said: 2.51 dies of 4.3 MB as a form, the default type of curl."""
GET = b"GET %b HTTP/1.1\r\nHost: triton\r\n\r\n"
RETRY_S = 1


class Address:
    """Where Triton's HTTP is. `port` is None while its process is down; assign to both after a restart."""

    __slots__ = ("host", "port")

    def __init__(self, host: str = "127.0.0.1", port: int | None = None) -> None:
        self.host = host
        self.port = port


class LostRequest(Refused):
    """The connection broke after the request was sent: Triton may have died with it."""


class Upstream:
    """Asks Triton. One per event loop; `close` when done."""

    def __init__(self, address: Address, limits: Limits) -> None:
        self.address = address
        self._limits = limits
        self._links = Links(limits.connect_s)

    def ask(self, model: str, version: int, request: InferRequest, done: Done) -> None:
        """Send it; `done` is called once, and `answer` says what its outcome means. Raises Refused 503: nothing was sent."""
        self._links.ask(*self._place(), *_sent(model, version, request), self._limits.answer_s, done)

    async def infer(self, model: str, version: int, request: InferRequest) -> Answer:
        """Raises Refused as `answer`."""
        try:
            outcome: Outcome = await self._links.exchange(
                *self._place(), *_sent(model, version, request), self._limits.answer_s
            )
        except LinkError as error:
            outcome = error
        return self.answer(outcome, request.batch)

    def answer(self, outcome: Outcome, batch: int) -> Answer:
        """Raises Refused: 400 as the model says, 502, 503 (down, lost, full, not loaded), 504."""
        if isinstance(outcome, LinkError):
            raise _failed(outcome, self._limits) from outcome
        if outcome.status != 200:
            raise failure(outcome.status, bytes(outcome.body))
        return read_answer(outcome.headers.get(LENGTH), outcome.body, batch)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a question that costs Triton nothing. Raises Refused 503."""
        try:
            answered = await self._links.exchange(*self._place(), GET % path.encode(), (), self._limits.probe_s)
        except LinkLate as error:
            raise _down(f"the server did not answer within {self._limits.probe_s:g} s") from error
        except LinkError as error:
            raise _down("the server cannot be reached") from error
        return answered.status, bytes(answered.body)

    def close(self) -> None:
        self._links.close()

    def _place(self) -> tuple[str, int]:
        if (port := self.address.port) is None:
            raise _down("the server is being started")
        return self.address.host, port


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
        return queue_full()
    if "timeout" in text.lower() and status in (408, 503, 504):
        return Refused(504, "queue-timeout", "the request waited too long for its turn", fix="send it again later")
    if status in (404, 503):
        return unavailable()
    return Refused(502, "model-failed", "the release failed on this request", fix="tell whoever runs this service")


def queue_full(at_once: int | None = None) -> Refused:
    fix = "send it again later"
    return Refused(503, "queue-full", "more requests wait than may", allowed=at_once, fix=fix, retry_after_s=RETRY_S)


def unavailable() -> Refused:
    """A release that the routes name and Triton has not (yet, or any more)."""
    return Refused(
        503, "release-unavailable", "the release is not loaded just now", fix="send it again later", retry_after_s=RETRY_S
    )


def _down(what: str) -> Refused:
    return Refused(503, "server-down", what, fix="send it again later", retry_after_s=RETRY_S)


def _failed(error: LinkError, limits: Limits) -> Refused:
    if isinstance(error, LinkLate):
        allowed = f"{limits.answer_s:g} s"
        return Refused(504, "answer-late", "the server did not answer in time", allowed=allowed, fix="send it again later")
    if isinstance(error, LinkDown):
        return _down("the server cannot be reached")
    if isinstance(error, LinkGarbage):
        return garbage("the server's answer cannot be read")
    what = "the server went away with this request"
    return LostRequest(503, "server-lost", what, fix="send it again", retry_after_s=RETRY_S)


def _sent(model: str, version: int, request: InferRequest) -> tuple[bytes, Sequence[Piece]]:
    """Head and body of the request to Triton."""
    header, pieces = request.header, request.pieces
    size = sum(map(len, pieces)) + len(header)
    head = b"POST /v2/models/%b/versions/%d/infer" % (model.encode(), version) + INFER % (len(header), size)
    return head + header, pieces
