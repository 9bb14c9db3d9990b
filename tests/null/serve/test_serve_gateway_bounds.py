"""What is held at once: requests, requests of one release, bytes of bodies."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from gateway_case import Asked, Case, good, run

from redline.records import Routes


def test_more_requests_than_allowed_are_refused_at_once() -> None:
    gate = asyncio.Event()

    async def held(asked: Asked) -> bytes:
        await gate.wait()
        return await good(asked)

    async def scenario(case: Case) -> None:
        waiting = [asyncio.ensure_future(case.detect()) for _ in range(2)]
        while len(case.triton.asked) < 2:
            await asyncio.sleep(0.01)
        assert case.gateway.answering == 2
        reply = await case.detect()
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "gateway-full", "1")
        gate.set()
        assert [done.status for done in await asyncio.gather(*waiting)] == [200, 200]

    run(scenario, answer=held, in_flight=2)


def test_more_requests_than_a_release_may_have_are_refused_and_others_are_not() -> None:
    """Triton has no queue policy behind the gateway (`blocks.batching`): this is the bound on what waits."""
    gate = asyncio.Event()

    async def held(asked: Asked) -> bytes:
        await gate.wait()
        return await good(asked)

    async def scenario(case: Case) -> None:
        case.gateway.releases[1] = replace(case.gateway.releases[1], at_once=2)  # type: ignore[index]
        waiting = [asyncio.ensure_future(case.detect()) for _ in range(2)]
        while len(case.triton.asked) < 2:
            await asyncio.sleep(0.01)
        reply = await case.detect()
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "queue-full", "1")
        case.gateway.table.routes = Routes(active=2)
        other = asyncio.ensure_future(case.detect())
        while len(case.triton.asked) < 3:
            await asyncio.sleep(0.01)
        gate.set()
        assert [done.status for done in await asyncio.gather(*waiting, other)] == [200, 200, 200]
        case.gateway.table.routes = Routes(active=1)
        assert (await case.detect()).status == 200

    run(scenario, answer=held)


def test_bodies_held_at_once_are_bounded_and_given_back() -> None:
    gate = asyncio.Event()

    async def held(asked: Asked) -> bytes:
        await gate.wait()
        return await good(asked)

    async def scenario(case: Case) -> None:
        waiting = asyncio.ensure_future(case.detect(b"x" * 6000))
        while not case.triton.asked:
            await asyncio.sleep(0.01)
        reply = await case.detect(b"x" * 6000)
        assert (reply.status, reply.code) == (503, "gateway-full")
        gate.set()
        assert (await waiting).status == 200
        for _ in range(3):
            assert (await case.detect(b"x" * 9000)).status == 200

    run(scenario, answer=held, buffered_bytes=10_000)
