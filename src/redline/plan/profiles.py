"""Optimisation profiles of an engine for a traffic: which shapes it must take, and for which it is tuned.

The bucketed kind takes its shapes from `plan.buckets.choose_buckets`: least expected padding plus a price for every further
shape. Here the number of profiles and the memory that their buffers need are limits too.
"""

from __future__ import annotations

from dataclasses import dataclass

from redline.errors import BadInput
from redline.plan.buckets import choose_buckets, largest_canvases, waste
from redline.records import EngineProfile, Preprocess, ProfileKind, ShapePolicy, Traffic
from redline.vision import input_size

Kind = ProfileKind
EXACT_MOST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    kind: Kind
    profiles: tuple[EngineProfile, ...]
    shapes: tuple[tuple[int, int], ...]
    """Network input sizes (height, width) that reach the engine, largest share first."""
    waste: float
    """Expected area of the inputs over that of the resized images in them, minus 1."""
    buffer_bytes: int
    """Memory of one lane: inputs and outputs of its largest profile, and scratch memory of a context for each profile."""


def choose_profiles(
    traffic: Traffic,
    preprocess: Preprocess,
    kind: Kind,
    *,
    batch: int,
    most: int = 5,
    bytes_per_pixel: float = 12.0,
    scratch_per_pixel: float = 0.0,
    memory_bytes: int | None = None,
    shapes: ShapePolicy = "minimal",
) -> Profiles:
    """Profiles for batches of 1 to `batch` of what the inputs of `traffic` become under `shapes`; buckets given there are kept.

    `bytes_per_pixel`: float32 input plus outputs, divided by the input's pixels (12 is the input alone). `scratch_per_pixel`:
    what a context needs besides; every profile has a context, and each is sized for the largest. `memory_bytes`: limit on both
    together: buckets are given up first, down to those that every image needs, then the batch is lowered.
    Raises BadInput: plan.profile-memory (batch 1 does not fit), plan.profile-count, and as `choose_buckets` does.
    """
    if memory_bytes is not None and kind == "bucketed" and isinstance(shapes, str) and scratch_per_pixel > 0:
        canvases = largest_canvases(preprocess)
        space = batch * max(height * width for height, width in canvases)
        affordable = int((memory_bytes - space * bytes_per_pixel) / (space * scratch_per_pixel))
        most = max(len(canvases), min(most, affordable))
    sizes = _shares(traffic, preprocess, kind, most, shapes)
    largest = max(height * width for height, width in sizes)
    fits = batch
    each = largest * (bytes_per_pixel + scratch_per_pixel * (1 if kind == "dynamic" else len(sizes)))
    while memory_bytes is not None and fits > 1 and fits * each > memory_bytes:
        fits -= 1
    need = int(fits * each)
    if memory_bytes is not None and need > memory_bytes:
        fix = "a smaller [model.preprocess] size or more GPU memory"
        raise BadInput(
            "plan.profile-memory", "One input does not fit the memory limit", got=need, allowed=memory_bytes, fix=fix
        )
    ordered = sorted(sizes, key=lambda hw: -sizes[hw])
    if kind == "dynamic":
        low, high = (tuple(pick(hw[axis] for hw in sizes) for axis in (0, 1)) for pick in (min, max))
        spans = [((1, 3, *low), (fits, 3, *ordered[0]), (fits, 3, *high))]
    else:
        spans = [((1, 3, *hw), (fits, 3, *hw), (fits, 3, *hw)) for hw in ordered]
    return Profiles(
        kind=kind,
        profiles=tuple(EngineProfile(index=i, minimum=a, optimum=b, maximum=c) for i, (a, b, c) in enumerate(spans)),
        shapes=tuple(ordered),
        waste=waste(traffic, preprocess, tuple(sizes) if kind == "bucketed" else shapes),
        buffer_bytes=need,
    )


def _shares(
    traffic: Traffic, preprocess: Preprocess, kind: Kind, most: int, shapes: ShapePolicy
) -> dict[tuple[int, int], float]:
    if kind == "bucketed" and isinstance(shapes, str):
        chosen = choose_buckets(traffic, preprocess, most=most)
        return {(bucket.height, bucket.width): bucket.share for bucket in chosen.buckets}
    found: dict[tuple[int, int], float] = {} if isinstance(shapes, str) else dict.fromkeys(shapes, 0.0)
    for shape in traffic.shapes:
        size = input_size((shape.height, shape.width), preprocess, shapes)
        found[size] = found.get(size, 0.0) + shape.share
    if kind == "exact" and len(found) > EXACT_MOST:
        fix = 'use kind "bucketed" or "dynamic"'
        raise BadInput(
            "plan.profile-count", "Too many input shapes for exact profiles", got=len(found), allowed=EXACT_MOST, fix=fix
        )
    return found
