"""Accuracy drawn: the drop of every checked engine with its interval, AP by class, and the shapes that traffic brings."""

from __future__ import annotations

from markupsafe import Markup

from redline.records import Accuracy, ClassAccuracy, MapDrop, RunRecord, Traffic
from redline.report import facts, words
from redline.report.svg import Frame, Scale, el, horizontal, line, rect, shorten, svg, text, tick_text, width_of

LINES = 24
CLASSES = 16
SHAPES = 10
ENGINES = 10


def drops(record: RunRecord) -> list[tuple[str, MapDrop, str]]:
    """(name, drop, style) of each distinct parity result, the choice first; candidates that share one engine share a line."""
    choice, found = facts.chosen(record), dict[tuple[object, ...], tuple[str, MapDrop, str, int]]()
    trials = [trial for trial in (choice, *facts.every_trial(record)[1:]) if trial is not None and trial.parity is not None]
    for trial in trials:
        if trial.parity is None or not words.known(trial.parity.drop.relative_pct):
            continue
        drop, candidate = trial.parity.drop, trial.candidate
        key = (drop, candidate.runner, candidate.precision, candidate.shapes, candidate.prepost, candidate.profiles)
        name = " · ".join([words.knob(candidate, "runner"), candidate.precision.upper(), candidate.shape_name])
        style = "choice" if choice is not None and trial.digest == choice.digest else trial.parity.verdict.answer
        if key not in found:
            placed = words.PLACED.get(candidate.prepost)
            found[key] = (f"{name} · {placed}" if placed else name, drop, style, 0)
    return [(name, drop, style) for name, drop, style, _ in found.values()][:ENGINES]


def forest(rows: list[tuple[str, MapDrop, str]], budget: float, width: int, key: str) -> Markup:
    """Point and 95 % interval of the relative drop, one line an engine, against the largest drop allowed."""
    ends = [value for _, drop, _ in rows for value in (drop.relative_low_pct, drop.relative_high_pct, drop.relative_pct)]
    ends = [value for value in ends if words.known(value)]
    low, high = min([*ends, 0.0]), max([*ends, budget])
    air = 0.08 * (high - low)
    top, row = 34, 44
    frame = Frame(8.0, top - 10, width - 12.0, top + row * len(rows) + 4)
    x = Scale(low - air, high + air, frame.left, frame.right)
    parts = [horizontal(frame, x, "relative drop, % of the FP32 value", tick_text, grid=True)]
    parts.append(line(x(0.0), frame.top, x(0.0), frame.bottom, "zero"))
    parts.append(line(x(budget), frame.top, x(budget), frame.bottom, "objective"))
    side = "end" if x(budget) > width / 2 else "start"
    parts.append(
        text(x(budget) + (-5 if side == "end" else 5), top - 16, f"allowed {words.plain(budget)} %", "objective-text", side)
    )
    for index, (name, drop, style) in enumerate(rows):
        middle = top + row * index + 28
        whole = f"{words.percent(drop.relative_pct)} ({words.interval(drop)})"
        value = whole if width_of(whole + name, 12.5) + 22 < width else words.percent(drop.relative_pct)
        room = width - width_of(value, 12) - 22
        parts.append(text(4, middle - 12, shorten(name, room, 12.5), "label"))
        parts.append(text(frame.right, middle - 12, value, f"value {style}-text", "end"))
        if words.known(drop.relative_low_pct) and words.known(drop.relative_high_pct):
            left, right = x(drop.relative_low_pct), x(drop.relative_high_pct)
            parts.append(line(left, middle, right, middle, f"whisker {style}-line"))
            parts += [line(end, middle - 5, end, middle + 5, f"whisker {style}-line") for end in (left, right)]
        parts.append(
            el("circle", el("title", f"{name}: {whole}"), cx=x(drop.relative_pct), cy=middle, r=5, class_=f"dot {style}")
        )
    told = "; ".join(f"{name}: {words.percent(drop.relative_pct)}, {words.interval(drop)}" for name, drop, _ in rows)
    return svg(key, "Drop with 95 % interval", told + ".", width, frame.bottom + 44, *parts)


