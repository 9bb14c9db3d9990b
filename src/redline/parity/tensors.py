"""Raw outputs of a candidate against those of its reference, and of a system against itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import TrialError
from redline.records import Determinism, TensorDelta

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.records.spec import Precision

TOLERANCE: dict[Precision, float] = {
    # Two fp32 implementations differ by the order of their sums: unit roundoff 6e-8, some 1e-4 after the layers of a
    # detector (2e-4 seen between YOLOX-Nano realisations). Times five.
    "fp32": 1e-3,
    # Operands have float16's 10 bits, sums are FP32's: the bound of fp16 below holds.
    "tf32": 2e-2,
    # Unit roundoff 2^-11 = 5e-4, independent errors of ~100 layers grow as their square root: 5e-3; the largest of a
    # million elements lies about four standard deviations out.
    "fp16": 2e-2,
    # One step of an 8-bit scale over +-16 is 0.13, and several add up: the bound only tells noise from garbage.
    "int8": 1.0,
    # E4M3 rounds by up to a sixteenth of the value, whatever the scale; several add up, and the bound is that of int8.
    "fp8": 1.0,
}
"""Bound on max |candidate - reference| / max(|reference|, 1), by the candidate's precision."""


@dataclass(slots=True)
class _Sums:
    max_abs: float = 0.0
    max_rel: float = 0.0
    total_abs: float = 0.0
    elements: int = 0
    finite: bool = True

    def add(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        ref, cand = reference.astype(np.float64), candidate.astype(np.float64)
        good = np.isfinite(ref) & np.isfinite(cand)
        if not good.all():
            self.finite = False
            ref, cand = ref[good], cand[good]
        if not ref.size:
            return
        delta = np.abs(cand - ref)
        self.max_abs = max(self.max_abs, float(delta.max()))
        self.max_rel = max(self.max_rel, float((delta / np.maximum(np.abs(ref), 1.0)).max()))
        self.total_abs += float(delta.sum())
        self.elements += delta.size


def compare_tensors(
    names: Sequence[str],
    reference: Iterable[Sequence[NDArray[Any]]],
    candidate: Iterable[Sequence[NDArray[Any]]],
    precision: Precision,
) -> tuple[TensorDelta, ...]:
    """One `TensorDelta` an output over all inputs; both iterables yield the outputs of one input at a time, named by `names`.

    NaN and infinity, in either, make `finite` false and stay out of the other figures.
    Raises TrialError (parity-outputs) if number or shape of the outputs differ.
    """
    sums = [_Sums() for _ in names]
    for number, (ref, cand) in enumerate(zip_longest(reference, candidate)):
        shapes = [None if outputs is None else [tuple(output.shape) for output in outputs] for outputs in (ref, cand)]
        if shapes[0] is None or shapes[0] != shapes[1] or len(shapes[0]) != len(names):
            got = f"input {number}: {shapes[1]} against {shapes[0]} for outputs {', '.join(names)}"
            raise TrialError("parity-outputs", "the candidate's raw outputs do not have the reference's shapes", got=got)
        for total, one, other in zip(sums, ref, cand, strict=True):
            total.add(one, other)
    return tuple(
        TensorDelta(
            name=name,
            max_abs=total.max_abs,
            max_rel=total.max_rel,
            mean_abs=total.total_abs / max(total.elements, 1),
            finite=total.finite,
            tolerance=TOLERANCE[precision],
        )
        for name, total in zip(names, sums, strict=True)
    )


def determinism(run: Callable[[], Sequence[NDArray[Any]]], repeats: int = 5) -> Determinism:
    """Whether `run` returns bit-identical arrays each time (a NaN equals itself here)."""
    first = [_bits(array) for array in run()]
    identical = all([_bits(array) for array in run()] == first for _ in range(repeats - 1))
    return Determinism(repeats=repeats, identical=identical)


def _bits(array: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, array.tobytes()
