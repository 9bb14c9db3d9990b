"""Generates labelled scenes of machine parts: deterministic from (seed, index), as many as wanted.

A box is the tight extent of a part's visible pixels. No part in a scene is visible by less than `VISIBLE_SHARE`:
a placement that would hide another part (or itself, or cross the image edge) further than that is not made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from redline.demo.backdrops import F32, Rng, backdrop, colour, fractal, grain
from redline.demo.parts import CLUTTER, PARTS, Canvas, Light, Patch, material, shade

CLASSES: tuple[str, ...] = tuple(PARTS)
SIDE_PX = (240, 480)
PART_PX = (16.0, 160.0)
VISIBLE_SHARE = 0.35
MIN_BOX_PX = 5
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Scene:
    """`image` (H, W, 3) uint8 RGB; `boxes` (K, 4) float32 x1, y1, x2, y2 in pixels; `labels` (K,) int64 into `CLASSES`."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(slots=True)
class _Stage:
    """The scene while it is built: planes, the part that each pixel belongs to (0: none), full and visible pixels a part."""

    image: F32
    owner: NDArray[np.uint8]
    light: Light
    shadow: float
    labels: list[int] = field(default_factory=list)
    full: list[int] = field(default_factory=list)
    visible: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))


def _size(rng: Rng) -> tuple[int, int]:
    """Landscape, portrait or near-square, each side within `SIDE_PX`."""
    low, high = SIDE_PX
    long = int(rng.integers(300, high + 1))
    short = int(np.clip(round(long * rng.choice([0.5625, 0.667, 0.75, 0.8, rng.uniform(0.55, 1.0), 1.0])), low, long))
    return (short, long) if rng.random() < 0.6 else (long, short)


def _light(rng: Rng) -> Light:
    angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.1)
    flat = np.cos(height)
    return Light(float(flat * np.cos(angle)), float(flat * np.sin(angle)), float(np.sin(height)), rng.uniform(0.25, 0.55))


def _draw(rng: Rng, kind: tuple[Callable[[Canvas, Rng], None], float], length: float, light: Light) -> Patch:
    draw, reach = kind
    squash = 1.0 if rng.random() < 0.5 else rng.uniform(0.72, 1.0)
    canvas = Canvas(length, rng.uniform(0, 2 * np.pi), squash, reach)
    draw(canvas, rng)
    canvas.crop()
    return shade(canvas, material(rng), light, rng)


def _window(stage: _Stage, shape: tuple[int, ...], top: int, left: int) -> tuple[slice, slice, slice, slice]:
    """Rows and columns in the image, then in the patch, where the two meet."""
    height, width = stage.owner.shape
    rows, columns = shape
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = max(min(top + rows, height), y0), max(min(left + columns, width), x0)
    return slice(y0, y1), slice(x0, x1), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def _cast(stage: _Stage, patch: Patch, cx: int, cy: int, distance: float) -> None:
    """Darken what lies under the part, away from the light."""
    reach = distance * np.hypot(stage.light.x, stage.light.y)
    norm = max(np.hypot(stage.light.x, stage.light.y), 1e-3)
    sx, sy = cx - round(reach * stage.light.x / norm), cy - round(reach * stage.light.y / norm)
    spread = round(0.4 * distance)
    padded = cv2.copyMakeBorder(patch.alpha, spread, spread, spread, spread, cv2.BORDER_CONSTANT, value=0.0)
    soft = cv2.blur(padded, (2 * spread + 1,) * 2)
    rows, columns, prows, pcolumns = _window(stage, soft.shape, sy + patch.top - spread, sx + patch.left - spread)
    stage.image[:, rows, columns] *= 1 - np.float32(stage.shadow) * soft[prows, pcolumns]


