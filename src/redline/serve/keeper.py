"""Keeps what is served loaded: the server started again after a crash, a model whose process has died loaded anew."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from redline.errors import RedlineError
from redline.records import Switch
from redline.serve.loaded import one_line
from redline.serve.state import now, with_failed

if TYPE_CHECKING:
    from redline.serve.supervisor import Supervisor

WATCH_S = 0.2
"""How often the server's process and those of its models are looked at."""
CRASHES, CRASH_WINDOW_S, BACKOFF_S = 5, 60.0, 10.0
"""After so many crashes within the window a restart waits, so that a server that dies at once does not spin."""
KILLS = 2
"""A release during whose loading the server died so often in a row is given up where there is another one to serve."""
SETTLE_S = 0.05
"""From the end of the server's process until the gateway has seen its connections break."""


class Keeper:
    """Of one supervisor, for which it acts."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._of = supervisor
        self._crashes: list[float] = []
        self._lost = 0
        self._killed: Counter[int] = Counter()
        """How often the server died while it loaded a release: Triton does if a model's process dies in its warm-up."""

    async def load_routes(self) -> None:
        """Load what the routes name. An active release that does not load any more is replaced by the one before."""
        of = self._of
        of.loaded.reset()
        routes = of.state.routes
        if routes.previous is not None and (reason := await self._refusal(routes.previous)) is not None:
            what = f"release {routes.previous}, the way back, does not load: {reason}"
            of.book.event("withdrawn", what, routes.previous)
            of.book.keep(replace(of.state, routes=replace(of.state.routes, previous=None)))
        if routes.canary is not None and (reason := await self._refusal(routes.canary)) is not None:
            of.withdrawn(routes.canary, f"it does not load: {reason}")
        if routes.active is not None and (reason := await self._refusal(routes.active)) is not None:
            self._replace_active(routes.active, reason)
        if of.state.routes.active is not None:
            await of.loaded.point(of.state.routes.active)
            of.names_due = False

    def _replace_active(self, active: int, reason: str) -> None:
        of = self._of
        state, target = with_failed(of.state, active), of.state.routes.previous
        switch = Switch(at=now(), seconds=0.0, source=active, to=target, cause="restart", reason=reason)
        routes = replace(state.routes, active=target, previous=None, hold_until=None, shadow=False)
        of.hold = of.action = of.observation = None
        of.book.keep(replace(state, routes=routes, switches=(*state.switches, switch)))
        of.metrics.switched("restart")
        what = f"release {active} does not load any more, {target or 'none'} is served: {reason}"
        of.book.event("switched", what, target)

    async def _refusal(self, number: int) -> str | None:
        """Load it; why the release cannot be loaded, None if it is. Raises RedlineError if it is the server that failed."""
        of = self._of
        if self._killed[number] >= KILLS and (number != of.state.routes.active or of.state.routes.previous is not None):
            return f"the server died {self._killed[number]} times while it loaded it"
        try:
            await of.loaded.load(number)
        except RedlineError as error:
            if error.code == "serve.unreachable" or not of.server.alive:
                self._killed[number] += 1
                raise
            return one_line(error)
        self._killed.pop(number, None)
        return None

    async def watch(self) -> None:
        of = self._of
        while True:
            await asyncio.sleep(WATCH_S)
            if not of.server.alive:
                async with of.busy:
                    await self._restart()
                continue
            for model, number in of.loaded.died():
                async with of.busy:
                    if of.server.alive:  # otherwise they died with it
                        await self._mend(model, number)

    async def _restart(self) -> None:
        of = self._of
        of.address.port = None
        code, started = of.server.exit_code, time.monotonic()
        if code is not None:
            await asyncio.sleep(SETTLE_S)
            lost, self._lost = of.metrics.lost_requests - self._lost, of.metrics.lost_requests
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            of.book.event("server-died", f"{how}; {lost} requests were in flight", lost=lost)
            of.metrics.restarted()
        await self._count_crash()
        try:
            await asyncio.to_thread(of.server.kill)
            await asyncio.to_thread(of.server.start_again)
            await self.load_routes()
        except RedlineError as error:
            await asyncio.to_thread(of.server.kill)
            # Its models' processes went with it, and none of them is to blame.
            of.loaded.reset()
            of.book.event("server-died", f"restart failed: {one_line(error)}")
            return  # the watch tries again
        of.address.port = of.server.known.http_port
        of.set_routes(of.state.routes)
        seconds = time.monotonic() - started
        of.book.event("server-restarted", f"after {seconds:.2f} s, serving {of.state.routes.active or 'nothing'}")

    async def _mend(self, model: str, number: int) -> None:
        """A process of a model has ended: its requests fail until it is loaded anew, though the server calls it ready."""
        of = self._of
        routes, hold, what = of.state.routes, of.hold, f"a process of {model} has ended"
        of.book.event("model-died", what, number)
        if number not in (routes.active, routes.previous):
            return  # it fails its verification
        if hold is not None and hold.release == number and routes.previous is not None:
            await of.go_back(None, what, "automatic")
            return
        await self._count_crash()
        try:
            await of.loaded.reload(model)
        except RedlineError as error:
            of.book.event("model-died", f"{model} cannot be loaded again: {one_line(error)}", number)
            of.address.port = None
            await asyncio.to_thread(of.server.kill)
            self._killed[number] += 1  # the watch starts the server anew, and decides what it can serve

    async def _count_crash(self) -> None:
        at = time.monotonic()
        self._crashes = [earlier for earlier in self._crashes if at - earlier < CRASH_WINDOW_S] + [at]
        if len(self._crashes) > CRASHES:
            await asyncio.sleep(BACKOFF_S)
