"""SVG by hand: elements, scales, axes and frames. Colours and fonts are the style sheet's; every text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDE, NARROW = 520, 330
"""Every chart is drawn for a half-page column and again for a phone, so that its text is never scaled."""


def el(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element. `class_` and `stroke_width` become class and stroke-width; None leaves an attribute out."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    written = "".join(f' {key}="{escape(_plain(value))}"' for key, value in pairs)
    return Markup(f"<{tag}{written}>{''.join(escape(child) for child in children)}</{tag}>")


def _plain(value: str | float) -> str:
    if isinstance(value, str):
        return value
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> Markup:
    return el("text", content, x=x, y=y, class_=style or None, text_anchor=None if anchor == "start" else anchor)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def rect(x: float, y: float, width: float, height: float, style: str, tip: str | None = None, radius: float = 2) -> Markup:
    return el(
        "rect", *_tip(tip), x=x, y=y, width=max(width, 0.0), height=height, rx=min(radius, max(width, 0) / 2), class_=style
    )


def path(points: list[tuple[float, float]], style: str) -> Markup:
    steps = " ".join(f"{'M' if index == 0 else 'L'}{_plain(x)} {_plain(y)}" for index, (x, y) in enumerate(points))
    return el("path", d=steps, class_=style)


def mark(x: float, y: float, shape: str, style: str, tip: str) -> Markup:
    """A point with a tooltip: the shape says the verdict again, for those who do not see the colour."""
    shapes = {
        "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
        "triangle": "M0-6L6 5H-6z",
        "cross": "M-4.5-4.5L4.5 4.5M4.5-4.5L-4.5 4.5",
        "square": "M-5-5H5V5H-5z",
        "diamond": "M0-8L8 0L0 8L-8 0z",
        "ring": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    }
    return el("path", *_tip(tip), d=shapes[shape], transform=f"translate({_plain(x)} {_plain(y)})", class_=f"mark {style}")


def _tip(tip: str | None) -> list[Markup]:
    return [] if tip is None else [el("title", tip)]


def svg(key: str, title: str, description: str, width: float, height: float, *body: str) -> Markup:
    heads = (el("title", title, id=f"{key}-title"), el("desc", description, id=f"{key}-desc"))
    named = f"{key}-title {key}-desc"
    frame = f"0 0 {_plain(width)} {_plain(height)}"
    return el(
        "svg", *heads, *body, viewBox=frame, width=width, height=height, role="img", aria_labelledby=named, class_="chart"
    )


def width_of(content: str, size: float = 12) -> float:
    """About the width of a text in a semibold sans-serif, on the wide side: the reader's system font is not known here."""
    narrow = sum(character in " .,:;'|!()[]ijlftrI-·" for character in content)
    broad = sum(character in "mwMW@%—×→" or ord(character) > 0x2E80 for character in content)
    return size * (0.59 * (len(content) - narrow - broad) + 0.36 * narrow + 0.92 * broad)


def shorten(content: str, room: float, size: float = 12) -> str:
    if width_of(content, size) <= room:
        return content
    while len(content) > 1 and width_of(content + "…", size) > room:
        content = content[:-1]
    return content.rstrip(" ,·") + "…"


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps low..high to start..end, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the range: 1, 2, 5 times a power of ten."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            decades = self.high / self.low
            steps = (1, 2, 5) if decades < 300 else (1,)
            found = [step * 10.0**power for power in powers for step in steps]
            return [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]
        raw = (self.high - self.low) / max(count, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def spread(values: list[float], start: float, end: float, *, zero: bool = False) -> Scale:
    """A scale that holds the values with some air: logarithmic where they span more than a factor of eight."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 8 and not zero:
        return Scale(low / 1.25, high * 1.35, start, end, log=True)
    if zero or low < 0.45 * high:
        return Scale(min(0.0, low * 1.1), (high or 1.0) * 1.12, start, end)
    air = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - air, high + air, start, end)


@dataclass(frozen=True, slots=True)
class Frame:
    """The plotting area inside a chart, pixels."""

    left: float
    top: float
    right: float
    bottom: float


def axes(frame: Frame, x: Scale, y: Scale, labels: tuple[str, str], show: Callable[[float], str]) -> Markup:
    """Hairlines, tick labels and axis names; the name of the vertical axis stands above it, upright."""
    parts = [text(frame.left - 44, frame.top - 14, labels[1], "axis-name")]
    for value in y.ticks(5):
        parts.append(line(frame.left, y(value), frame.right, y(value), "grid"))
        parts.append(text(frame.left - 7, y(value) + 4, show(value), "tick", "end"))
    parts.append(horizontal(frame, x, labels[0], show))
    return Markup("").join(parts)


def horizontal(frame: Frame, x: Scale, label: str, show: Callable[[float], str], *, grid: bool = False) -> Markup:
    parts = [line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    last = -math.inf
    for value in x.ticks(5 if frame.right - frame.left > 300 else 4):
        if grid:
            parts.append(line(x(value), frame.top, x(value), frame.bottom, "grid"))
        wide = width_of(show(value), 11)
        if x(value) - wide / 2 > last + 6:
            parts.append(text(x(value), frame.bottom + 17, show(value), "tick", "middle"))
            last = x(value) + wide / 2
    if label:
        parts.append(text(frame.right, frame.bottom + 35, label, "axis-name", "end"))
    return Markup("").join(parts)


def tick_text(value: float) -> str:
    return f"{value:,.10g}".replace("-", "−")
