"""The process of a service: in the foreground until it is told to stop, or detached from whoever starts it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from redline.errors import BadInput, StoreError
from redline.serve.admin import Admin, Service, running_service
from redline.serve.environment import find_environment
from redline.serve.gateway.app import new_event_loop
from redline.serve.processes import identity
from redline.serve.state import ServiceInfo, last_port, read_settings, write_info
from redline.serve.supervisor import Decide, Supervisor
from redline.store.disk import flocked, guarded

START_S = 60.0
STOP_S = 60.0
DAEMON_LOG, DAEMON_LOCK = "service.log", "service.lock"
WATCH_S = 0.2
RUNS_ALREADY = 5
"""Exit code of a service's process that found another one in its folder."""


def run_service(folder: Path, decide: Decide, ready: Callable[[ServiceInfo], None]) -> None:
    """Serve until SIGINT, SIGTERM or the owner's word; `ready` is told where, once requests are answered.

    Raises BadInput if a service runs in `folder` already, or what the server, the gateway or the settings raise.
    """
    environment, settings = find_environment(), read_settings(folder)
    with flocked(folder / DAEMON_LOCK, wait=False) as held:
        if not held:
            raise BadInput("serve.running", f"the service in {folder} runs already", fix="redline serve SPEC --stop")
        supervisor = Supervisor(folder, settings, environment, decide)
        with asyncio.Runner(loop_factory=new_event_loop) if sys.version_info >= (3, 11) else _Runner() as runner:
            runner.run(_serve(supervisor, ready))


async def _serve(supervisor: Supervisor, ready: Callable[[ServiceInfo], None]) -> None:
    stop, key = asyncio.Event(), secrets.token_hex(16)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    folder, policy = supervisor.folder, supervisor.settings.policy
    admin, info = Admin(supervisor, key, stop), None
    try:
        gateway_port = await supervisor.start(policy.port or last_port(folder), kept=policy.port == 0)
        info = _info(supervisor, gateway_port, await admin.start(), key)
        write_info(folder, info)
        ready(info)
        while supervisor.fault is None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), WATCH_S)
                return
            found = _info(supervisor, gateway_port, info.admin_port, key)
            if found != info:  # the server came back on other ports
                with contextlib.suppress(StoreError):
                    write_info(folder, found)
                    info = found
        raise supervisor.fault
    finally:
        if info is not None:  # nobody finds it any more; the port stays for the next start
            with contextlib.suppress(StoreError):
                write_info(folder, replace(info, identity=""))
        await admin.close()
        await supervisor.stop()


def _info(supervisor: Supervisor, gateway_port: int, admin_port: int, key: str) -> ServiceInfo:
    server = supervisor.server.known
    return ServiceInfo(
        pid=os.getpid(),
        identity=identity(os.getpid()) or "",
        gateway_port=gateway_port,
        admin_port=admin_port,
        http_port=server.http_port,
        grpc_port=server.grpc_port,
        metrics_port=server.metrics_port,
        key=key,
        server_key=server.admin_key,
    )


class _Runner:
    """asyncio.Runner of Python 3.11, as far as it is needed, for 3.10."""

    def __enter__(self) -> _Runner:
        self._loop = new_event_loop()
        asyncio.set_event_loop(self._loop)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.set_event_loop(None)
        self._loop.close()

    def run(self, main: object) -> None:
        self._loop.run_until_complete(main)  # type: ignore[arg-type]


_DETACHED: list[subprocess.Popen[bytes]] = []
"""Services that outlive this process are kept, so that one which ends before it is reaped and none is warned of."""


def start_detached(folder: Path) -> Service:
    """Start the service of `folder` as a process of its own and wait until it answers. Raises BadInput with its log's end."""
    running = running_service(folder)
    if running is not None:
        return running
    find_environment()
    log, process = folder / DAEMON_LOG, _launch(folder)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        found = running_service(folder)
        if found is not None:
            _DETACHED.append(process)
            return found
        if process.poll() not in (None, RUNS_ALREADY):
            break
        # Somebody else's was faster, or the one before has not quite ended.
        if process.poll() == RUNS_ALREADY and not _held(folder):
            process = _launch(folder)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    tail = "\n".join(log.read_text(errors="replace").strip().splitlines()[-8:])
    raise BadInput("serve.start", "the service did not start", got=tail or "no message", fix=f"see {log}")


def _launch(folder: Path) -> subprocess.Popen[bytes]:
    with guarded("write", folder / DAEMON_LOG), (folder / DAEMON_LOG).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "redline.serving", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _held(folder: Path) -> bool:
    with flocked(folder / DAEMON_LOCK, wait=False) as free:
        return not free


def stop_service(folder: Path) -> bool:
    """End the service of `folder` and wait until it has; False if none runs. Raises StoreError if it does not end."""
    service = running_service(folder)
    if service is None:
        return False
    process = psutil.Process(service.info.pid)
    try:
        service.stop()
    except StoreError:
        process.terminate()
    try:
        process.wait(STOP_S)
    except psutil.TimeoutExpired:
        raise StoreError("serve.stop", "the service does not end", got=f"pid {process.pid}", fix="kill it") from None
    return True
