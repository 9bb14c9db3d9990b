"""Which groups stay in FP16: the least predicted time for each predicted loss, and exhaustive grouping to compare it with.

Losses of groups add (measured on each alone); times add (of each group in both types, from an engine's profile or the
roofline); and a change of type at the border of two groups costs what a reformat takes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from redline.records.quantize import MixedPoint

EXHAUSTIVE = 20
"""Groups up to which every subset is tried: a million evaluations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCost:
    name: str
    loss: float
    """Divergence of this group alone in INT8."""
    int8_us: float
    fp16_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """Two groups that exchange a tensor: what it takes to change its type on the way, if their types differ."""

    groups: tuple[str, str]
    us: float


class MixedSearch:
    """Counts what it evaluates, so that a search can be compared with exhaustive grouping."""

    def __init__(self, costs: Sequence[GroupCost], borders: Sequence[Border] = (), *, fixed_us: float = 0.0) -> None:
        """`fixed_us`: what no choice changes."""
        self.costs: Mapping[str, GroupCost] = {cost.name: cost for cost in costs}
        self.borders, self.fixed_us, self.evaluations = tuple(borders), fixed_us, 0
        self._known: dict[frozenset[str], MixedPoint] = {}

    def evaluate(self, kept: Collection[str]) -> MixedPoint:
        key = frozenset(kept)
        if key not in self._known:
            self.evaluations += 1
            wide = [cost for cost in self.costs.values() if cost.name in key]
            narrow = [cost for cost in self.costs.values() if cost.name not in key]
            changed = sum(border.us for border in self.borders if len(key.intersection(border.groups)) == 1)
            times = [*(cost.fp16_us for cost in wide), *(cost.int8_us for cost in narrow), changed, self.fixed_us]
            names = tuple(name for name in self.costs if name in key)
            loss = sum(cost.loss for cost in narrow)
            self._known[key] = MixedPoint(kept=names, predicted_loss=loss, predicted_us=sum(times))
        return self._known[key]

    def frontier(self) -> tuple[MixedPoint, ...]:
        """No point of it loses and takes more than another one; ascending loss, descending time.

        From everything in FP16 downwards, and from everything in INT8 upwards, the group is changed next that gives most time
        for its loss; then single groups are changed at every point of the frontier while that finds others.
        """
        self._walk(frozenset(self.costs))
        self._climb(frozenset())
        before = 0
        while before != len(self._known):
            before = len(self._known)
            for point in _front(self._known.values()):
                self._around(frozenset(point.kept))
        return _front(self._known.values())

    def exhaustive(self) -> tuple[MixedPoint, ...]:
        """The frontier of all subsets. Raises ValueError above `EXHAUSTIVE` groups."""
        if len(self.costs) > EXHAUSTIVE:
            raise ValueError(f"{len(self.costs)} groups have 2^{len(self.costs)} subsets; at most {EXHAUSTIVE} groups")
        every = [c for size in range(len(self.costs) + 1) for c in combinations(self.costs, size)]
        return _front([self.evaluate(kept) for kept in every])

    def _walk(self, kept: frozenset[str]) -> None:
        while kept:
            here = self.evaluate(kept)
            kept = min((kept - {name} for name in kept), key=lambda k: _slope(here, self.evaluate(k)))

    def _climb(self, kept: frozenset[str]) -> None:
        while len(kept) < len(self.costs):
            here = self.evaluate(kept)
            kept = min((kept | {name} for name in self.costs if name not in kept), key=lambda k: -_gain(here, self.evaluate(k)))

    def _around(self, kept: frozenset[str]) -> None:
        """Neighbours by one group. They are few where the frontier is near."""
        for name in self.costs:
            self.evaluate(kept ^ {name})


def best_within(points: Sequence[MixedPoint], loss: float) -> MixedPoint | None:
    """The fastest that is predicted to lose at most `loss`."""
    return min((p for p in points if p.predicted_loss <= loss), key=lambda p: p.predicted_us, default=None)


def _slope(here: MixedPoint, there: MixedPoint) -> float:
    """Loss for each microsecond won; what wins none comes last."""
    won = here.predicted_us - there.predicted_us
    lost = there.predicted_loss - here.predicted_loss
    return lost / won if won > 0 else float("inf")


def _gain(here: MixedPoint, there: MixedPoint) -> float:
    """Loss saved for each microsecond spent; what costs none comes first."""
    spent = there.predicted_us - here.predicted_us
    saved = here.predicted_loss - there.predicted_loss
    return saved / spent if spent > 0 else float("inf")


def _front(points: Collection[MixedPoint]) -> tuple[MixedPoint, ...]:
    found: list[MixedPoint] = []
    for point in sorted(points, key=lambda p: (p.predicted_loss, p.predicted_us, p.kept)):
        if not found or point.predicted_us < found[-1].predicted_us:
            found.append(point)
    return tuple(found)
