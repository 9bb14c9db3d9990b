"""Clipping by what it does to the result: scales of single tensors changed while that lowers a loss, on two sets of inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from redline.records.quantize import QuantTable

FACTORS = (0.35, 0.5, 0.71, 0.84, 1.3)
"""Of a scale: mostly smaller ones, as a calibrator by squared error spares outliers that detections may not need."""
MOST = 48
"""Evaluations: eight tensors by five factors each, and what is accepted of them."""

Weigh = Callable[[QuantTable], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipped:
    table: QuantTable
    changed: tuple[tuple[str, float], ...]
    """The first tensor of each unit whose scale was changed, and its factor."""
    evaluations: int


def search_clipping(
    table: QuantTable, units: Sequence[Collection[str]], search: Weigh, accept: Weigh, *, most: int = MOST
) -> Clipped:
    """One unit after another, by the factor that lowers `search` most, kept if it lowers `accept` as well.

    `units`: tensors of one scale each, most promising first. `search` and `accept` are of different inputs: the least of
    several noisy losses is low by chance too, and chance does not repeat itself.
    """
    best, spent = (search(table), accept(table)), 2
    changed: list[tuple[str, float]] = []
    for unit in units:
        if spent + len(FACTORS) + 1 > most:
            break
        tried = {factor: _scaled(table, unit, factor) for factor in FACTORS}
        losses = {factor: search(other) for factor, other in tried.items()}
        spent += len(FACTORS)
        factor = min(losses, key=lambda f: losses[f])
        if losses[factor] >= best[0]:
            continue
        accepted = accept(tried[factor])
        spent += 1
        if accepted < best[1]:
            table, best = tried[factor], (losses[factor], accepted)
            changed.append((next(iter(unit)), factor))
    return Clipped(table=table, changed=tuple(changed), evaluations=spent)


def clip_units(table: QuantTable, shared: Sequence[Sequence[str]], errors: Mapping[str, float]) -> tuple[tuple[str, ...], ...]:
    """Tensors that must keep a scale in common, and all others by themselves; those that rounding hurts most come first.

    `shared`: of the placement. `errors`: of each tensor that is rounded, see `ranges.rounding_errors`.
    """
    rounded = tuple(dict.fromkeys(point.tensor for point in table.points))
    grouped = {name for group in shared for name in group}
    units = [*(tuple(group) for group in shared), *((name,) for name in rounded if name not in grouped)]
    return tuple(sorted(units, key=lambda unit: -max(errors.get(name, 0.0) for name in unit)))


def _scaled(table: QuantTable, unit: Collection[str], factor: float) -> QuantTable:
    scales = tuple((name, scale * factor if name in unit else scale) for name, scale in table.scales)
    return replace(table, scales=scales)
