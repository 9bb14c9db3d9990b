"""The verb `build`: an engine made, proved and kept, or made again and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

EXIT_CODES = {"pass": 0, "fail": 3, "inconclusive": 4}
RUNS = Path("runs")
PRECISIONS, KINDS = ("fp32", "tf32", "fp16", "int8", "fp8"), ("exact", "bucketed", "dynamic")


def register(app: typer.Typer) -> None:
    app.command()(build)


def build(
    spec: Annotated[Path | None, typer.Argument(help="The spec file; none with --replay.")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of all runs and their store.")] = RUNS,
    precision: Annotated[
        str | None, typer.Option(help="fp32, tf32, fp16, int8 or fp8; default: the spec's narrowest of 16 bits and more.")
    ] = None,
    profiles: Annotated[str, typer.Option(help="exact, bucketed or dynamic.")] = "exact",
    minimal: Annotated[bool, typer.Option("--minimal", help="Exact profiles of shapes padded to the stride only.")] = False,
    batched: Annotated[bool, typer.Option("--batched", help="For batches too, not for one image at a time.")] = False,
    level: Annotated[int | None, typer.Option(help="Optimisation level, 0 (fastest build) to 5.")] = None,
    capability: Annotated[list[str] | None, typer.Option(help="Ahead of time for this compute capability, as 8.9.")] = None,
    wide: Annotated[list[str] | None, typer.Option(help="Hold this ONNX node in FP32; in INT8 and FP8, out of it.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Compare it with FP32 layer by layer.")] = False,
    replay: Annotated[str | None, typer.Option(help="Build the engine of this digest again and compare.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable JSON on standard output.")] = False,
) -> None:
    """Build a TensorRT engine; prove its precision and its shapes."""
    from redline import api
    from redline.report.engines import built_text, replayed_text

    if replay is not None:
        if spec is not None:
            raise _bad("--replay needs no spec file: the engine's record says all", f"redline build --replay {replay}")
        again = api.replay(replay, runs=runs, progress=not quiet)
        _show(again, as_json, replayed_text)
        raise typer.Exit(EXIT_CODES[again.verdict.answer])
    if spec is None:
        raise _bad("the spec file is missing", "redline build detector.toml, or redline build --replay DIGEST")
    made = api.build(
        spec,
        runs=runs,
        precision=_one_of("--precision", precision, PRECISIONS),
        profiles=_one_of("--profiles", profiles, KINDS),
        minimal=minimal,
        batched=batched,
        level=level,
        capabilities=tuple(capability or ()),
        wide=tuple(wide or ()),
        layers=layers,
        progress=not quiet,
    )
    _show(made, as_json, built_text)
    raise typer.Exit(EXIT_CODES[made.verdict.answer])


def _one_of(option: str, value: str | None, allowed: tuple[str, ...]) -> Any:
    if value is None or value in allowed:
        return value
    from redline.errors import BadInput

    raise BadInput("cli.option", f"{option}: no such value", got=value, allowed=", ".join(allowed))


def _bad(what: str, fix: str) -> Exception:
    from redline.errors import BadInput

    return BadInput("cli.option", what, fix=fix)


def _show(record: Any, as_json: bool, text: Any) -> None:
    if as_json:
        from redline.store import dump

        print(dump(record, indent=2).decode())
    else:
        from rich.console import Console

        Console().print(text(record), highlight=False, soft_wrap=True)
