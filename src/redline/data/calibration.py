"""Which images INT8 ranges are measured on: a choice that shows every shape, brightness, count and class of the whole set.

An image's strata are the bins its traits fall into. Greedily, the next image is the one with most strata that no chosen image
shows; when all are shown, the one whose strata are furthest below their share, so that common ones are common in the choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from redline.data.coco import read_bytes
from redline.errors import BadInput
from redline.records import Dataset, ImageRef, Truth
from redline.records.quantize import CalibrationChoice, Coverage, Selector, TraitCoverage
from redline.vision import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST = 32
"""Fewer images leave the tails of activations to chance."""
SELECTORS: tuple[Selector, ...] = ("cover", "first", "random")
TRAITS = ("shape", "brightness", "contrast", "objects", "class")
ASPECTS, SIDES = (0.5, 0.8, 1.25, 2.0), (400, 640, 1000, 2000)
BRIGHT, CONTRAST = (51, 102, 153, 204), (24, 48, 72)
COUNTS = (1, 2, 4, 8, 16)
BLACK = 2.0
"""An image whose brightest pixel of the thumbnail is below this, of 255, shows nothing."""
THUMB = 16
TWIN, TWINS = 4.0, 0.25
"""Thumbnails that differ by less than this, of 255, are of one scene; warned from this share of the images on."""
DRAWS = 20


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    strata: frozenset[tuple[str, str]]
    thumbnail: NDArray[np.float32]


def choose_calibration(
    dataset: Dataset,
    count: int,
    *,
    selector: Selector = "cover",
    seed: int = 0,
    evaluate: Dataset | None = None,
    force: bool = False,
) -> CalibrationChoice:
    """At most `count` images of `dataset`, in the data set's order. Without annotations objects and classes are no traits.

    `evaluate`: the set that accuracy is measured on. Raises BadInput: quantize.evaluation if an image is in both sets, by its
    file's digest, unless `force`; quantize.black naming images that are all black; and what reading and decoding raise.
    """
    warnings = _require_apart(dataset, evaluate, force)
    truths = dataset.truths or (None,) * len(dataset.images)
    seen = [_look(image, truth) for image, truth in zip(dataset.images, truths, strict=True)]
    _require_light(dataset.images, seen)
    strata = [one.strata for one in seen]
    count = min(count, len(seen))
    kept = _choose(strata, count, selector, seed)
    others: list[Coverage] = []
    for name in SELECTORS:
        draws = DRAWS if name == "random" else 1
        choices = [_choose(strata, count, name, seed + draw) for draw in range(draws)]
        others += [_coverage(strata, choices, name)] if name != selector else []
    return CalibrationChoice(
        images=tuple(dataset.images[i] for i in kept),
        seed=seed,
        coverage=_coverage(strata, [kept], selector),
        others=tuple(others),
        warnings=(*warnings, *_warnings([seen[i].thumbnail for i in kept])),
    )


def _require_apart(dataset: Dataset, evaluate: Dataset | None, force: bool) -> list[str]:
    known = {image.sha256 for image in evaluate.images} if evaluate is not None else set()
    both = [image.path for image in dataset.images if image.sha256 in known]
    if not both:
        return []
    what = f"{len(both)} of {len(dataset.images)} calibration images are among those that accuracy is measured on"
    if force:
        return [f"{what}: the accuracy measured there is of images that the ranges were fitted to"]
    fix = 'take other images, or set [data] overlap = "allow" and say so'
    raise BadInput("quantize.evaluation", what, got=", ".join(both[:3]), fix=fix)


def _require_light(images: Sequence[ImageRef], seen: Sequence[_Seen]) -> None:
    black = [image.path for image, one in zip(images, seen, strict=True) if float(one.thumbnail.max()) < BLACK]
    if black:
        more = f" and {len(black) - 3} more" if len(black) > 3 else ""
        fix = "remove them: a range measured on black is of nothing"
        raise BadInput("quantize.black", "Calibration images are all black", got=", ".join(black[:3]) + more, fix=fix)


def _look(image: ImageRef, truth: Truth | None) -> _Seen:
    import cv2

    pixels = decode(read_bytes(image), name=image.path)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    aspect = _bin(image.width / image.height, ASPECTS)
    strata = {
        ("shape", f"{aspect}/{_bin(max(image.height, image.width), SIDES)}"),
        ("brightness", _bin(float(grey.mean()), BRIGHT)),
        ("contrast", _bin(float(grey.std()), CONTRAST)),
    }
    if truth is not None:
        strata.add(("objects", _bin(len(truth.boxes), COUNTS)))
        strata |= {("class", str(category)) for category in truth.category_ids}
    small = cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    return _Seen(frozenset(strata), np.asarray(small, np.float32))


def _bin(value: float, edges: Sequence[float]) -> str:
    return str(int(np.searchsorted(edges, value, side="right")))


def _choose(strata: Sequence[frozenset[tuple[str, str]]], count: int, selector: str, seed: int) -> list[int]:
    if selector == "first":
        return list(range(count))
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(strata))]
    if selector == "random":
        return sorted(order[:count])
    held: Counter[tuple[str, str]] = Counter()
    quota = {s: n * count / len(strata) for s, n in Counter(s for one in strata for s in one).items()}
    chosen: list[int] = []

    def gain(index: int) -> tuple[int, float]:
        return sum(not held[s] for s in strata[index]), sum(quota[s] - held[s] for s in strata[index])

    while len(chosen) < count:
        chosen.append(max((i for i in order if i not in chosen), key=gain))  # of equal gains the first in the seeded order
        held.update(strata[chosen[-1]])
    return sorted(chosen)


def _coverage(strata: Sequence[frozenset[tuple[str, str]]], choices: Sequence[Sequence[int]], selector: Selector) -> Coverage:
    whole = Counter(s for one in strata for s in one)
    traits = []
    for trait in TRAITS:
        names = [s for s in whole if s[0] == trait]
        if not names:
            continue
        total = sum(whole[s] for s in names)
        covered, distance = 0, 0.0
        for choice in choices:
            held = Counter(s for i in choice for s in strata[i] if s[0] == trait)
            mine = max(1, sum(held.values()))
            covered += len(held)
            distance += sum(abs(held[s] / mine - whole[s] / total) for s in names) / 2 / len(choices)
        traits.append(TraitCoverage(trait=trait, covered=covered // len(choices), strata=len(names), distance=distance))
    return Coverage(selector=selector, traits=tuple(traits))


def _warnings(thumbnails: Sequence[NDArray[np.float32]]) -> list[str]:
    found = []
    count = len(thumbnails)
    if count < LEAST:
        found.append(f"{count} calibration images are few: below {LEAST} the ranges depend on which ones")
    flat = np.stack([one.reshape(-1) for one in thumbnails])
    apart = np.stack([np.abs(flat - one).mean(axis=1) for one in flat])
    np.fill_diagonal(apart, np.inf)
    twins = int((apart.min(axis=1) < TWIN).sum())
    if twins > TWINS * count:
        found.append(f"{twins} of {count} calibration images are much alike: they say as much as fewer would")
    return found