def class_rows(accuracy: Accuracy, reference: Accuracy | None) -> tuple[list[tuple[str, float, float | None, int]], int]:
    """(name, AP, reference AP, truths), best first; the middle is left out where there are many. And how many were left out."""
    known = {entry.name: entry.ap for entry in reference.per_class} if reference else {}

    def row(entry: ClassAccuracy, ap: float) -> tuple[str, float, float | None, int]:
        return entry.name, ap, known.get(entry.name), entry.truths

    rows = [row(entry, entry.ap) for entry in accuracy.per_class if entry.ap is not None and words.known(entry.ap)]
    rows.sort(key=lambda entry: (-entry[1], entry[0]))
    if len(rows) <= CLASSES:
        return rows, 0
    half = CLASSES // 2
    return rows[:half] + rows[-half:], len(rows) - CLASSES


def classes(rows: list[tuple[str, float, float | None, int]], skipped: int, width: int, key: str) -> Markup:
    """AP of the choice as a bar, of the reference as a tick."""
    left = min(150.0, max(width_of(name, 12) for name, *_ in rows) + 8)
    x = Scale(0.0, 1.0, left, width - 44.0)
    gap = 22 if skipped else 0
    bottom = 6 + LINES * len(rows) + gap
    parts = [line(x(value), 2, x(value), bottom, "grid") for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for index, (name, ap, before, truths) in enumerate(rows):
        lower = bool(skipped) and index >= len(rows) // 2
        top = 6 + LINES * index + (gap if lower else 0)
        tip = f"{name}: AP {words.fixed(ap)}, reference {words.fixed(before)}, {words.plural(truths, 'box', 'boxes')}"
        parts.append(text(left - 8, top + 13, shorten(name, left - 8, 12), "label", "end"))
        parts.append(rect(x(0.0), top + 3, x(ap) - x(0.0), 13, "choice", tip))
        if before is not None and words.known(before):
            parts.append(line(x(before), top, x(before), top + 19, "reference"))
        parts.append(text(width - 4, top + 13, words.fixed(ap), "value", "end"))
    if skipped:
        parts.append(text(left, 6 + LINES * (len(rows) // 2) + 14, f"… {skipped} classes between …", "axis-name"))
    told = "; ".join(f"{name} {words.fixed(ap)}" for name, ap, *_ in rows)
    return svg(key, "AP by class", told + ".", width, bottom + 6, *parts)


def shapes(traffic: Traffic, width: int, key: str) -> Markup | None:
    """Share of each source size, largest first; the small rest together."""
    found = sorted(traffic.shapes, key=lambda shape: -shape.share)
    if not found:
        return None
    rows = [(f"{shape.width} × {shape.height}", shape.share) for shape in found[:SHAPES]]
    if len(found) > SHAPES:
        rows.append((f"{len(found) - SHAPES} more sizes", sum(shape.share for shape in found[SHAPES:])))
    left = max(width_of(name, 12) for name, _ in rows) + 10
    x = Scale(0.0, max(share for _, share in rows) or 1.0, left, width - 58.0)
    parts = []
    for index, (name, share) in enumerate(rows):
        top = 6 + LINES * index
        parts.append(text(left - 8, top + 13, name, "label", "end"))
        parts.append(rect(left, top + 3, x(share) - left, 13, "candidate", f"{name}: {words.percent(100 * share, 1)}"))
        parts.append(text(width - 4, top + 13, words.percent(100 * share, 1), "value", "end"))
    told = "; ".join(f"{name} {words.percent(100 * share, 1)}" for name, share in rows)
    return svg(key, "Source image sizes", told + ".", width, 12 + LINES * len(rows), *parts)
