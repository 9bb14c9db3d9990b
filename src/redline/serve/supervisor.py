"""Keeps one service alive: the server, its releases, who gets which request, and the release on probation.

It runs in the gateway's event loop. How to judge is given to it (`Decide`); how a release is verified is not its business.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Protocol

from redline.errors import BadInput, RedlineError
from redline.records import Action, Objective, Observation, Release, Routes, ServeSpec, ServiceState, Switch
from redline.records.serve import Cause
from redline.serve.environment import ServerEnvironment
from redline.serve.gateway.app import Gateway
from redline.serve.gateway.limits import Limits, ReleaseLimits, limits_of
from redline.serve.gateway.metrics import Metrics, Snapshot
from redline.serve.gateway.routing import RouteTable
from redline.serve.gateway.upstream import Address
from redline.serve.loader import load_release, load_stable, read_release, unload_release
from redline.serve.server import TritonServer
from redline.serve.state import (
    REPOSITORY,
    Event,
    EventKind,
    Settings,
    append_event,
    now,
    read_state,
    with_failed,
    with_release,
    write_state,
)

WATCH_S = 0.2
"""How often the server's process is looked at."""
GUARD_S = 0.5
"""How often the release on probation is judged."""
GRACE_S = 10.0
"""A release that gets no new requests is unloaded when its last one is answered, at the latest after this."""
HOLD_SHADOW = 0.1
"""Share of the requests that the release before answers too during the hold: agreement is watched at a tenth of the load."""
CRASHES, CRASH_WINDOW_S, BACKOFF_S = 5, 60.0, 10.0
"""After so many crashes within the window a restart waits, so that a server that dies at once does not spin."""


