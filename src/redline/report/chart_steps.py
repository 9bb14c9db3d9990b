"""The way from baseline to choice: P95 as a waterfall of measured steps, and the rate each step holds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from redline.records import Trial
from redline.report import facts, words
from redline.report.facts import Metric, Step
from redline.report.svg import Frame, Scale, horizontal, line, path, rect, shorten, svg, text, tick_text, width_of

ROW, BAR, TOP = 50, 15, 30
CLIP = 4.0
"""Bars longer than this many times the objective or the choice are cut, with their value written: an overloaded baseline's
P95 grows with the length of the measurement and would flatten every other bar."""


@dataclass(frozen=True, slots=True)
class _Bar:
    label: str
    value: str
    start: float
    end: float
    style: str


def waterfall(chain: tuple[Step, ...], metric: Metric, limit: float, width: int, key: str) -> Markup:
    """P95 of baseline and choice as whole bars, the difference each step made as floating bars."""
    values = [facts.p95(step.trial, metric) or 0.0 for step in chain]
    bars = [_Bar("Baseline: " + _short(chain[0].trial), words.ms(values[0]), 0.0, values[0], "baseline")]
    for step, before, after in zip(chain[1:], values, values[1:], strict=False):
        change = ", ".join(step.changes) or "measured again"
        sign = "+" if after > before else ""
        share = f" ({sign}{words.fixed(100 * (after / before - 1), 0)} %)" if before else ""
        style = "better" if after <= before else "worse"
        bars.append(_Bar(change, f"{sign}{words.number(after - before)} ms{share}", before, after, style))
    if len(chain) > 1:
        bars.append(_Bar("Choice: " + _short(chain[-1].trial), words.ms(values[-1]), 0.0, values[-1], "choice"))
    title = "P95 from baseline to choice"
    told = "; ".join(f"{bar.label}: {bar.value}" for bar in bars)
    longest = min(max(values), CLIP * max(limit, values[-1]))
    return _rows(
        bars, longest, (limit, f"objective {words.plain(limit)} ms"), f"{title} in milliseconds. {told}.", title, width, key
    )


def rates(chain: tuple[Step, ...], goal: float, width: int, key: str) -> Markup | None:
    """The rate each trial of the chain holds: the knee where every one has it, else closed-loop capacity."""
    values, _ = rate_values(chain)
    if not values:
        return None
    last = len(values) - 1
    bars = []
    for index, (step, value) in enumerate(zip(chain, values, strict=True)):
        role = "choice" if index == last else "baseline" if index == 0 else "candidate"
        head = {"choice": "Choice", "baseline": "Baseline"}.get(role, "")
        bars.append(_Bar(": ".join(filter(None, (head, ", ".join(step.changes)))), words.rate(value), 0.0, value, role))
    told = "; ".join(f"{bar.label}: {bar.value}" for bar in bars)
    title = "Rate from baseline to choice"
    mark = (goal, f"objective {words.plain(goal)}/s")
    return _rows(bars, min(max(values), 6 * max(goal, 1e-9)), mark, f"Inferences a second. {told}.", title, width, key)


def rate_values(chain: tuple[Step, ...]) -> tuple[list[float], str]:
    ways = ((facts.knee_rate, "highest rate with P95 within the objective"), (facts.capacity, "closed-loop capacity"))
    for read, name in ways:
        values = [value for step in chain if (value := read(step.trial)) is not None]
        if len(values) == len(chain):
            return values, name
    return [], ""


def _short(trial: Trial) -> str:
    candidate = trial.candidate
    parts = [words.knob(candidate, "runner"), candidate.shape_name, f"t{candidate.threads}", f"b{candidate.batch}"]
    return " ".join([*parts, f"c{candidate.concurrency}"])


def _rows(
    bars: list[_Bar], longest: float, limit: tuple[float, str], description: str, title: str, width: int, key: str
) -> Markup:
    bottom = TOP + ROW * len(bars)
    frame = Frame(1.0, TOP - 8, width - 12.0, bottom)
    scale = Scale(0.0, max(longest, limit[0]) * 1.04 or 1.0, frame.left, frame.right)
    parts = [horizontal(frame, scale, "", tick_text, grid=True)]
    for index, (bar, after) in enumerate(pairwise(bars)):
        if bar.end in (after.start, after.end):
            top = TOP + ROW * index + 20 + BAR
            parts.append(line(scale(bar.end), top, scale(bar.end), top + ROW - BAR, "link"))
    edge = scale(limit[0])
    anchor = "end" if edge > width / 2 else "start"
    for index, bar in enumerate(bars):
        top = TOP + ROW * index
        start, end = sorted((bar.start, bar.end))
        left, right = scale(start), scale(end)
        parts.append(rect(left, top + 20, max(right - left, 1.5), BAR, bar.style, f"{bar.label}: {bar.value}"))
        if end > scale.high:
            parts.append(_cut(frame.right - 22, top + 20))
    parts.append(line(edge, TOP - 8, edge, bottom, "objective"))
    for index, bar in enumerate(bars):
        baseline, room = TOP + ROW * index + 13, width - width_of(bar.value, 12.5) - 24
        parts.append(text(1, baseline, shorten(bar.label, room, 12.5), "label"))
        parts.append(text(frame.right, baseline, bar.value, f"value {bar.style}-text", "end"))
    parts.append(text(edge + (-5 if anchor == "end" else 5), TOP - 13, limit[1], "objective-text", anchor))
    return svg(key, title, description, width, bottom + 24, *parts)


def _cut(x: float, y: float) -> Markup:
    """Two slanted gaps: the bar is longer than the axis."""
    gaps = [path([(x + shift, y + BAR + 2), (x + shift + 7, y - 2)], "cut") for shift in (0, 7)]
    return Markup("").join(gaps)
