"""The gateway: an HTTP server in front of Triton, for whoever may reach it. It knows nothing of how releases are judged."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json

from redline.errors import BadInput
from redline.records.serve import Role
from redline.serve.gateway.body import Body, Buffer, read_body
from redline.serve.gateway.connection import ConnectionServer, error_response
from redline.serve.gateway.health import Health
from redline.serve.gateway.infer_answer import Answer, Found, client_answer, detections_json, found_in
from redline.serve.gateway.infer_request import InferRequest, one_image, read_request
from redline.serve.gateway.limits import Limits, ModelLimits, ReleaseLimits
from redline.serve.gateway.metrics import Entry, Metrics
from redline.serve.gateway.refusal import Refused
from redline.serve.gateway.routing import Route, Router, RouteTable
from redline.serve.gateway.shadow import Shadows
from redline.serve.gateway.upstream import LENGTH, Address, LostRequest, Upstream, unavailable
from redline.serve.names import model_name, stable_name

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
MODEL_PATH: Final = re.compile(r"/v2/models/([\w.-]{1,128})(?:/versions/([0-9]{1,9}))?(?:/(infer|ready))?", re.ASCII)
JSON: Final = "application/json"
OCTETS: Final = "application/octet-stream"
READ_BYTES: Final = 1 << 18
ROLES: Final[Mapping[Entry, Role]] = {"bytes": "entry", "tensor": "tensor"}
LINGER_S: Final = 1.0
"""How long bytes of a refused body are still taken, so that the client can read why."""

Judge = Callable[[Body, ModelLimits], InferRequest]


class _Call:
    """One request on its way: what its metrics, its answer's headers and its shadow need."""

    __slots__ = ("after", "entry", "id", "release", "started_s")

    def __init__(self, request: web.BaseRequest) -> None:
        given = request.headers.get("X-Request-Id", "")
        self.id = given if REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        self.entry: Entry | None = None
        """None: not a request for detections, so not counted."""
        self.release: int | None = None
        self.started_s = time.perf_counter()
        """Moved to the end of the body: a client's slow upload is not the release's latency."""
        self.after: Callable[[], None] | None = None
        """Called when the answer has been sent."""


