"""Whether the service can answer right now: asked of Triton, not remembered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from redline.serve.gateway.refusal import Refused
from redline.serve.gateway.routing import RouteTable
from redline.serve.gateway.upstream import Upstream
from redline.serve.names import model_name

FRESH_S = 0.5
"""Triton is asked at most this often about one model, however many ask the gateway."""


class Health:
    """`not_ready` may name a reason of the owner's, such as a shutdown; None if it has none."""

    def __init__(
        self, service: str, table: RouteTable, upstream: Upstream, not_ready: Callable[[], str | None] = lambda: None
    ) -> None:
        self._service = service
        self._table = table
        self._upstream = upstream
        self._not_ready = not_ready
        self._known: dict[str, tuple[float, str | None]] = {}
        self._asking = asyncio.Lock()

    async def reason(self) -> str | None:
        """Why the active release cannot answer image requests; None if it can."""
        if (given := self._not_ready()) is not None:
            return given
        if (active := self._table.routes.active) is None:
            return "nothing is released yet"
        return await self.model_reason(model_name(self._service, active, "entry"), active)

    async def model_reason(self, model: str, version: int) -> str | None:
        """Why this version of this model is not ready; None if Triton said within the last 0.5 s that it is."""
        if self._upstream.address.port is None:
            return "the server is being started"
        async with self._asking:
            at, reason = self._known.get(model, (-FRESH_S, None))
            if time.monotonic() - at >= FRESH_S:
                reason = await self._ask(model, version)
                if len(self._known) > 64:
                    self._known.clear()
                self._known[model] = time.monotonic(), reason
            return reason

    async def _ask(self, model: str, version: int) -> str | None:
        try:
            status, _ = await self._upstream.get(f"/v2/models/{model}/versions/{version}/ready")
        except Refused as refused:
            return refused.what
        return None if status == 200 else f"{model}, version {version}, is not ready in the server"
