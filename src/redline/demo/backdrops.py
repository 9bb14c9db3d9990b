"""Procedural backgrounds for the demo scenes: what the parts lie on. Knows nothing of parts or boxes.

Every function takes a generator and a size and returns float32 planes (3, H, W) in 0..255 (planes, because numpy broadcasts a
field over planes ten times faster than over interleaved pixels); all randomness comes from the generator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Rng = np.random.Generator
TILE = 1024


@lru_cache(maxsize=1)
def grain_tile() -> F32:
    """(TILE, TILE, 3) standard normal noise, the same in every process; crops of it are far cheaper than new samples."""
    tile = np.random.default_rng(20_011).standard_normal((TILE, TILE, 3), dtype=np.float32)
    tile.setflags(write=False)
    return tile


def grain(rng: Rng, height: int, width: int) -> F32:
    """(height, width, 3) view of a random place of the noise tile; at most `TILE` a side."""
    top, left = int(rng.integers(TILE - height + 1)), int(rng.integers(TILE - width + 1))
    return grain_tile()[top : top + height, left : left + width]


def fractal(rng: Rng, height: int, width: int, cells: float, octaves: int, persistence: float = 0.55) -> F32:
    """Multi-octave value noise stretched to 0..1; `cells` is the number of coarse cells along the longest side."""
    longest = max(height, width)
    rows, columns = max(2, round(cells * height / longest)), max(2, round(cells * width / longest))
    field: Any = rng.random((rows + 1, columns + 1), dtype=np.float32)
    strength = 1.0
    for _ in range(octaves - 1):
        rows, columns, strength = rows * 2, columns * 2, strength * persistence
        if max(rows, columns) > longest:
            break
        field = cv2.resize(field, (columns + 1, rows + 1), interpolation=cv2.INTER_CUBIC)
        field += strength * rng.random(field.shape, dtype=np.float32)
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    low, high = float(field.min()), float(field.max())
    scaled: F32 = (field - low) * np.float32(1.0 / max(high - low, 1e-6))
    return scaled


def colour(rng: Rng, low: float, high: float, saturation: float) -> F32:
    """A random (3,) colour of brightness low..high; `saturation` 0..1 says how far from grey it may go."""
    level = rng.uniform(low, high)
    tint = rng.uniform(1.0 - saturation, 1.0, 3)
    return np.asarray(level * tint / tint.max(), np.float32)


def _ramp(field: F32, dark: F32, light: F32) -> F32:
    mixed: F32 = field * (light - dark)[:, None, None]
    mixed += dark[:, None, None]
    return mixed


def phase(x: F32, period: float) -> F32:
    """x modulo `period`, in 0..1."""
    turns = x * np.float32(1 / period)
    part: F32 = turns - np.floor(turns)
    return part


def _axes(rng: Rng, height: int, width: int, angle: float | None = None) -> tuple[F32, F32]:
    """Rotated pixel coordinates (u, v), each (height, width)."""
    turn = rng.uniform(0.0, np.pi) if angle is None else angle
    x = np.arange(width, dtype=np.float32)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return c * x + s * y, c * y - s * x


def belt(rng: Rng, height: int, width: int) -> F32:
    """Dark rubber with a ribbed or chevron tread."""
    u, v = _axes(rng, height, width)
    period = rng.uniform(7.0, 30.0)
    if rng.random() < 0.5:
        u = u + 4 * period * np.abs(phase(v, 4 * period) - 0.5)
    tread = np.sin(u * np.float32(2 * np.pi / period))
    field = 0.45 + np.float32(rng.uniform(0.06, 0.28)) * tread + 0.3 * (fractal(rng, height, width, 5, 4) - 0.5)
    dark = colour(rng, 18, 60, 0.25)
    return _ramp(field.astype(np.float32), dark, dark + np.float32(rng.uniform(35, 80)))


def brushed(rng: Rng, height: int, width: int) -> F32:
    """Brushed sheet metal: noise drawn out along one axis, with a broad sheen."""
    if rng.random() < 0.5:
        lines = cv2.resize(rng.random((height, max(2, width // 40)), dtype=np.float32), (width, height))
    else:
        lines = cv2.resize(rng.random((max(2, height // 40), width), dtype=np.float32), (width, height))
    sheen = fractal(rng, height, width, 2, 1)
    field = 0.35 * lines + 0.65 * sheen
    dark = colour(rng, 70, 130, 0.12)
    return _ramp(field, dark, dark + np.float32(rng.uniform(40, 100)))


def wood(rng: Rng, height: int, width: int) -> F32:
    """Boards with grain lines and dark seams."""
    u, v = _axes(rng, height, width, float(rng.choice([0.0, np.pi / 2])) + rng.uniform(-0.06, 0.06))
    warp = fractal(rng, height, width, 3, 2)
    pitch = np.float32(rng.uniform(5.0, 14.0))
    rings = np.sin((v + 60 * warp + 0.02 * u) * np.float32(2 * np.pi) / pitch)
    field = 0.5 + 0.22 * rings + 0.3 * (fractal(rng, height, width, 30, 3) - 0.5)
    board = rng.uniform(50, 130)
    field *= 1 + 0.18 * np.sin(np.floor(v * np.float32(1 / board)) * np.float32(12.9))
    field[phase(v, board) < 1.6 / board] *= 0.3
    light = np.asarray([rng.uniform(150, 225), rng.uniform(105, 165), rng.uniform(55, 115)], np.float32)
    return _ramp(field.astype(np.float32), light * 0.42, light)


def concrete(rng: Rng, height: int, width: int) -> F32:
    """Rough mottled floor with specks."""
    field = 0.75 * fractal(rng, height, width, rng.uniform(3, 9), 6, 0.7)
    field = field + np.float32(rng.uniform(0.02, 0.09)) * grain(rng, height, width)[..., 0]
    dark = colour(rng, 50, 130, 0.18)
    image = _ramp(field.astype(np.float32), dark, dark + np.float32(rng.uniform(50, 110)))
    for _ in range(int(rng.integers(0, 60))):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        shade = tuple(float(v) for v in dark * rng.uniform(0.5, 1.9))
        radius = int(rng.integers(1, 4))
        for plane, value in zip(image, shade, strict=True):
            cv2.circle(plane, centre, radius, value, -1, cv2.LINE_AA)
    return image


def mat(rng: Rng, height: int, width: int) -> F32:
    """Cutting mat: a flat colour with a printed grid."""
    base = colour(rng, 40, 150, 0.75)
    u, v = _axes(rng, height, width, rng.uniform(-0.3, 0.3))
    step = rng.uniform(14, 48)
    lines = np.minimum(phase(u, step), phase(v, step)) < 1.2 / step
    strong = np.minimum(phase(u, 4 * step), phase(v, 4 * step)) < 0.55 / step
    ink = np.float32(0.5 * rng.uniform(25, 90))
    level = ink * (lines.astype(np.float32) + strong) + 18 * (fractal(rng, height, width, 4, 5) - 0.5)
    image: F32 = level + base[:, None, None]
    return image


def tread_plate(rng: Rng, height: int, width: int) -> F32:
    """Perforated or embossed sheet: a periodic relief lit from one side."""
    u, v = _axes(rng, height, width)
    period = np.float32(rng.uniform(12, 34))
    k = np.float32(2 * np.pi / period)
    relief = np.sin(u * k) * np.sin(v * k * np.float32(rng.choice([0.5, 1.0])))
    relief = np.clip((relief - np.float32(rng.uniform(0.1, 0.6))) * 4, 0, 1)
    lit = cv2.Sobel(relief, cv2.CV_32F, 1, 1, ksize=3)
    hole = np.float32(rng.choice([0.0, 0.35]))
    field = 0.5 + 0.18 * lit - hole * relief + 0.35 * (fractal(rng, height, width, 4, 4) - 0.5)
    dark = colour(rng, 40, 120, 0.2)
    return _ramp(field.astype(np.float32), dark, dark + np.float32(rng.uniform(50, 110)))


def cardboard(rng: Rng, height: int, width: int) -> F32:
    """Paper or cardboard: warm, with fibres and faint corrugation."""
    u, _ = _axes(rng, height, width)
    corrugation = np.sin(u * np.float32(2 * np.pi / rng.uniform(6, 16)))
    field = 0.5 + 0.05 * corrugation + 0.5 * (fractal(rng, height, width, 16, 5, 0.8) - 0.5)
    light = np.asarray([rng.uniform(160, 240), rng.uniform(135, 215), rng.uniform(90, 200)], np.float32)
    return _ramp(field.astype(np.float32), light * 0.72, light)


def blobs(rng: Rng, height: int, width: int) -> F32:
    """Out-of-focus surroundings: soft blobs of colour over a gradient."""
    rows, columns = height // 4 + 1, width // 4 + 1
    small = cv2.merge(list(_ramp(fractal(rng, rows, columns, 2, 2), colour(rng, 10, 110, 0.6), colour(rng, 90, 230, 0.6))))
    for _ in range(int(rng.integers(4, 14))):
        centre = (int(rng.integers(columns)), int(rng.integers(rows)))
        cv2.circle(small, centre, int(rng.integers(3, 22)), tuple(float(v) for v in colour(rng, 20, 245, 0.8)), -1, cv2.LINE_AA)
    small = cv2.GaussianBlur(small, (0, 0), rng.uniform(1.0, 4.0))
    return np.asarray(cv2.split(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)), np.float32)


def patches(rng: Rng, height: int, width: int) -> F32:
    """Worn paint: thresholded noise in three tones, a busy camouflage."""
    field = fractal(rng, height, width, rng.uniform(4, 14), 5, 0.6)
    tones = np.stack([colour(rng, 30, 120, 0.5), colour(rng, 60, 180, 0.5), colour(rng, 90, 220, 0.5)])
    edges = np.quantile(field[::8, ::8], [0.35, 0.7]).astype(np.float32)
    first = np.clip((field - edges[0]) * 30, 0, 1)
    second = np.clip((field - edges[1]) * 30, 0, 1)
    image = _ramp(first, tones[0], tones[1])
    image += second * (tones[2] - tones[1])[:, None, None]
    return image


def tiles(rng: Rng, height: int, width: int) -> F32:
    """Square tiles of slightly different tone with grout lines."""
    u, v = _axes(rng, height, width, rng.uniform(-0.4, 0.4))
    size = rng.uniform(26, 90)
    column, row = np.floor(u * np.float32(1 / size)), np.floor(v * np.float32(1 / size))
    tone = 0.5 + 0.5 * np.sin(column * 12.99 + row * 78.23)
    if rng.random() < 0.4:
        tone = 1.6 * phase(column + row, 2) + 0.2 * tone
    field = 0.25 + 0.5 * tone + 0.25 * (fractal(rng, height, width, 8, 4) - 0.5)
    field[np.minimum(phase(u, size), phase(v, size)) < 2.0 / size] = rng.uniform(-0.4, 1.2)
    dark = colour(rng, 50, 140, 0.4)
    return _ramp(field.astype(np.float32), dark, dark + np.float32(rng.uniform(25, 90)))


_KINDS: tuple[tuple[Callable[[Rng, int, int], F32], float], ...] = (
    (belt, 0.2),
    (brushed, 0.1),
    (wood, 0.1),
    (concrete, 0.14),
    (mat, 0.09),
    (tread_plate, 0.09),
    (cardboard, 0.07),
    (blobs, 0.07),
    (patches, 0.07),
    (tiles, 0.07),
)
_WEIGHTS = np.cumsum([weight for _, weight in _KINDS])


def _one(rng: Rng, height: int, width: int) -> F32:
    kind = int(np.searchsorted(_WEIGHTS, rng.random() * _WEIGHTS[-1]))
    return _KINDS[min(kind, len(_KINDS) - 1)][0](rng, height, width)


def backdrop(rng: Rng, height: int, width: int) -> F32:
    """(3, height, width) float32 background, now and then two of them meeting at an edge."""
    image = _one(rng, height, width)
    if rng.random() < 0.22:
        other = _one(rng, height, width)
        u, _ = _axes(rng, height, width)
        middle = float(u[height // 2, width // 2]) + rng.uniform(-0.3, 0.3) * min(height, width)
        edge = np.clip(u - np.float32(middle), 0, 1)
        image = image + edge * (other - image)
        image *= 1 - 0.45 * np.exp(-np.square((u - np.float32(middle - 3)) * np.float32(0.25)))
    return np.ascontiguousarray(image, np.float32)
