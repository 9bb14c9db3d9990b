"""A plan as text and as a page: every step, device and limit with its figures, and its table of predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paper_plan import plan_on_paper
from rich.console import Console

from redline.errors import BadInput
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


def test_a_rate_asked_for_is_a_fleet_with_its_nodes_its_cost_and_what_the_balancer_does(tmp_path: Path) -> None:
    plan = plan_on_paper(tmp_path, rate=1_000_000.0, gpus=4, nic_gbit_s=100.0)
    found = plan.fleet
    assert found is not None
    assert plan.limits is not None
    own = next(answer for answer in plan.decision.devices if answer.arithmetic == "fp16" and answer.device == plan.device)
    assert own.full_per_gpu is not None
    card = 100e9 / 8 / plan.limits.node.request_bytes
    assert found.rate_per_node <= min(card, 4 * own.full_per_gpu) * 1.001
    assert found.nodes_needed * found.rate_per_node >= 1_000_000 > (found.nodes_needed - 1) * found.rate_per_node
    assert (found.gpus, found.gpus_per_node, found.nodes) == (4 * found.nodes, 4, found.nodes_needed + 1)
    for shown in (drawn(plan_text(plan)), plan_markdown(plan)):
        assert f"a fleet for 1,000,000/s: {found.nodes:,} nodes of 4 GPUs" in shown
    page = plan_markdown(plan)
    assert "## A fleet for 1,000,000/s" in page
    assert all(f"| {effect.policy} |" in page for effect in found.balancers)


def test_a_fleet_nobody_asked_for_is_not_there_and_an_impossible_one_says_why(plan_record: Any, tmp_path: Path) -> None:
    assert plan_record.fleet is None
    assert "fleet" not in plan_markdown(plan_record)
    with pytest.raises(BadInput, match="no fleet for such a rate"):
        plan_on_paper(tmp_path, rate=0.0)
