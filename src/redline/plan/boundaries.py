"""Shapes at which an engine must be tried: the corners and optimum of every profile, and both sides of each of its limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from redline.records import EngineProfile

Shape = tuple[int, ...]


def boundary_shapes(profiles: Sequence[EngineProfile], stride: int) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """(shapes (N, 3, H, W) that some profile takes, shapes next to a limit that none takes), without repeats.

    On both sides of a limit the other axes stay at the profile's optimum; beyond it means by one image, or by `stride` pixels.
    """
    inside: list[Shape] = []
    beyond: list[Shape] = []
    for profile in profiles:
        limits = zip(profile.minimum, profile.maximum, strict=True)
        inside += [*itertools.product(*(sorted({low, high}) for low, high in limits)), profile.optimum]
        for axis, (low, high) in enumerate(zip(profile.minimum, profile.maximum, strict=True)):
            step = {0: 1, 2: stride, 3: stride}.get(axis, 0)
            sizes = (low - step, low, high, high + step) if step else ()
            beyond += [(*profile.optimum[:axis], size, *profile.optimum[axis + 1 :]) for size in sizes if size > 0]
    taken = [shape for shape in (*inside, *beyond) if _taken(profiles, shape)]
    return tuple(dict.fromkeys(taken)), tuple(dict.fromkeys(shape for shape in beyond if not _taken(profiles, shape)))


def _taken(profiles: Sequence[EngineProfile], shape: Shape) -> bool:
    return any(all(low <= size <= high for low, size, high in zip(p.minimum, shape, p.maximum, strict=True)) for p in profiles)


def profile_at(profiles: Sequence[EngineProfile], shape: Shape) -> EngineProfile:
    """The smallest profile that takes `shape`, or the one that most of its axes fit."""

    def outside(profile: EngineProfile) -> tuple[int, int]:
        axes = zip(profile.minimum, shape, profile.maximum, strict=True)
        return sum(not low <= size <= high for low, size, high in axes), math.prod(profile.maximum)

    return min(profiles, key=outside)
