"""Draws one machine part (or one piece of clutter) as colour and coverage on a small patch. Knows nothing of scenes or boxes.

A part is drawn in its own coordinates, |u| <= 1 along its longest axis, as a height map; light from a given direction, a
material and its texture then make the colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from redline.demo.backdrops import F32, Rng, grain

U8 = NDArray[np.uint8]
Points = Sequence[tuple[float, float]] | NDArray[np.float64]
"""(N, 2), or (M, N, 2) for M shapes that do not overlap."""
SHIFT = 4
TURN = 2 * np.pi


@dataclass(frozen=True, slots=True)
class Patch:
    """`colour` (3, P, Q) in 0..255 and `alpha` (P, Q) in 0..1; the first pixel lies `top`, `left` from the part's centre."""

    colour: F32
    alpha: F32
    top: int
    left: int


@dataclass(frozen=True, slots=True)
class Light:
    """Unit vector towards the light (x right, y down, z towards the camera) and the share of light from everywhere."""

    x: float
    y: float
    z: float
    ambient: float


@dataclass(frozen=True, slots=True)
class Material:
    base: F32
    accent: F32
    specular: float
    sheen: float
    rough: float


class Canvas:
    """Coverage, height, albedo and accent maps of one part, 8 bits each, drawn as polygons in part coordinates."""

    def __init__(self, length_px: float, angle: float, squash: float, reach: float) -> None:
        """`length_px`: image pixels of u in [-1, 1]; `squash`: foreshortening across; `reach`: farthest part coordinate."""
        self.oversample = 3 if length_px < 26 else 2 if length_px < 56 else 1
        self.scale = 0.5 * length_px * self.oversample
        half = int(np.ceil(0.5 * length_px * reach)) + 2
        self.size = 2 * half * self.oversample
        c, s = np.cos(angle), np.sin(angle)
        turn = np.asarray([[c, -s], [s, c]])
        self.matrix = self.scale * turn @ np.diag([1.0, squash])
        self.centre = 0.5 * self.size - 0.5
        self.cover: U8 = np.zeros((self.size, self.size), np.uint8)
        self.height = self.cover.copy()
        self.albedo = np.full_like(self.cover, 200)
        self.accent = self.cover.copy()
        self.top = self.left = 0

    def crop(self) -> None:
        """Keep only what the part covers, in whole image pixels: all later work is on less."""
        step = self.oversample
        x, y, width, height = cv2.boundingRect(self.cover)
        self.top, self.left = max(y // step - 1, 0) * step, max(x // step - 1, 0) * step
        bottom = min(-(-(y + height) // step) + 1, self.size // step) * step
        right = min(-(-(x + width) // step) + 1, self.size // step) * step
        window = slice(self.top, bottom), slice(self.left, right)
        self.cover, self.height = self.cover[window], self.height[window]
        self.albedo, self.accent = self.albedo[window], self.accent[window]

    def polygon(
        self,
        points: Points,
        height: int | None = None,
        *,
        cover: int | None = 255,
        albedo: int | None = None,
        accent: int | None = None,
    ) -> None:
        """Fill the polygon in every map that a value is given for."""
        fixed = self._pixels(points)
        for plane, value in ((self.cover, cover), (self.height, height), (self.albedo, albedo), (self.accent, accent)):
            if value is not None:
                cv2.fillPoly(plane, fixed, value, cv2.LINE_AA, SHIFT)

    def _pixels(self, points: Points) -> Any:
        pixels = np.asarray(points, np.float64) @ self.matrix.T + self.centre
        return list(np.round(pixels * (1 << SHIFT)).astype(np.int32).reshape(-1, *pixels.shape[-2:]))

    def hole(self, points: Points) -> None:
        """The background shows through."""
        self.polygon(points, 0, cover=0)

    def stroke(self, points: Points, width: float, height: int, albedo: int | None = None) -> None:
        """A round wire of diameter `width` along the points: a low wide stroke, then a high narrow one."""
        fixed = self._pixels(points)
        for share, level in ((1.0, 0.5), (0.5, 1.0)):
            thick = max(1, round(width * share * self.scale))
            cv2.polylines(self.height, fixed, False, int(height * level), thick, cv2.LINE_AA, SHIFT)
            if share == 1.0:
                cv2.polylines(self.cover, fixed, False, 255, thick, cv2.LINE_AA, SHIFT)
                if albedo is not None:
                    cv2.polylines(self.albedo, fixed, False, albedo, thick, cv2.LINE_AA, SHIFT)

    def local(self) -> tuple[F32, F32]:
        """Part coordinates (u, v) of every pixel."""
        inverse = np.linalg.inv(self.matrix).astype(np.float32)
        rows, columns = self.cover.shape
        x = (np.arange(columns, dtype=np.float32) + np.float32(self.left - self.centre))[None, :]
        y = (np.arange(rows, dtype=np.float32) + np.float32(self.top - self.centre))[:, None]
        return inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y


@lru_cache(maxsize=16)
def _unit(count: int) -> NDArray[np.float64]:
    angles = np.linspace(0, TURN, count, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def circle(radius: float, cu: float = 0.0, cv: float = 0.0, count: int = 40) -> NDArray[np.float64]:
    return radius * _unit(count) + (cu, cv)


def wreath(radius: float, distance: float, number: int, count: int = 16) -> NDArray[np.float64]:
    """`number` circles spaced evenly at `distance` from the centre."""
    return radius * _unit(count)[None] + distance * _unit(number)[:, None]


def box(u0: float, v0: float, u1: float, v1: float, cut: float = 0.0) -> NDArray[np.float64]:
    """Rectangle with corners cut off by `cut`."""
    ring = [
        (u0 + cut, v0),
        (u1 - cut, v0),
        (u1, v0 + cut),
        (u1, v1 - cut),
        (u1 - cut, v1),
        (u0 + cut, v1),
        (u0, v1 - cut),
        (u0, v0 + cut),
    ]
    return np.asarray(ring)


def gear(canvas: Canvas, rng: Rng) -> None:
    teeth = int(rng.integers(9, 23))
    root = rng.uniform(0.76, 0.87)
    steps = np.arange(teeth)[:, None] + np.asarray([0.0, 0.16, 0.34, 0.5]) * rng.uniform(0.95, 1.15)
    radii = np.broadcast_to(np.asarray([root, 1.0, 1.0, root]), steps.shape)
    angles = steps * TURN / teeth
    canvas.polygon(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1).reshape(-1, 2), 150)
    bore = rng.uniform(0.1, 0.24)
    if rng.random() < 0.75:
        canvas.polygon(circle(root - 0.1), int(rng.integers(70, 125)), cover=None, albedo=int(rng.integers(130, 200)))
        canvas.polygon(circle(bore + rng.uniform(0.1, 0.2)), int(rng.integers(140, 230)), cover=None, albedo=205)
    if rng.random() < 0.45:
        canvas.hole(wreath(rng.uniform(0.09, 0.15), 0.53, int(rng.integers(3, 7)), 20))
    canvas.hole(circle(bore))
    if rng.random() < 0.4:
        canvas.hole(box(0.0, -0.3 * bore, 1.35 * bore, 0.3 * bore))


def bolt(canvas: Canvas, rng: Rng) -> None:
    head = -1 + rng.uniform(0.26, 0.46)
    wide = rng.uniform(0.25, 0.4)
    shank = wide * rng.uniform(0.42, 0.66)
    style = int(rng.integers(4))
    canvas.polygon(box(head - 0.05, -shank, 1.0, shank, 0.35 * shank), 100)
    u, v = canvas.local()
    pitch = rng.uniform(0.075, 0.14)
    start = head + rng.choice([0.02, rng.uniform(0.1, 0.6)])
    thread = np.sin((u + 0.25 * v) * np.float32(TURN / pitch)) * (u > start)
    round_off = np.sqrt(np.clip(1 - np.square(v / np.float32(shank)), 0, 1))
    body = (u > head) & (canvas.cover > 0)
    canvas.height[body] = np.clip(50 + 130 * round_off + 26 * thread, 0, 255)[body].astype(np.uint8)
    canvas.albedo[body] = (175 + 55 * thread)[body].astype(np.uint8)
    if style == 0:
        for low, high, level in ((-1.0, -0.45, 150), (-0.45, 0.45, 215), (0.45, 1.0, 120)):
            canvas.polygon(box(-1, low * wide, head, high * wide, 0.03), 190, albedo=level)
        canvas.polygon(box(head - 0.07, -1.12 * wide, head, 1.12 * wide), 120, albedo=170)
    elif style == 1:
        angles = np.linspace(np.pi / 2, 1.5 * np.pi, 18)
        dome = np.stack([head + (1 + head) * np.cos(angles), wide * np.sin(angles)], axis=1)
        canvas.polygon(dome, 170)
        canvas.polygon(0.6 * dome + np.asarray([0.4 * head, 0.0]), 215, cover=None)
    elif style == 2:
        canvas.polygon(box(-1, -wide, head, wide, 0.05), 170)
        rim = (u < head - 0.08) & (canvas.cover > 0)
        canvas.albedo[rim] = (175 + 60 * np.sign(np.sin(v * np.float32(TURN / 0.11))))[rim].astype(np.uint8)
    else:
        canvas.polygon([(-1, -wide), (-0.9, -wide), (head, -shank), (head, shank), (-0.9, wide), (-1, wide)], 150)
        canvas.polygon(box(-1, -0.12, -0.88, 0.12), 40, cover=None, albedo=60)


def washer(canvas: Canvas, rng: Rng) -> None:
    inner = rng.uniform(0.34, 0.66)
    style = rng.random()
    canvas.polygon(circle(1.0, count=56), 130)
    if style < 0.25:
        canvas.polygon(circle(0.92, count=48), 175, cover=None)
    elif style < 0.45:
        canvas.polygon(circle(0.5 + 0.5 * inner), 200, cover=None, albedo=int(rng.integers(150, 235)))
    canvas.hole(circle(inner))
    if 0.45 <= style < 0.62:
        canvas.hole([(0.0, -0.06), (1.1, 0.0), (1.1, 0.14), (0.0, 0.05)])


def bracket(canvas: Canvas, rng: Rng) -> None:
    wide = rng.uniform(0.3, 0.52)
    low = -rng.uniform(0.45, 0.9)
    style = int(rng.integers(3))
    level = int(rng.integers(110, 160))
    cut = rng.uniform(0.02, 0.12)
    top = low + wide
    reach = min(0.95, top + rng.uniform(0.6, 1.1))
    canvas.polygon(box(-1, low, 1, top, cut), level)
    middle = {0: 1 - wide / 2, 1: 0.0, 2: -1 + wide / 2}[style]
    if style == 2:
        canvas.polygon(box(1 - wide, low, 1, reach, cut), level, albedo=int(rng.integers(120, 250)))
    canvas.polygon(box(middle - wide / 2, low, middle + wide / 2, reach, cut), level, albedo=int(rng.integers(120, 250)))
    canvas.polygon(box(-1, low, 1, top, cut), level, albedo=int(rng.integers(150, 230)))
    if rng.random() < 0.5:
        canvas.polygon(box(-1 + cut, top - 0.07, 1 - cut, top), level + 50, cover=None, albedo=235)
    radius = wide * rng.uniform(0.16, 0.27)
    line = low + wide / 2
    spots = [(-0.72, line), (0.72, line), (middle, reach - wide / 2)] + ([(0.0, line)] if rng.random() < 0.5 else [])
    if style == 2:
        spots.append((1 - wide / 2, reach - wide / 2))
    for cu, cv_ in spots:
        canvas.polygon(circle(1.5 * radius, cu, cv_, 20), level - 40, cover=None)
        canvas.hole(circle(radius, cu, cv_, 20))


def bearing(canvas: Canvas, rng: Rng) -> None:
    bore = rng.uniform(0.28, 0.42)
    outer = rng.uniform(0.78, 0.84)
    inner = bore + rng.uniform(0.12, 0.17)
    canvas.polygon(circle(1.0, count=56), 165)
    canvas.polygon(circle(outer), 40, cover=None, albedo=70)
    middle, radius = 0.5 * (outer + inner), 0.5 * (outer - inner)
    if rng.random() < 0.6:
        count = int(np.clip(np.floor(np.pi * middle / (radius * rng.uniform(1.05, 1.5))), 6, 14))
        for share, level in ((1.0, 110), (0.72, 170), (0.4, 215)):
            canvas.polygon(wreath(share * radius, middle, count), level, cover=None, albedo=225)
    else:
        canvas.polygon(circle(outer - 0.03), 110, cover=None, albedo=150, accent=255)
        canvas.polygon(circle(middle + 0.04), 90, cover=None, albedo=190)
        canvas.polygon(circle(middle), 120, cover=None, albedo=160)
    canvas.polygon(circle(inner), 165, cover=None, albedo=205, accent=0)
    canvas.hole(circle(bore))


def spring(canvas: Canvas, rng: Rng) -> None:
    coils = int(rng.integers(5, 12))
    radius = rng.uniform(0.2, 0.42)
    pitch = 1.8 / coils
    wire = pitch * rng.uniform(0.3, 0.52)
    t = np.linspace(0, 1, 12)
    bow = np.broadcast_to(-radius * np.cos(np.pi * t), (coils, 12))
    start = -0.9 + pitch * (np.arange(coils)[:, None] + 0.5 * t)
    canvas.stroke(np.stack([start + 0.5 * pitch, -bow], axis=-1), wire, 110, 110)
    canvas.stroke(np.stack([start, bow], axis=-1), wire, 235, 215)
    for end in (-0.92, 0.92):
        if rng.random() < 0.7:
            canvas.stroke([(end, -radius), (end, radius)], wire, 225, 200)


def pin(canvas: Canvas, rng: Rng) -> None:
    """Clutter: a plain round rod."""
    half = rng.uniform(0.08, 0.22)
    canvas.polygon(box(-1, -half, 1, half, 0.4 * half), 100)
    _, v = canvas.local()
    rod = canvas.cover > 0
    canvas.height[rod] = (50 + 150 * np.sqrt(np.clip(1 - np.square(v / np.float32(half)), 0, 1)))[rod].astype(np.uint8)


def slug(canvas: Canvas, rng: Rng) -> None:
    """Clutter: a blank disc or plate without holes."""
    if rng.random() < 0.5:
        canvas.polygon(circle(1.0, count=48), 140)
        canvas.polygon(circle(rng.uniform(0.5, 0.9)), int(rng.integers(100, 190)), cover=None)
    else:
        half = rng.uniform(0.4, 0.9)
        canvas.polygon(box(-1, -half, 1, half, rng.uniform(0.0, 0.2)), 140)


def nut(canvas: Canvas, rng: Rng) -> None:
    """Clutter: a hexagon nut."""
    canvas.polygon(circle(1.0, count=6), 150)
    canvas.polygon(circle(0.84), 185, cover=None)
    canvas.polygon(circle(0.58), 70, cover=None, albedo=110)
    canvas.hole(circle(rng.uniform(0.44, 0.52)))


def chip(canvas: Canvas, rng: Rng) -> None:
    """Clutter: a curl of swarf."""
    t = np.linspace(0, rng.uniform(2.0, 9.0), 40)
    grow = np.linspace(rng.uniform(0.2, 0.9), 0.9, 40)
    canvas.stroke(np.stack([grow * np.cos(t), rng.uniform(0.4, 1.0) * grow * np.sin(t)], axis=1), rng.uniform(0.05, 0.14), 200)


PARTS: dict[str, tuple[Callable[[Canvas, Rng], None], float]] = {
    "gear": (gear, 1.02),
    "bolt": (bolt, 1.1),
    "washer": (washer, 1.02),
    "bracket": (bracket, 1.4),
    "bearing": (bearing, 1.02),
    "spring": (spring, 1.15),
}
"""Class name -> how to draw it and how far it reaches from its centre."""
CLUTTER: tuple[tuple[Callable[[Canvas, Rng], None], float], ...] = ((pin, 1.05), (slug, 1.4), (nut, 1.02), (chip, 1.1))

_METALS = np.asarray(
    [[188, 190, 194], [150, 152, 156], [98, 100, 105], [205, 172, 92], [196, 130, 92], [208, 200, 150], [62, 62, 66]],
    np.float32,
)


def material(rng: Rng) -> Material:
    """Bare or coated metal, or plastic of any colour."""
    accent = rng.uniform(10, 190, 3).astype(np.float32) if rng.random() < 0.6 else np.full(3, rng.uniform(15, 60), np.float32)
    if rng.random() < 0.7:
        base = _METALS[int(rng.integers(len(_METALS)))] * rng.uniform(0.85, 1.15, 3).astype(np.float32)
        return Material(base, accent, rng.uniform(0.25, 0.8), rng.uniform(0.1, 0.4), rng.uniform(0.02, 0.09))
    base = rng.uniform(25, 235, 3).astype(np.float32)
    return Material(base, accent, rng.uniform(0.0, 0.4), rng.uniform(0.0, 0.1), rng.uniform(0.0, 0.05))


def _relief(canvas: Canvas, light: Light) -> tuple[F32, F32]:
    """Diffuse and mirror-like light, (P, P) each, from the smoothed height map."""
    bevel = max(0.6, 0.018 * canvas.scale)
    height = cv2.GaussianBlur(canvas.height.astype(np.float32), (2 * round(2.2 * bevel) + 1,) * 2, bevel)
    steep = np.float32(0.4 * canvas.scale / 255 / 2)
    nx = cv2.filter2D(height, -1, np.asarray([[steep, 0, -steep]], np.float32))
    ny = cv2.filter2D(height, -1, np.asarray([[steep], [0], [-steep]], np.float32))
    inverse = 1.0 / np.sqrt(nx * nx + ny * ny + 1.0)
    diffuse = (nx * np.float32(light.x) + ny * np.float32(light.y) + np.float32(light.z)) * inverse
    hx, hy, hz = np.asarray([light.x, light.y, light.z + 1.0]) / np.sqrt(2 + 2 * light.z)
    mirror = np.maximum((nx * np.float32(hx) + ny * np.float32(hy) + np.float32(hz)) * inverse, 0)
    mirror = np.square(np.square(np.square(mirror)))
    return np.maximum(diffuse, 0), np.square(mirror)


def shade(canvas: Canvas, look: Material, light: Light, rng: Rng) -> Patch:
    """Light, material and texture over the drawn maps, brought down to image pixels."""
    diffuse, mirror = _relief(canvas, light)
    u, v = canvas.local()
    along = rng.uniform(0, TURN)
    if rng.random() < 0.5:
        squares = u * u + v * v + np.float32(1e-3)
        sheen = ((u * u - v * v) * np.float32(np.cos(along)) + 2 * u * v * np.float32(np.sin(along))) / squares
    else:
        sheen = np.clip(u * np.float32(np.cos(along)) + v * np.float32(np.sin(along)), -1, 1)
    rows, columns = canvas.cover.shape
    noise = grain(rng, rows, columns)[..., 0]
    if rng.random() < 0.5:
        noise = 2.5 * cv2.blur(noise, (9, 1) if rng.random() < 0.5 else (1, 9))
    level = light.ambient + (1 - light.ambient) * diffuse
    level *= canvas.albedo * np.float32(1 / 200)
    level *= 1 + np.float32(look.sheen) * sheen + np.float32(look.rough) * noise
    base: Any = look.base[:, None, None]
    if canvas.accent.any():
        base = base + (canvas.accent * np.float32(1 / 255)) * (look.accent - look.base)[:, None, None]
    colour: Any = level * base + np.float32(150 * look.specular) * mirror
    alpha: Any = canvas.cover * np.float32(1 / 255)
    if canvas.oversample > 1:
        size = (columns // canvas.oversample, rows // canvas.oversample)
        colour = np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in colour * alpha])
        alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
        colour /= np.maximum(alpha, 1e-3)
    half = canvas.size // (2 * canvas.oversample)
    top, left = canvas.top // canvas.oversample - half, canvas.left // canvas.oversample - half
    return Patch(np.asarray(colour, np.float32), np.asarray(alpha, np.float32), top, left)
