"""Looks over a whole rollout, with a clock of the test's own: who is judged, on what evidence, and what else is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone

import pytest
from observe_case import GATEWAY, GPU, TRITON, TRITON_AFTER, TRITON_BEFORE, FakeGateway, triton

from redline.observe.scrape import Scrape
from redline.observe.watch import SHOWN_LOOKS, Told, Watcher, WatchState, watch
from redline.records import Action, Routes, ServeSpec, Switch
from redline.store import dump, load

AT = "2025-01-01T00:00:00.000+00:00"


class Rollout:
    """A second a look, `rate` requests a second to the active release."""

    def __init__(self, active: int = 3, **routes: int) -> None:
        self.gateway, self.watcher, self.second = FakeGateway(Routes(active=active, **routes)), Watcher(), 0
        self.look()

    def look(self, triton_: Scrape | None = None, told: Told | None = None) -> WatchState:
        return self.watcher.look(self.gateway.scrape(float(self.second)), triton_, AT, told)

    def seconds(self, count: int, rate: int = 30, *, ms: float = 10.0, code: int = 200) -> WatchState:
        for _ in range(count):
            active = self.gateway.routes.active
            assert active is not None
            self.gateway.serve(active, rate, ms=ms, code=code)
            self.second += 1
            state = self.look()
        return state


def test_the_first_look_shows_who_is_served() -> None:
    rollout = Rollout(active=3, previous=2)
    state = rollout.look()
    assert [(one.release, one.roles) for one in state.releases] == [(3, ("active",)), (2, ("previous",))]
    assert state.promise is not None
    assert state.promise.service == "detector"
    assert state.server_up is True
    assert state.in_flight == 2
    assert state.action is not None
    assert state.action.decision == "hold"


def test_rates_quantiles_and_history_of_a_release() -> None:
    state = Rollout().seconds(50)
    (view,) = state.releases
    assert view.requests_per_s == pytest.approx(30.0)
    assert view.p50_ms == pytest.approx(10.0, rel=0.155)
    assert len(view.p95_history_ms) == SHOWN_LOOKS
    assert view.errors == 0
    assert view.agreement is None
    assert state.watched_s == 50.0
    assert [one.window_s for one in state.burns] == [10.0, 120.0]
    assert [one.seconds for one in state.burns] == [10.0, 50.0]


def test_a_switch_is_seen_and_evidence_begins_anew() -> None:
    rollout = Rollout()
    rollout.seconds(5, ms=30.0)
    rollout.gateway.routes = Routes(active=4, previous=3)
    rollout.gateway.metrics.switched("promote")
    state = rollout.seconds(1)
    (switch,) = state.switches
    assert (switch.source, switch.to, switch.cause) == (3, 4, "promote")
    state = rollout.seconds(20)
    assert state.judged is not None
    # What was answered before the look that saw the switch is not in it.
    assert (state.judged.release, state.judged.requests, state.judged.slow, state.judged.seconds) == (4, 600, 0, 20.0)


def test_a_bad_release_is_seen_to_be_rolled_back() -> None:
    rollout = Rollout()
    rollout.seconds(20)
    rollout.gateway.routes = Routes(active=4, previous=3)
    rollout.gateway.metrics.switched("promote")
    decisions = [rollout.seconds(1, ms=60.0).action for _ in range(5)]
    assert [action.decision for action in decisions if action is not None] == ["hold", "hold", "hold", "rollback", "rollback"]
    rollout.gateway.routes = Routes(active=3)
    rollout.gateway.metrics.switched("automatic")
    state = rollout.seconds(1)
    assert [(one.source, one.to, one.cause) for one in state.switches] == [(3, 4, "promote"), (4, 3, "automatic")]
    assert state.action is not None
    assert state.action.decision == "hold"


def test_a_canary_is_judged_before_the_active_release() -> None:
    rollout = Rollout()
    rollout.seconds(2)
    rollout.gateway.routes = Routes(active=3, canary=4, canary_share=0.1, shadow=True)
    rollout.seconds(1)
    rollout.gateway.metrics.compared(4, same=10, differing=300)
    state = rollout.seconds(1)
    assert state.judged is not None
    assert state.judged.release == 4
    assert state.action is not None
    assert state.action.decision == "rollback"
    assert "300 of 310 boxes differ" in state.action.reason
    canary = next(one for one in state.releases if one.release == 4)
    assert canary.agreement == pytest.approx(10 / 310)


def test_what_the_policy_allows_is_what_counts() -> None:
    rollout = Rollout()
    rollout.watcher = Watcher(ServeSpec(hold_s=5.0))
    rollout.look()
    assert rollout.seconds(4).action.decision == "hold"  # type: ignore[union-attr]
    assert rollout.seconds(1).action.decision == "promote"  # type: ignore[union-attr]
    assert rollout.seconds(1, rate=3, code=503).action.decision == "hold"  # type: ignore[union-attr]
    assert rollout.seconds(1, rate=3, code=503).action.decision == "rollback"  # type: ignore[union-attr]


def test_a_gateway_that_is_away_keeps_its_promise_on_the_screen() -> None:
    rollout = Rollout()
    rollout.seconds(3)
    away = rollout.watcher.look(Scrape(url=GATEWAY, at_s=4.0, error="Connection refused"), None, AT)
    assert away.gateway.error == "Connection refused"
    assert away.promise is not None
    assert away.releases == ()
    assert away.action is None
    rollout.second = 9
    back = rollout.seconds(1)
    assert back.gateway.error is None
    assert back.watched_s == 10.0


def test_an_endpoint_that_is_no_gateway_is_called_so() -> None:
    state = Watcher().look(triton(TRITON_AFTER, 0.0), None, AT)
    assert state.gateway.error == "no gateway of redline"
    assert state.promise is None


def test_a_restart_of_triton_and_lost_requests_are_counted() -> None:
    rollout = Rollout()
    rollout.gateway.metrics.restarted()
    rollout.gateway.metrics.lost(3)
    rollout.gateway.up = False
    state = rollout.seconds(1)
    assert (state.restarts, state.lost, state.server_up) == (1, 3, False)


def test_triton_and_gpus_are_shown_beside_and_may_be_away() -> None:
    rollout = Rollout(active=4)
    rollout.look(triton(TRITON_BEFORE, 0.0))
    state = rollout.look(triton(TRITON_AFTER + GPU, 2.0))
    assert [one.model for one in state.models] == ["detector_r4"]
    assert len(state.gpus) == 2
    away = rollout.look(Scrape(url=TRITON, at_s=3.0, error="status 500"))
    assert away.triton is not None
    assert away.triton.error == "status 500"
    assert away.models == ()


def test_the_service_itself_knows_better() -> None:
    told = Told(
        switches=(Switch(at=AT, seconds=0.1, source=2, to=3, cause="promote", reason="verified"),),
        holding_s=12.0,
        action=Action(decision="rollback", reason="its own", burn_latency=9.0, burn_errors=0.0),
    )
    rollout = Rollout()
    state = rollout.look(told=told)
    assert state.decided_by == "service"
    assert state.action == told.action
    assert state.switches[-1].reason == "verified"
    quiet = rollout.look(told=replace(told, holding_s=None))
    assert quiet.decided_by == "watch"
    assert quiet.action != told.action


def test_a_look_survives_json() -> None:
    state = replace(Rollout().seconds(3), models=(), gpus=())
    assert load(WatchState, dump(state)) == state


class Clock:
    """Time passes by sleeping and by scraping."""

    def __init__(self, scrape_s: Iterator[float]) -> None:
        self.now, self.scrape_s, self.slept = 100.0, scrape_s, list[float]()

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds

    def scrape(self, gateway: FakeGateway) -> Callable[[str], Scrape]:
        def ask(url: str) -> Scrape:
            self.now += next(self.scrape_s)
            return replace(gateway.scrape(self.now), url=url)

        return ask


def test_it_looks_on_time_and_does_not_make_up_for_a_late_look() -> None:
    clock = Clock(iter([0.1, 0.1, 2.5, 0.1, 0.1]))
    looks = watch(
        GATEWAY,
        scrape=clock.scrape(FakeGateway(Routes(active=1))),
        looks=5,
        sleep=clock.sleep,
        clock=lambda: clock.now,
        wall=lambda: datetime(2025, 1, 1, tzinfo=timezone.utc),
    )
    states = list(looks)
    assert [state.at for state in states] == [AT] * 5
    assert clock.slept == [0.9, 0.9, 0.0, 0.9]
    assert states[-1].gateway.url == GATEWAY