def _place(stage: _Stage, rng: Rng, patch: Patch, label: int | None, length: float) -> bool:
    """Find a lawful place and draw there; False if `ATTEMPTS` places were not. `label` None: clutter."""
    solid = patch.alpha > 0.5
    full = int(solid.sum())
    height, width = stage.owner.shape
    for _ in range(ATTEMPTS):
        cx, cy = int(rng.integers(width)), int(rng.integers(height))
        rows, columns, prows, pcolumns = _window(stage, patch.alpha.shape, cy + patch.top, cx + patch.left)
        inside = solid[prows, pcolumns]
        owner = stage.owner[rows, columns]
        if label is not None and inside.sum() < max(VISIBLE_SHARE + 0.1, 0.45) * full:
            continue
        left = stage.visible - np.bincount(owner[inside], minlength=len(stage.visible))
        if np.any(left[1:] < VISIBLE_SHARE * np.asarray(stage.full)):
            continue
        _cast(stage, patch, cx, cy, max(1.5, length * rng.uniform(0.03, 0.09)))
        target = stage.image[:, rows, columns]
        target += patch.alpha[prows, pcolumns] * (patch.colour[:, prows, pcolumns] - target)
        owner[inside] = 0 if label is None else len(left)
        stage.visible = left
        if label is not None:
            stage.labels.append(label)
            stage.full.append(full)
            stage.visible = np.append(left, inside.sum())
        return True
    return False


def _cable(stage: _Stage, rng: Rng) -> None:
    """Clutter under the parts: a cable or a scratch across the image."""
    height, width = stage.owner.shape
    knots = rng.uniform(-0.2, 1.2, (4, 2)) * (width, height)
    t = np.linspace(0, 1, 32)[:, None]
    curve: Any = (1 - t) ** 3 * knots[0] + 3 * t * (1 - t) ** 2 * knots[1] + 3 * t * t * (1 - t) * knots[2] + t**3 * knots[3]
    path: Any = [np.round(curve * 16).astype(np.int32)]
    thick = int(rng.integers(1, 9))
    base = colour(rng, 15, 220, 0.8)
    for share, level in ((1.0, 0.55), (0.6, 0.9), (0.25, 1.25)):
        for plane, value in zip(stage.image, base * np.float32(level), strict=True):
            cv2.polylines(plane, path, False, float(value), max(1, round(thick * share)), cv2.LINE_AA, 4)


def _sticker(stage: _Stage, rng: Rng) -> None:
    """Clutter under the parts: a printed label or stencilled text."""
    height, width = stage.owner.shape
    x, y = int(rng.integers(width)), int(rng.integers(height))
    text = "".join(rng.choice(list("ABCDEFGHKLMNPRSTXZ0123456789-"), int(rng.integers(2, 9))))
    size = rng.uniform(0.3, 1.1)
    ink = colour(rng, 10, 240, 0.5)
    if rng.random() < 0.6:
        top, left = max(y - int(30 * size), 0), max(x - 6, 0)
        paper = colour(rng, 90, 245, 0.5)[:, None, None]
        stage.image[:, top : y + int(14 * size), left : x + int(19 * size * len(text))] = paper
    stencil = np.zeros((height, width), np.uint8)
    cv2.putText(stencil, text, (x, y), int(rng.integers(8)), size, 255, int(rng.integers(1, 3)), cv2.LINE_AA)
    rows, columns = slice(max(y - int(40 * size), 0), min(y + 12, height)), slice(x, width)
    target = stage.image[:, rows, columns]
    target += stencil[rows, columns] * np.float32(1 / 255) * (ink[:, None, None] - target)


def _stain(stage: _Stage, rng: Rng) -> None:
    """Clutter under the parts: oil or dust."""
    height, width = stage.owner.shape
    blot = np.clip(fractal(rng, height, width, rng.uniform(2, 5), 4) * 5 - rng.uniform(2.6, 3.6), 0, 1)
    stage.image += np.float32(rng.uniform(0.2, 0.6)) * blot * (colour(rng, 10, 160, 0.4)[:, None, None] - stage.image)


