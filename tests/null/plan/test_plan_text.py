"""A plan as text and as a page: every step, device and limit with its figures, and its table of predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.console import Console

from redline.records import PredictionCheck
from redline.report import words
from redline.report.chart_plan import ladder
from redline.report.plan import plan_markdown, plan_text


def drawn(renderable: Any) -> str:
    console = Console(width=160, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_terminal_shows_answer_ladder_devices_and_assumptions(plan_record: Any) -> None:
    text = drawn(plan_text(plan_record))
    assert plan_record.decision.reason.split(":")[0] in text
    for step in plan_record.ladder:
        assert step.title in text
    assert "first limit of the node: the network itself" in text
    assert f"limits not known: {plan_record.limits.unknown[0].title}" in text
    assert f"if {plan_record.decision.assumptions[0].name}" in text


def test_the_page_has_all_of_it(plan_record: Any) -> None:
    page = plan_markdown(plan_record)
    for step in plan_record.ladder:
        assert f"| {step.title} | {step.why} |" in page
        assert step.experiment.success in page
    for kernel in plan_record.heavy:
        assert f"| {kernel.name} | {kernel.kind} | {kernel.bound} |" in page
    for answer in plan_record.decision.devices:
        assert f"| {answer.device} |" in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_predictions_beside_measurements(plan_record: Any) -> None:
    check = PredictionCheck(step="engine", candidate="tensorrt fp16", trial="a", metric="P50 ms", predicted=1.5, measured=1.2)
    assert "| engine | tensorrt fp16 | P50 ms | 1.50 | 1.20 | +25% |" in plan_markdown(plan_record, [check])
    assert "Held to account" not in plan_markdown(plan_record)


def test_the_report_draws_the_ladder_with_what_was_measured(plan_record: Any) -> None:
    step = next(step for step in plan_record.ladder if step.key == "cuda-graph")
    check = PredictionCheck(
        step="cuda-graph",
        candidate="tensorrt fp16",
        trial="a",
        metric="P50 ms",
        predicted=step.p50_ms,
        measured=2 * step.p50_ms,
    )
    drawn_wide = ladder(plan_record, [check], 520, "plan")
    assert drawn_wide is not None
    for one in plan_record.ladder:
        assert (one.title in drawn_wide) == (one.p50_ms is not None)
    assert drawn_wide.count('class="mark choice"') == 1
    assert f"measured {words.ms(check.measured)}" in drawn_wide
    assert ladder(replace(plan_record, ladder=()), [], 520, "plan") is None
