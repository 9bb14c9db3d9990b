"""Keeps one service alive: the server, its releases, who gets which request, and the release on probation.

It runs in the gateway's event loop. How to judge is given to it (`Decide`); how a release is verified is not its business.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
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
from redline.serve.gateway.limits import Limits
from redline.serve.gateway.metrics import Metrics, Snapshot
from redline.serve.gateway.routing import RouteTable
from redline.serve.gateway.upstream import Address
from redline.serve.keeper import Keeper
from redline.serve.loaded import Loaded
from redline.serve.processes import identity, runs
from redline.serve.server import TritonServer
from redline.serve.state import REPOSITORY, Book, Settings, now, with_failed, with_release

GUARD_S = 0.5
"""How often the release on probation is judged."""
GRACE_S = 10.0
"""A release that gets no new requests is unloaded when its last one is answered, at the latest after this."""
HOLD_SHADOW = 0.25
"""Share of the requests that the release before answers too during the hold: agreement is watched at a quarter of the load."""
RECENT_S = 10.0
"""What the guard judges beside the whole hold, so that a good past does not hide that a release has turned bad."""


class Decide(Protocol):
    """What to do with a release on probation; pure."""

    def __call__(
        self,
        observation: Observation,
        objective: Objective,
        policy: ServeSpec,
        *,
        held_s: float,
        hold_s: float,
        recent: Observation | None = None,
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
        self.book = Book(folder, settings.service)
        self.server = TritonServer(environment, folder / REPOSITORY, folder)
        self.loaded = Loaded(self.server, folder / REPOSITORY, settings.service)
        self.table, self.address = RouteTable(), Address()
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
            releases=self.loaded.limits,
            metrics=self.metrics,
            limits=Limits(body_bytes=round(policy.body_mb * 1e6)),
        )
        self.hold: Hold | None = None
        self._looks: deque[Snapshot] = deque()
        self.action: Action | None = None
        self.observation: Observation | None = None
        self.busy = asyncio.Lock()
        """Held by whatever changes the routes."""
        self._keeper = Keeper(self)
        self._tasks: set[asyncio.Task[None]] = set()
        self._staged: dict[int, Snapshot] = {}
        self._owner: tuple[int, str] | None = None
        """The process that tries the canary."""
        self.names_due = False
        self.fault: BaseException | None = None
        """What ended one of the supervisor's own loops: a defect; whoever runs it must stop."""

    @property
    def state(self) -> ServiceState:
        return self.book.state

    async def start(self, port: int, *, kept: bool = False) -> int:
        """Server, releases, gateway; returns the gateway's port. `kept`: any other will do if `port` is taken.

        Raises BadInput if one of them cannot be had, StoreError if the folder cannot be read or written.
        """
        await asyncio.to_thread(self.book.read)
        await asyncio.to_thread(self.server.start)
        # A canary's verification ended with the service; a hold begins anew, as nobody watched meanwhile.
        if self.state.routes.canary is not None:
            self.withdrawn(self.state.routes.canary, "its verification ended with the service")
        await self._keeper.load_routes()
        self.address.port = self.server.known.http_port
        chosen = await self._listen(port, kept=kept)
        if self.state.routes.hold_until is not None and self.state.routes.active is not None:
            self._begin_hold(self.state.routes.active, self.settings.policy.hold_s)
        self.set_routes(self.state.routes)
        for loop in (self._keeper.watch, self._guard):
            self._spawn(loop())
        self.book.event("service-started", f"gateway on port {chosen}")
        return chosen

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.gateway.stop()
        await asyncio.to_thread(self.server.stop)
        self.book.event("service-stopped", "stopped")

    async def stage(self, number: int, *, owner: int | None = None) -> Release:
        """Load a release beside what is served; it gets only requests that name its version. Raises BadInput, TrialError,
        StoreError. It is withdrawn if the process `owner` ends before it has decided.
        """
        async with self.busy:
            routes = self.state.routes
            if routes.canary is not None and routes.canary != number:
                what = f"release {routes.canary} is being tried already"
                raise BadInput("serve.busy", what, got=number, fix="wait for it, or withdraw it")
            if number in (routes.active, routes.previous):
                raise BadInput("serve.staged", f"release {number} is served already", fix="release a new one")
            try:
                release = await self.loaded.load(number)
                state = with_release(self.state, number)
                self.book.write(replace(state, routes=replace(routes, canary=number, canary_share=0.0, shadow=False)))
            except RedlineError as error:
                if error.code != "serve.no-release":
                    self.book.keep(with_failed(with_release(self.state, number), number))
                self._retire(number)
                raise
            self._staged[number] = self.metrics.snapshot(number)
            self._owner = None if owner is None else (owner, identity(owner) or "")
            self.set_routes(self.state.routes)
            self.book.event("staged", f"release {number} is loaded beside {routes.active or 'nothing'}", number)
            return release

    async def canary(self, number: int, *, share: float, shadow: bool, shadow_share: float = 1.0) -> None:
        """Give a staged release a share of the requests, or copies of the active release's."""
        async with self.busy:
            self._require_canary(number)
            routes = replace(self.state.routes, canary_share=share, shadow=shadow, shadow_share=shadow_share)
            self.set_routes(routes)
            self.book.event("canary", f"release {number} answers {share:.0%}{', shadows' if shadow else ''}", number)

    async def observed(self, number: int) -> Observation:
        """What was seen of a release since it was staged, comparisons in flight included."""
        if number not in self._staged:
            raise BadInput("serve.not-staged", f"release {number} was not tried since the service started")
        await self.gateway.shadows_done()
        return self.metrics.observation(number, self._staged[number])

    async def withdraw(self, number: int, reason: str) -> None:
        """Take a staged release away again; it counts as failed."""
        async with self.busy:
            self._require_canary(number)
            self.withdrawn(number, reason)
            self._retire(number)

    async def promote(self, number: int, *, hold_s: float) -> Switch:
        """Make a staged release the active one, on probation for `hold_s`; the one before stays loaded."""
        async with self.busy:
            self._require_canary(number)
            before = self.state.routes
            switch = await self._switch(number, "promote", "verified through the server", previous=before.active)
            if before.previous is not None:
                self._retire(before.previous)
            if hold_s > 0:
                self._begin_hold(number, hold_s)
            return switch

    async def rollback(self, *, to: int | None = None, reason: str) -> Switch:
        """Back to the release before, which is loaded, or to any earlier one. Raises BadInput (serve.nothing-before,
        serve.same-release, serve.refused-release, serve.no-release), TrialError, StoreError; then nothing has changed.
        """
        async with self.busy:
            return await self.go_back(to, reason, "rollback")

    async def go_back(self, to: int | None, reason: str, cause: Cause) -> Switch:
        """`rollback` for who holds `busy`."""
        routes = self.state.routes
        target = to if to is not None else routes.previous
        if target is None:
            what, fix = "there is no release to go back to", "redline rollback --to N names an earlier one"
            raise BadInput("serve.nothing-before", what, got=f"active: {routes.active or 'none'}", fix=fix)
        if target == routes.active:
            raise BadInput("serve.same-release", f"release {target} is the active one", fix="name another with --to")
        served = {switch.to for switch in self.state.switches}
        if target not in served and target in (*self.state.failed, routes.canary):
            what = f"release {target} was never served: it was refused, or is not verified yet"
            raise BadInput("serve.refused-release", what, fix="release it again")
        if target != routes.previous:
            await self.loaded.load(target)
        try:
            switch = await self._switch(target, cause, reason, previous=None, failed=routes.active)
        except RedlineError:
            self._retire(target)
            raise
        for number in (routes.active, routes.previous):
            if number not in (None, target):
                self._retire(number)
        return switch

    def _require_canary(self, number: int) -> None:
        if self.state.routes.canary != number:
            got = f"being tried: {self.state.routes.canary or 'none'}"
            raise BadInput("serve.not-staged", f"release {number} is not being tried", got=got, fix="release it again")

    def withdrawn(self, number: int, reason: str) -> None:
        """No request goes to the canary any more. For who holds `busy`."""
        self.book.keep(with_failed(self.state, number))
        self.set_routes(self._watched(replace(self.state.routes, canary=None, canary_share=0.0)))
        self.book.event("withdrawn", f"release {number}: {reason}", number)

    async def _switch(
        self, number: int, cause: Cause, reason: str, *, previous: int | None, failed: int | None = None
    ) -> Switch:
        """Change the active release. What somebody asked for holds once it is on the disk and the stable names have moved, or
        not at all. Away from a bad release the gateway goes at once, whatever the disk and the server say to the rest.
        """
        started, before = time.monotonic(), self.state
        canary = before.routes.canary if before.routes.canary != number else None
        share = before.routes.canary_share if canary is not None else 0.0
        routes = Routes(active=number, previous=previous, canary=canary, canary_share=share)
        source = before.routes.active
        switch = Switch(at=now(), seconds=0.0, source=source, to=number, cause=cause, reason=reason)
        state = before if failed is None else with_failed(before, failed)
        if cause != "automatic":
            self.book.write(replace(state, routes=routes, switches=(*state.switches, switch)))
            try:
                await self.loaded.point(number)
            except RedlineError:
                self.book.keep(before)
                self.names_due = source is not None
                raise
        self.hold = self.action = self.observation = None
        self.table.routes = routes
        switch = replace(switch, seconds=time.monotonic() - started)
        self.book.keep(replace(state, routes=routes, switches=(*state.switches, switch)))
        self.metrics.switched(cause)
        self.book.event("switched", f"{cause}: {source or 'none'} -> {number}: {reason}", number)
        if cause == "automatic":
            await self._point_names()
        return switch

    async def _point_names(self) -> None:
        """Bring the stable names to the active release; what fails is tried again by the guard."""
        active, self.names_due = self.state.routes.active, True
        with contextlib.suppress(RedlineError):
            if active is not None:
                await self.loaded.point(active)
            self.names_due = False

    def set_routes(self, routes: Routes) -> None:
        """From now on, and after a restart. For who holds `busy`."""
        if self.hold is not None:
            left = self.hold.hold_s - (time.monotonic() - self.hold.began_s)
            until = datetime.now(timezone.utc) + timedelta(seconds=max(left, 0.0))
            routes = replace(routes, hold_until=until.isoformat(timespec="milliseconds"))
        self.table.routes = routes
        self.book.keep(replace(self.state, routes=routes))

    def _begin_hold(self, number: int, hold_s: float) -> None:
        since = self.metrics.snapshot(number)
        self.hold = Hold(release=number, began_s=time.monotonic(), hold_s=hold_s, since=since)
        self._looks = deque([since])
        self.set_routes(self._watched(self.state.routes))

    def _watched(self, routes: Routes) -> Routes:
        """With copies of some requests to the release before while the active one is on probation, unless a canary has them."""
        if routes.canary is not None:
            return routes
        shadow = self.hold is not None and routes.previous is not None
        return replace(routes, shadow=shadow, shadow_share=HOLD_SHADOW if shadow else 1.0)

    def _end_hold(self, text: str) -> None:
        assert self.hold is not None
        number, self.hold = self.hold.release, None
        self.set_routes(self._watched(replace(self.state.routes, hold_until=None)))
        self.book.event("held", f"release {number} {text}", number)

    def _retire(self, number: int) -> None:
        """Unload once nothing waits for it, unless it is wanted again by then."""

        async def retire() -> None:
            await self.gateway.drained(number, GRACE_S)
            async with self.busy:
                if self.names_due:
                    await self._point_names()
                routes = self.state.routes
                if number not in (routes.active, routes.previous, routes.canary) and not self.names_due:
                    with contextlib.suppress(RedlineError):  # it is out of the routes: what stays loaded costs memory alone
                        await self.loaded.unload(number)

        self._spawn(retire())

    async def _guard(self) -> None:
        while True:
            await asyncio.sleep(GUARD_S)
            self.book.catch_up()
            if self.names_due and self.address.port is not None:
                async with self.busy:
                    await self._point_names()
            if self.state.routes.canary is not None and not self._owned():
                async with self.busy:
                    if (canary := self.state.routes.canary) is not None and not self._owned():
                        self.withdrawn(canary, "the process that tried it has ended")
                        self._retire(canary)
            await self._judge()

    def _owned(self) -> bool:
        return self._owner is None or (runs(self._owner[0]) and identity(self._owner[0]) == self._owner[1])

    def _recent(self, hold: Hold) -> Observation | None:
        """What was seen in the last ten seconds; None while the hold is younger: then the whole says it."""
        self._looks.append(self.metrics.snapshot(hold.release))
        while len(self._looks) > 1 and self._looks[-1].at_s - self._looks[1].at_s >= RECENT_S:
            self._looks.popleft()
        oldest = self._looks[0]
        if self._looks[-1].at_s - oldest.at_s < RECENT_S:
            return None
        return self.metrics.observation(hold.release, oldest)

    async def _judge(self) -> None:
        hold = self.hold
        if hold is None or self.address.port is None:
            return
        self.observation = self.metrics.observation(hold.release, hold.since)
        action = self.action = self._decide(
            self.observation,
            self.settings.objective,
            self.settings.policy,
            held_s=time.monotonic() - hold.began_s,
            hold_s=hold.hold_s,
            recent=self._recent(hold),
        )
        if action.decision == "hold":
            return
        async with self.busy:
            if self.hold is not hold:  # somebody switched while this waited
                return
            if action.decision == "promote":
                self._end_hold(f"has held: {action.reason}")
            elif self.state.routes.previous is None:
                # A release that breaches is still better than none, and the alert says so.
                self._end_hold(f"breaches ({action.reason}), but there is no release to go back to")
            else:
                await self.go_back(None, action.reason, "automatic")

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.fault = task.exception()

    async def _listen(self, port: int, *, kept: bool) -> int:
        try:
            return await self.gateway.start(port=port)
        except BadInput as error:
            if not kept or error.code != "gateway-port":
                raise
        return await self.gateway.start(port=0)
