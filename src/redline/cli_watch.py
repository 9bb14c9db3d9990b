"""The verb that watches a service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from redline.observe.watch import WatchState

ROLLED_BACK = 3
RUNS = Path("runs")


def register(app: typer.Typer) -> None:
    app.command()(watch)


def watch(
    spec: Annotated[Path | None, typer.Argument(help="The spec file of a service on this machine.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="Address of a gateway instead.")] = None,
    triton: Annotated[str | None, typer.Option("--triton", help="Address of its Triton's metrics.")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of all runs, their store and their services.")] = RUNS,
    interval: Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look over one interval, then end: with 3 if it says roll back.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable JSON, one line a look.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write Prometheus rules and a Grafana dashboard here.")
    ] = None,
) -> None:
    """Show a service live against its objective."""
    from redline import api

    if export is not None:
        made = api.export_monitoring(export, spec, url=url, triton=triton, runs=runs)
        print(f"wrote {made.rules}, {made.dashboard} and {made.prometheus}")
        return
    looks = api.watch(spec, url=url, triton=triton, runs=runs, interval_s=interval, once=once)
    try:
        last = _print_json(looks) if as_json else _draw(looks, once)
    except KeyboardInterrupt:  # the usual end of a watch
        return
    if once and last is not None and last.action is not None and last.action.decision == "rollback":
        raise typer.Exit(ROLLED_BACK)


def _print_json(looks: Iterator[WatchState]) -> WatchState | None:
    from redline.store import dump

    state = None
    for state in looks:
        print(dump(state).decode(), flush=True)
    return state


def _draw(looks: Iterator[WatchState], once: bool) -> WatchState | None:
    from rich.console import Console
    from rich.live import Live

    from redline.observe.live import screen

    console, state = Console(), None
    if once or not console.is_terminal:
        for state in looks:
            console.print(screen(state, console.width))
        return state
    with Live(console=console, auto_refresh=False, screen=False, vertical_overflow="crop") as live:
        for state in looks:
            live.update(screen(state, console.width), refresh=True)
    return state
