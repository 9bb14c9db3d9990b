"""What the gateway tells beside detections: health, readiness, metrics, a model's description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json

from redline.serve.gateway.call import ROLES, Call, Page
from redline.serve.gateway.health import Health
from redline.serve.gateway.metrics import Metrics
from redline.serve.gateway.routing import Router, RouteTable
from redline.serve.gateway.upstream import Upstream, unavailable
from redline.serve.names import model_name


class Pages:
    """`in_flight`: how many requests are being answered, the one that asks included."""

    def __init__(
        self,
        service: str,
        *,
        table: RouteTable,
        router: Router,
        upstream: Upstream,
        metrics: Metrics,
        not_ready: Callable[[], str | None],
        in_flight: Callable[[], int],
    ) -> None:
        self._service, self._table, self._router = service, table, router
        self._upstream, self._metrics, self._in_flight = upstream, metrics, in_flight
        self._health = Health(service, table, upstream, not_ready)
        self.by_path = {
            "/health": self._page_health,
            "/v2/health/live": self._page_live,
            "/v2/health/ready": self._page_ready,
            "/metrics": self._page_metrics,
        }

    async def _page_health(self, call: Call) -> Page:
        reason = await self._health.reason()
        page = {
            "service": self._service,
            "live": True,
            "ready": reason is None,
            "reason": reason,
            "server": "up" if self._upstream.address.port is not None else "down",
            "routes": asdict(self._table.routes),
            "in_flight": self._in_flight() - 1,
        }
        return Page(to_json(page), 200 if reason is None else 503)

    async def _page_live(self, call: Call) -> Page:
        return Page(to_json({"live": True}))

    async def _page_ready(self, call: Call) -> Page:
        return _ready(await self._health.reason())

    async def _page_metrics(self, call: Call) -> Page:
        up = self._upstream.address.port is not None
        text = self._metrics.exposition(self._table.routes, up=up, in_flight=self._in_flight() - 1)
        return Page(text, kind=CONTENT_TYPE_LATEST.encode())

    async def model_ready(self, call: Call) -> Page:
        release, model = self._named(call)
        return _ready(await self._health.model_reason(model, release))

    async def model(self, call: Call) -> Page:
        """Triton's description. Raises Refused 404, 503."""
        release, model = self._named(call)
        status, body = await self._upstream.get(f"/v2/models/{model}/versions/{release}")
        if status != 200:
            raise unavailable()
        call.release = release
        return Page(body)

    def _named(self, call: Call) -> tuple[int, str]:
        target = call.target
        assert target is not None
        assert target.entry is not None
        release = self._router.named(target.version)
        return release, model_name(self._service, release, ROLES[target.entry])


def _ready(reason: str | None) -> Page:
    page = {"ready": True} if reason is None else {"ready": False, "reason": reason}
    return Page(to_json(page), 200 if reason is None else 503)
