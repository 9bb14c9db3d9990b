"""Which input sizes a release can send to its network: pure arithmetic on its preprocessing and its engine."""

from __future__ import annotations

from dataclasses import dataclass

from redline.records import Preprocess, ShapePolicy
from redline.records.engine import EngineProfile
from redline.records.serve import EngineFacts, Release

WARM_SIZES = 8
"""Most input sizes that a server warms up; one inference of each size and batch is added to the loading of a release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Input sizes (height, width), pixels: each side from its first to its second value, both included, in steps of `step`."""

    height: tuple[int, int]
    width: tuple[int, int]
    step: int = 1

    @property
    def exact(self) -> tuple[int, int] | None:
        """The one size, if it is only one."""
        single = self.height[0] == self.height[1] and self.width[0] == self.width[1]
        return (self.height[0], self.width[0]) if single else None


def sent_sizes(preprocess: Preprocess, shapes: ShapePolicy) -> tuple[Sizes, ...] | None:
    """All input sizes that `vision.place` can give, as a union; None where no resize bounds them."""
    first, second = preprocess.size
    if preprocess.resize == "stretch":
        return (_one(first, second),)
    if not isinstance(shapes, str):
        return tuple(_one(height, width) for height, width in shapes)
    if preprocess.resize == "none":
        return None
    step = preprocess.stride
    if preprocess.resize == "letterbox":
        if shapes == "fixed":
            return (_one(first, second),)
        high, wide = _up(first, step), _up(second, step)  # the resized image always touches one side of the box
        return (
            Sizes(height=(high, high), width=(step, wide), step=step),
            Sizes(height=(step, high), width=(wide, wide), step=step),
        )
    if shapes == "fixed":
        short, long = _up(first, step), _up(max(first, second), step)
        return (_one(short, long), _one(long, short))
    return tuple(
        Sizes(height=height, width=width, step=step)
        for sides in _shortest_side(first, second, step)
        for height, width in (sides, sides[::-1])
    )


def image_dims(release: Release) -> tuple[int, int, int]:
    """(3, height, width) of the network's input without the batch axis; -1 where requests may differ."""
    _, channels, height, width = (
        -1 if isinstance(axis, str) else axis for axis in (*release.engine.input.shape, -1, -1, -1)[:4]
    )
    sizes = sent_sizes(release.preprocess, release.candidate.shapes)
    heights, widths = [size.height for size in sizes or ()], [size.width for size in sizes or ()]
    return 3 if channels == -1 else channels, _fixed(height, heights), _fixed(width, widths)


def warm_sizes(release: Release) -> tuple[tuple[int, int], ...]:
    """Sizes worth an inference before the first request: the best of every profile and, if they are few, every one that can
    come; the largest where there are neither."""
    _, height, width = image_dims(release)
    if height > 0 and width > 0:
        return ((height, width),)
    sizes = sent_sizes(release.preprocess, release.candidate.shapes)
    if sizes is None:
        return ()
    best = tuple(dict.fromkeys((profile.optimum[2], profile.optimum[3]) for profile in release.engine.profiles))
    exact = [size.exact for size in sizes]
    few = [size for size in exact if size is not None]
    if len(few) == len(exact):
        return tuple(dict.fromkeys((*best, *few)))[: max(WARM_SIZES, len(best))]
    return best or tuple(dict.fromkeys((size.height[1], size.width[1]) for size in sizes))[:WARM_SIZES]


def holds(profile: EngineProfile, batch: int, size: tuple[int, int]) -> bool:
    """Whether an engine's profile takes `batch` images of this size."""
    shape = (batch, 3, *size)
    whole = len(profile.minimum) == len(profile.maximum) == len(shape)
    return whole and all(low <= side <= high for low, side, high in zip(profile.minimum, shape, profile.maximum, strict=True))


def uncovered(profiles: tuple[EngineProfile, ...], sizes: tuple[Sizes, ...], batch: int) -> tuple[int, int, int] | None:
    """A (batch, height, width) that may come, with up to `batch` images, and that no profile takes; None if there is none.

    Exact: along each axis only the profiles' borders change whether one fits, so one point between each two is enough.
    """
    for size in sizes:
        for height in _corners(size.height, size.step, [(p.minimum[2], p.maximum[2]) for p in profiles]):
            for width in _corners(size.width, size.step, [(p.minimum[3], p.maximum[3]) for p in profiles]):
                for count in _corners((1, batch), 1, [(p.minimum[0], p.maximum[0]) for p in profiles]):
                    if not any(holds(profile, count, (height, width)) for profile in profiles):
                        return count, height, width
    return None


def largest_batch(engine: EngineFacts) -> int | None:
    """Most images in one inference; None: the engine sets no limit."""
    fixed = engine.input.shape[0] if engine.input.shape else 1
    if not isinstance(fixed, str):
        return fixed
    return max((profile.maximum[0] for profile in engine.profiles), default=None)


def _one(height: int, width: int) -> Sizes:
    return Sizes(height=(height, height), width=(width, width))


def _up(side: int, step: int) -> int:
    return -(-side // step) * step


def _shortest_side(short: int, cap: int, step: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(shorter, longer) sides after padding: either the longer side has its cap, or the shorter one its length."""
    sides = [((step, _up(min(short, cap), step)), _near(cap, step))]
    if cap >= short:
        sides.append((_near(short, step), (_near(short, step)[0], _up(cap, step))))
    return sides


def _near(side: int, step: int) -> tuple[int, int]:
    # The resize rounds down in floating point, so a side can be one pixel short of what was asked.
    return _up(max(1, side - 1), step), _up(side, step)


def _fixed(engine: int, ranges: list[tuple[int, int]]) -> int:
    if engine != -1:
        return engine
    ends = {end for pair in ranges for end in pair}
    return ends.pop() if len(ends) == 1 else -1


def _corners(span: tuple[int, int], step: int, borders: list[tuple[int, int]]) -> list[int]:
    low, high = span
    starts = {low} | {_up(edge, step) for first, last in borders for edge in (first, last + 1)}
    return sorted(start for start in starts if low <= start <= high)
