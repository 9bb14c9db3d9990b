"""What a server has loaded: releases in and out, the stable names, and whether the models' processes still run."""

from __future__ import annotations

import asyncio
from pathlib import Path

from redline.errors import RedlineError
from redline.records import Release
from redline.serve.config import render
from redline.serve.gateway.limits import ReleaseLimits, limits_of
from redline.serve.loader import load_release, load_stable, read_release, reload_model, unload_release
from redline.serve.processes import runs, stubs_of
from redline.serve.server import TritonServer


class Loaded:
    """`limits` has what the gateway must know of each loaded release; it is changed in place."""

    def __init__(self, server: TritonServer, repository: Path, service: str) -> None:
        self.limits: dict[int, ReleaseLimits] = {}
        self._server, self._repository, self._service = server, repository, service
        self._models: dict[str, int] = {}
        """Release of each loaded model."""
        self._stubs: dict[int, str] = {}
        """Model of each process."""

    def reset(self) -> None:
        """A new server has nothing loaded."""
        self.limits.clear()
        self._models.clear()
        self._stubs.clear()

    async def load(self, number: int) -> Release:
        """Raises as `loader.load_release`."""
        release = await asyncio.to_thread(load_release, self._server.control, self._repository, self._service, number)
        self._models.update({files.name: number for files in render(release, "embedded")})
        self.limits[number] = limits_of(release)
        await self._look()
        return release

    async def unload(self, number: int) -> None:
        """Raises as `loader.unload_release`; whatever happens, the release counts as unloaded."""
        self.limits.pop(number, None)
        self._models = {model: of for model, of in self._models.items() if of != number}
        self._stubs = {pid: model for pid, model in self._stubs.items() if model in self._models}
        await asyncio.to_thread(unload_release, self._server.control, self._repository, self._service, number)

    async def reload(self, model: str) -> None:
        """Give a model new processes; the server itself never replaces one that has died. Raises TrialError, StoreError."""
        await asyncio.to_thread(reload_model, self._server.control, model, self._models[model])
        await self._look()

    async def point(self, number: int) -> None:
        """Give the stable names to a loaded release. Raises as `loader.load_stable`."""
        release = await asyncio.to_thread(read_release, self._repository, self._service, number)
        await asyncio.to_thread(load_stable, self._server.control, self._repository, release)

    def died(self) -> list[tuple[str, int]]:
        """Models, with their release, of which a process has ended since the last call."""
        ended = [pid for pid in self._stubs if not runs(pid)]
        models = dict.fromkeys(self._stubs.pop(pid) for pid in ended)
        return [(model, self._models[model]) for model in models]

    async def _look(self) -> None:
        stubs = await asyncio.to_thread(stubs_of, self._server.known.pid)
        self._stubs = {pid: model for pid, model in stubs.items() if model in self._models}


def one_line(error: RedlineError) -> str:
    """For an event: what, and what was got."""
    text = error.what if error.got is None else f"{error.what}: {error.got}"
    return " ".join(text.split())[:500]
