"""One look after the other at a gateway and its Triton, as records; how they are shown is not decided here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from redline.observe.burn import LIVE_S, Burn, burn
from redline.observe.decide import RECENT_S, decide
from redline.observe.gateway import Promise, bucket_counts, observation, promise_of, quantile_s, releases_in, roles_of
from redline.observe.ledger import Increase, Ledger, Moment
from redline.observe.scrape import Scrape
from redline.observe.triton import GpuUse, ModelActivity, gpus_of, models_of
from redline.records import Action, Observation, ServeSpec, Switch

SHOWN_LOOKS = 40
"""Points of a release's P95 curve."""
CAUSES = ("promote", "rollback", "automatic", "restart")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    url: str
    error: str | None
    """None: it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseView:
    """One release over the short live window."""

    release: int
    roles: tuple[str, ...]
    requests_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    errors: int
    """Since the watch began."""
    compared: int
    """Boxes of shadowed requests since the watch began."""
    agreement: float | None
    """Share of them that are the same; None if nothing was compared."""
    p95_history_ms: tuple[float | None, ...]
    """Of every look, the newest last; None where nothing was answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenSwitch:
    """A change of the active release, seen between two looks or told by the service."""

    at: str
    """ISO 8601, UTC."""
    source: int | None
    to: int | None
    cause: str
    """"" where it was not told."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the service itself says, which its metrics do not: only its owner can ask."""

    switches: tuple[Switch, ...] = ()
    holding_s: float | None = None
    """How long the active release has been on probation; None: it is not."""
    action: Action | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchState:
    """All that one look shows."""

    at: str
    """ISO 8601, UTC."""
    watched_s: float
    gateway: Endpoint
    triton: Endpoint | None
    """None: no endpoint was given."""
    promise: Promise | None
    """None: the gateway has not answered yet."""
    releases: tuple[ReleaseView, ...] = ()
    burns: tuple[Burn, ...] = ()
    server_up: bool | None = None
    in_flight: int = 0
    restarts: int = 0
    """Of Triton, since the watch began; so too the next."""
    lost: int = 0
    """Requests lost with it."""
    models: tuple[ModelActivity, ...] = ()
    gpus: tuple[GpuUse, ...] = ()
    switches: tuple[SeenSwitch, ...] = ()
    judged: Observation | None = None
    """What the decision rests on: the canary, or else the active release, since it got that role or the watch began."""
    action: Action | None = None
    decided_by: str = "watch"
    """watch: by the same rule, from what this watch saw; service: the service's own, about its release on probation."""


