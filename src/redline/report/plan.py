"""A plan as text for the terminal and as a page, plan.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from redline.records import DeviceAnswer, FleetAnswer, LadderStep, PlanRecord, PredictionCheck
from redline.report import words

MARKS = {"go": ("✓", "green"), "no-go": ("✗", "red"), "unknown": ("?", "yellow")}
UNKNOWN = "–"
DEVICES = 6


def plan_text(plan: PlanRecord) -> RenderableType:
    """What the terminal shows: the answer, the ladder, the devices and what the answer rests on."""
    mark, style = MARKS[plan.decision.answer]
    head = Text.assemble((f" {mark} {plan.decision.answer.upper()}", style), f"  {plan.decision.reason}")
    about = Text(f"   {_about(plan)}", style="dim")
    parts: list[RenderableType] = [head, about, Text(""), _ladder(plan.ladder)]
    parts += [Text(f"   {text}") for text in _facts(plan)]
    parts += [Text(""), _devices(plan.decision.devices[:DEVICES])]
    parts += [Text(f"   {text}") for text in _fleet(plan.fleet)]
    resting = plan.decision.assumptions[:3]
    parts += [Text(f"   if {one.name}: {one.changed} instead of {one.taken}: {one.effect}") for one in resting]
    parts += [Text(f"   to change: {text}", style="yellow") for text in plan.decision.advice]
    parts += [Text(f"   {note}", style="dim") for note in plan.notes]
    return Group(*parts)


def _about(plan: PlanRecord) -> str:
    _, height, width = plan.size
    text = f"{plan.model}, {plan.gflop:.1f} GFLOP at {height} x {width}, {plan.parameters / 1e6:.1f} M weights"
    return f"{text}, on {plan.device_title} ({plan.device_reason})"


def _ladder(steps: Sequence[LadderStep]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name, justify in (("step", "left"), ("P50 ms", "right"), ("P95 ms", "right"), ("img/s", "right"), ("gain", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("rests on")
    for step in steps:
        table.add_row(step.title, *_figures(step), step.confidence)
    return table


def _figures(step: LadderStep) -> tuple[str, str, str, str]:
    gain = UNKNOWN if step.gain is None else f"{step.gain:.2f}x"
    return words.ms(step.p50_ms), words.ms(step.p95_ms), words.rate(step.images_per_s), gain


def _devices(answers: Sequence[DeviceAnswer]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("device", "", "GPUs", "img/s each", "P95 ms", "USD/h", "USD/million"):
        table.add_column(name, justify="left" if name in ("device", "") else "right", no_wrap=True)
    for answer in answers:
        table.add_row(*_answer(answer))
    return table


def _answer(answer: DeviceAnswer) -> tuple[str, ...]:
    return (
        answer.device,
        answer.arithmetic.upper(),
        UNKNOWN if answer.gpus is None else str(answer.gpus),
        words.rate(answer.rate_per_gpu),
        words.ms(answer.p95_ms),
        UNKNOWN if answer.usd_per_hour is None else f"{answer.usd_per_hour:.2f}",
        UNKNOWN if answer.usd_per_million is None else f"{answer.usd_per_million:.2f}",
    )


def _facts(plan: PlanRecord) -> list[str]:
    found = []
    if plan.bounds:
        shares = ", ".join(f"{share:.0%} {bound}" for bound, share in plan.bounds)
        found.append(f"time of the engine by what bounds its kernels: {shares}")
    if plan.limits is not None and plan.limits.first is not None:
        first = plan.limits.first
        found.append(f"first limit of the node: {first.title}, {first.formula}")
        if plan.limits.unknown:
            found.append(f"limits not known: {', '.join(limit.title for limit in plan.limits.unknown)}")
    return found


def _fleet(fleet: FleetAnswer | None) -> list[str]:
    if fleet is None:
        return []
    nodes = f"a fleet for {fleet.demand_per_s:,.0f}/s: {fleet.nodes:,} nodes of {fleet.gpus_per_node} GPUs"
    found = [f"{nodes}, {fleet.nodes_needed:,} needed, {fleet.headroom}; {words.rate(fleet.rate_per_node)} a node"]
    if fleet.limit:
        found.append(f"a node ends there at another limit than its GPUs: {fleet.limit}")
    if fleet.usd_per_hour is not None and fleet.usd_per_million is not None:
        found.append(f"{fleet.usd_per_hour:,.0f} USD/h, {fleet.usd_per_million:.2f} USD per million images, GPUs alone")
    return found


def plan_markdown(plan: PlanRecord, checks: Sequence[PredictionCheck] = ()) -> str:
    """plan.md: everything of plan.json that a person reads, and what a run measured of it."""
    objective = plan.objective
    lines = [
        f"# Plan: {plan.model} on {plan.device_title}",
        "",
        f"**{plan.decision.answer.upper()}**: {plan.decision.reason}",
        "",
        f"Objective: P95 {objective.p95_ms:g} ms at {objective.throughput:,.0f}/s, "
        f"mAP drop at most {objective.map_drop_pct:g} %. {_about(plan)}.",
        "",
        f"Shares of the roof: {plan.efficiency}.",
        "",
    ]
    for title, body in (*_steps(plan), *_answers(plan, checks)):
        if body:
            lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines)


def _steps(plan: PlanRecord) -> Iterator[tuple[str, list[str]]]:
    """Sections of the ladder and of the network."""
    yield (
        "Steps",
        _table(
            ("step", "why", "P50 ms", "P95 ms", "img/s", "gain", "mAP risk", "confidence", "evidence"),
            ((s.title, s.why, *_figures(s), s.map_risk, s.confidence, s.evidence) for s in plan.ladder),
        ),
    )
    experiments = [(s.title, s.experiment) for s in plan.ladder]
    yield (
        "Experiments",
        _table(
            ("step", "metric", "tool", "command", "success"),
            ((title, one.metric, one.tool, f"`{one.command}`", one.success) for title, one in experiments),
        ),
    )
    kernels = _table(
        ("kernel", "kind", "bound", "expected us", "roof us", "share"),
        ((h.name, h.kind, h.bound, f"{h.expected_us:.1f}", f"{h.roof_us:.1f}", f"{h.share:.1%}") for h in plan.heavy),
    )
    yield "Heaviest kernels (FP16, batch 1, CUDA graph)", [*kernels, "", *_list(_facts(plan))] if plan.heavy else []


def _answers(plan: PlanRecord, checks: Sequence[PredictionCheck]) -> Iterator[tuple[str, list[str]]]:
    """Sections of the decision, and of what came of the predictions."""
    decision = plan.decision
    yield (
        "Devices",
        _table(
            ("device", "precision", "GPUs", "img/s each", "P95 ms", "USD/h", "USD per million", "why"),
            ((*_answer(answer), answer.reason) for answer in decision.devices),
        ),
    )
    yield (
        "What the answer rests on",
        _table(
            ("assumption", "taken", "changed", "effect"),
            ((a.name, a.taken, a.changed, a.effect) for a in decision.assumptions),
        ),
    )
    if plan.limits is not None:
        limits = (*plan.limits.known, *plan.limits.unknown)
        yield "Limits of the node", _table(("resource", "limit"), ((one.title, one.formula) for one in limits))
    if plan.fleet is not None:
        effects = ((e.policy, words.ms(e.p95_ms.value), words.ms(e.p99_ms.value)) for e in plan.fleet.balancers)
        about = f"Balancers at {words.rate(plan.fleet.load_after_loss)} a node, what is left after the loss:"
        body = [*_list(_fleet(plan.fleet)), "", about, "", *_table(("balancer", "P95 ms", "P99 ms"), effects)]
        yield f"A fleet for {plan.fleet.demand_per_s:,.0f}/s", body
    yield "To change", _list(decision.advice)
    head = ("step", "candidate", "metric", "predicted", "measured", "error")
    yield "Held to account", _table(head, map(_check, checks)) if checks else []
    yield "Notes", _list(plan.notes)


def _list(texts: Iterable[str]) -> list[str]:
    return [f"- {text}" for text in texts]


def _check(one: PredictionCheck) -> tuple[str, ...]:
    figures = words.number(one.predicted), words.number(one.measured), f"{one.error:+.0%}"
    return one.step, one.candidate, one.metric, *figures


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [_row(head), _row(["---"] * len(head))]
    return lines + [_row(row) for row in rows]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
