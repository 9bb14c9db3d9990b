"""One look on one screen. Gives what rich can draw; printing is the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from redline.observe.burn import FAST, SLOW, Burn
from redline.observe.gateway import Promise
from redline.observe.watch import SHOWN_LOOKS, Endpoint, ReleaseView, SeenSwitch, WatchState

DIM = "bright_black"
NONE = "–"
LEVELS = "▁▂▃▄▅▆▇█"
BAR, NARROW_BAR = 24, 14
"""Cells of a burn bar; burn rate 1 is in its middle, 2 and more at its end."""
CURVE_BESIDE = 70
"""Columns that the table of releases needs beside the curve."""
SWITCHES, MODELS = 4, 6
DECISIONS = {"hold": ("●", "bold yellow"), "promote": ("✓", "bold green"), "rollback": ("✗", "bold red")}
WORDS = {"hold": "hold", "promote": "promote", "rollback": "roll back"}
ROLE_STYLES = {"active": "bold green", "canary": "bold cyan", "previous": DIM}
ROLE_WORDS = {"active": "active", "canary": "canary", "previous": "way back"}
ROOMY, PARTS_TOO = 100, 112
"""From here on bars are long, and computing is taken apart."""


def screen(state: WatchState, width: int = 100) -> RenderableType:
    """Head, releases, burn rates, Triton's models, GPUs, switches and the decision; parts that are absent take no room."""
    parts: list[RenderableType] = [_head(state)]
    if state.gateway.error is not None:
        parts.append(Text(f"the gateway does not answer: {state.gateway.error}", style="bold red"))
    if state.promise is not None:
        parts += [Text(_promise(state.promise), style=DIM), Text()]
        parts.append(_releases(state, width))
        parts.append(_section("Burn rate", _burns(state.burns, BAR if width >= ROOMY else NARROW_BAR)))
    if state.triton is not None and state.triton.error is not None:
        parts.append(Text(f"\nTriton does not answer: {state.triton.error}", style="bold red"))
    if state.models:
        parts += [Text(), _models(state, width)]
    if state.gpus:
        parts += [Text(), _gpus(state)]
    if state.switches:
        parts.append(_section("Switches", _switches(state.switches)))
    if state.action is not None:
        parts += [Text(), _decision(state)]
    return Padding(Group(*parts), (0, 1))


def sparkline(values: Sequence[float | None], limit: float) -> Text:
    """The values as blocks, the limit at two thirds of the height; what is above it is red, what is unknown a dot."""
    line, top = Text(), 1.5 * limit
    for value in values:
        if value is None:
            line.append("·", DIM)
        else:
            level = min(int(value / top * len(LEVELS)), len(LEVELS) - 1)
            line.append(LEVELS[level], "red" if value > limit else "green")
    return line


def _head(state: WatchState) -> Text:
    name = state.promise.service if state.promise is not None else "redline"
    text = Text.assemble((name, "bold"), "  ", _endpoint("gateway", state.gateway))
    if state.triton is not None:
        text = Text.assemble(text, ("  ·  ", DIM), _endpoint("Triton", state.triton))
    if state.server_up is False:
        text.append("  ·  server down", "bold red")
    for count, what in ((state.restarts, "restarts"), (state.lost, "requests lost")):
        if count:
            text.append(f"  ·  {count} {what}", "bold red")
    return Text.assemble(text, (f"  ·  {clock(state.at)}, watched for {span(state.watched_s)}", DIM))


def _endpoint(name: str, endpoint: Endpoint) -> Text:
    place = endpoint.url.split("://", 1)[-1].removesuffix("/metrics")
    sign, style = ("●", "green") if endpoint.error is None else ("○", "red")
    return Text.assemble((sign, style), f" {name} {place}")


def _promise(promise: Promise) -> str:
    objective = promise.objective
    rate = f"{objective.throughput:g} requests/s, " if objective.throughput else ""
    return f"objective: P95 within {objective.p95_ms:g} ms, {rate}at most {promise.error_pct:g} % errors"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False, header_style=DIM)
    for column in columns:
        left = column.startswith("<")
        table.add_column(column.removeprefix("<"), justify="left" if left else "right", no_wrap=True)
    return table


def _releases(state: WatchState, width: int) -> RenderableType:
    assert state.promise is not None
    limit = state.promise.objective.p95_ms
    points = max(min(width - CURVE_BESIDE, SHOWN_LOOKS), 8)
    table = _table(
        "release", "<role", "req/s", "P50 ms", "P95 ms", "<P95 by look" if points > 11 else "<by look", "errors", "agreement"
    )
    for one in state.releases:
        if not one.roles and not one.requests_per_s:
            continue
        slow = one.p95_ms is not None and one.p95_ms > limit
        table.add_row(
            Text(str(one.release), style="bold"),
            _role(one),
            _number(one.requests_per_s),
            _number(one.p50_ms),
            Text(_number(one.p95_ms), style="bold red" if slow else "green" if one.p95_ms is not None else ""),
            Text(" " * max(points - len(one.p95_history_ms), 0)) + sparkline(one.p95_history_ms[-points:], limit),
            Text(str(one.errors), style="bold red" if one.errors else ""),
            NONE if one.agreement is None else f"{100 * one.agreement:.1f} %",
        )
    if not state.releases:
        return Text("nothing is released yet", style=DIM)
    return table


