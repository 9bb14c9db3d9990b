"""The verbs of a service: serve, release, rollback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from redline.releasing import Outcome
    from redline.serve.admin import Status

EXIT_CODES = {"pass": 0, "fail": 3, "inconclusive": 4}
Spec = Annotated[Path, typer.Argument(help="The spec file.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs, their store and their services.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable JSON on standard output.")]
RUNS = Path("runs")


def register(app: typer.Typer) -> None:
    for verb in (serve, release, rollback):
        app.command()(verb)


def serve(
    spec: Annotated[Path | None, typer.Argument(help="The spec file.")] = None,
    runs: Runs = RUNS,
    install: Annotated[bool, typer.Option("--install", help="Install Triton and its own Python (500 MB), then end.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the service that runs.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return.")] = False,
) -> None:
    """Serve what was released, until Ctrl-C."""
    from redline import api
    from redline.errors import BadInput

    if install:
        environment = api.install_server()
        print(f"Triton is installed: {environment.binary}")
        return
    if spec is None:
        raise BadInput("cli.option", "the spec file is missing", fix="redline serve detector.toml, or redline serve --install")
    if stop:
        print("stopped" if api.stop_service(spec, runs=runs) else "no service runs")
    elif detach:
        print(f"gateway on 127.0.0.1:{api.start_service(spec, runs=runs).gateway_port}")
    else:
        api.serve(
            spec, runs=runs, ready=lambda info: print(f"gateway on 127.0.0.1:{info.gateway_port}, Ctrl-C ends it", flush=True)
        )


def release(
    spec: Spec,
    runs: Runs = RUNS,
    status: Annotated[bool, typer.Option("--status", help="Show the service and its releases instead.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the end of the probation.")] = False,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Send no requests of our own during the probation.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Verify a run's choice through the server and promote it."""
    from redline import api
    from redline.report.service import outcome_text, status_text

    if status:
        _show(api.service_status(spec, runs=runs), as_json, status_text)
        return
    outcome = api.release(spec, runs=runs, hold=not no_wait, probe=not no_probe, progress=not quiet)
    _show(outcome, as_json, outcome_text)
    raise typer.Exit(EXIT_CODES[outcome.verdict.answer])


def rollback(
    spec: Spec,
    runs: Runs = RUNS,
    to: Annotated[int | None, typer.Option("--to", help="An earlier release; default: the one before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Go back to the release before, at once."""
    from redline import api
    from redline.report.service import switch_text

    _show(api.rollback(spec, runs=runs, to=to), as_json, switch_text)


def _show(record: Status | Outcome | Any, as_json: bool, text: Any) -> None:
    if as_json:
        from redline.store import dump

        print(dump(record, indent=2).decode())
    else:
        from rich.console import Console

        Console().print(text(record), highlight=False, soft_wrap=True)
