"""A supervisor over a real server: what it does when the server or a model's process dies, and when it starts again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from typing import Any

import pytest
from supervisor_case import ask, promoted, run, servers, stub, supervising, until

from redline.errors import BadInput
from redline.records import Routes
from redline.serve import keeper
from redline.serve.loader import read_release
from redline.serve.state import read_state


def test_a_model_whose_process_dies_is_loaded_anew(case, environment, judge) -> None:
    image = case.expected.encoded[0]

    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1)
            server = found.server.known.pid
            os.kill(stub(found, "detector_r1"), signal.SIGKILL)
            event = await asyncio.to_thread(case.event, "model-died")
            assert (event.release, event.text) == (1, "a process of detector_r1 has ended")
            await asyncio.sleep(0.2)
            end = time.monotonic() + 5
            while await ask(found, image) != (200, 1):
                assert time.monotonic() < end
            assert found.server.known.pid == server, "the whole server was started again for one model"
            # The way back is kept in order too; a canary is not: it must fail its verification.
            await promoted(found, 2)
            await found.stage(3)
            os.kill(stub(found, "detector_r3"), signal.SIGKILL)
            os.kill(stub(found, "detector_r1"), signal.SIGKILL)
            await until(lambda: sum(event.kind == "model-died" for event in case.events()) == 3, 5, "both deaths noticed")
            await until(lambda: "detector_r1" in found.loaded._stubs.values(), 5, "the way back to be loaded anew")
            assert "detector_r3" not in found.loaded._stubs.values()
            await found.withdraw(3, "it does not answer")
            await found.rollback(reason="asked for")
            assert await ask(found, image) == (200, 1)

    run(test())


def test_a_release_on_probation_whose_process_dies_is_rolled_back_at_once(case, environment, judge) -> None:
    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1, 2, hold_s=60.0)
            os.kill(stub(found, "detector_r2"), signal.SIGKILL)
            await until(lambda: found.table.routes.active == 1, 2, "the rollback")
            last = found.state.switches[-1]
            assert (last.cause, last.reason) == ("automatic", "a process of detector_r2 has ended")
            assert await ask(found, case.expected.encoded[0]) == (200, 1)

    run(test())


def test_a_server_that_dies_again_and_again_is_waited_for_and_loses_no_release(case, environment, judge, monkeypatch) -> None:
    monkeypatch.setattr(keeper, "BACKOFF_S", 6.0)  # well above what a start takes on a busy machine

    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1, 2)
            waits, pids = [], set()
            for _ in range(keeper.CRASHES + 1):
                pids.add(found.server.known.pid)
                os.kill(found.server.known.pid, signal.SIGKILL)
                killed = time.monotonic()
                await until(lambda: found.address.port is None, 2, "the death to be noticed")
                await until(lambda: found.address.port is not None, 15, "the server to be back")
                waits.append(time.monotonic() - killed)
            assert len(pids) == keeper.CRASHES + 1
            assert waits[-1] >= 6.0 > min(waits[:-1]), waits
            assert found.state.routes == Routes(active=2, previous=1)
            assert found.state.failed == ()
            assert await ask(found, case.expected.encoded[0]) == (200, 2)
            assert found.server.control.ready("detector", 2)

    run(test())


def test_a_server_that_dies_while_it_loads_is_not_the_releases_fault(case, environment, judge, monkeypatch) -> None:
    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1)
            real, deaths = found.loaded.load, [1]

            async def load(number: int) -> Any:
                if deaths[0]:
                    deaths[0] -= 1
                    os.kill(found.server.known.pid, signal.SIGKILL)
                return await real(number)

            monkeypatch.setattr(found.loaded, "load", load)
            os.kill(found.server.known.pid, signal.SIGKILL)
            await until(lambda: not deaths[0] and found.address.port is not None, 10, "the second restart")
            assert found.state.routes.active == 1
            assert found.state.failed == ()
            assert await ask(found, case.expected.encoded[0]) == (200, 1)

    run(test())


def test_a_release_that_kills_its_server_gives_way_to_the_one_before(case, environment, judge, monkeypatch) -> None:
    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1, 2)
            real = found.loaded.load

            async def load(number: int) -> Any:
                if number == 2:
                    os.kill(found.server.known.pid, signal.SIGKILL)
                return await real(number)

            monkeypatch.setattr(found.loaded, "load", load)
            os.kill(found.server.known.pid, signal.SIGKILL)
            await until(lambda: found.address.port is not None and found.state.routes.active == 1, 15, "the release before")
            last = found.state.switches[-1]
            assert (last.cause, last.source, last.to) == ("restart", 2, 1)
            assert "died 2 times" in last.reason
            assert found.state.failed == (2,)
            assert await ask(found, case.expected.encoded[0]) == (200, 1)

    run(test())


def test_a_stop_in_the_middle_of_a_restart_leaves_nothing_running(case, environment, judge) -> None:
    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1)
            os.kill(found.server.known.pid, signal.SIGKILL)
            await until(lambda: found.address.port is None, 2, "the death to be noticed")
            await asyncio.sleep(0.15)  # the new one is being started, in a thread that cannot be stopped

    run(test())
    assert servers(case.folder) == []
    assert not (case.folder / "server.json").exists()


def test_a_port_that_is_taken_is_refused_if_it_was_chosen_and_replaced_if_it_was_remembered(case, environment, judge) -> None:
    async def test() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(BadInput, match=str(port)) as caught:
                async with supervising(case, environment, judge, port=port):
                    pass
            assert caught.value.code == "gateway-port"
            assert servers(case.folder) == []
            async with supervising(case, environment, judge, port=port, kept=True) as found:
                assert found.gateway.addresses[0][1] not in (0, port)
                await promoted(found, 1)
                assert await ask(found, case.expected.encoded[0]) == (200, 1)

    run(test())


def test_a_hold_and_a_canary_that_a_restart_interrupted(case, environment, judge) -> None:
    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1, 2, hold_s=60.0)
            await found.stage(3)
            await found.canary(3, share=0.5, shadow=True)
        assert read_state(case.folder, "detector").routes.canary == 3
        async with supervising(case, environment, judge) as found:
            assert (found.state.routes.active, found.state.routes.previous, found.state.routes.canary) == (2, 1, None)
            assert found.hold is not None
            assert found.hold.hold_s == found.settings.policy.hold_s
            assert found.table.routes.shadow
            assert found.state.failed == (3,)
            judge.breach = 2
            await until(lambda: found.table.routes.active == 1, 3, "the rollback")

    run(test())


def test_the_case_is_what_the_tests_take_it_for(case) -> None:
    assert [read_release(case.repository, "detector", number).number for number in (1, 2, 3)] == [1, 2, 3]
