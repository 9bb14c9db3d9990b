"""The terminal summary: verdict, choice, trials, refusals and where the report lies, in at most a screen or two."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from redline.records import RunRecord
from redline.report import facts, rounding, through_server, words
from redline.report.tables import TrialRow, trial_rows

ANSWERS = {"pass": ("✓", "bold green"), "fail": ("✗", "bold red"), "inconclusive": ("?", "bold yellow")}
STYLES = {"pass": "green", "inconclusive": "yellow", "fail": "red", "error": "red", "screened": "bright_black"}
SHORT = {"torch-eager": "eager", "torch-compile": "compile", "onnxruntime": "ort", "tensorrt": "trt"}
ROOMY = 128
MOST_ROWS = 14


def summary(record: RunRecord, width: int, folder: Path | None) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(), _verdict(record), Text()]
    parts.append(Padding(_trials(record, width >= ROOMY), (0, 0, 0, 1)))
    left_out = len(facts.every_trial(record)) - MOST_ROWS
    if left_out > 0:
        parts.append(Text(f"  and {words.plural(left_out, 'more trial')} in the report", style="bright_black"))
    through = through_server.sentence(record)
    if record.served is not None:
        server = Text.assemble(("Through the server  ", "bright_black"), through or record.served.choice.verdict.reason)
        parts.append(Padding(server, (1, 0, 0, 2)))
    said = rounding.sentences(record)
    if said:
        parts.append(Padding(Text.assemble(("INT8  ", "bright_black"), "\n".join(said)), (1, 0, 0, 2)))
    further = rounding.further_sentences(record)
    if further:
        parts.append(Padding(Text.assemble(("Checked again  ", "bright_black"), "\n".join(further)), (1, 0, 0, 2)))
    if record.refusals or facts.left_out(record):
        parts.append(Padding(_refusals(record), (1, 0, 0, 2)))
    if record.choice.notes:
        parts.append(Padding(Text("\n".join(record.choice.notes)), (1, 0, 0, 2)))
    if folder is not None:
        parts.append(
            Text.assemble("\n  Report  ", (str(folder / "report.html"), "bold"), "\n  Data    ", str(folder / "run.json"))
        )
    return parts


def _verdict(record: RunRecord) -> Table:
    sign, style = ANSWERS[record.choice.verdict.answer]
    head = Text.assemble((facts.HEADLINES[record.choice.verdict.answer], style), "  ", (record.model.name, "bold"))
    rows = [head, Text("\n".join(facts.sentence(record)))]
    if record.choice.candidate is not None:
        rows.append(Text.assemble(("Choice  ", "bright_black"), words.title(record.choice.candidate)))
    rows.append(Text(record.choice.verdict.reason, style="bright_black"))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=2, justify="right")
    grid.add_column()
    for index, row in enumerate(rows):
        grid.add_row(Text(sign, style=style) if index == 0 else "", row)
    return grid


def _trials(record: RunRecord, roomy: bool) -> Table:
    """Threads, batch and inferences in flight are one column where the terminal is narrow."""
    metric = facts.metric_name((facts.chosen(record) or record.baseline).parity)
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1 if roomy else 0, 0, 0), pad_edge=False, show_edge=False, header_style="bright_black"
    )
    table.add_column("", min_width=1)
    table.add_column("runner", no_wrap=True)
    table.add_column("shapes", no_wrap=True)
    for name in ("pad %", "threads", "batch", "in flight") if roomy else ("t/b/c",):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("cap/s", "P50/P95 ms" if roomy else "P50/P95", "knee/s", f"{metric} drop %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in trial_rows(record)[:MOST_ROWS]:
        table.add_row(*_cells(row, roomy), style="bold" if "choice" in row.role else "")
    return table


def _cells(row: TrialRow, roomy: bool) -> list[Text]:
    candidate = row.trial.candidate
    runner = words.knob(candidate, "runner") if roomy else SHORT[candidate.runner]
    precision = "" if candidate.precision == "fp32" else f" {candidate.precision}"
    placed = {"graph": " graph", "kernel": " gpu"}.get(candidate.prepost, "")
    word = {"screened out": "screened", "failed to run": "failed"}.get(row.word, row.word)
    knobs = [str(candidate.threads), str(candidate.batch), str(candidate.concurrency)]
    both = words.NONE if row.p95_ms is None else f"{words.number(row.p50_ms)}/{words.number(row.p95_ms)}"
    spread = row.interval.replace(" to ", "..")
    sign = "★" if "choice" in row.role else "○" if "baseline" in row.role else ""
    padding = words.fixed(row.trial.padding_pct, 1)
    shapes = candidate.shape_name if roomy or isinstance(candidate.shapes, str) else "buckets"
    shapes += f", {candidate.profiles}" if roomy and candidate.profiles is not None else ""
    texts = [sign, runner + precision + placed, shapes, *([padding, *knobs] if roomy else ["/".join(knobs)])]
    texts += [words.number(row.capacity), both, words.number(row.knee), f"{row.drop} {spread}" if spread else row.drop]
    return [Text(cell) for cell in texts] + [Text(word, style=STYLES[row.outcome])]


def _refusals(record: RunRecord) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bright_black", ratio=2)
    grid.add_column(ratio=5)
    for refusal in record.refusals:
        grid.add_row(Text(f"not tried: {refusal.what}"), Text(refusal.reason))
    for what, why in facts.left_out(record):
        grid.add_row(Text(f"left out: {what}"), Text(why))
    return grid