def _role(one: ReleaseView) -> Text:
    if not one.roles:
        return Text("gone", style=DIM)
    return Text.assemble(
        *((f"{' ' if index else ''}{ROLE_WORDS[role]}", ROLE_STYLES[role]) for index, role in enumerate(one.roles))
    )


def _burns(burns: tuple[Burn, ...], cells: int) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for what in ("latency", "errors"):
        row: list[RenderableType] = [Text(what)]
        for one in burns:
            rate: float = getattr(one, what)
            row.append(Text(span(min(one.seconds, one.window_s)), style=DIM))
            row.append(Text.assemble(_bar(rate, cells), (f" {rate:.2f}", _style(rate))))
        grid.add_row(*row)
    return grid


def _bar(rate: float, cells: int) -> Text:
    """Full from the left; the mark in the middle is burn rate 1."""
    filled, middle = min(round(rate / 2 * cells), cells), cells // 2
    text = Text()
    for cell in range(cells):
        mark = cell == middle
        if cell < filled:
            text.append("┃" if mark else "━", _style(rate))
        else:
            text.append("│" if mark else "─", "white" if mark else DIM)
    return text


def _style(rate: float) -> str:
    if rate <= 1:
        return "green"
    return "yellow" if rate <= SLOW.rate else "red" if rate <= FAST.rate else "bold red"


def _models(state: WatchState, width: int) -> RenderableType:
    roomy = width >= PARTS_TOO
    parts = ("in ms", "infer ms", "out ms") if roomy else ("compute ms",)
    table = _table("<Triton model", "req/s", "batch", "queue ms", *parts, "busy", "waiting", *(("failed/s",) if roomy else ()))
    busiest = sorted(state.models, key=lambda one: -one.requests_per_s)[:MODELS]
    for one in sorted(busiest, key=lambda one: one.model):
        times = (one.input_ms, one.infer_ms, one.output_ms)
        known = [time_ms for time_ms in times if time_ms is not None]
        failed = Text(_number(one.failures_per_s), style="bold red" if one.failures_per_s else "")
        table.add_row(
            one.model,
            _number(one.requests_per_s),
            NONE if one.batch is None else f"{one.batch:.2f}",
            _number(one.queue_ms),
            *(_number(time_ms) for time_ms in (times if roomy else (sum(known) if known else None,))),
            f"{one.busy:.2f}",
            Text(str(one.pending), style="yellow" if one.pending else ""),
            *((failed,) if roomy else ()),
        )
    left_out = len(state.models) - len(busiest)
    return table if not left_out else Group(table, Text(f"and {left_out} more", style=DIM))


def _gpus(state: WatchState) -> RenderableType:
    table = _table("<GPU", "used", "memory", "power")
    for one in state.gpus:
        memory = NONE
        if one.memory_used_bytes is not None and one.memory_total_bytes:
            memory = f"{one.memory_used_bytes / 2**30:.1f} of {one.memory_total_bytes / 2**30:.0f} GiB"
        power = (
            NONE
            if one.power_w is None
            else f"{one.power_w:.0f}" + (f" of {one.power_limit_w:.0f}" if one.power_limit_w else "")
        )
        used = NONE if one.utilization is None else f"{100 * one.utilization:.0f} %"
        table.add_row(one.uuid[:12], used, memory, power if power == NONE else f"{power} W")
    return table


def _switches(switches: tuple[SeenSwitch, ...]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for one in switches[-SWITCHES:]:
        style = "red" if one.cause == "automatic" else ""
        grid.add_row(
            Text(clock(one.at), style=DIM),
            f"{one.source or NONE} → {one.to or NONE}",
            Text(one.cause or "changed", style=style),
            Text(one.reason, style=DIM),
        )
    return grid


def _decision(state: WatchState) -> RenderableType:
    assert state.action is not None
    sign, style = DECISIONS[state.action.decision]
    word, subject = WORDS[state.action.decision], ""
    if state.judged is not None:
        subject = f" release {state.judged.release}"
        roles = next((one.roles for one in state.releases if one.release == state.judged.release), ())
        word = "keep" if word == "promote" and "active" in roles else word
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text(sign, style=style), Text.assemble((f"{word}{subject}", style), f": {state.action.reason}"))
    if state.decided_by == "watch":
        grid.add_row("", Text("by the service's rule, from what this watch saw", style=DIM))
    return grid


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(f"\n{title}", style="bold"), body)


def _number(value: float | None) -> str:
    """Three digits are what a person can compare."""
    if value is None:
        return NONE
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 or value == 0 else f"{value:.2f}"


def span(seconds: float) -> str:
    """A length of time: "38 s", "2 min", "1 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def clock(at: str) -> str:
    """An ISO 8601 time as the local time of day."""
    return datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S")
