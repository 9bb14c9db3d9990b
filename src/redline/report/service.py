"""A service in words: what a release went through, who is served now, what a switch did."""

from __future__ import annotations

from typing import Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from redline.records import Action, Load, Observation, ServiceState, Switch, Verdict, Verification
from redline.report import words

MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?"}
STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
SWITCHES = 5


class OutcomeLike(Protocol):
    @property
    def release(self) -> int: ...
    @property
    def service(self) -> str: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def verification(self) -> Verification | None: ...
    @property
    def switches(self) -> tuple[Switch, ...]: ...
    @property
    def gateway_port(self) -> int | None: ...


class StatusLike(Protocol):
    @property
    def state(self) -> ServiceState: ...
    @property
    def server_up(self) -> bool: ...
    @property
    def holding_s(self) -> float | None: ...
    @property
    def observation(self) -> Observation | None: ...
    @property
    def action(self) -> Action | None: ...


def outcome_text(outcome: OutcomeLike) -> RenderableType:
    """Every check with its reason, the load in figures, and how it ended."""
    verdict, parts = outcome.verdict, list[RenderableType]()
    grid = Table.grid(padding=(0, 2))
    for check in outcome.verification.checks if outcome.verification is not None else ():
        mark = Text(MARKS[check.verdict.answer], style=STYLES[check.verdict.answer])
        grid.add_row(mark, Text(check.name), Text(check.verdict.reason, style="bright_black"))
    parts.append(grid)
    if outcome.verification is not None and outcome.verification.load is not None:
        parts.append(Text(f"  {load_text(outcome.verification.load)}"))
    waiting = "is served, on probation" if outcome.gateway_port is not None else "is written"
    ends = {"pass": "is served", "fail": "is not served", "inconclusive": waiting}
    head = f"{MARKS[verdict.answer]} Release {outcome.release} of {outcome.service} {ends[verdict.answer]}: "
    parts.append(Text(head, style=f"bold {STYLES[verdict.answer]}") + Text(verdict.reason))
    if outcome.gateway_port is not None and verdict.answer != "fail":
        ask = f"  curl --data-binary @image.jpg http://127.0.0.1:{outcome.gateway_port}/detect"
        parts.append(Text(ask, style="bright_black"))
    return Group(*parts)


def load_text(load: Load) -> str:
    rate = f"at {words.rate(load.offered_per_s)}" if load.offered_per_s is not None else "closed loop"
    return f"P50 {words.ms(load.p50_ms)}, P95 {words.ms(load.p95_ms)} {rate}, {load.requests} requests, {load.errors} errors"


def status_text(status: StatusLike) -> RenderableType:
    """Who answers what, and the last switches."""
    state, routes = status.state, status.state.routes
    roles = {routes.previous: "the way back", routes.canary: f"canary, {routes.canary_share:.0%}", routes.active: "active"}
    lines = [Text(f"{state.service}: server {'up' if status.server_up else 'down'}", style="bold")]
    for number in state.releases:
        role = roles.get(number) or ("failed" if number in state.failed else "on disk")
        lines.append(Text(f"  release {number}  {role}"))
    if not state.releases:
        lines.append(Text("  nothing was released yet"))
    if status.holding_s is not None and status.action is not None:
        lines.append(Text(f"  on probation for {status.holding_s:.0f} s: {status.action.decision}, {status.action.reason}"))
    lines += [Text("  ") + switch_text(switch) for switch in state.switches[-SWITCHES:]]
    return Group(*lines)


def switch_text(switch: Switch) -> Text:
    came = "nothing" if switch.source is None else f"release {switch.source}"
    went = "nothing" if switch.to is None else f"release {switch.to}"
    return Text(f"{switch.at}  {switch.cause}: {came} -> {went} in {1000 * switch.seconds:.0f} ms ({switch.reason})")