def _populate(stage: _Stage, rng: Rng) -> None:
    """Clutter on the ground, then parts from roughly large to small with loose clutter among them."""
    for draw, chance in ((_stain, 0.25), (_sticker, 0.35), (_cable, 0.3), (_cable, 0.2)):
        if rng.random() < chance:
            draw(stage, rng)
    low, high = np.log(PART_PX[0]), np.log(PART_PX[1])
    centre = rng.uniform(low + 0.3, high - 0.3)
    count = int(rng.integers(3, 9 if centre > 4.2 else 18))
    lengths = np.exp(np.clip(rng.normal(centre, 0.55, count), low, high))
    order = np.argsort(-lengths * np.exp(rng.normal(0, 0.5, count)))
    loose = rng.random() * 0.5
    for length in lengths[order]:
        if rng.random() < loose:
            kind = CLUTTER[int(rng.integers(len(CLUTTER)))]
            patch = _draw(rng, kind, float(length), stage.light)
            _place(stage, rng, patch, None, float(length))
        label = int(rng.integers(len(CLASSES)))
        patch = _draw(rng, PARTS[CLASSES[label]], float(length), stage.light)
        _place(stage, rng, patch, label, float(length))


def _camera(rng: Rng, planes: F32) -> NDArray[np.uint8]:
    """Uneven light, white balance, blur, sensor noise, quantisation and sometimes JPEG: planes to (H, W, 3) uint8."""
    _, height, width = planes.shape
    lamp = cv2.resize(rng.uniform(0.65, 1.25, (3, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    gains = rng.uniform(0.85, 1.3) * rng.uniform(0.9, 1.1, 3)
    image: Any = cv2.merge([plane * (lamp * np.float32(gain)) for plane, gain in zip(planes, gains, strict=True)])
    kind = rng.random()
    if kind < 0.35:
        sigma = rng.uniform(0.4, 1.3)
        image = cv2.GaussianBlur(image, (2 * round(2.2 * sigma) + 1,) * 2, sigma)
    elif kind < 0.47:
        reach = int(rng.integers(2, 6))
        kernel: Any = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
        angle = rng.uniform(0, np.pi)
        dx, dy = round(reach * np.cos(angle)), round(reach * np.sin(angle))
        cv2.line(kernel, (reach - dx, reach - dy), (reach + dx, reach + dy), 1.0)
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    noise = rng.gamma(1.6, 2.6) if rng.random() < 0.7 else 0.0
    out: Any = cv2.addWeighted(image, 1.0, grain(rng, height, width), noise, 0.0, dtype=cv2.CV_8U)
    if rng.random() < 0.5:
        quality = int(rng.integers(30, 92))
        coded = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        out = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return np.asarray(out, np.uint8)


def _boxes(stage: _Stage) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    boxes, labels = [], []
    for k, label in enumerate(stage.labels):
        mine = stage.owner == k + 1
        rows, columns = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
        if len(rows) and min(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 >= MIN_BOX_PX:
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            labels.append(label)
    return np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels, np.int64)


def scene(seed: int, index: int) -> Scene:
    """Scene `index` of series `seed`; depends on nothing else. Same bytes on every call in one environment."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    height, width = _size(rng)
    stage = _Stage(
        image=backdrop(rng, height, width),
        owner=np.zeros((height, width), np.uint8),
        light=_light(rng),
        shadow=rng.uniform(0.2, 0.6),
    )
    _populate(stage, rng)
    boxes, labels = _boxes(stage)
    return Scene(_camera(rng, stage.image), boxes, labels)


def write_dataset(folder: Path, count: int, seed: int, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Write scenes 0..count-1 of series `seed` as images/000000.jpg (JPEG quality 92) ... and instances.json (COCO).

    Category ids are class index + 1, `area` is the box's. The json is written last, so that its presence means a complete
    set. `progress(done, count)` is called after every image. Raises OSError if a file cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        made = scene(seed, index)
        name = f"{index:06d}.jpg"
        coded = cv2.imencode(".jpg", np.ascontiguousarray(made.image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        (folder / "images" / name).write_bytes(coded.tobytes())
        height, width = made.image.shape[:2]
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for box, label in zip(made.boxes.tolist(), made.labels.tolist(), strict=True):
            x0, y0, x1, y1 = box
            row = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "category_id": label + 1, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **row})
        if progress is not None:
            progress(index + 1, count)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    info = {"description": f"redline demo scenes, seed {seed}"}
    text = json.dumps({"info": info, "images": images, "annotations": annotations, "categories": categories})
    partial = folder / "instances.json.part"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(folder / "instances.json")
