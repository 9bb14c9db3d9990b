"""Measured ceilings in a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from redline.records import Ceilings


def ceilings_text(ceilings: Ceilings) -> RenderableType:
    """A line a figure with its spread and whether it is a ceiling, what ran, and what could not be measured."""
    where = f", {ceilings.threads} threads" if ceilings.kind == "cpu" else ""
    head = Text(f"{ceilings.device}{where}, torch {ceilings.torch}, measured in {ceilings.seconds:.0f} s", style="bold")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("measured", "median", "slowest to fastest", "of", "it is a"):
        table.add_column(column, justify="right" if column in ("median", "of") else "left", no_wrap=True)
    for each in ceilings.measured:
        spread = f"{_number(each.slowest)} to {_number(each.fastest)}"
        kind = f"[{'green' if each.kind == 'ceiling' else 'yellow'}]{each.kind}[/]"
        table.add_row(each.what, f"{_number(each.value)} {each.unit}", spread, str(each.repeats), kind)
    by: dict[str, list[str]] = {}
    for each in ceilings.measured:
        by.setdefault(each.why, []).append(each.what)
    notes = [Text(f"{', '.join(names)}: {why}", style="dim") for why, names in by.items()]
    missing = [Text(f"not measured: {what}: {why}", style="yellow") for what, why in ceilings.missing]
    return Group(head, table, *notes, *missing)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