@dataclass(slots=True)
class Watcher:
    """Turns scrapes into looks. `policy` has what a gateway does not tell: the hold and the disagreement that is allowed."""

    policy: ServeSpec = field(default_factory=ServeSpec)
    _gateway: Ledger = field(default_factory=lambda: Ledger(max(LIVE_S)))
    _triton: Ledger = field(default_factory=lambda: Ledger(max(LIVE_S)))
    _promise: Promise | None = None
    _began: Moment | None = None
    _subject: tuple[int, str, Moment] | None = None
    _roles: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _history: dict[int, deque[float | None]] = field(default_factory=dict)
    _switches: list[SeenSwitch] = field(default_factory=list)

    def look(self, gateway: Scrape, triton: Scrape | None, at: str, told: Told | None = None) -> WatchState:
        """Take one scrape of each; `at` is the wall clock, ISO 8601."""
        promise = promise_of(gateway)
        if gateway.error is None and promise is None:
            gateway = replace(gateway, samples=(), error="no gateway of redline")
        state = WatchState(
            at=at,
            watched_s=0.0 if self._began is None else gateway.at_s - self._began.at_s,
            gateway=Endpoint(url=gateway.url, error=gateway.error),
            triton=None if triton is None else Endpoint(url=triton.url, error=triton.error),
            promise=promise or self._promise,
        )
        if promise is not None:
            self._promise = promise
            self._take(gateway, at)
            state = self._served(state, gateway, promise)
        if triton is not None:
            self._triton.add(triton)
            service = self._promise.service if self._promise is not None else None
            models = models_of(triton, self._triton.over(LIVE_S[0]), service)
            state = replace(state, models=models, gpus=gpus_of(triton))
        state = replace(state, switches=tuple(self._switches))
        return state if told is None else _as_told(state, told)

    def _take(self, gateway: Scrape, at: str) -> None:
        self._gateway.add(gateway)
        now = self._gateway.mark()
        self._began = self._began or now
        roles = roles_of(gateway)
        before, after = _holder(self._roles, "active"), _holder(roles, "active")
        if self._roles and before != after:
            cause = self._cause()
            self._switches.append(SeenSwitch(at=at, source=before, to=after, cause=cause))
        self._roles = roles
        canary = _holder(roles, "canary")
        release, role = (canary, "canary") if canary is not None else (after, "active")
        if release is None:
            self._subject = None
        elif self._subject is None or self._subject[:2] != (release, role):
            self._subject = (release, role, now)
        last = self._gateway.over(0.0)
        for number in {*releases_in(last), *roles}:
            p95_s = quantile_s(bucket_counts(last, str(number)), 0.95)
            curve = self._history.setdefault(number, deque(maxlen=SHOWN_LOOKS))
            curve.append(None if p95_s is None else 1000 * p95_s)

    def _cause(self) -> str:
        """Which counter of switches grew between the last two looks."""
        last = self._gateway.over(0.0)
        return next((cause for cause in CAUSES if last.total("redline_switches_total", cause=cause)), "")

    def _served(self, state: WatchState, gateway: Scrape, promise: Promise) -> WatchState:
        assert self._began is not None
        whole, short = self._gateway.since(self._began), self._gateway.over(LIVE_S[0])
        up = gateway.value("redline_server_up")
        policy = replace(self.policy, error_pct=promise.error_pct)
        state = replace(
            state,
            watched_s=whole.seconds,
            releases=tuple(self._release(number, whole, short) for number in sorted(self._history, reverse=True)),
            burns=tuple(burn(self._gateway.over(window), window, promise.objective, promise.error_pct) for window in LIVE_S),
            server_up=None if up is None else up == 1,
            in_flight=round(gateway.value("redline_in_flight") or 0),
            restarts=round(whole.total("redline_server_restarts_total")),
            lost=round(whole.total("redline_lost_requests_total")),
        )
        if self._subject is None:
            return state
        release, _, mark = self._subject
        judged = observation(self._gateway.since(mark), release, promise.objective)
        newest = self._gateway.over(RECENT_S)
        recent = observation(newest, release, promise.objective) if newest.seconds < judged.seconds else None
        held_s, hold_s = judged.seconds, policy.hold_s
        action = decide(judged, promise.objective, policy, held_s=held_s, hold_s=hold_s, recent=recent)
        return replace(state, judged=judged, action=action)

    def _release(self, number: int, whole: Increase, short: Increase) -> ReleaseView:
        assert self._promise is not None
        objective = self._promise.objective
        seen, all_of_it = observation(short, number, objective), observation(whole, number, objective)
        p50_s = quantile_s(bucket_counts(short, str(number)), 0.5)
        agreement = 1 - all_of_it.differing / all_of_it.compared if all_of_it.compared else None
        return ReleaseView(
            release=number,
            roles=self._roles.get(number, ()),
            requests_per_s=seen.requests / seen.seconds if seen.seconds else 0.0,
            p50_ms=None if p50_s is None else 1000 * p50_s,
            p95_ms=seen.p95_ms,
            errors=all_of_it.errors,
            compared=all_of_it.compared,
            agreement=agreement,
            p95_history_ms=tuple(self._history[number]),
        )


def watch(
    gateway_url: str,
    triton_url: str | None = None,
    *,
    scrape: Callable[[str], Scrape],
    interval_s: float = 1.0,
    looks: int | None = None,
    policy: ServeSpec | None = None,
    told: Callable[[], Told | None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> Iterator[WatchState]:
    """Look every `interval_s` seconds, `looks` times or for ever. The caller ends it, by Ctrl-C or otherwise.

    Rates need two looks: the first shows who is served, with no rates. `told` asks the service itself, where one may.
    """
    watcher, due = Watcher(policy or ServeSpec()), clock()
    done = 0
    while looks is None or done < looks:
        if done:
            due = max(due + interval_s, clock())  # a late look is not made up for
            sleep(max(due - clock(), 0.0))
        gateway = scrape(gateway_url)
        triton = scrape(triton_url) if triton_url is not None else None
        yield watcher.look(gateway, triton, wall().isoformat(timespec="milliseconds"), told())
        done += 1


def _holder(roles: dict[int, tuple[str, ...]], role: str) -> int | None:
    return next((number for number, held in roles.items() if role in held), None)


def _as_told(state: WatchState, told: Told) -> WatchState:
    switches = tuple(
        SeenSwitch(at=one.at, source=one.source, to=one.to, cause=one.cause, reason=one.reason) for one in told.switches
    )
    state = replace(state, switches=switches or state.switches)
    if told.holding_s is None or told.action is None:
        return state
    return replace(state, action=told.action, decided_by="service")