class Gateway:
    """Serves one service. Its owner changes what it serves by assigning to `table.routes` and `address`, and by adding to
    `releases`, all in the gateway's own event loop; nothing has to be restarted for that.

    `releases` has the limits of every release in the routes. `not_ready` may give a reason of the owner's for not being ready.
    """

    def __init__(
        self,
        service: str,
        *,
        table: RouteTable,
        address: Address,
        releases: Mapping[int, ReleaseLimits],
        metrics: Metrics,
        limits: Limits | None = None,
        not_ready: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.service = service
        self.table = table
        self.address = address
        self.releases = releases
        self.metrics = metrics
        self.limits = limits or Limits()
        self._router = Router(table)
        self._upstream = Upstream(address, self.limits)
        self._health = Health(service, table, self._upstream, not_ready)
        self._shadows = Shadows(self.limits.shadows, compared=metrics.compared, skipped=metrics.skipped)
        self._buffer = Buffer(self.limits.buffered_bytes)
        self._in_flight: Counter[int] = Counter()
        self._answering = 0
        self._runner: web.ServerRunner | None = None
        self._entries = {stable_name(service, role): entry for entry, role in ROLES.items()}
        self._pages = {
            "/health": self._page_health,
            "/v2/health/live": self._page_live,
            "/v2/health/ready": self._page_ready,
            "/metrics": self._page_metrics,
        }

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the port, a free one for 0. Raises BadInput (gateway-port) if it cannot be had."""
        server = ConnectionServer(
            self._handle,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=self.limits.idle_s,
            lingering_time=LINGER_S,
            read_bufsize=READ_BYTES,
            max_line_size=self.limits.line_bytes,
            max_field_size=self.limits.line_bytes,
            max_headers=self.limits.headers,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=self.limits.answer_s)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except (OSError, OverflowError) as error:
            await self.stop()
            raise BadInput(
                "gateway-port",
                "the gateway cannot listen there",
                got=f"{host}:{port}: {error}",
                fix="choose another port, or 0 for a free one",
            ) from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """No new connections; requests in flight are answered first, within `limits.answer_s`."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._shadows.close()
        self._upstream.close()

    @property
    def answering(self) -> int:
        """Requests that have no answer yet."""
        return self._answering

    def in_flight(self, release: int) -> int:
        """Requests, shadows included, that wait for an answer of `release`."""
        return self._in_flight[release]

    def disconnect(self) -> None:
        """Close the kept connections to Triton, which waits 30 s for them when it is asked to stop. Those in use are closed
        after their answer; the next request connects anew.
        """
        self._upstream.close()

    async def drained(self, release: int, seconds: float) -> bool:
        """Whether, within `seconds`, no request waits for `release`: only then may it be unloaded."""
        end_s = time.monotonic() + seconds
        while self._in_flight[release]:
            if time.monotonic() >= end_s:
                return False
            await asyncio.sleep(0.005)
        return True

    async def shadows_done(self) -> None:
        """Until the comparisons that run now are counted."""
        await self._shadows.idle()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        call = _Call(request)
        code = 500
        self._answering += 1
        try:
            response = await self._answer(request, call)
            code = response.status
        except Refused as refused:
            if isinstance(refused, LostRequest):
                self.metrics.lost()
            code = refused.status
            return error_response(refused, call.id, kserve=request.rel_url.raw_path.startswith("/v2/"))
        finally:
            self._answering -= 1
            if call.entry is not None:
                self.metrics.answered(call.release, call.entry, code, time.perf_counter() - call.started_s)
        if call.after is not None:
            with suppress(ConnectionError):  # aiohttp finds out by itself that the client has gone
                await response.prepare(request)
                await response.write_eof()
                call.after()
        return response

    async def _answer(self, request: web.BaseRequest, call: _Call) -> web.Response:
        url = request.rel_url
        path = url.raw_path
        if url.raw_query_string:
            raise Refused(
                400, "query", "there are no query parameters", got=url.raw_query_string, fix="leave out the ? and what follows"
            )
        if path == "/detect":
            _only(request, "POST")
            return await self._detect(request, call)
        if (page := self._pages.get(path)) is not None:
            _only(request, "GET")
            return await page(call)
        if (match := MODEL_PATH.fullmatch(path)) is None:
            raise Refused(
                404, "path-unknown", "there is nothing at this path", got=path, fix="POST /detect, or KServe v2 below /v2"
            )
        name, version, action = match.groups()
        if (entry := self._entries.get(name)) is None:
            raise Refused(404, "model-unknown", "there is no such model", got=name, allowed=list(self._entries))
        number = None if version is None else int(version)
        if action == "infer":
            _only(request, "POST")
            return await self._infer(request, call, entry, number)
        _only(request, "GET")
        return await self._page_model(call, entry, number, ready=action == "ready")

    async def _detect(self, request: web.BaseRequest, call: _Call) -> web.Response:
        _, answer, served = await self._ask(request, call, "bytes", None, one_image)
        found = found_in(answer)[0]
        if found.error:
            raise Refused(400, "model-refused", found.error, fix="send another image")
        return self._response(call, detections_json(found, served.classes, served.release, call.id), JSON)

    async def _infer(self, request: web.BaseRequest, call: _Call, entry: Entry, version: int | None) -> web.Response:
        lengths = request.headers.getall(LENGTH, [])
        judge = partial(_judge, lengths=lengths, limits=self.limits)
        sound, answer, _ = await self._ask(request, call, entry, version, judge)
        body, json_bytes = client_answer(answer, sound.wanted, sound.id)
        if json_bytes is None:
            return self._response(call, body, JSON)
        return self._response(call, body, OCTETS, {LENGTH: str(json_bytes)})

    async def _ask(
        self, request: web.BaseRequest, call: _Call, entry: Entry, version: int | None, judge: Judge
    ) -> tuple[InferRequest, Answer, ReleaseLimits]:
        """Read, route, judge and send on one request."""
        call.entry = entry
        if self._answering > self.limits.in_flight:
            raise Refused(
                503, "gateway-full", "too many requests at once", allowed=self.limits.in_flight, retry_after_s=1, close=True
            )
        body = await read_body(request, self.limits, self._buffer)
        try:
            call.started_s = time.perf_counter()
            route = self._router.pick(version)
            call.release = route.release
            served = self._limits_of(route.release)
            sound = judge(body, served.model(ROLES[entry]))
            answer = await self._infer_at(route.release, entry, sound)
        finally:
            self._buffer.give(body.size)
        if route.shadow is not None:
            call.after = partial(self._shadow, route, entry, body, judge, answer)
        return sound, answer, served

    async def _infer_at(self, release: int, entry: Entry, sound: InferRequest) -> Answer:
        self._in_flight[release] += 1
        try:
            return await self._upstream.infer(model_name(self.service, release, ROLES[entry]), release, sound)
        finally:
            self._in_flight[release] -= 1

    def _shadow(self, route: Route, entry: Entry, body: Body, judge: Judge, answer: Answer) -> None:
        assert route.shadow is not None
        assert route.on_trial is not None
        try:
            first = found_in(answer)
            sound = judge(body, self._limits_of(route.shadow).model(ROLES[entry]))
        except Refused:  # a batch or a size that only one of the two takes
            self.metrics.skipped(route.on_trial)
            return

        async def ask(release: int = route.shadow) -> list[Found]:
            return found_in(await self._infer_at(release, entry, sound))

        self._shadows.start(route.on_trial, first, ask)

    def _limits_of(self, release: int) -> ReleaseLimits:
        if (found := self.releases.get(release)) is None:
            raise unavailable()
        return found

    async def _page_health(self, call: _Call) -> web.Response:
        reason = await self._health.reason()
        page = {
            "service": self.service,
            "live": True,
            "ready": reason is None,
            "reason": reason,
            "server": "up" if self.address.port is not None else "down",
            "routes": asdict(self.table.routes),
            "in_flight": self._answering - 1,  # without this one
        }
        return self._response(call, to_json(page), JSON, status=200 if reason is None else 503)

    async def _page_live(self, call: _Call) -> web.Response:
        return self._response(call, to_json({"live": True}), JSON)

    async def _page_ready(self, call: _Call) -> web.Response:
        return self._ready(call, await self._health.reason())

    async def _page_metrics(self, call: _Call) -> web.Response:
        up = self.address.port is not None
        text = self.metrics.exposition(self.table.routes, up=up, in_flight=self._answering - 1)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST, "Server": "redline"})

    async def _page_model(self, call: _Call, entry: Entry, version: int | None, *, ready: bool) -> web.Response:
        release = self._router.named(version)
        model = model_name(self.service, release, ROLES[entry])
        if ready:
            return self._ready(call, await self._health.model_reason(model, release))
        status, body = await self._upstream.get(f"/v2/models/{model}/versions/{release}")
        if status != 200:
            raise unavailable()
        call.release = release
        return self._response(call, body, JSON)

    def _ready(self, call: _Call, reason: str | None) -> web.Response:
        page = {"ready": True} if reason is None else {"ready": False, "reason": reason}
        return self._response(call, to_json(page), JSON, status=200 if reason is None else 503)

    def _response(
        self, call: _Call, body: bytes, content_type: str, headers: Mapping[str, str] | None = None, status: int = 200
    ) -> web.Response:
        named = {} if call.release is None else {"X-Redline-Release": str(call.release)}
        return web.Response(
            status=status,
            body=body,
            headers={"X-Request-Id": call.id, **named, "Content-Type": content_type, "Server": "redline", **(headers or {})},
        )


def _judge(body: Body, model: ModelLimits, *, lengths: Sequence[str], limits: Limits) -> InferRequest:
    return read_request(body, lengths, model, limits)


def _only(request: web.BaseRequest, method: str) -> None:
    if request.method != method:
        raise Refused(405, "method", "this path has another method", got=request.method, allowed=method, allow=(method,))


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed: it halves what the gateway adds to a request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
