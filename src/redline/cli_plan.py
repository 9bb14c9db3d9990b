"""The verb `plan`: numbers before any build, and the efficiency table refitted from runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXIT_CODES = {"go": 0, "no-go": 3, "unknown": 4}
RUNS = Path("runs")


def register(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    spec: Annotated[Path | None, typer.Argument(help="The spec file; none with --calibrate.")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of all runs and their store.")] = RUNS,
    device: Annotated[str | None, typer.Option(help="As a100-80 or h200; default: this machine's GPU.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="The most a node has.")] = 8,
    facts: Annotated[Path | None, typer.Option(help="costs.json of a plan or run made elsewhere: no torch is needed.")] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="Host cores that decode.")] = None,
    nic: Annotated[float | None, typer.Option(help="The node's network card, Gbit/s.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests/s of a whole fleet: its nodes and their cost.")] = None,
    calibrate: Annotated[list[Path] | None, typer.Option(help="A finished run's folder, to refit efficiencies from.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable JSON on standard output.")] = False,
) -> None:
    """Say what each step should give, before any build."""
    from redline import api
    from redline.errors import BadInput
    from redline.report.plan import plan_text
    from redline.store import dump

    if calibrate:
        found = api.calibrate(calibrate, runs=runs)
        print(dump(found, indent=2).decode() if as_json else f"{runs / 'efficiency.json'}: {found.source}")
        return
    if spec is None:
        raise BadInput("plan.spec", "the spec file is missing", fix="redline plan detector.toml")
    made = api.plan(
        spec, runs=runs, device=device, gpus=gpus, facts=facts, cores=cores, nic_gbit_s=nic, rate=rate, progress=not quiet
    )
    if as_json:
        print(dump(made, indent=2).decode())
    else:
        from rich.console import Console

        Console().print(plan_text(made), highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_CODES[made.decision.answer])
