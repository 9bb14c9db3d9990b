"""Records in, text and HTML out: report.html and the terminal summary. Knows nothing of how anything was measured.

Importing this package is light; jinja2, Pillow, rich and hdrh load when something is rendered.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from redline.records import PlanRecord, PredictionCheck, RunRecord

__all__ = ["print_summary", "render_html", "write_report"]


def render_html(record: RunRecord, plan: PlanRecord | None = None, checks: Sequence[PredictionCheck] = ()) -> str:
    """The whole page: no script, no external request, images inline. Reads the picture files named in the record.

    `plan`: the one made before the run, with the `checks` of its predictions.
    """
    from redline.report.page import page

    return page(record, plan, checks)


def write_report(
    record: RunRecord, folder: Path, plan: PlanRecord | None = None, checks: Sequence[PredictionCheck] = ()
) -> Path:
    """Write `folder`/report.html atomically and return its path. Raises StoreError if the folder cannot be written."""
    from redline.store.disk import write_file

    path = folder / "report.html"
    write_file(path, render_html(record, plan, checks).encode("utf-8", "replace"), folder)
    return path


def print_summary(record: RunRecord, console: Console, folder: Path | None = None) -> None:
    """Print the verdict, the choice, the trials and the refusals. `folder` is where run.json and report.html lie."""
    from redline.report.text import summary

    for part in summary(record, console.width, folder):
        console.print(part)
