"""Latency against throughput of every measured trial, with the Pareto front; and the knee search of the choice."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from redline.records import Knee, Objective, RunRecord, Trial
from redline.report import facts, words
from redline.report.facts import Metric
from redline.report.svg import Frame, Scale, axes, el, line, mark, path, spread, svg, text, tick_text, width_of

SHAPES = {"pass": "circle", "inconclusive": "triangle", "fail": "cross", "error": "cross", "screened": "ring"}
HEIGHT = 370
CLIP = 5.0
"""P95 beyond this many times the objective is drawn on the upper edge: an overloaded target's has no natural size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Trials that can share one plot: (rate, P95) each, measured alike."""

    metric: Metric
    knees: bool
    trials: tuple[tuple[Trial, float, float], ...]
    left_out: int


def points(record: RunRecord) -> Points | None:
    """P95 at the objective's rate against capacity, or the closed loop's pair where too few trials got that far."""
    trials = [trial for trial in facts.every_trial(record) if trial.failure is None]
    metrics: tuple[Metric, Metric] = ("open", "closed")
    for metric in metrics:
        loaded = [trial for trial in trials if facts.load(trial, metric)]
        knees = bool(loaded) and all(facts.knee_rate(trial) is not None for trial in loaded)
        read = facts.knee_rate if knees and metric == "open" else facts.capacity
        found = [(t, x, y) for t in loaded if (x := read(t)) is not None and (y := facts.p95(t, metric)) is not None and y > 0]
        if len(found) > 1:
            left = len(trials) - len(found)
            return Points(metric=metric, knees=knees and metric == "open", trials=tuple(found), left_out=left)
    return None


def pareto(found: Points, goal: Objective, choice: str | None, baseline: str, width: int, key: str) -> Markup:
    frame = Frame(48.0, 34.0, width - 14.0, HEIGHT - 44.0)
    x = spread([*(rate for _, rate, _ in found.trials), goal.throughput], frame.left, frame.right)
    top = CLIP * goal.p95_ms
    y = spread([*(min(p95, top) for _, _, p95 in found.trials), goal.p95_ms], frame.bottom, frame.top)
    label = "rate held within the objective, 1/s" if found.knees else "closed-loop capacity, 1/s"
    parts = [axes(frame, x, y, (label, "P95, ms"), tick_text), _target(frame, x, y, goal)]
    sound = [(rate, p95) for trial, rate, p95 in found.trials if facts.outcome(trial)[0] != "fail" or not _inaccurate(trial)]
    parts.append(_staircase(frame, x, y, facts.front(sound)))
    for trial, rate, p95 in sorted(found.trials, key=lambda entry: entry[0].digest == choice):
        kind, why = facts.outcome(trial)
        tip = f"{words.title(trial.candidate)}: P95 {words.ms(p95)}, {words.rate(rate)}. {facts.OUTCOMES[kind]}: {why}"
        role = "choice" if trial.digest == choice else "baseline" if trial.digest == baseline else kind
        shape = {"choice": "diamond", "baseline": "square"}.get(role, SHAPES[kind])
        parts.append(mark(x(rate), y(p95), shape, role, tip))
        if role in ("choice", "baseline"):
            parts.append(_name(frame, x(rate), y(p95), role, words.ms(p95) if p95 > y.high else ""))
    parts.append(_beyond(frame, sum(p95 > y.high for _, _, p95 in found.trials)))
    told = f"{len(found.trials)} trials; lower right is better."
    return svg(key, "P95 against throughput", told, width, HEIGHT, *parts)


def _inaccurate(trial: Trial) -> bool:
    return trial.parity is not None and trial.parity.verdict.answer == "fail"


def _beyond(frame: Frame, count: int) -> Markup:
    """Says that points on the upper edge are higher than they are drawn."""
    return text(frame.right, frame.top - 14, f"↑ {count} beyond the axis", "axis-name", "end") if count else Markup("")


def _name(frame: Frame, x: float, y: float, role: str, beyond: str) -> Markup:
    label = role.capitalize() + (f" ↑ {beyond}" if beyond else "")
    inside = x + 12 + width_of(label, 12) < frame.right
    return text(
        x + 12 if inside else x - 12,
        y - 8 if y - 20 > frame.top else y + 16,
        label,
        f"direct {role}-text",
        "start" if inside else "end",
    )


