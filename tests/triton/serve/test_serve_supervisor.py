"""A supervisor over a real server: switches, holds and canaries when the disk or the clock fails it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from supervisor_case import ask, promoted, run, supervising, until

from redline.errors import BadInput, StoreError, TrialError
from redline.records import Routes
from redline.serve import state, supervisor
from redline.serve.repository import stable_releases
from redline.serve.state import read_state, write_state


def test_a_jump_of_the_clock_fools_neither_hold_nor_switch(case, environment, judge, monkeypatch) -> None:
    real, shift = time.time, [0.0]

    class Jumping(state.datetime):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    monkeypatch.setattr(state, "datetime", Jumping)
    monkeypatch.setattr(supervisor, "datetime", Jumping)

    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1, 2, hold_s=2.5)
            began = time.monotonic()
            for jump in (86_400.0, -365 * 86_400.0, 3.0):
                shift[0] = jump
                await asyncio.sleep(0.6)
                assert found.hold is not None, f"the hold was over {time.monotonic() - began:.1f} s after it began"
            assert found.state.routes.hold_until is not None
            await until(lambda: found.hold is None, 5, "the end of the hold")
            assert 2.5 <= time.monotonic() - began < 4.5
            assert judge.held_s == sorted(judge.held_s)
            assert max(judge.held_s) < 4.5
            assert all(0 <= seen.seconds < 4.5 for seen in judge.seen)
            assert found.state.routes.active == 2
            # Triton reloads a model by the time of its newest file: a promotion in the past must move the names all the same.
            shift[0] = -730 * 86_400.0
            await promoted(found, 3)
            assert found.server.control.ready("detector", 3)
            assert not found.server.control.ready("detector", 2)

    run(test())


def test_a_full_disk_refuses_a_promotion_whole_and_no_rollback(case, environment, judge, monkeypatch) -> None:
    full, real = [False], write_state

    def write(folder: Path, now: Any) -> None:
        if full[0]:
            raise StoreError("store.full", "cannot write state.json: the disk is full")
        real(folder, now)

    monkeypatch.setattr(state, "write_state", write)
    image = case.expected.encoded[0]

    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1)
            await found.stage(2)
            full[0] = True
            with pytest.raises(StoreError, match="disk is full"):
                await found.promote(2, hold_s=60.0)
            assert found.state.routes.active == found.table.routes.active == 1
            assert found.hold is None
            assert stable_releases(case.repository, "detector") == (1,)
            assert read_state(case.folder, "detector").routes.active == 1
            assert await ask(found, image) == (200, 1)
            full[0] = False
            await found.promote(2, hold_s=60.0)
            full[0] = True
            judge.breach = 2
            await until(lambda: found.table.routes.active == 1, 10, "the rollback")
            assert await ask(found, image) == (200, 1)
            await until(lambda: stable_releases(case.repository, "detector") == (1,), 3, "the stable names to follow")
            assert read_state(case.folder, "detector").routes.active == 2, "the disk took it after all: the test proves nothing"
            full[0] = False
            await until(lambda: read_state(case.folder, "detector").routes.active == 1, 3, "the disk's turn")
            assert read_state(case.folder, "detector").switches[-1].cause == "automatic"
            # A canary goes away too, full disk or not.
            await found.stage(3)
            await found.canary(3, share=1.0, shadow=False)
            full[0] = True
            await found.withdraw(3, "enough")
            assert found.table.routes.canary is None
            assert await ask(found, image) == (200, 1)

    run(test())


def test_stable_names_that_do_not_move_refuse_a_promotion_and_not_a_rollback(case, environment, judge, monkeypatch) -> None:
    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1)
            await found.stage(2)
            real, broken = found.loaded.point, [True]

            async def point(number: int) -> None:
                if broken[0]:
                    raise TrialError("serve.refused", "the server refused a request")
                await real(number)

            monkeypatch.setattr(found.loaded, "point", point)
            with pytest.raises(TrialError):
                await found.promote(2, hold_s=60.0)
            assert found.table.routes.active == found.state.routes.active == 1
            assert read_state(case.folder, "detector").routes.active == 1
            assert read_state(case.folder, "detector").switches == found.state.switches
            broken[0] = False
            await found.promote(2, hold_s=60.0)
            broken[0], judge.breach = True, 2
            await until(lambda: found.table.routes.active == 1, 10, "the rollback")
            assert found.server.control.ready("detector", 2)
            broken[0] = False
            await until(lambda: found.server.control.ready("detector", 1), 10, "the names to follow")

    run(test())


def test_a_verdict_on_one_release_does_not_roll_back_the_next(case, environment, judge, monkeypatch) -> None:
    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1, 2, hold_s=60.0)
            await found.stage(3)
            real = found.loaded.point

            async def slow(number: int) -> None:
                judge.breach = 2  # the guard decides while the promotion is on its way
                await asyncio.sleep(3 * supervisor.GUARD_S)
                await real(number)

            monkeypatch.setattr(found.loaded, "point", slow)
            await found.promote(3, hold_s=60.0)
            await asyncio.sleep(2 * supervisor.GUARD_S)
            assert any(seen.release == 2 for seen in judge.seen[-6:])
            assert found.state.routes == Routes(
                active=3, previous=2, shadow=True, shadow_share=supervisor.HOLD_SHADOW, hold_until=found.state.routes.hold_until
            )

    run(test())


def test_a_breach_with_nothing_to_go_back_to_is_said_and_served_on(case, environment, judge) -> None:
    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            judge.breach = 1
            await promoted(found, 1, hold_s=60.0)
            await until(lambda: found.hold is None, 3, "the end of the hold")
            assert found.state.routes.active == 1
            assert case.events()[-1].kind == "held"
            assert "no release to go back to" in case.events()[-1].text
            assert found.action is not None
            assert found.action.decision == "rollback"

    run(test())


def test_a_hold_keeps_its_copies_through_a_canary(case, environment, judge) -> None:
    """A canary withdrawn during a hold gives the comparison back; a hold that ends leaves a canary's."""

    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1, 2, hold_s=2.0)
            assert (found.table.routes.shadow, found.table.routes.shadow_share) == (True, supervisor.HOLD_SHADOW)
            await found.stage(3)
            assert not found.table.routes.shadow
            await found.withdraw(3, "no")
            assert (found.table.routes.shadow, found.table.routes.shadow_share) == (True, supervisor.HOLD_SHADOW)
            await found.stage(3)
            await found.canary(3, share=0.1, shadow=True)
            await until(lambda: found.hold is None, 5, "the end of the hold")
            assert (found.table.routes.canary, found.table.routes.shadow, found.table.routes.canary_share) == (3, True, 0.1)

    run(test())