class Decide(Protocol):
    """What to do with a release on probation; pure."""

    def __call__(
        self, observation: Observation, objective: Objective, policy: ServeSpec, *, held_s: float, hold_s: float
    ) -> Action: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A probation, on the monotonic clock: the wall clock may jump."""

    release: int
    began_s: float
    hold_s: float
    since: Snapshot


class Supervisor:
    def __init__(self, folder: Path, settings: Settings, environment: ServerEnvironment, decide: Decide) -> None:
        self.folder, self.settings, self._decide = folder, settings, decide
        self._repository = folder / REPOSITORY
        self.server = TritonServer(environment, self._repository, folder)
        self.table, self.address = RouteTable(), Address()
        self.limits: dict[int, ReleaseLimits] = {}
        objective, policy = settings.objective, settings.policy
        self.metrics = Metrics(
            settings.service,
            objective_s=objective.p95_ms / 1000,
            rate_per_s=objective.throughput,
            error_ratio=policy.error_pct / 100,
        )
        self.gateway = Gateway(
            settings.service,
            table=self.table,
            address=self.address,
            releases=self.limits,
            metrics=self.metrics,
            limits=Limits(body_bytes=round(policy.body_mb * 1e6)),
        )
        self.state = ServiceState(service=settings.service, routes=Routes(), releases=())
        self.hold: Hold | None = None
        self.action: Action | None = None
        self.observation: Observation | None = None
        self._busy = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._staged: dict[int, Snapshot] = {}
        self._crashes: list[float] = []
        self.fault: BaseException | None = None
        """What ended one of the supervisor's own loops: a defect; whoever runs it must stop."""

    async def start(self, port: int) -> int:
        """Server, releases, gateway; returns the gateway's port. Raises BadInput if one of them cannot be had."""
        self.state = await asyncio.to_thread(read_state, self.folder, self.settings.service)
        await asyncio.to_thread(self.server.start)
        # A canary's verification ended with the process that ran it; a hold begins anew, as nobody watched meanwhile.
        held = self.state.routes.hold_until is not None
        self.state = replace(self.state, routes=replace(self.state.routes, canary=None, canary_share=0.0, shadow=False))
        await self._load_routes()
        self.address.port = self.server.known.http_port
        chosen = await self.gateway.start(port=port)
        if held and self.state.routes.active is not None:
            self._begin_hold(self.state.routes.active, self.settings.policy.hold_s)
        self._set_routes(self.state.routes)
        for loop in (self._watch_server, self._guard):
            self._spawn(loop())
        self._event("service-started", f"gateway on port {chosen}")
        return chosen

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.gateway.stop()
        await asyncio.to_thread(self.server.stop)
        self._event("service-stopped", "stopped")

    async def stage(self, number: int) -> Release:
        """Load a release beside what is served; it gets only requests that name its version. Raises BadInput, TrialError."""
        async with self._busy:
            routes = self.state.routes
            if routes.canary is not None and routes.canary != number:
                what = f"release {routes.canary} is being tried already"
                raise BadInput("serve.busy", what, got=number, fix="wait for it, or withdraw it")
            release = await self._load(number)
            self._staged[number] = self.metrics.snapshot(number)
            self.state = with_release(self.state, number)
            self._set_routes(replace(self.state.routes, canary=number, canary_share=0.0, shadow=False))
            self._event("staged", f"release {number} is loaded beside {routes.active}", number)
            return release

    async def canary(self, number: int, *, share: float, shadow: bool, shadow_share: float = 1.0) -> None:
        """Give a staged release a share of the requests, or copies of the active release's."""
        async with self._busy:
            self._require_canary(number)
            routes = replace(self.state.routes, canary_share=share, shadow=shadow, shadow_share=shadow_share)
            self._set_routes(routes)
            self._event("canary", f"release {number} answers {share:.0%}{', shadows' if shadow else ''}", number)

    async def observed(self, number: int) -> Observation:
        """What was seen of a release since it was staged, comparisons in flight included."""
        if number not in self._staged:
            raise BadInput("serve.not-staged", f"release {number} was not tried since the service started")
        await self.gateway.shadows_done()
        return self.metrics.observation(number, self._staged[number])

    async def withdraw(self, number: int, reason: str) -> None:
        """Take a staged release away again; it counts as failed."""
        async with self._busy:
            self._require_canary(number)
            self.state = with_failed(self.state, number)
            self._set_routes(replace(self.state.routes, canary=None, canary_share=0.0, shadow=False))
            self._event("withdrawn", f"release {number}: {reason}", number)
            self._retire(number)

    async def promote(self, number: int, *, hold_s: float) -> Switch:
        """Make a staged release the active one, on probation for `hold_s`; the one before stays loaded."""
        async with self._busy:
            self._require_canary(number)
            before = self.state.routes
            switch = await self._switch(number, "promote", "verified through the server", previous=before.active)
            if before.previous is not None:
                self._retire(before.previous)
            if hold_s > 0:
                self._begin_hold(number, hold_s)
            return switch

    async def rollback(self, *, to: int | None = None, reason: str, cause: Cause = "rollback") -> Switch:
        """Back to the release before, which is loaded, or to any earlier one. Raises BadInput (serve.nothing-before)."""
        async with self._busy:
            routes = self.state.routes
            target = to if to is not None else routes.previous
            if routes.active is None or target is None:
                what, fix = "there is no release to go back to", "redline rollback --to N names an earlier one"
                raise BadInput("serve.nothing-before", what, got=f"active: {routes.active or 'none'}", fix=fix)
            if target == routes.active:
                raise BadInput("serve.same-release", f"release {target} is the active one", fix="name another with --to")
            if target != routes.previous:
                await self._load(target)
            self.state = with_failed(self.state, routes.active)
            switch = await self._switch(target, cause, reason, previous=None)
            self._retire(routes.active)
            if routes.previous not in (None, target):
                self._retire(routes.previous)
            return switch

    def _require_canary(self, number: int) -> None:
        if self.state.routes.canary != number:
            got = f"being tried: {self.state.routes.canary or 'none'}"
            raise BadInput("serve.not-staged", f"release {number} is not being tried", got=got, fix="release it again")

    async def _switch(self, number: int, cause: Cause, reason: str, *, previous: int | None) -> Switch:
        """Stable names first, the gateway's routes after: if the first fails, nothing has changed."""
        started, before = time.monotonic(), self.state.routes
        release = await asyncio.to_thread(read_release, self._repository, self.settings.service, number)
        await asyncio.to_thread(load_stable, self.server.control, self._repository, release)
        self.hold = self.action = self.observation = None
        canary = before.canary if before.canary != number else None
        switch = Switch(
            at=now(), seconds=time.monotonic() - started, source=before.active, to=number, cause=cause, reason=reason
        )
        self.state = replace(self.state, switches=(*self.state.switches, switch))
        share = before.canary_share if canary is not None else 0.0
        self._set_routes(Routes(active=number, previous=previous, canary=canary, canary_share=share))
        self.metrics.switched(cause)
        self._event("switched", f"{cause}: {before.active or 'none'} -> {number}: {reason}", number)
        return switch

    def _set_routes(self, routes: Routes) -> None:
        """Written before it holds: a service that dies in between comes back as it was told last."""
        if self.hold is not None:
            left = self.hold.hold_s - (time.monotonic() - self.hold.began_s)
            until = datetime.now(timezone.utc) + timedelta(seconds=max(left, 0.0))
            routes = replace(routes, hold_until=until.isoformat(timespec="milliseconds"))
        self.state = replace(self.state, routes=routes)
        write_state(self.folder, self.state)
        self.table.routes = routes

    def _begin_hold(self, number: int, hold_s: float) -> None:
        self.hold = Hold(release=number, began_s=time.monotonic(), hold_s=hold_s, since=self.metrics.snapshot(number))
        shadow = self.state.routes.previous is not None and self.state.routes.canary is None
        self._set_routes(replace(self.state.routes, shadow=shadow, shadow_share=HOLD_SHADOW if shadow else 1.0))

    async def _load(self, number: int) -> Release:
        release = await asyncio.to_thread(load_release, self.server.control, self._repository, self.settings.service, number)
        self.limits[number] = limits_of(release)
        return release

    def _retire(self, number: int) -> None:
        """Unload once nothing waits for it, unless it is wanted again by then."""

        async def retire() -> None:
            await self.gateway.drained(number, GRACE_S)
            async with self._busy:
                routes = self.state.routes
                if number in (routes.active, routes.previous, routes.canary):
                    return
                self.limits.pop(number, None)
                with contextlib.suppress(RedlineError):  # it is out of the routes: what stays loaded costs memory alone
                    await asyncio.to_thread(
                        unload_release, self.server.control, self._repository, self.settings.service, number
                    )

        self._spawn(retire())

    async def _load_routes(self) -> None:
        """Load what the routes name. An active release that does not load any more is replaced by the one before."""
        routes = self.state.routes
        if routes.previous is not None and await self._loads(routes.previous) is not None:
            routes = replace(routes, previous=None)
        if routes.canary is not None and await self._loads(routes.canary) is not None:
            routes = replace(routes, canary=None, canary_share=0.0, shadow=False)
        if routes.active is not None and (reason := await self._loads(routes.active)) is not None:
            self.state = with_failed(self.state, routes.active)
            switch = Switch(at=now(), seconds=0.0, source=routes.active, to=routes.previous, cause="automatic", reason=reason)
            self.state = replace(self.state, switches=(*self.state.switches, switch))
            self._event("switched", f"release {routes.active} does not load any more: {reason}", routes.previous)
            routes = replace(routes, active=routes.previous, previous=None)
        if routes.active is not None:
            release = await asyncio.to_thread(read_release, self._repository, self.settings.service, routes.active)
            await asyncio.to_thread(load_stable, self.server.control, self._repository, release)
        self.state = replace(self.state, routes=routes)

    async def _loads(self, number: int) -> str | None:
        """None if it does, otherwise why not."""
        try:
            await self._load(number)
        except RedlineError as error:
            self.limits.pop(number, None)
            return error.text()
        return None

    async def _watch_server(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            if not self.server.alive:
                async with self._busy:
                    await self._restart()

    async def _restart(self) -> None:
        self.address.port = None
        code, lost, started = self.server.exit_code, self.gateway.answering, time.monotonic()
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        self._event("server-died", f"{how}; {lost} requests were in flight", lost=lost)
        self._crashes = [at for at in self._crashes if started - at < CRASH_WINDOW_S] + [started]
        if len(self._crashes) > CRASHES:
            await asyncio.sleep(BACKOFF_S)
        self.metrics.restarted()
        try:
            await asyncio.to_thread(self.server.stop)
            await asyncio.to_thread(self.server.start_again)
            await self._load_routes()
        except RedlineError as error:
            self._event("server-died", f"restart failed: {error.text()}")
            return  # the watch tries again
        self.address.port = self.server.known.http_port
        self._set_routes(self.state.routes)
        self._event("server-restarted", f"after {time.monotonic() - started:.2f} s, serving {self.state.routes.active}")

    async def _guard(self) -> None:
        while True:
            await asyncio.sleep(GUARD_S)
            hold = self.hold
            if hold is None or self.address.port is None:
                continue
            self.observation = self.metrics.observation(hold.release, hold.since)
            self.action = self._decide(
                self.observation,
                self.settings.objective,
                self.settings.policy,
                held_s=time.monotonic() - hold.began_s,
                hold_s=hold.hold_s,
            )
            if self.action.decision == "rollback":
                await self._breached(hold, self.action)
            elif self.action.decision == "promote":
                self.hold = None
                self._set_routes(replace(self.state.routes, hold_until=None, shadow=False))
                self._event("held", f"release {hold.release} has held: {self.action.reason}", hold.release)

    async def _breached(self, hold: Hold, action: Action) -> None:
        try:
            await self.rollback(reason=action.reason, cause="automatic")
        except RedlineError as error:
            # Nothing to go back to: a release that breaches is still better than none, and the alert says so.
            self.hold = None
            self._set_routes(replace(self.state.routes, hold_until=None, shadow=False))
            self._event("held", f"release {hold.release} breaches ({action.reason}), but: {error.what}", hold.release)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.fault = task.exception()

    def _event(self, kind: EventKind, text: str, release: int | None = None, *, lost: int = 0) -> None:
        append_event(self.folder, Event(at=now(), kind=kind, text=text, release=release, lost=lost))
