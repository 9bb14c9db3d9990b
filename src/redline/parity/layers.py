"""Is the error of one stretch of a network more than its precision explains? Arrays in, figures out.

What is explained, for a channel, row or column g of a tensor, is

    sqrt((MARGIN * control_g)^2 + (MARGIN * ROUNDINGS * unit * (size_g + TAILS * size))^2) + smallest

`control_g`: error of the same stretch computed with every tensor rounded to the engine's type: it holds the rounding of the
weights and what cancels. `unit`: unit roundoff. `size_g`, `size`: root mean square of the group's values and of all. Beyond it
a segment is suspect. Sums that are kept in the narrow type wander further, by `roundings` of their length: a node is only
called wrong beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import TrialError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.records.spec import Precision

UNIT: dict[Precision, float] = {"fp32": 2.0**-20, "tf32": 2.0**-11, "fp16": 2.0**-11, "int8": 2.0**-7, "fp8": 2.0**-4}
"""Unit roundoff. FP32's own is 2^-24; there is no control for it, so what cancels is allowed for here."""
SMALLEST: dict[Precision, float] = {"fp32": 1e-30, "tf32": 1e-30, "fp16": 2.0**-23, "int8": 2.0**-23, "fp8": 2.0**-23}
"""Absolute: two steps of float16's smallest numbers."""
MARGIN = 4.0
"""Errors of one precision in two arithmetics differ by a factor of two or so; this is twice that."""
ROUNDINGS = 2.0
"""Roundings in a value where sums are kept wide: of the result and of one element-wise step after it."""
TAILS = (2.0**-4, 2.0**-8)
"""Groups whose values are this much smaller than the tensor's are judged as if they were not, in feature maps (N, C, H, W) and
elsewhere: the tails of an activation amplify what came before, and the reference's own sigmoid is right to 2^-22 of its range
only. The channels of a map are of like size; the columns of an output, boxes beside scores, are not."""
GROUPS = 1024
"""A longer axis is taken in so many equal runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """In the group with the largest ratio of the two, relative to its size."""

    local: float
    explained: float
    finite: bool
    judged: bool = True
    """False: the reference itself is not finite, because of what it was fed."""


def roundings(length: int) -> float:
    """Roundings in a value that sums `length` products, if blocks of 16 products are added up in the narrow type.

    A random walk: sqrt(length / 16) steps of one rounding each, divided by the sqrt(3) of a uniform rounding error.
    """
    return sqrt(ROUNDINGS**2 + length / 48)


def layer_error(
    reference: NDArray[Any], engine: NDArray[Any], control: NDArray[Any] | None, precision: Precision
) -> LayerError:
    """The group of `engine` furthest beyond what is explained. Raises TrialError: parity-outputs if the shapes differ."""
    if reference.shape != engine.shape:
        got, allowed = str(engine.shape), str(reference.shape)
        raise TrialError("parity-outputs", "The engine's tensor does not have the reference's shape", got=got, allowed=allowed)
    if not np.isfinite(reference).all():
        return LayerError(local=0.0, explained=1.0, finite=bool(np.isfinite(engine).all()), judged=False)
    if not np.isfinite(engine).all():
        return LayerError(local=float("inf"), explained=1.0, finite=False)
    truth = reference.astype(np.float64)
    error = (engine.astype(np.float64) - truth) ** 2
    known = np.zeros_like(truth) if control is None else (control.astype(np.float64) - truth) ** 2
    known[~np.isfinite(known)] = 0.0  # where the graph itself overflows, that explains nothing
    tail = TAILS[truth.ndim != 4] * float(np.sqrt((truth**2).mean())) if truth.size else 0.0
    best = (0.0, 0.0, 1.0)
    for axis in range(1, truth.ndim) if truth.ndim > 1 else (0,):
        found, expected, size = (_groups(values, axis) for values in (error, known, truth**2))
        allowed_g = (
            np.sqrt(MARGIN**2 * expected**2 + (MARGIN * UNIT[precision] * ROUNDINGS * (size + tail)) ** 2) + SMALLEST[precision]
        )
        at = int(np.argmax(found / allowed_g))
        scale = float(size[at]) or 1.0
        if found[at] / allowed_g[at] > best[0]:
            best = (float(found[at] / allowed_g[at]), float(found[at]) / scale, float(allowed_g[at]) / scale)
    return LayerError(local=best[1], explained=best[2], finite=True)


def total_error(reference: NDArray[Any], engine: NDArray[Any]) -> float:
    """Relative root mean square error of the whole tensor; infinite where one is not finite and the other is."""
    good = np.isfinite(reference) & np.isfinite(engine)
    if not good.all():
        return float("inf")
    truth = reference.astype(np.float64)
    size = float(np.sqrt((truth**2).mean())) or 1.0
    return float(np.sqrt(((engine.astype(np.float64) - truth) ** 2).mean())) / size


def _groups(squares: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Root mean squares along `axis`, of single places or, beyond `GROUPS`, of equal runs."""
    means = squares.mean(tuple(other for other in range(squares.ndim) if other != axis))
    step = -(-len(means) // GROUPS)
    if step > 1:
        starts = np.arange(0, len(means), step)
        means = np.add.reduceat(means, starts) / np.diff(np.append(starts, len(means)))
    result: NDArray[np.float64] = np.sqrt(means)
    return result
