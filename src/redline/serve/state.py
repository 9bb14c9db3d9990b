"""What a service's folder remembers: its settings, its index of releases, its running process and its events."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from redline.errors import BadInput, StoreError
from redline.records import Objective, Routes, ServeSpec, ServiceState
from redline.serve.processes import identity, runs
from redline.store import dump, load
from redline.store.disk import write_file

REPOSITORY = "repository"
SETTINGS, STATE, INFO, EVENTS, LOCK = "settings.json", "state.json", "service.json", "events.jsonl", "release.lock"
EVENT_BYTES = 4 << 20

EventKind = Literal[
    "service-started",
    "service-stopped",
    "server-died",
    "server-restarted",
    "model-died",
    "staged",
    "canary",
    "withdrawn",
    "switched",
    "held",
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
    identity: str
    """Of its process: a pid alone may be somebody else's by now."""
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
    """Raises BadInput (serve.no-service) if `folder` is no service, StoreError if its settings are damaged."""
    path = folder / SETTINGS
    try:
        return load(Settings, path.read_bytes())
    except OSError:
        raise BadInput("serve.no-service", f"no service in {folder}", fix="redline release SPEC makes one") from None
    except StoreError as error:
        raise StoreError("serve.settings", f"{path} is damaged", got=error.got, fix="remove it: it is written anew") from error


def write_state(folder: Path, state: ServiceState) -> None:
    write_file(folder / STATE, dump(state, indent=2), folder)


def read_state(folder: Path, service: str) -> ServiceState:
    """The index; an empty one where nothing was ever released. Raises StoreError if it is damaged."""
    path = folder / STATE
    try:
        return load(ServiceState, path.read_bytes())
    except FileNotFoundError:
        return ServiceState(service=service, routes=Routes(), releases=())
    except OSError as error:
        raise StoreError("serve.state", f"cannot read {path}", got=error.strerror) from error
    except StoreError as error:
        raise StoreError(
            "serve.state",
            f"{path} is damaged: it says which release is served",
            got=error.got,
            allowed="what redline wrote; the releases themselves are untouched",
            fix="move it away, start the service and name the release to serve: redline rollback SPEC --to N",
        ) from error


def write_info(folder: Path, info: ServiceInfo) -> None:
    write_file(folder / INFO, dump(info, indent=2), folder)
    os.chmod(folder / INFO, 0o600)


def read_info(folder: Path) -> ServiceInfo | None:
    """The service that runs in `folder`, if one does."""
    try:
        info = load(ServiceInfo, (folder / INFO).read_bytes())
    except (OSError, StoreError):
        return None
    return info if runs(info.pid) and identity(info.pid) == info.identity else None


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


class Book:
    """The state of a service in memory and on the disk, and its events. Nothing it does waits for anything but the disk."""

    def __init__(self, folder: Path, service: str) -> None:
        self.folder = folder
        self.state = ServiceState(service=service, routes=Routes(), releases=())
        self._behind = False

    def read(self) -> None:
        """Raises StoreError."""
        self.state = read_state(self.folder, self.state.service)

    def write(self, state: ServiceState) -> None:
        """For what must not hold unless it is on the disk. Raises StoreError, and nothing has changed."""
        write_state(self.folder, state)
        self.state, self._behind = state, False

    def keep(self, state: ServiceState) -> None:
        """For what holds whether or not the disk takes it: a full one must neither keep a bad release nor end a service."""
        self.state, self._behind = state, True
        self.catch_up()

    def catch_up(self) -> None:
        """Write what a full disk did not take."""
        if self._behind:
            with contextlib.suppress(StoreError):
                self.write(self.state)

    def event(self, kind: EventKind, text: str, release: int | None = None, *, lost: int = 0) -> None:
        append_event(self.folder, Event(at=now(), kind=kind, text=text, release=release, lost=lost))


def with_release(state: ServiceState, number: int) -> ServiceState:
    return replace(state, releases=tuple(sorted({*state.releases, number})))


def with_failed(state: ServiceState, number: int) -> ServiceState:
    return replace(state, failed=tuple(sorted({*state.failed, number})))
