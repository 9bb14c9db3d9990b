"""HTTP connections as aiohttp has them, with two differences: errors of the protocol are JSON like all others, and a client
that closes its sending side still gets an answer."""

from __future__ import annotations

import os
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from redline.serve.gateway.refusal import Refused


class Connection(RequestHandler):
    __slots__ = ("_last",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last: StreamReader | None = None
        """Body of the request that came last: the only one that may be incomplete."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            self._last = self._messages[-1][1]

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Half-closed by the client. aiohttp would drop the connection, and with it answers that are still due."""
        idle = self._waiter is not None and not self._waiter.done()
        if self._last is None or idle:
            return None
        self.close()  # after the answers that are due
        if not self._last.is_eof():
            what = "the sending side was closed before the end of the body"
            self._last.set_exception(Refused(400, "body-incomplete", what, close=True))
            self._last.feed_eof()
        return True

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """400 for what is not HTTP; 500 for a fault of ours, whose traceback goes to the log alone."""
        if isinstance(exc, HttpProcessingError):
            refused = Refused(400, "http-broken", "this is not a sound HTTP request", got=type(exc).__name__, close=True)
        else:
            self.log_exception("a fault of the gateway", exc_info=exc)
            refused = Refused(500, "gateway-fault", "the gateway failed on this request", close=True)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        return error_response(refused, os.urandom(16).hex())


class ConnectionServer(web.Server):
    """aiohttp's low-level server with connections of ours."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


def error_response(refused: Refused, request_id: str, *, kserve: bool = False) -> web.Response:
    response = web.Response(
        status=refused.status,
        body=refused.body(request_id, kserve=kserve),
        headers={**refused.headers(), "X-Request-Id": request_id, "Server": "redline"},
        content_type="application/json",
    )
    if refused.close:
        response.force_close()
    return response
