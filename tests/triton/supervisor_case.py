"""A supervisor in the test's own process, over a real server, and a judge that does as it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from service_case import Case

from redline.records import Action, Observation
from redline.serve.environment import ServerEnvironment
from redline.serve.state import read_settings
from redline.serve.supervisor import Supervisor


class Judge:
    """`decide` as the test wants it: it holds until the time is over, unless it is told to roll back."""

    def __init__(self) -> None:
        self.breach: int | None = None
        self.held_s: list[float] = []
        self.seen: list[Observation] = []

    def __call__(
        self, observation: Observation, objective: Any, policy: Any, *, held_s: float, hold_s: float, **_: Any
    ) -> Action:
        self.held_s.append(held_s)
        self.seen.append(observation)
        decision = "rollback" if observation.release == self.breach else "promote" if held_s >= hold_s else "hold"
        return Action(decision=decision, reason=f"told to {decision}", burn_latency=0.0, burn_errors=0.0)


@asynccontextmanager
async def supervising(case: Case, environment: ServerEnvironment, judge: Judge, **start: Any) -> AsyncIterator[Supervisor]:
    found = Supervisor(case.folder, read_settings(case.folder), environment, judge)
    found.server.stop = found.server.kill  # type: ignore[method-assign]  # seconds faster, and not what is tested
    try:
        await found.start(start.pop("port", 0), **start)
        yield found
        assert found.fault is None
    finally:
        await found.stop()


async def promoted(found: Supervisor, *numbers: int, hold_s: float = 0.0) -> None:
    for number in numbers:
        await found.stage(number)
        await found.promote(number, hold_s=hold_s if number == numbers[-1] else 0.0)


async def ask(found: Supervisor, image: bytes, version: int | None = None) -> tuple[int, int | None]:
    """(status, release that answered)."""
    port = found.gateway.addresses[0][1]
    async with aiohttp.ClientSession() as session:
        if version is None:
            async with session.post(f"http://127.0.0.1:{port}/detect", data=image) as response:
                return response.status, (await response.json()).get("release")
        raise NotImplementedError


async def until(look: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)
    return found


def run(test: Awaitable[None]) -> None:
    asyncio.run(test)  # type: ignore[arg-type]


def stub(found: Supervisor, model: str) -> int:
    return next(pid for pid, name in found.loaded._stubs.items() if name == model)


def servers(folder: Path) -> list[psutil.Process]:
    """tritonservers and models' processes of this folder that run now."""
    return [process for process in psutil.process_iter() if _is_of(process, folder)]


def _is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        living = process.status() != psutil.STATUS_ZOMBIE and "triton" in process.name()
        return living and str(folder) in " ".join(process.cmdline())
    except psutil.Error:
        return False
