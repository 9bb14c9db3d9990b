"""How numbers, knobs and verdicts read in a report: one place for units, digits and names."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Final

from redline.records import Candidate, MapDrop

NONE: Final = "–"
MINUS: Final = "−"

RUNNERS: Final = {
    "torch-eager": "PyTorch eager",
    "torch-compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "tensorrt": "TensorRT",
}
KNOBS: Final = {
    "runner": "runner",
    "precision": "precision",
    "device": "device",
    "prepost": "pre/post",
    "shapes": "shapes",
    "threads": "threads",
    "batch": "batch",
    "concurrency": "in flight",
    "profiles": "profiles",
    "cuda_graphs": "CUDA graphs",
    "wide": "nodes in FP32",
}
"""Fields of Candidate in reading order, as the report calls them."""
PLACED: Final = {"graph": "in graph", "kernel": "on the GPU"}
"""Where pre- and post-processing run, if not on the host."""


def known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, thousands separated, never an exponent; an en dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}".replace("-", MINUS)


def ms(value: float | None) -> str:
    return f"{number(value)} ms" if known(value) else NONE


def rate(value: float | None) -> str:
    return f"{number(value)}/s" if known(value) else NONE


def plain(value: float) -> str:
    """An objective as the user wrote it: no padding zeros."""
    return f"{value:,g}" if abs(value) < 1e6 else f"{value:,.0f}"


def percent(value: float | None, places: int = 2) -> str:
    return f"{fixed(value, places)} %" if known(value) else NONE


def fixed(value: float | None, places: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def scientific(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    return "0" if value == 0 else f"{value:.1e}".replace("-", MINUS)


def factor(value: float) -> str:
    return f"{number(value, 2 if value < 10 else 3)}×"


def size(count: int) -> str:
    """Bytes in decimal units, as file managers and model cards have them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{number(count / scale)} {unit}"
    return f"{count} B"


def many(count: int) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{number(count / scale)} {unit}"
    return f"{count:,}"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return NONE
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(text: str) -> str:
    """ISO 8601 in UTC as people read it; the text itself where it is something else."""
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return text
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    when = when.astimezone(timezone.utc)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def plural(count: int, noun: str, several: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def runner(candidate: Candidate) -> str:
    return RUNNERS[candidate.runner]


def knob(candidate: Candidate, field: str) -> str:
    value = candidate.shape_name if field == "shapes" else getattr(candidate, field)
    if field == "wide":
        return str(len(value))
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    return RUNNERS.get(value, str(value)) if field == "runner" else str(value)


def title(candidate: Candidate) -> str:
    """A candidate in a sentence: ONNX Runtime, FP32, minimal shapes, 2 threads, batch 1, 1 in flight."""
    parts = [
        knob(candidate, "runner"),
        candidate.precision.upper() + (f" with {plural(len(candidate.wide), 'node')} in FP32" if candidate.wide else ""),
        f"{candidate.shape_name} shapes" if isinstance(candidate.shapes, str) else candidate.shape_name,
    ]
    if candidate.gpus:
        parts += [f"{candidate.profiles} profiles"] if candidate.profiles is not None else []
    else:
        parts.append(plural(candidate.threads, "thread"))
    parts += [f"batch {candidate.batch}", f"{candidate.concurrency} in flight"]
    if candidate.gpus:
        parts += ["no CUDA graphs"] if candidate.runner == "tensorrt" and not candidate.cuda_graphs else []
        parts.append(f"on {candidate.device}")
    placed = PLACED.get(candidate.prepost)
    return ", ".join([*parts, f"pre/post {placed}"] if placed else parts)


def interval(drop: MapDrop) -> str:
    return f"{fixed(drop.relative_low_pct, 2)} to {fixed(drop.relative_high_pct, 2)} %"
