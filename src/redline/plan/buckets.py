"""Which few input shapes a network should see for a traffic: least expected padding, plus a price for every further shape."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import fsum
from typing import TYPE_CHECKING

import numpy as np

from redline.errors import BadInput
from redline.records import Buckets, Preprocess, ShapePolicy, ShapeShare, Traffic
from redline.vision import input_size, pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shape = tuple[int, int]
"""(height, width), pixels."""
States = dict[tuple[int, int], tuple[float, tuple[int, ...]]]
"""(canvases left as bits, candidates chosen) -> least cost so far, and the candidates by index."""
SWITCH_COST = 0.01
"""Price of a bucket, as a share of the largest canvas: what a further one must save on the average request. An assumption: each
bucket splits the queue that batches are filled from, and is one more shape to warm up and to hold memory for. What a set of
buckets is worth in the end is measured."""
WORK = 10_000_000
"""States that the exact search may visit times the canvases of each, a few seconds, before it gives up."""
SAVING = 1e-12
"""Costs, in largest canvases, that differ by less are equal: far above rounding, far below a pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Distinct minimal canvases, ascending, with the share of each; the largest ones, which are always taken."""

    canvases: tuple[Shape, ...]
    shares: tuple[float, ...]
    largest: tuple[Shape, ...]
    most: int
    switch_cost: float

    def cost(self, buckets: tuple[Shape, ...]) -> float:
        """The objective of `choose_buckets`, in largest canvases."""
        areas = [min(self.area(b) for b in buckets if _holds(b, canvas)) for canvas in self.canvases]
        return fsum(share * area for share, area in zip(self.shares, areas, strict=True)) + self.switch_cost * len(buckets)

    def area(self, shape: Shape) -> float:
        return shape[0] * shape[1] / (self.largest[0][0] * self.largest[0][1])

    def candidates(self) -> list[Shape]:
        """Componentwise maxima of canvases below the largest area, ascending in area.

        A best set needs no other shape: a bucket can shrink to the maximum of the canvases it takes, which two of them give,
        and the largest ones hold every canvas already.
        """
        pairs = combinations_with_replacement(self.canvases, 2)
        shapes = {(max(a[0], b[0]), max(a[1], b[1])) for a, b in pairs}
        return sorted((s for s in shapes if self.area(s) < 1), key=lambda s: (s[0] * s[1], s))


def choose_buckets(traffic: Traffic, preprocess: Preprocess, *, most: int, switch_cost: float = SWITCH_COST) -> Buckets:
    """At most `most` buckets that minimise ``sum_i share_i * area(bucket(i)) + switch_cost * (number of buckets)``.

    Areas are in units of the largest canvas of `preprocess`; bucket(i) is the smallest bucket that holds the minimal canvas of
    shape i, as `vision.place` has it, so sides are whole strides wherever canvases are. The largest canvas is always among the
    buckets, so that images outside the histogram fit too (shortest-side: one for each orientation).

    The choice is exact where `exact` finishes: for up to about 30 distinct canvases of any kind, and for all that a letterbox
    of up to 1280 has at a stride of 32 (one side of each is the letterbox's own, so they are two chains). Elsewhere it is
    `greedy`'s. The same traffic gives the same buckets, in whatever order its shapes come.
    Raises BadInput: bucket-limit (`most` too small), bucket-canvas (resize = "none" has no largest canvas), bucket-traffic.
    """
    problem = _problem(traffic, preprocess, most, switch_cost)
    found = greedy(problem)
    better = exact(problem, found)
    chosen = found if better is None else better
    ordered = tuple(sorted(chosen, key=lambda shape: (shape[0] * shape[1], shape)))
    taken: dict[Shape, list[float]] = defaultdict(list)
    for entry in traffic.shapes:
        taken[input_size((entry.height, entry.width), preprocess, ordered)].append(entry.share)
    return Buckets(
        buckets=tuple(ShapeShare(height=shape[0], width=shape[1], share=fsum(taken[shape])) for shape in ordered),
        waste=waste(traffic, preprocess, ordered),
        waste_fixed=waste(traffic, preprocess, "fixed"),
        waste_minimal=waste(traffic, preprocess, "minimal"),
        exact=better is not None,
    )


def waste(traffic: Traffic, preprocess: Preprocess, shapes: ShapePolicy) -> float:
    """Expected area of the network input over that of the resized image, minus 1. Raises BadInput: shape-bucket."""
    areas = [(entry.share, pixels((entry.height, entry.width), preprocess, shapes)) for entry in traffic.shapes]
    return fsum(share * whole for share, (_, whole) in areas) / fsum(share * own for share, (own, _) in areas) - 1


def largest_canvases(preprocess: Preprocess) -> tuple[Shape, ...]:
    """The canvases one of which holds any image's. Raises BadInput: bucket-canvas."""
    first, second = preprocess.size
    if preprocess.resize == "none":
        raise BadInput(
            "bucket-canvas",
            "Without a resize no bucket holds every image",
            got='resize = "none"',
            allowed='"letterbox", "shortest-side" or "stretch"',
        )
    if preprocess.resize == "stretch":
        return (preprocess.size,)
    tall, wide = (-(-side // preprocess.stride) * preprocess.stride for side in (first, second))
    if preprocess.resize == "letterbox":
        return ((tall, wide),)
    wide = max(tall, wide)
    return ((tall, wide),) if tall == wide else ((tall, wide), (wide, tall))


def greedy(problem: Problem) -> tuple[Shape, ...]:
    """Add the bucket that saves most until none does, then drop or exchange single ones as long as that saves.

    Adding is the usual heuristic of facility location; the exchange mends what an early addition spoiled.
    """
    shapes, room = problem.candidates(), problem.most - len(problem.largest)
    if not shapes:
        return problem.largest
    shares, areas = np.array(problem.shares), _areas(problem, shapes)

    def best(chosen: list[int]) -> tuple[float, int | None]:
        """Cost of the chosen, and the candidate that lowers it most."""
        own = np.minimum(1.0, areas[chosen].min(0)) if chosen else np.ones(len(shares))
        now = float(shares @ own) + problem.switch_cost * len(chosen)
        costs = np.minimum(areas, own) @ shares + problem.switch_cost * (len(chosen) + 1)
        at = int(costs.argmin())
        return now, at if len(chosen) < room and costs[at] < now - SAVING else None

    chosen: list[int] = []
    while (add := best(chosen)[1]) is not None:
        chosen.append(add)
    improved = True
    while improved:
        improved = False
        for place in range(len(chosen)):
            rest = chosen[:place] + chosen[place + 1 :]
            add = best(rest)[1]
            changed = rest if add is None else [*rest, add]
            if best(changed)[0] < best(chosen)[0] - SAVING:
                chosen, improved = changed, True
                break
    return (*(shapes[index] for index in sorted(chosen)), *problem.largest)


def exact(problem: Problem, known: tuple[Shape, ...], work: int = WORK) -> tuple[Shape, ...] | None:
    """The set of least cost (`known` if none is cheaper); None if finding it takes more than `work`.

    Dynamic programme over the canvases not yet taken: candidates come in ascending area, and each, if chosen, takes all that is
    left of what it holds; in that order this is what `vision.place` does. What is left can cost no less than its own area, nor
    than that of the present candidate: a state that could not beat the best known even so is dropped.
    """
    shapes, room = problem.candidates(), problem.most - len(problem.largest)
    areas = [problem.area(shape) for shape in shapes]
    own = [problem.area(canvas) for canvas in problem.canvases]
    held = [sum(1 << i for i, canvas in enumerate(problem.canvases) if _holds(shape, canvas)) for shape in shapes]
    fixed = problem.switch_cost * len(problem.largest)
    limit, result = problem.cost(known) - SAVING, known
    states: States = {((1 << len(own)) - 1, 0): (fixed, ())}
    visited = 0
    for at, area in enumerate(areas):
        floor = [share * max(area, least) for share, least in zip(problem.shares, own, strict=True)]
        visited += len(states) * len(own)
        if visited > work:
            return None
        alive: States = {}
        for (left, used), (cost, chosen) in states.items():
            if cost + _total(left, floor) >= limit:
                continue
            _keep(alive, (left, used), (cost, chosen))
            taken = left & held[at]
            if not taken or used == room:
                continue
            after = left & ~taken
            cost += area * _total(taken, problem.shares) + problem.switch_cost
            _keep(alive, (after, used + 1), (cost, (*chosen, at)))
            whole = cost + _total(after, problem.shares)
            if whole < limit:
                limit, result = whole - SAVING, (*(shapes[index] for index in (*chosen, at)), *problem.largest)
        states = alive
    return result


def _problem(traffic: Traffic, preprocess: Preprocess, most: int, switch_cost: float) -> Problem:
    largest = largest_canvases(preprocess)
    if most < len(largest):
        what = "Too few shape buckets to hold every image"
        raise BadInput("bucket-limit", what, got=most, allowed=f"at least {len(largest)}")
    if not 0 <= switch_cost < float("inf"):
        raise BadInput("bucket-limit", "The price of a bucket must be finite", got=switch_cost, allowed="at least 0")
    shares: dict[Shape, list[float]] = defaultdict(list)
    for entry in traffic.shapes:
        if entry.share > 0:
            shares[input_size((entry.height, entry.width), preprocess, "minimal")].append(entry.share)
    if not shares:
        raise BadInput("bucket-traffic", "The traffic has no image sizes to choose buckets for", got=traffic.origin)
    canvases = sorted(shares)
    total = fsum(share for parts in shares.values() for share in parts)
    return Problem(
        canvases=tuple(canvases),
        shares=tuple(fsum(shares[canvas]) / total for canvas in canvases),
        largest=largest,
        most=most,
        switch_cost=switch_cost,
    )


def _holds(bucket: Shape, canvas: Shape) -> bool:
    return bucket[0] >= canvas[0] and bucket[1] >= canvas[1]


def _areas(problem: Problem, shapes: list[Shape]) -> NDArray[np.float64]:
    """(candidates, canvases): area of the candidate where it holds the canvas, the largest area where not."""
    bounds, needs = np.array(shapes)[:, None], np.array(problem.canvases)[None]
    area = np.array([problem.area(shape) for shape in shapes])[:, None]
    return np.where((bounds >= needs).all(-1), area, 1.0)


def _keep(states: States, key: tuple[int, int], value: tuple[float, tuple[int, ...]]) -> None:
    if key not in states or value < states[key]:
        states[key] = value


def _total(members: int, values: tuple[float, ...] | list[float]) -> float:
    """Sum over the bits of `members`."""
    total = 0.0
    while members:
        lowest = members & -members
        total += values[lowest.bit_length() - 1]
        members ^= lowest
    return total
