"""The owner's way to a running service: a loopback port that asks for the key in `service.json`, and the client for it."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from aiohttp import web

from redline.errors import BadInput, RedlineError, StoreError, TrialError
from redline.records import Action, Observation, Release, ServiceState, Switch
from redline.serve.state import Event, ServiceInfo, read_events, read_info
from redline.serve.supervisor import Supervisor
from redline.store import dump, load

KEY_HEADER = "x-redline-key"
WAIT_S = 180.0
"""Longest administrative act: loading a release with its warm-up on a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A service as it is now."""

    state: ServiceState
    server_up: bool
    holding_s: float | None
    """How long the active release has been on probation; None: it is not."""
    observation: Observation | None
    action: Action | None
    events: tuple[Event, ...]
    pid: int
    server_pid: int


class Admin:
    """Serves a supervisor's acts. `stop` is set when the owner wants the service to end."""

    def __init__(self, supervisor: Supervisor, key: str, stop: asyncio.Event) -> None:
        self._supervisor, self._key, self._stop = supervisor, key, stop
        self._runner: web.AppRunner | None = None
        self._acts: dict[str, Callable[[dict[str, Any]], Awaitable[object]]] = {
            "status": self._status,
            "stage": lambda given: supervisor.stage(given["number"], owner=given["owner"]),
            "canary": lambda given: supervisor.canary(**given),
            "observed": lambda given: supervisor.observed(given["number"]),
            "withdraw": lambda given: supervisor.withdraw(given["number"], given["reason"]),
            "promote": lambda given: supervisor.promote(given["number"], hold_s=given["hold_s"]),
            "rollback": lambda given: supervisor.rollback(to=given["to"], reason=given["reason"]),
            "stop": self._end,
        }

    async def start(self) -> int:
        app = web.Application()
        app.router.add_post("/{act}", self._handle)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        if not hmac.compare_digest(request.headers.get(KEY_HEADER, "").encode(), self._key.encode()):
            return web.Response(status=403)
        act = self._acts.get(request.match_info["act"])
        if act is None:
            return web.Response(status=404)
        try:
            # An act goes on though its asker leaves: a half-made switch would be worse than one nobody waits for.
            found = await asyncio.shield(asyncio.ensure_future(act(await request.json())))
        except RedlineError as error:
            fault = {"kind": type(error).__name__, "code": error.code, "what": error.what}
            more = {name: getattr(error, name) for name in ("got", "allowed", "fix")}
            texts = {name: None if value is None else str(value) for name, value in more.items()}
            return web.Response(status=409, body=dump({**fault, **texts}))
        return web.Response(body=dump(found))

    async def _status(self, _: dict[str, Any]) -> Status:
        service, hold = self._supervisor, self._supervisor.hold
        return Status(
            state=service.state,
            server_up=service.address.port is not None,
            holding_s=None if hold is None else time.monotonic() - hold.began_s,
            observation=service.observation,
            action=service.action,
            events=read_events(service.folder),
            pid=os.getpid(),
            server_pid=service.server.known.pid,
        )

    async def _end(self, _: dict[str, Any]) -> None:
        self._stop.set()


class Service:
    """A running service, seen by its owner. Every method raises the service's own BadInput, TrialError or StoreError."""

    def __init__(self, info: ServiceInfo) -> None:
        self.info = info

    def status(self) -> Status:
        return load(Status, self._ask("status", {}))

    def stage(self, number: int) -> Release:
        """It is withdrawn if this process ends before it has promoted or withdrawn it."""
        return load(Release, self._ask("stage", {"number": number, "owner": os.getpid()}))

    def canary(self, number: int, *, share: float, shadow: bool, shadow_share: float = 1.0) -> None:
        self._ask("canary", {"number": number, "share": share, "shadow": shadow, "shadow_share": shadow_share})

    def observed(self, number: int) -> Observation:
        return load(Observation, self._ask("observed", {"number": number}))

    def withdraw(self, number: int, reason: str) -> None:
        self._ask("withdraw", {"number": number, "reason": reason})

    def promote(self, number: int, *, hold_s: float) -> Switch:
        return load(Switch, self._ask("promote", {"number": number, "hold_s": hold_s}))

    def rollback(self, *, to: int | None, reason: str) -> Switch:
        return load(Switch, self._ask("rollback", {"to": to, "reason": reason}))

    def stop(self) -> None:
        self._ask("stop", {})

    def _ask(self, act: str, given: dict[str, Any]) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.info.admin_port, timeout=WAIT_S)
        try:
            connection.request("POST", f"/{act}", json.dumps(given), {KEY_HEADER: self.info.key})
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as error:
            raise StoreError("serve.gone", "the service does not answer", got=repr(error), fix="redline serve SPEC") from error
        finally:
            connection.close()
        if answer.status == 200:
            return body
        if answer.status != 409:
            raise StoreError("serve.gone", "the service does not know this request", got=f"{act}: {answer.status}")
        fault = json.loads(body)
        kinds: dict[str, type[RedlineError]] = {"BadInput": BadInput, "TrialError": TrialError}
        kind = kinds.get(fault["kind"], StoreError)
        raise kind(fault["code"], fault["what"], got=fault["got"], allowed=fault["allowed"], fix=fault["fix"])


def running_service(folder: Path) -> Service | None:
    info = read_info(folder)
    return None if info is None else Service(info)
