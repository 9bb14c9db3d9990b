"""The command line: one thin function a verb, exit codes, and the only catch-all. Nothing heavy is imported to show help.

0 objective met · 2 bad input · 3 objective not met · 4 inconclusive · 1 a fault of redline · 130 interrupted
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redline import cli_build, cli_plan, cli_serve, cli_watch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

    from redline.store import Lineage

EXIT_CODES = {"pass": 0, "fail": 3, "inconclusive": 4}
FAULT, BAD_INPUT, INTERRUPTED, NO_READER = 1, 2, 130, 141

app = typer.Typer(
    name="redline",
    help="From a PyTorch detector and a latency objective to a validated deployment, with the evidence for every choice.",
    epilog="Exit codes: 0 objective met, 2 bad input, 3 objective not met, 4 inconclusive, 1 a fault of redline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich help costs half of the start-up
)

Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs and their store.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable JSON on standard output.")]
RUNS = Path("runs")


def _version(wanted: bool) -> None:
    if wanted:
        from redline import __version__

        print(f"redline {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
) -> None:
    """Options before the verb; `--debug` is read by `main`, which also sees errors raised before this."""


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="The spec file.")],
    runs: Runs = RUNS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything again.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the fastest deployment that meets the objective."""
    from redline import api

    record = api.run(spec, runs=runs, fresh=fresh, progress=not quiet)
    if as_json:
        _print_json(record)
    else:
        from redline.report import print_summary

        print_summary(record, _console(), runs / record.id)
    raise typer.Exit(EXIT_CODES[record.choice.verdict.answer])


