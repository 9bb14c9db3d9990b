"""Latency distributions from their HdrHistograms: a curve by percentile, on the logarithmic axis of the tail."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

from markupsafe import Markup

from redline.records import Load
from redline.report import words
from redline.report.svg import Frame, Scale, el, line, path, spread, svg, text, tick_text

HEIGHT = 340
MARKS = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Curve:
    name: str
    style: str
    points: tuple[tuple[float, float], ...]
    """(percentile, milliseconds), from the median up to the last percentile that the number of requests supports."""


def curve(name: str, style: str, load: Load) -> Curve | None:
    """Decode a load's histogram; None if it is empty or not one."""
    from hdrh.codec import HdrCookieException, HdrHistogramSettingsException, HdrLengthException
    from hdrh.histogram import HdrHistogram

    try:
        histogram = HdrHistogram.decode(load.histogram.encode())
    except (
        HdrCookieException,
        HdrHistogramSettingsException,
        HdrLengthException,
        RuntimeError,
        ValueError,
        IndexError,
        zlib.error,
    ):
        return None
    count = histogram.get_total_count() if histogram is not None else 0
    if count < 10:
        return None
    last = min(1 - 1 / count, 0.999)
    low, high = math.log(1 / 0.5), math.log(1 / (1 - last))
    shares = [1 - math.exp(-(low + (high - low) * index / 120)) for index in range(121)]
    shares = sorted([*shares, 0.95]) if last > 0.95 else shares
    percentiles = [100 * share for share in shares]
    values = histogram.get_percentile_to_value_dict(percentiles)
    return Curve(name, style, tuple((percentile, values[percentile] / 1000) for percentile in percentiles))


def distribution(curves: list[Curve], limit: float, width: int, key: str) -> Markup:
    frame = Frame(48.0, 34.0, width - 14.0, HEIGHT - 44.0)
    latencies = [value for found in curves for _, value in found.points if value > 0]
    y = spread([*latencies, limit], frame.bottom, frame.top)
    span = Scale(1 / 0.5, 1 / 0.001, frame.left, frame.right, log=True)
    parts = [text(frame.left - 44, frame.top - 14, "latency, ms", "axis-name")]
    for value in y.ticks(5):
        parts.append(line(frame.left, y(value), frame.right, y(value), "grid"))
        parts.append(text(frame.left - 7, y(value) + 4, tick_text(value), "tick", "end"))
    for percentile in MARKS:
        at = span(1 / (1 - percentile / 100))
        strong = percentile == 95
        parts.append(line(at, frame.top, at, frame.bottom, "grid strong" if strong else "grid"))
        parts.append(text(at, frame.bottom + 17, f"{percentile:g}", "tick strong" if strong else "tick", "middle"))
    parts.append(text(frame.right, frame.bottom + 35, "percentile of requests", "axis-name", "end"))
    parts.append(line(frame.left, y(limit), frame.right, y(limit), "objective"))
    parts.append(text(frame.left + 6, y(limit) - 6, f"objective {words.plain(limit)} ms", "objective-text"))
    lowest = min(curves, key=lambda found: found.points[0][1])
    for found in curves:
        drawn = [(span(1 / (1 - percentile / 100)), y(value)) for percentile, value in found.points]
        parts.append(path(drawn, f"curve {found.style}-line"))
        at95 = next((value for percentile, value in found.points if percentile >= 94.999), None)
        if at95 is not None:
            tip = el("title", f"{found.name}: P95 {words.ms(at95)}")
            parts.append(el("circle", tip, cx=span(20.0), cy=y(at95), r=4.5, class_=f"dot {found.style}"))
            below = found is lowest and len(curves) > 1
            spot = (span(20.0) + 7, y(at95) + 19, "start") if below else (span(20.0) - 9, y(at95) - 9, "end")
            parts.append(text(spot[0], spot[1], words.ms(at95), f"direct {found.style}-text", spot[2]))
    told = "; ".join(f"{found.name}: median {words.ms(found.points[0][1])}" for found in curves)
    return svg(key, "Latency by percentile", told + ".", width, HEIGHT, *parts)
