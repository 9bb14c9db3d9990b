"""Integer polynomials in N, H, W and floor divisions of them: as much algebra as the shapes of a detector need.

One normal form, so that equal sizes are mostly equal objects: nested floors are merged, floor((floor(x / a) + b) / c) =
floor((x + a b) / (a c)), and a constant beside a floor goes inside it, so that (H - 1) // 2 + 1 is (H + 1) // 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Floor:
    top: Expr
    by: int

    def __str__(self) -> str:
        return f"(({self.top})//{self.by})" if len(self.top.terms) > 1 else f"({self.top}//{self.by})"


Atom: TypeAlias = "str | Floor"
Monomial: TypeAlias = "tuple[Atom, ...]"


@dataclass(frozen=True, slots=True)
class Expr:
    """Sum of integer multiples of products of atoms, sorted; the constant is the multiple of the empty product."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Expr | int) -> Expr:
        return expr([*self.terms, *wrap(other).terms])

    def __sub__(self, other: Expr | int) -> Expr:
        return self + wrap(other) * -1

    def __mul__(self, other: Expr | int) -> Expr:
        pairs = [(a, b) for a in self.terms for b in wrap(other).terms]
        return expr((tuple(sorted((*left, *right), key=str)), x * y) for (left, x), (right, y) in pairs)

    def __floordiv__(self, by: int) -> Expr:
        """Rounded down, for a positive integer."""
        if by == 1 or not self.terms:
            return self
        whole = expr((key, factor // by) for key, factor in self.terms if key and factor % by == 0)
        rest = expr((key, factor) for key, factor in self.terms if not key or factor % by)
        constant = rest.number
        return whole + (number(constant // by) if constant is not None else _floor(rest, by))

    @property
    def number(self) -> int | None:
        """The value of an expression without symbols."""
        if not self.terms:
            return 0
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    @property
    def constant(self) -> int:
        return next((factor for key, factor in self.terms if not key), 0)

    def __str__(self) -> str:
        ordered = sorted(self.terms, key=lambda term: not term[0])
        return " + ".join(_term(key, factor) for key, factor in ordered).replace("+ -", "- ") or "0"

    def over(self, other: Expr) -> Expr | None:
        """The quotient if the division leaves nothing over in every term, else None."""
        if self == other:
            return number(1)
        if len(other.terms) != 1:
            return None
        (below, by), found = other.terms[0], []
        for key, factor in self.terms:
            left = list(key)
            for atom in below:
                if atom not in left:
                    return None
                left.remove(atom)
            if factor % by:
                return None
            found.append((tuple(left), factor // by))
        return expr(found)


def expr(terms: Iterable[tuple[Monomial, int]]) -> Expr:
    """In normal form."""
    total: dict[Monomial, int] = {}
    for key, factor in terms:
        total[key] = total.get(key, 0) + factor
    constant = total.get((), 0)
    alone = [key for key, factor in total.items() if len(key) == 1 and isinstance(key[0], Floor) and factor == 1]
    if constant and alone:
        atom = alone[0][0]
        assert isinstance(atom, Floor)
        kept = {key: factor for key, factor in total.items() if key and key != alone[0]}
        merged = (atom.top + constant * atom.by) // atom.by
        for key, factor in merged.terms:
            kept[key] = kept.get(key, 0) + factor
        total = kept
    return Expr(tuple(sorted(((key, factor) for key, factor in total.items() if factor), key=str)))


def number(value: int) -> Expr:
    return Expr((((), value),)) if value else Expr(())


def symbol(name: str) -> Expr:
    return Expr((((name,), 1),))


def wrap(value: Expr | int) -> Expr:
    return number(value) if isinstance(value, int) else value


def product(factors: Iterable[Expr]) -> Expr:
    total = number(1)
    for factor in factors:
        total = total * factor
    return total


def total(parts: Iterable[Expr]) -> Expr:
    return expr(term for part in parts for term in part.terms)


def evaluate(size: Expr, at: Mapping[str, int]) -> int:
    value = 0
    for key, factor in size.terms:
        for atom in key:
            factor *= evaluate(atom.top, at) // atom.by if isinstance(atom, Floor) else at[atom]
        value += factor
    return value


def _floor(top: Expr, by: int) -> Expr:
    """Of an expression with symbols, none of whose multiples `by` divides."""
    moving = [(key, factor) for key, factor in top.terms if key]
    if len(moving) == 1 and moving[0][1] == 1 and len(moving[0][0]) == 1 and isinstance(inner := moving[0][0][0], Floor):
        return (inner.top + top.constant * inner.by) // (by * inner.by)
    common = math.gcd(by, *(factor for _, factor in moving))
    if common > 1:
        return (expr((key, factor // common) for key, factor in moving) + top.constant // common) // (by // common)
    return Expr((((Floor(top, by),), 1),))


def _term(key: Monomial, factor: int) -> str:
    if not key:
        return str(factor)
    names = "*".join(str(atom) for atom in key)
    return names if factor == 1 else f"-{names}" if factor == -1 else f"{factor}*{names}"
