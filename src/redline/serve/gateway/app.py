"""The gateway: an HTTP server in front of Triton, for whoever may reach it. It knows nothing of how releases are judged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from redline.errors import BadInput
from redline.serve.gateway.body import Body, Buffer, check_fields
from redline.serve.gateway.call import ROLES, Call
from redline.serve.gateway.connection import Connection
from redline.serve.gateway.infer_answer import Answer, Found, client_answer, detections_json, found_in
from redline.serve.gateway.infer_request import InferRequest, one_image, read_request
from redline.serve.gateway.limits import Limits, ModelLimits, ReleaseLimits
from redline.serve.gateway.link import Outcome
from redline.serve.gateway.metrics import Entry, Metrics
from redline.serve.gateway.pages import Pages
from redline.serve.gateway.paths import Paths
from redline.serve.gateway.refusal import Refused
from redline.serve.gateway.reply import JSON, OCTETS, Heads
from redline.serve.gateway.routing import Route, Router, RouteTable
from redline.serve.gateway.shadow import Shadows
from redline.serve.gateway.upstream import LENGTH, Address, LostRequest, Upstream, queue_full, unavailable
from redline.serve.names import model_name, stable_name

LOG: Final = logging.getLogger(__name__)
BACKLOG: Final = 128


class _Asked:
    """What is known of a request from when Triton is asked until it has answered."""

    __slots__ = ("body", "call", "route", "served", "sound")

    def __init__(self, call: Call, route: Route, served: ReleaseLimits, body: Body, sound: InferRequest) -> None:
        self.call, self.route, self.served, self.body, self.sound = call, route, served, body, sound


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
        self.buffer = Buffer(self.limits.buffered_bytes)
        self.connections: set[Connection] = set()
        self._router = Router(table)
        self._upstream = Upstream(address, self.limits)
        self._shadows = Shadows(self.limits.shadows, compared=metrics.compared, skipped=metrics.skipped)
        pages = Pages(
            service,
            table=table,
            router=self._router,
            upstream=self._upstream,
            metrics=metrics,
            not_ready=not_ready,
            in_flight=lambda: self._answering,
        )
        entries = {stable_name(service, role): entry for entry, role in ROLES.items()}
        self._paths = Paths(entries, pages.by_path, pages.model_ready, pages.model)
        self._heads = Heads()
        self._in_flight: Counter[int] = Counter()
        self._answering = 0
        self._server: asyncio.Server | None = None
        self._page_tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the port, a free one for 0. Raises BadInput (gateway-port) if it cannot be had."""
        self._loop = asyncio.get_running_loop()
        try:
            self._server = await self._loop.create_server(partial(Connection, self), host, port, backlog=BACKLOG)
        except (OSError, OverflowError) as error:
            raise BadInput(
                "gateway-port",
                "the gateway cannot listen there",
                got=f"{host}:{port}: {error}",
                fix="choose another port, or 0 for a free one",
            ) from error
        return int(self.addresses[0][1])

    async def stop(self) -> None:
        """No new connections; requests in flight are answered first, within `limits.answer_s`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in tuple(self.connections):
            connection.end()
        end_s = time.monotonic() + self.limits.answer_s
        while self.connections and time.monotonic() < end_s:
            await asyncio.sleep(0.005)
        for connection in tuple(self.connections):
            connection.abort()
        for task in tuple(self._page_tasks):
            task.cancel()
        await self._shadows.close()
        self._upstream.close()
        await asyncio.sleep(0)  # the sockets are closed in the loop's next turn

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each socket that listens."""
        return [] if self._server is None else [found.getsockname()[:2] for found in self._server.sockets]

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

    # What connections tell: see `connection.Owner`.

    def begin(self, call: Call) -> None:
        self._answering += 1
        call.begun = True
        try:
            call.target = target = self._paths.find(call)
            if target.page is not None:
                call.wanted = False
                self._start_page(call)
                return
            if self._answering > self.limits.in_flight:
                raise Refused(
                    503, "gateway-full", "too many requests at once", allowed=self.limits.in_flight, retry_after_s=1, close=True
                )
            check_fields(call, self.limits)
        except Refused as refused:
            self.refuse(call, refused)

    def whole(self, call: Call) -> None:
        try:
            self._forward(call)
        except Refused as refused:
            self.refuse(call, refused)
        except Exception:
            self._fault(call)

    def refuse(self, call: Call, refused: Refused) -> None:
        if isinstance(refused, LostRequest):
            self.metrics.lost()
        call.keeps = call.keeps and not refused.close
        body = refused.body(call.id, kserve=call.url.startswith(b"/v2/"))
        lines = "".join(f"{name}: {value}\r\n" for name, value in refused.headers().items())
        self._reply(call, refused.status, JSON, (body,), lines.encode())

    def _reply(self, call: Call, status: int, kind: bytes, body: Sequence[bytes | memoryview], lines: bytes = b"") -> bool:
        """Whether the client is still there."""
        spent_s = time.perf_counter() - call.started_s
        head = self._heads.head(call, status, kind, sum(map(len, body)), lines)
        there = call.connection.send(call, head if call.method == b"HEAD" else b"".join((head, *body)))
        if call.begun:
            call.begun = False
            self._answering -= 1
        if call.size:
            self.buffer.give(call.size)
            call.size = 0
        # Counted before anything else of a client is read, but not while the answer waits to be written.
        self._loop.call_soon(self._count, call, status, spent_s)
        return there

    def _count(self, call: Call, status: int, spent_s: float) -> None:
        if (entry := call.entry) is not None:
            self.metrics.answered(call.release, entry, status, spent_s)
        call.connection.prepare()

    def _fault(self, call: Call) -> None:
        """A fault of ours, whose traceback goes to the log alone. To be called where it is handled."""
        LOG.exception("a fault of the gateway")
        if not call.answered:
            self.refuse(call, Refused(500, "gateway-fault", "the gateway failed on this request", close=True))

    def _start_page(self, call: Call) -> None:
        task = self._loop.create_task(self._page(call))
        self._page_tasks.add(task)
        task.add_done_callback(self._page_tasks.discard)

    async def _page(self, call: Call) -> None:
        assert call.target is not None
        assert call.target.page is not None
        try:
            page = await call.target.page(call)
            self._reply(call, page.status, page.kind, (page.body,))
        except Refused as refused:
            self.refuse(call, refused)
        except Exception:
            self._fault(call)

    # Requests for detections: `_forward` when the body is there, `_answered` when Triton has answered.

    def _forward(self, call: Call) -> None:
        """Route, judge and send on. Raises Refused."""
        call.started_s = time.perf_counter()
        target = call.target
        assert target is not None
        assert target.entry is not None
        route = self._router.pick(target.version)
        call.release = release = route.release
        served, role = self._limits_of(release), ROLES[target.entry]
        if self._in_flight[release] >= served.at_once:
            raise queue_full(served.at_once)
        body = Body(call.pieces)
        sound = self._judged(call, body, served.model(role))
        asked = _Asked(call, route, served, body, sound)
        self._in_flight[release] += 1
        try:
            self._upstream.ask(model_name(self.service, release, role), release, sound, partial(self._answered, asked))
        except Refused:
            self._in_flight[release] -= 1
            raise

    def _judged(self, call: Call, body: Body, model: ModelLimits) -> InferRequest:
        """Raises Refused."""
        if call.target is None or not call.target.kserve:
            return one_image(body, model)
        length = call.fields.get(LENGTH)
        return read_request(body, () if length is None else (length.decode("latin-1"),), model, self.limits)

    def _answered(self, asked: _Asked, outcome: Outcome) -> None:
        call = asked.call
        self._in_flight[asked.route.release] -= 1
        try:
            answer = self._upstream.answer(outcome, asked.sound.batch)
            there = self._tell(call, asked, answer)
        except Refused as refused:
            self.refuse(call, refused)
        except Exception:
            self._fault(call)
        else:
            if there and asked.route.shadow is not None:
                self._loop.call_soon(self._shadow, asked, answer)

    def _tell(self, call: Call, asked: _Asked, answer: Answer) -> bool:
        """As the client asked for it. Raises Refused."""
        if call.target is not None and call.target.kserve:
            text, data = client_answer(answer, asked.sound.wanted, asked.sound.id)
            if data is None:
                return self._reply(call, 200, JSON, (text,))
            return self._reply(call, 200, OCTETS, (text, *data), b"Inference-Header-Content-Length: %d\r\n" % len(text))
        found = found_in(answer)[0]
        if found.error:
            raise Refused(400, "model-refused", found.error, fix="send another image")
        served = asked.served
        return self._reply(call, 200, JSON, (detections_json(found, served.classes, served.release, call.id),))

    def _shadow(self, asked: _Asked, answer: Answer) -> None:
        route, call = asked.route, asked.call
        assert route.shadow is not None
        assert route.on_trial is not None
        entry = call.entry
        assert entry is not None
        try:
            first = found_in(answer)
            sound = self._judged(call, asked.body, self._limits_of(route.shadow).model(ROLES[entry]))
        except Refused:  # a batch or a size that only one of the two takes
            self.metrics.skipped(route.on_trial)
            return
        self._shadows.start(route.on_trial, first, partial(self._infer_at, route.shadow, entry, sound))

    async def _infer_at(self, release: int, entry: Entry, sound: InferRequest) -> list[Found]:
        self._in_flight[release] += 1
        try:
            return found_in(await self._upstream.infer(model_name(self.service, release, ROLES[entry]), release, sound))
        finally:
            self._in_flight[release] -= 1

    def _limits_of(self, release: int) -> ReleaseLimits:
        if (found := self.releases.get(release)) is None:
            raise unavailable()
        return found


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed: it halves what the gateway adds to a request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
