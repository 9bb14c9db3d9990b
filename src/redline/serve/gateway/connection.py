"""HTTP connections as aiohttp has them, with two differences: errors of the protocol are JSON like all others, and a client
that closes its sending side still gets an answer."""

from __future__ import annotations

import uuid

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from redline.serve.gateway.refusal import Refused


class Connection(RequestHandler):
    __slots__ = ()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Half-closed by the client. aiohttp would drop the connection, and with it answers that are still due."""
        current = self._current_request
        due = [payload for _, payload in self._messages]
        if current is None and not due:
            return None
        self.close()  # after the answers that are due
        for payload in (*due, *(() if current is None else (current.content,))):
            if not payload.is_eof():
                what = "the sending side was closed before the end of the body"
                payload.set_exception(Refused(400, "body-incomplete", what, close=True))
                payload.feed_eof()
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
        return error_response(refused, uuid.uuid4().hex)


class ConnectionServer(web.Server):
    """aiohttp's low-level server with connections of ours."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


def error_response(refused: Refused, request_id: str) -> web.Response:
    response = web.Response(
        status=refused.status,
        body=refused.body(request_id),
        headers={**refused.headers(), "X-Request-Id": request_id, "Server": "redline"},
        content_type="application/json",
    )
    if refused.close:
        response.force_close()
    return response
