"""Joins what watches with what serves: where a service answers, and what only its owner can ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from redline.errors import BadInput, RedlineError
from redline.observe.export import Exported, export_monitoring
from redline.observe.gateway import promise_of
from redline.observe.scrape import metrics_url, scrape
from redline.observe.watch import Told, WatchState, watch
from redline.records import ServeSpec

if TYPE_CHECKING:
    from redline.records import Spec
    from redline.serve.admin import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Addresses of metrics endpoints, and what the service itself says, if it may be asked."""

    gateway: str
    triton: str | None = None
    policy: ServeSpec = field(default_factory=ServeSpec)
    told: Callable[[], Told | None] = lambda: None


def elsewhere(url: str, triton: str | None) -> Watched:
    """A service that is known by its address only. Raises BadInput for what is no address."""
    return Watched(gateway=metrics_url(url), triton=None if triton is None else metrics_url(triton))


def own(spec: Spec, service: Service, triton: str | None = None) -> Watched:
    """A service on this machine, which is asked for its own decision and switches too."""
    info = service.info
    return Watched(
        gateway=metrics_url(f"127.0.0.1:{info.gateway_port}"),
        triton=metrics_url(triton or f"127.0.0.1:{info.metrics_port}"),
        policy=spec.serve,
        told=lambda: _told(service),
    )


def looks(watched: Watched, *, interval_s: float, once: bool) -> Iterator[WatchState]:
    """Looks for ever, or (`once`) one that has seen a whole interval. Raises BadInput (once) if the gateway does not answer."""
    every = watch(
        watched.gateway,
        watched.triton,
        scrape=scrape,
        interval_s=interval_s,
        looks=2 if once else None,
        policy=watched.policy,
        told=watched.told,
    )
    if not once:
        yield from every
        return
    for state in every:
        if state.gateway.error is not None:
            raise _no_gateway(watched.gateway, state.gateway.error)
    yield state


def export(watched: Watched, folder: Path) -> Exported:
    """Rules, dashboard and scrape configuration; the objective is the running gateway's. Raises BadInput if there is none."""
    seen = scrape(watched.gateway)
    promise = promise_of(seen)
    if promise is None:
        raise _no_gateway(watched.gateway, seen.error or "no gateway of redline")
    policy = ServeSpec(name=promise.service, error_pct=promise.error_pct, disagreement_pct=watched.policy.disagreement_pct)
    tritons = () if watched.triton is None else (watched.triton,)
    return export_monitoring(folder, promise.service, promise.objective, policy, gateways=(watched.gateway,), tritons=tritons)


def _told(service: Service) -> Told | None:
    try:
        status = service.status()
    except RedlineError:
        return None  # it stops or is being restarted: its metrics say so
    return Told(switches=status.state.switches, holding_s=status.holding_s, action=status.action)


def _no_gateway(url: str, why: str) -> BadInput:
    fix = "redline serve SPEC starts a service and prints its address"
    return BadInput("watch.gateway", f"no gateway answers at {url}", got=why, fix=fix)
