"""A shape's expression from its numbers at a few sizes, for operators without a rule of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from redline.plan.costs.algebra import Expr, evaluate, number, symbol

LEAST = 3
"""Sizes that a fit needs at least: two to find it and one to prove it."""
STRIDES = (1, 2, 4, 8, 16, 32, 64, 128)
FACTORS = 4096


def fitted(known: Sequence[tuple[Mapping[str, int], tuple[int, ...]]], fixed: bool) -> tuple[Expr, ...] | None:
    """Shape from (sizes, dimensions): each dimension a constant, k N, or k (H + b) // stride, the same of W or H W.

    None if a dimension is of no such form at every one of the sizes, or there are fewer than three of them.
    `fixed`: the graph takes one size only, and its shapes are numbers.
    """
    points = [point for point, _ in known]
    lengths = {len(shape) for _, shape in known}
    if len(lengths) != 1:
        return None
    if fixed:
        return tuple(number(size) for size in known[0][1])
    if len(points) < LEAST:
        return None
    columns = zip(*(shape for _, shape in known), strict=True)
    found = tuple(_dimension(points, column) for column in columns)
    return None if any(one is None for one in found) else tuple(one for one in found if one is not None)


def _dimension(points: Sequence[Mapping[str, int]], values: Sequence[int]) -> Expr | None:
    if len(set(values)) == 1:
        return number(values[0])
    for form in _forms():
        scale = evaluate(form, points[0])
        if scale and values[0] % scale == 0 and 0 < (factor := values[0] // scale) <= FACTORS:
            whole = form * factor
            if all(evaluate(whole, point) == value for point, value in zip(points, values, strict=True)):
                return whole
    return None


def _forms() -> Iterator[Expr]:
    n, h, w = symbol("N"), symbol("H"), symbol("W")
    yield n
    for stride in STRIDES:
        for up in {0, stride // 2, stride - 1}:
            high, wide = (h + up) // stride, (w + up) // stride
            yield from (high, wide, high * wide, n * high, n * wide, n * high * wide)