def test_a_release_that_is_served_or_refused_is_not_staged_or_gone_back_to(case, environment, judge) -> None:
    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            with pytest.raises(BadInput, match="no release to go back to"):
                await found.rollback(reason="asked for")
            await promoted(found, 1, 2)
            for number, code in ((1, "serve.staged"), (2, "serve.staged"), (9, "serve.no-release")):
                with pytest.raises(BadInput) as caught:
                    await found.stage(number)
                assert caught.value.code == code
            await found.stage(3)
            for to, code in ((3, "serve.refused-release"), (2, "serve.same-release"), (9, "serve.no-release")):
                with pytest.raises(BadInput) as caught:
                    await found.rollback(to=to, reason="asked for")
                assert caught.value.code == code
            with pytest.raises(BadInput, match="tried already"):
                await found.stage(4)
            await found.withdraw(3, "no")
            with pytest.raises(BadInput) as caught:
                await found.rollback(to=3, reason="asked for")
            assert caught.value.code == "serve.refused-release"
            assert found.state.routes == Routes(active=2, previous=1)
            assert found.state.failed == (3,)

    run(test())


def test_a_canary_goes_when_whoever_tries_it_has_ended(case, environment, judge) -> None:
    async def test() -> None:
        async with supervising(case, environment, judge) as found:
            await promoted(found, 1)
            with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
                await found.stage(2, owner=owner.pid)
                await found.canary(2, share=1.0, shadow=False)
                await asyncio.sleep(2 * supervisor.GUARD_S)
                assert found.table.routes.canary == 2
                owner.kill()
                await until(lambda: found.table.routes.canary is None, 2, "the end of the canary")
            assert found.state.failed == (2,)
            assert case.event("withdrawn").text.endswith("has ended")
            await until(lambda: not found.server.control.ready("detector_r2", 2), 3, "the canary to be unloaded")
            assert await ask(found, case.expected.encoded[0]) == (200, 1)

    run(test())
