"""Images of a report: what is on them and what was found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureBox:
    xyxy: tuple[float, float, float, float]
    label: str
    score: float | None
    """None: ground truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An evaluation image with its ground truth and the chosen candidate's detections, for the report."""

    path: str
    height: int
    width: int
    truth: tuple[PictureBox, ...]
    found: tuple[PictureBox, ...]
    credit: str | None = None
