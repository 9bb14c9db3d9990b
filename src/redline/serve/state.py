"""What a service's folder remembers: its settings, its index of releases, its running process and its events."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import psutil

from redline.errors import BadInput, StoreError
from redline.records import Objective, ServeSpec, ServiceState
from redline.store import dump, load
from redline.store.disk import write_file

REPOSITORY = "repository"
SETTINGS, STATE, INFO, EVENTS, LOCK = "settings.json", "state.json", "service.json", "events.jsonl", "release.lock"
EVENT_BYTES = 4 << 20

EventKind = Literal[
    "service-started", "service-stopped", "server-died", "server-restarted", "staged", "canary", "withdrawn", "switched", "held"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a service needs to know before it has a release."""

    service: str
    objective: Objective
    policy: ServeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInfo:
    """A running service: who asks for `key` is its owner."""

    pid: int
    created: float
    gateway_port: int
    admin_port: int
    http_port: int
    grpc_port: int
    metrics_port: int
    key: str
    server_key: str
    """Triton's own, for shared memory and administration by a client on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    at: str
    """ISO 8601, UTC."""
    kind: EventKind
    text: str
    release: int | None = None
    lost: int = 0
    """Requests that had no answer because of it."""


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def write_settings(folder: Path, settings: Settings) -> None:
    write_file(folder / SETTINGS, dump(settings, indent=2), folder)


def read_settings(folder: Path) -> Settings:
    """Raises BadInput (serve.no-service) if `folder` is no service."""
    try:
        return load(Settings, (folder / SETTINGS).read_bytes())
    except OSError:
        raise BadInput("serve.no-service", f"no service in {folder}", fix="redline release SPEC makes one") from None


def write_state(folder: Path, state: ServiceState) -> None:
    write_file(folder / STATE, dump(state, indent=2), folder)


def read_state(folder: Path, service: str) -> ServiceState:
    """The index; an empty one where nothing was ever released. Raises StoreError if it is damaged."""
    from redline.records import Routes

    try:
        return load(ServiceState, (folder / STATE).read_bytes())
    except FileNotFoundError:
        return ServiceState(service=service, routes=Routes(), releases=())
    except OSError as error:
        raise StoreError("serve.state", f"cannot read {folder / STATE}", got=error.strerror) from error


def write_info(folder: Path, info: ServiceInfo) -> None:
    write_file(folder / INFO, dump(info, indent=2), folder)
    os.chmod(folder / INFO, 0o600)


def read_info(folder: Path) -> ServiceInfo | None:
    """The service that runs in `folder`, if one does."""
    try:
        info = load(ServiceInfo, (folder / INFO).read_bytes())
        running = abs(psutil.Process(info.pid).create_time() - info.created) < 1.0
    except (OSError, StoreError, psutil.Error):
        return None
    return info if running else None


def last_port(folder: Path) -> int:
    """The gateway port of the last start, so that clients find the service where it was; 0 if there was none."""
    try:
        return load(ServiceInfo, (folder / INFO).read_bytes()).gateway_port
    except (OSError, StoreError):
        return 0


def append_event(folder: Path, event: Event) -> None:
    """One line; a disk that is full must not stop a service, so an event may be lost."""
    path = folder / EVENTS
    with contextlib.suppress(OSError):
        if path.exists() and path.stat().st_size > EVENT_BYTES:
            path.replace(path.with_suffix(".old"))
        with path.open("ab") as file:
            file.write(dump(event) + b"\n")


def read_events(folder: Path, last: int = 20) -> tuple[Event, ...]:
    try:
        lines = (folder / EVENTS).read_bytes().splitlines()[-last:]
    except OSError:
        return ()
    found = []
    for line in lines:
        with contextlib.suppress(StoreError):
            found.append(load(Event, line))
    return tuple(found)


def with_release(state: ServiceState, number: int) -> ServiceState:
    return replace(state, releases=tuple(sorted({*state.releases, number})))


def with_failed(state: ServiceState, number: int) -> ServiceState:
    return replace(state, failed=tuple(sorted({*state.failed, number})))
