"""Evaluation images for the page: downscaled JPEG inline, ground truth and found boxes drawn over it in two panels."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from redline.records import Picture, PictureBox
from redline.report import words
from redline.report.svg import el, svg, text, width_of

WIDEST = 480
SHOWN_SCORE = 0.3
MOST_BOXES = 60
CHIP = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One image as two panels; `hidden` is the number of found boxes not drawn."""

    name: str
    truth: Markup
    found: Markup
    truth_count: int
    found_count: int
    hidden: int
    missing: str | None
    credit: str | None


def pair(picture: Picture, index: int, folder: Path) -> Pair:
    """Draw one picture; a file that is gone or unreadable leaves an empty panel with its boxes and says so."""
    ratio = min(1.0, WIDEST / max(picture.width, 1), 1.4 * WIDEST / max(picture.height, 1))
    width, height = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
    path = Path(picture.path) if Path(picture.path).is_absolute() else folder / picture.path
    encoded, missing = _jpeg(path, width, height)
    key = f"picture-{index}"
    if encoded is None:
        base = el("rect", width=width, height=height, class_="no-picture", id=f"{key}-image")
    else:
        base = el("image", href=encoded, width=width, height=height, preserveAspectRatio="none", id=f"{key}-image")
    shown = [box for box in picture.found if (1.0 if box.score is None else box.score) >= SHOWN_SCORE][:MOST_BOXES]
    truth = picture.truth[:MOST_BOXES]
    panels = []
    for name, boxes, style in (("ground truth", truth, "truth"), ("found", shown, "found")):
        under = base if style == "truth" else el("use", href=f"#{key}-image")
        told = ", ".join(_label(box) for box in boxes) or "no boxes"
        drawn = [*(_outline(box, ratio, style) for box in boxes), *_chips(list(boxes), ratio, (width, height), style)]
        panels.append(svg(f"{key}-{style}", f"{Path(picture.path).name}: {name}", told, width, height, under, *drawn))
    return Pair(
        name=Path(picture.path).name,
        truth=panels[0],
        found=panels[1],
        truth_count=len(picture.truth),
        found_count=len(shown),
        hidden=len(picture.found) - len(shown),
        missing=missing,
        credit=picture.credit,
    )


def _jpeg(path: Path, width: int, height: int) -> tuple[str | None, str | None]:
    """A data URI of the upright image at that size, or None and the reason."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * width, 2 * height))
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                image = image.point(lambda value: value / 256).convert("L")
            small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    except FileNotFoundError:
        return None, "the image file is no longer there"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return None, f"the image file cannot be read: {error}"
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True, progressive=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), None


def _label(box: PictureBox) -> str:
    return box.label if box.score is None else f"{box.label} {words.fixed(box.score, 2)}"


def _outline(box: PictureBox, ratio: float, style: str) -> Markup:
    x1, y1, x2, y2 = (value * ratio for value in box.xyxy)
    corners = {"x": x1, "y": y1, "width": max(x2 - x1, 0.0), "height": max(y2 - y1, 0.0)}
    halo = el("rect", class_="halo", **corners)
    return halo + el("rect", el("title", _label(box)), class_=f"box {style}-box", **corners)


def _chips(boxes: list[PictureBox], ratio: float, size: tuple[int, int], style: str) -> list[Markup]:
    """Labels on filled chips at a corner of their box where no earlier chip lies; small boxes keep theirs in the tooltip."""
    taken: list[tuple[float, float, float]] = []
    drawn = []
    for box in boxes:
        x1, y1, x2, y2 = (value * ratio for value in box.xyxy)
        if x2 - x1 < 26 or y2 - y1 < 14:
            continue
        label = _label(box)
        wide = min(width_of(label, 11) + 9, size[0])
        left = min(max(x1 - 1, 0.0), size[0] - wide)
        tops = [top for top in (y1 - CHIP, y1, y2, y2 - CHIP) if 0 <= top <= size[1] - CHIP]
        free = (top for top in tops if not any(_overlap((left, top, wide), other) for other in taken))
        top = next(free, None)
        if top is None:
            continue
        taken.append((left, top, wide))
        chip = el("rect", x=left, y=top, width=wide, height=CHIP, class_=f"chip {style}-chip")
        drawn.append(chip + text(left + 4, top + 11.2, label, "chip-text"))
    return drawn


def _overlap(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    across = one[0] < other[0] + other[2] and other[0] < one[0] + one[2]
    return across and abs(one[1] - other[1]) < CHIP
