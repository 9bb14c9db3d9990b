"""The labels of a COCO json: categories and boxes, checked entry by entry. Problems are gathered, then refused together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redline.errors import BadInput
from redline.records import Category, ImageRef, Truth

Entry = dict[str, Any]

EDGE_PX = 1.0
"""A box may leave the image by this much (labelling tools round) and is clipped; beyond it the label is wrong."""
_SHOWN = 5


def refuse(code: str, what: str, problems: Sequence[str], *, allowed: str | None = None, fix: str | None = None) -> None:
    """Raise BadInput naming the first problems and how many there are; nothing if there are none."""
    if not problems:
        return
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise BadInput(code, what, got="; ".join(problems[:_SHOWN]) + more, allowed=allowed, fix=fix)


def whole(value: object) -> int | None:
    """The value as an integer, or None if it is not one (JSON writers may write 640.0)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def ids_of(entries: Sequence[Entry], section: str, path: Path, duplicate_code: str) -> list[int]:
    """The integer ids of a section, in file order. Raises BadInput: data-not-coco, `duplicate_code`."""
    bad = [f"{section}[{index}]" for index, entry in enumerate(entries) if whole(entry.get("id")) is None]
    refuse("data-not-coco", f"{path} is not COCO: `{section}` need an integer `id`", bad)
    ids = [int(entry["id"]) for entry in entries]
    seen: set[int] = set()
    twice = sorted({id for id in ids if id in seen or seen.add(id)})  # type: ignore[func-returns-value]
    refuse(duplicate_code, f"{path}: ids in `{section}` are not unique", [f"id {id}" for id in twice])
    return ids


def read_categories(entries: Sequence[Entry], path: Path) -> tuple[Category, ...]:
    """Categories by ascending id. Raises BadInput: data-not-coco."""
    ids = ids_of(entries, "categories", path, "data-not-coco")
    if not ids:
        raise BadInput("data-not-coco", f"{path} is not COCO: `categories` is empty", fix="list the classes with id and name")
    nameless = [f"id {id}" for id, entry in zip(ids, entries, strict=True) if not isinstance(entry.get("name"), str)]
    refuse("data-not-coco", f"{path} is not COCO: categories need a `name`", nameless)
    categories = [Category(id=id, name=entry["name"]) for id, entry in zip(ids, entries, strict=True)]
    return tuple(sorted(categories, key=lambda category: category.id))


def read_truths(
    entries: Sequence[Entry], images: Sequence[ImageRef], categories: Sequence[Category], path: Path
) -> tuple[Truth, ...]:
    """One `Truth` an image, in the order of `images`, boxes in file order.

    Raises BadInput: data-unknown-image, data-unknown-category, data-box, data-box-outside.
    """
    by_id = {image.id: image for image in images}
    known = {category.id for category in categories}
    names = [_label(index, entry) for index, entry in enumerate(entries)]
    pairs = list(zip(names, entries, strict=True))
    refuse(
        "data-unknown-image",
        f"{path}: annotations of images that `images` does not list",
        [f"{name}: image_id {entry.get('image_id')!r}" for name, entry in pairs if whole(entry.get("image_id")) not in by_id],
    )
    refuse(
        "data-unknown-category",
        f"{path}: annotations of categories that `categories` does not list",
        [
            f"{name}: category_id {entry.get('category_id')!r}"
            for name, entry in pairs
            if whole(entry.get("category_id")) not in known
        ],
        allowed=f"{len(known)} categories with ids {min(known)} to {max(known)}",
    )
    bad = [f"{name}: {problem}" for name, entry in pairs if (problem := _malformed(entry)) is not None]
    refuse(
        "data-box",
        f"{path}: boxes that are not boxes",
        bad,
        allowed="bbox = [x, y, width, height], finite, width and height > 0",
    )
    outside = [
        f"{name}: {problem}" for name, entry in pairs if (problem := _outside(entry["bbox"], by_id[int(entry["image_id"])]))
    ]
    refuse(
        "data-box-outside",
        f"{path}: boxes outside their image",
        outside,
        allowed=f"at most {EDGE_PX:g} px over the edge (clipped)",
        fix="check that box and image have the same orientation and scale, and that boxes are x, y, width, height in pixels",
    )
    grouped: dict[int, list[Entry]] = {image.id: [] for image in images}
    for entry in entries:
        grouped[int(entry["image_id"])].append(entry)
    return tuple(_truth(grouped[image.id], image) for image in images)


def _label(index: int, entry: Entry) -> str:
    return f"annotation id {entry['id']}" if "id" in entry else f"annotations[{index}]"


def _malformed(entry: Entry) -> str | None:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_number(value) for value in box):
        return f"bbox {box!r}"
    if box[2] <= 0 or box[3] <= 0:
        return f"width {box[2]:g}, height {box[3]:g}"
    area = entry.get("area")
    if area is not None and not (_number(area) and area >= 0):
        return f"area {area!r}"
    return None if entry.get("iscrowd", 0) in (0, 1) else f"iscrowd {entry['iscrowd']!r}"


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _outside(box: list[float], image: ImageRef) -> str | None:
    """What is wrong, or None if the box leaves the image by no more than the tolerance."""
    x, y, width, height = box
    over = {"left": -x, "top": -y, "right": x + width - image.width, "bottom": y + height - image.height}
    side = max(over, key=lambda name: over[name])
    if over[side] > EDGE_PX:
        return f"{over[side]:.4g} px over the {side} edge of image id {image.id} ({image.height} x {image.width})"
    clipped = _clip(box, image)
    return None if clipped[2] > 0 and clipped[3] > 0 else f"lies beyond the {side} edge of image id {image.id}"


def _clip(box: list[float], image: ImageRef) -> tuple[float, float, float, float]:
    x, y, width, height = map(float, box)
    if x >= 0 and y >= 0 and x + width <= image.width and y + height <= image.height:
        return x, y, width, height
    left, top = max(x, 0.0), max(y, 0.0)
    return left, top, min(x + width, float(image.width)) - left, min(y + height, float(image.height)) - top


def _truth(entries: Sequence[Entry], image: ImageRef) -> Truth:
    boxes = tuple(_clip(entry["bbox"], image) for entry in entries)
    areas = (entry.get("area") for entry in entries)
    return Truth(
        boxes=boxes,
        category_ids=tuple(int(entry["category_id"]) for entry in entries),
        areas=tuple(box[2] * box[3] if area is None else float(area) for box, area in zip(boxes, areas, strict=True)),
        crowd=tuple(bool(entry.get("iscrowd", 0)) for entry in entries),
    )