@app.command()
def init(
    factory: Annotated[str | None, typer.Option(help='"package.module:callable" that returns a torch.nn.Module.')] = None,
    onnx: Annotated[Path | None, typer.Option(help="An exported model instead of a factory.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of evaluation images.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Their COCO json.")] = None,
    weights: Annotated[Path | None, typer.Option(help="State dict for the factory's model.")] = None,
    head: Annotated[str | None, typer.Option(help='"yolox", "retinanet", "detections" or "package.module:callable".')] = None,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("detector.toml"),
    demo: Annotated[Path | None, typer.Option(help="Make the demo project in this folder instead.")] = None,
    confirm: Annotated[int, typer.Option(min=0, help="With --demo: scenes more, to check what is chosen on.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented spec file, or the demo project."""
    from redline import api

    console = _console()
    if demo is not None:
        given = {"--factory": factory, "--onnx": onnx, "--images": images, "--annotations": annotations, "--weights": weights}
        unused = [name for name, value in {**given, "--head": head}.items() if value is not None]
        if unused:
            raise _bad_option(f"{', '.join(unused)}: not with --demo", "leave them out: the demo brings its own model and data")
        with console.status("drawing scenes"):
            written = api.init_demo(demo, force=force, confirm=confirm)
    else:
        if confirm:
            raise _bad_option("--confirm without --demo", "name your images in the spec: [data] confirm")
        if images is None:
            raise _bad_option(
                "--images is missing", "redline init --factory pkg:fn --images DIR, or redline init --demo FOLDER"
            )
        written = api.init(
            output,
            factory=factory,
            onnx=onnx,
            images=images,
            annotations=annotations,
            weights=weights,
            head=head,
            force=force,
        )
    for note in written.notes:
        console.print(f"  [yellow]·[/] {_plain(note)}", highlight=False)
    path = os.path.relpath(written.path)
    console.print(f"wrote [bold]{_plain(path)}[/]\nnext: redline run {_plain(path)}", highlight=False, soft_wrap=True)


@app.command()
def doctor(
    measure: Annotated[bool, typer.Option("--measure", help="Measure its copies and matrix products too.")] = False,
    output: Annotated[Path, typer.Option(help="Where --measure writes its figures as JSON.")] = Path("ceilings.json"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what this machine can do."""
    from redline import api

    found = api.doctor(measure=measure, output=output, progress=not quiet)
    if as_json:
        _print_json(found)
        return
    from rich.table import Table

    console, machine = _console(), found.environment
    console.print(
        f"[bold]{_plain(machine.cpu)}[/], {machine.cores} usable cores, {machine.memory_bytes / 2**30:.1f} GiB\n"
        f"{_plain(machine.platform)}, Python {machine.python}, redline {machine.redline}",
        highlight=False,
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("", "ability", "found", "to have it"):
        table.add_column(column, overflow="fold")
    for ability in found.abilities:
        mark = "[green]✓[/]" if ability.available else "[yellow]–[/]"
        table.add_row(mark, _plain(ability.title), _plain(ability.detail), _plain(ability.install or ""))
    console.print(table, highlight=False)
    libraries = ", ".join(f"{library.name} {library.version}" for library in machine.libraries if library.version is not None)
    console.print(f"[dim]libraries:[/] {_plain(libraries)}", highlight=False)
    for caution in found.cautions:
        console.print(f"[yellow]warning:[/] {_plain(caution)}", highlight=False)
    if found.ceilings is not None:
        from redline.report.ceilings import ceilings_text

        console.print(ceilings_text(found.ceilings), highlight=False)
        console.print(f"wrote {_plain(str(output))}", highlight=False, soft_wrap=True)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a finished run: runs/<id>.")]) -> None:
    """Draw the report of a finished run again."""
    from redline import api
    from redline.report import print_summary

    api.report(folder)
    print_summary(api.read_run(folder), _console(), folder)


@app.command()
def explain(
    digest: Annotated[str, typer.Argument(help="A digest, or its first 6 characters or more.")],
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Show what an artefact was made from."""
    from redline import api

    lineage = api.explain(digest, runs)
    if as_json:
        _print_json(lineage)
        return
    console = _console()
    console.print(_tree(lineage), highlight=False, soft_wrap=True)
    tools = ", ".join(f"{tool.name} {tool.version}" for tool in lineage.tools)
    console.print(f"[dim]made by redline {lineage.redline} with {_plain(tools)}[/]", highlight=False, soft_wrap=True)


@app.command()
def gc(
    runs: Runs = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove from the store what no run needs."""
    from redline import api

    done = api.gc(runs, dry_run)
    if as_json:
        _print_json(done)
        return
    did = "would free" if done.dry_run else "freed"
    print(f"{did} {_size(done.bytes)} in {done.files} files; {done.kept} objects are needed by runs and stay")


cli_plan.register(app)
cli_build.register(app)
cli_serve.register(app)
cli_watch.register(app)


def main(arguments: list[str] | None = None) -> None:
    """The `redline` program. Always ends with SystemExit and one of the documented exit codes."""
    given = sys.argv[1:] if arguments is None else arguments
    if threading.current_thread() is threading.main_thread():  # what was started is ended, as after ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(_outcome(given))


def _outcome(arguments: list[str]) -> int:
    from redline.errors import RedlineError

    debug = "--debug" in arguments
    try:
        try:
            app(args=arguments, prog_name="redline")
        finally:
            sys.stdout.flush()
    except SystemExit as stop:
        return _exit_code(stop)
    except RedlineError as error:
        if debug:
            _show_traceback()
        _complain(f"redline: {error}")
        return BAD_INPUT
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        return _no_reader()
    except Exception as error:  # the one catch-all: whatever arrives here is a fault of redline
        where = _show_traceback() if debug else f"the traceback is in {_keep_traceback()}; redline --debug shows it"
        _complain(f"redline: unexpected {type(error).__name__}: {error}\n  this is a fault of redline; {where}")
        return FAULT
    return 0


def _exit_code(stop: SystemExit) -> int:
    """Typer turns an interrupt and a closed pipe into exits of its own."""
    if isinstance(stop.__context__, BrokenPipeError):
        return _no_reader()
    if stop.code == INTERRUPTED:
        return _interrupted()
    return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else FAULT


def _interrupted() -> int:
    _complain("\nredline: interrupted; run again to resume")
    return INTERRUPTED


def _no_reader() -> int:
    """Whoever read the output went away: Python must not flush it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return NO_READER


def _show_traceback() -> str:
    import traceback

    traceback.print_exc()
    return "the traceback is above"


def _keep_traceback() -> str:
    import tempfile
    import traceback

    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="redline-traceback-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(traceback.format_exc())
    except OSError as error:
        return f"no file ({error.strerror})"
    return file.name


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


def _bad_option(what: str, fix: str) -> Exception:
    from redline.errors import BadInput

    return BadInput("cli.option", what, fix=fix)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print_json(record: Any) -> None:
    from redline.store import dump

    print(dump(record, indent=2).decode())


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _tree(lineage: Lineage, tree: Tree | None = None) -> Tree:
    from rich.tree import Tree

    facts = [lineage.stage, lineage.created, _size(lineage.bytes)] if lineage.created else []
    label = f"[bold]{lineage.digest[:12]}[/] {_plain(lineage.kind)} [dim]{_plain(', '.join(fact for fact in facts if fact))}[/]"
    branch = Tree(label) if tree is None else tree.add(label)
    for parent in lineage.parents:
        _tree(parent, branch)
    return branch


if __name__ == "__main__":
    main()
