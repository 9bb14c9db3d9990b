"""Where an inference's time goes in each engine, as one stacked bar: host copies, upload, network, download, gaps."""

from __future__ import annotations

from markupsafe import Markup

from redline.records import EngineRecord
from redline.report import words
from redline.report.engines import parts_of
from redline.report.svg import Frame, Scale, horizontal, rect, shorten, svg, text, tick_text, width_of

ROW, BAR, TOP = 46, 16, 12
INSIDE = 34.0
"""Pixels that a part must be wide to hold its own figure."""


def anatomy(engines: list[tuple[str, EngineRecord]], width: int, key: str) -> Markup | None:
    """(name, engine) in order; those that never ran are left out."""
    rows = [(name, engine.anatomy) for name, engine in engines if engine.anatomy is not None]
    if not rows:
        return None
    bottom = TOP + ROW * len(rows)
    frame = Frame(1.0, TOP - 8, width - 12.0, bottom)
    scale = Scale(0.0, max(sum(ms for _, ms in parts_of(a)) for _, a in rows) * 1.04 or 1.0, frame.left, frame.right)
    parts = [horizontal(frame, scale, "ms, one image", tick_text, grid=True)]
    told = []
    for index, (name, found) in enumerate(rows):
        top, at = TOP + ROW * index, 0.0
        value = f"{words.ms(found.wall_ms)}, enqueue {words.ms(found.enqueue_ms)}"
        parts.append(text(1, top + 11, shorten(name, width - width_of(value, 12.5) - 24, 12.5), "label"))
        parts.append(text(frame.right, top + 11, value, "value", "end"))
        for part, ms in parts_of(found):
            left, right = scale(at), scale(at + ms)
            parts.append(rect(left, top + 17, right - left, BAR, f"part-{part.lower()}", f"{part}: {words.ms(ms)}", 0))
            if right - left > INSIDE:
                parts.append(text((left + right) / 2, top + 17 + BAR - 4, words.number(ms, 2), "inside", "middle"))
            at += ms
        told.append(f"{name}: " + ", ".join(f"{part} {words.ms(ms)}" for part, ms in parts_of(found)))
    return svg(key, "Where an inference's time goes", "; ".join(told) + ".", width, bottom + 44, *parts)
