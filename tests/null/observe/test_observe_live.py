"""The screen: everything in it, within any width, and nothing of what is not there."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from observe_case import GPU, TRITON_AFTER, TRITON_BEFORE, triton
from rich.console import Console
from test_observe_watch import AT, Rollout

from redline.observe.live import clock, screen, span, sparkline
from redline.observe.scrape import Scrape
from redline.observe.watch import WatchState
from redline.records import Action, Routes


def drawn(state: WatchState, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True)
    console.print(screen(state, width))
    return console.export_text()


def busy(gpu: str = "") -> WatchState:
    rollout = Rollout(active=3)
    rollout.seconds(15)
    rollout.gateway.routes = Routes(active=4, previous=3)
    rollout.gateway.metrics.switched("promote")
    rollout.look(triton(TRITON_BEFORE, float(rollout.second)))
    rollout.seconds(30, ms=30.0)
    rollout.gateway.metrics.compared(4, 980, 20)
    rollout.gateway.serve(4, 2, ms=1.0, code=503)
    rollout.second += 1
    return rollout.look(triton(TRITON_AFTER + gpu, float(rollout.second)))


@pytest.mark.parametrize("width", [80, 100, 112, 160])
def test_it_fits_the_terminal(width: int) -> None:
    text = drawn(busy(GPU), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for part in (
        "detector  ● gateway 127.0.0.1:8080",
        "objective: P95 within 20 ms, 30 requests/s, at most 0.1 % errors",
        "way back",
        "98.0 %",
        "Burn rate",
        "detector_r4",
        "61 %",
        "7.0 of 40 GiB",
        "212 of 400 W",
        "3 → 4  promote",
        "roll back release 4",
    ):
        assert part in text, part


def test_what_is_absent_takes_no_room() -> None:
    text = drawn(replace(busy(), triton=None, models=(), switches=(), action=None), 100)
    for part in ("GPU", "Triton", "Switches", "roll back", "hold"):
        assert part not in text


def test_slow_and_failed_are_red() -> None:
    console = Console(width=100, file=io.StringIO(), record=True, force_terminal=True, color_system="truecolor")
    console.print(screen(busy(), 100))
    styled = console.export_text(styles=True)
    assert re.search(r"\x1b\[1;31m\s*[23]\d\.\d\x1b", styled)  # P95 of the release at 30 ms
    assert re.search(r"\x1b\[1;31m\s*2\x1b", styled)  # its errors


@pytest.mark.parametrize(
    ("decision", "role", "words"),
    [("hold", "active", "hold release 4"), ("promote", "active", "keep release 4"), ("promote", "canary", "promote release 4")],
)
def test_the_decision_in_words(decision: str, role: str, words: str) -> None:
    state = busy()
    releases = tuple(replace(one, roles=(role,) if one.release == 4 else ()) for one in state.releases)
    action = Action(decision=decision, reason="because", burn_latency=0.0, burn_errors=0.0)  # type: ignore[arg-type]
    text = drawn(replace(state, releases=releases, action=action), 100)
    assert f"{words}: because" in text
    assert "by the service's rule, from what this watch saw" in text
    assert "by the service's rule" not in drawn(replace(state, decided_by="service"), 100)


def test_a_gateway_that_does_not_answer() -> None:
    rollout = Rollout()
    state = rollout.watcher.look(Scrape(url="http://127.0.0.1:9/metrics", at_s=9.0, error="Connection refused"), None, AT)
    text = drawn(state, 80)
    assert "the gateway does not answer: Connection refused" in text
    assert "○ gateway 127.0.0.1:9" in text
    assert "objective: P95 within 20 ms" in text


def test_nothing_released_yet() -> None:
    rollout = Rollout()
    rollout.gateway.routes = Routes()
    rollout.watcher = type(rollout.watcher)()
    assert "nothing is released yet" in drawn(rollout.look(), 80)


def test_a_curve_shows_the_limit() -> None:
    line = sparkline([None, 0.0, 10.0, 20.0, 21.0, 1000.0], 20.0)
    assert line.plain == "·▁▃▆▆█"
    styles = [str(span_.style) for span_ in line.spans]
    assert styles == ["bright_black", "green", "green", "green", "red", "red"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (7260, "2 h 1 min")]
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_time_is_shown_as_of_here(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    assert clock(AT) == "02:00:00"
    monkeypatch.delenv("TZ")
    time.tzset()