def _target(frame: Frame, x: Scale, y: Scale, goal: Objective) -> Markup:
    """Both objective lines and the region in which both are met."""
    across, down = y(goal.p95_ms), x(goal.throughput)
    region = el("rect", x=down, y=across, width=frame.right - down, height=frame.bottom - across, class_="region")
    lines = [line(frame.left, across, frame.right, across, "objective"), line(down, frame.top, down, frame.bottom, "objective")]
    names = [text(frame.left + 6, across - 6, f"P95 {words.plain(goal.p95_ms)} ms", "objective-text")]
    right = down + 6 + width_of(f"{words.plain(goal.throughput)}/s", 11.5) < frame.right
    names.append(
        text(
            down + (6 if right else -6),
            frame.top + 2,
            f"{words.plain(goal.throughput)}/s",
            "objective-text",
            "start" if right else "end",
        )
    )
    return Markup("").join([region, *lines, *names])


def _staircase(frame: Frame, x: Scale, y: Scale, kept: list[tuple[float, float]]) -> Markup:
    corners = [(frame.left, y(kept[0][1]))] if kept else []
    for (rate, p95), after in zip(kept, [*kept[1:], None], strict=True):
        corners.append((x(rate), y(p95)))
        if after is not None:
            corners.append((x(rate), y(after[1])))
    if kept:
        corners.append((x(kept[-1][0]), frame.top))
    return path(corners, "front") if corners else Markup("")


def knee_search(knee: Knee, goal: Objective, width: int, key: str) -> Markup | None:
    """Every step of the search: offered rate against P95; the knee is the highest rate within the objective."""
    numbered = list(enumerate(knee.steps, 1))
    steps = [
        (step.offered_per_s, step.p95_ms, step, order)
        for order, step in numbered
        if step.offered_per_s and words.known(step.p95_ms) and step.p95_ms > 0
    ]
    if not steps:
        return None
    steps.sort(key=lambda entry: entry[0] or 0.0)
    frame = Frame(48.0, 34.0, width - 14.0, HEIGHT - 44.0)
    x = spread([*(rate or 0.0 for rate, *_ in steps), knee.rate_per_s or goal.throughput], frame.left, frame.right)
    top = CLIP * goal.p95_ms
    y = spread([*(min(p95, top) for _, p95, *_ in steps), goal.p95_ms], frame.bottom, frame.top)
    across = y(goal.p95_ms)
    parts = [
        axes(frame, x, y, ("offered rate, 1/s", "P95, ms"), tick_text),
        line(frame.left, across, frame.right, across, "objective"),
    ]
    parts.append(text(frame.left + 6, across - 6, f"objective {words.plain(goal.p95_ms)} ms", "objective-text"))
    parts.append(path([(x(rate or 0.0), y(p95)) for rate, p95, *_ in steps], "trace"))
    if knee.rate_per_s > 0:
        down = x(knee.rate_per_s)
        right = down + 8 + width_of(f"knee {words.rate(knee.rate_per_s)}", 12) < frame.right
        parts.append(line(down, across, down, frame.bottom, "knee"))
        parts.append(
            text(
                down + (7 if right else -7),
                frame.bottom - 8,
                f"knee {words.rate(knee.rate_per_s)}",
                "direct choice-text",
                "start" if right else "end",
            )
        )
    for rate, p95, step, order in steps:
        good = p95 <= goal.p95_ms and not step.errors
        tip = f"Step {order}: {words.rate(rate)} offered, {words.rate(step.achieved_per_s)} achieved, P95 {words.ms(p95)}"
        parts.append(mark(x(rate or 0.0), y(p95), "circle" if good else "cross", "pass" if good else "fail", tip))
    parts.append(_beyond(frame, sum(p95 > y.high for _, p95, *_ in steps)))
    told = f"{len(steps)} load steps; the knee is {words.rate(knee.rate_per_s)}."
    return svg(key, "Knee search of the choice", told, width, HEIGHT, *parts)
