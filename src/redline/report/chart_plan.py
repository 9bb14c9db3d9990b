"""The plan's ladder: each step's expected P50 as a bar, what the run measured of it as a diamond, the objective as a line."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from redline.records import LadderStep, PlanRecord, PredictionCheck
from redline.report import words
from redline.report.svg import Frame, Scale, horizontal, line, mark, rect, shorten, spread, svg, text, tick_text, width_of

ROW, BAR, TOP = 46, 14, 30


def ladder(plan: PlanRecord, checks: Sequence[PredictionCheck], width: int, key: str) -> Markup | None:
    """None where no step has a figure. Logarithmic: steps differ by more than a factor of ten."""
    steps = [step for step in plan.ladder if step.p50_ms is not None]
    if not steps:
        return None
    measured = {check.step: check.measured for check in checks}
    values = [step.p50_ms or 0.0 for step in steps] + [measured[s.key] for s in steps if s.key in measured]
    limit = plan.objective.p95_ms
    bottom = TOP + ROW * len(steps)
    frame = Frame(1.0, TOP - 8, width - 12.0, bottom)
    scale = spread([*values, limit], frame.left, frame.right)
    parts = [horizontal(frame, scale, "ms, logarithmic" if scale.log else "ms", tick_text, grid=True)]
    parts.append(line(scale(limit), TOP - 8, scale(limit), bottom, "objective"))
    for index, step in enumerate(steps):
        parts += _row(step, measured.get(step.key), TOP + ROW * index, frame, scale)
    anchor = "end" if scale(limit) > width / 2 else "start"
    parts.append(
        text(scale(limit) + (-5 if anchor == "end" else 5), TOP - 13, f"P95 {words.plain(limit)} ms", "objective-text", anchor)
    )
    told = "; ".join(f"{step.title}: {_value(step, measured.get(step.key))}" for step in steps)
    title = "Expected P50 of each step"
    return svg(key, title, f"{title}, one image at a time. {told}.", width, bottom + 42, *parts)


def _row(step: LadderStep, measured: float | None, top: float, frame: Frame, scale: Scale) -> list[Markup]:
    value, expected = _value(step, measured), step.p50_ms or 0.0
    room = frame.right - frame.left - width_of(value, 12.5) - 12
    parts = [
        text(1, top + 13, shorten(step.title, room, 12.5), "label"),
        text(frame.right, top + 13, value, "value", "end"),
        rect(frame.left, top + 19, max(scale(expected) - frame.left, 1.5), BAR, "candidate", f"{step.title}: {value}"),
    ]
    if measured is not None:
        tip = f"{step.title}: {words.ms(measured)} measured"
        parts.append(mark(scale(measured), top + 19 + BAR / 2, "diamond", "choice", tip))
    return parts


def _value(step: LadderStep, measured: float | None) -> str:
    return words.ms(step.p50_ms) if measured is None else f"{words.ms(step.p50_ms)}, measured {words.ms(measured)}"
