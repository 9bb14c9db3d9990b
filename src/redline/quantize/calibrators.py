"""From a histogram of magnitudes to the largest one that INT8 shall represent. Each is a loss, minimised; none is a habit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.records.quantize import CALIBRATORS, Calibrator

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 2048
"""Of a histogram: as many as make the steps of INT8's 127 levels fine enough for a choice among 16 sub-steps."""
LEVELS = 127
"""Symmetric INT8: -127 to 127, so that negating a value loses nothing."""
PERCENTILE = 99.99
"""Of magnitudes."""


def amax_of(histogram: NDArray[np.int64], largest: float, method: Calibrator) -> float:
    """The magnitude that becomes 127. `histogram`: counts of |x| in `BINS` equal bins from 0 to `largest`."""
    if not largest or not histogram.any():
        return largest
    return min(_METHODS[method](histogram.astype(np.float64), largest), largest)


def every_amax(histogram: NDArray[np.int64], largest: float) -> tuple[tuple[Calibrator, float], ...]:
    return tuple((method, amax_of(histogram, largest, method)) for method in CALIBRATORS)


def _percentile(counts: NDArray[np.float64], largest: float) -> float:
    reached = np.cumsum(counts) / counts.sum()
    return float((np.searchsorted(reached, PERCENTILE / 100) + 1) * largest / len(counts))


def _mse(counts: NDArray[np.float64], largest: float) -> float:
    """Least squared error over the values seen: rounding within the range against clipping beyond it."""
    middles = (np.arange(len(counts)) + 0.5) * largest / len(counts)
    limits = np.linspace(0.1, 1.0, 181) * largest
    steps = (limits / LEVELS)[:, None]
    seen = np.flatnonzero(counts)
    values = middles[seen][None]
    rounded = np.clip(np.rint(values / steps), 0, LEVELS) * steps
    width = largest / len(counts)
    # Values within a bin spread evenly: where a step is wider than a bin, the middle alone would underrate what rounding costs.
    spread = np.minimum(steps, width) ** 2 / 12
    losses = ((rounded - values) ** 2 + spread) @ counts[seen]
    return float(limits[int(np.argmin(losses))])


def _entropy(counts: NDArray[np.float64], largest: float) -> float:
    """Least Kullback-Leibler divergence of the values as INT8 shows them from the values seen, clipped ones at the limit."""
    best, found = len(counts), np.inf
    for limit in range(LEVELS + 1, len(counts) + 1, 16):
        inside = counts[:limit]
        clipped = inside.copy()
        clipped[-1] += counts[limit:].sum()
        loss = _divergence(clipped, _as_levels(inside))
        if loss < found:
            best, found = limit, loss
    return float(best * largest / len(counts))


def _as_levels(inside: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts after merging the bins of each of the 128 levels: spread evenly over those that held any."""
    level = np.arange(len(inside)) * (LEVELS + 1) // len(inside)
    held = inside > 0
    sums = np.bincount(level, inside, LEVELS + 1)
    filled = np.bincount(level, held, LEVELS + 1)
    mean = np.divide(sums, filled, out=np.zeros_like(sums), where=filled > 0)
    return np.where(held, mean[level], 0.0)


def _divergence(seen: NDArray[np.float64], shown: NDArray[np.float64]) -> float:
    here = seen > 0
    p, q = seen[here] / seen.sum(), shown[here] / max(shown.sum(), 1.0)
    return float(np.sum(p * np.log(p / np.maximum(q, 1e-9))))


def _max(counts: NDArray[np.float64], largest: float) -> float:
    return largest


_METHODS: dict[Calibrator, Callable[[Any, float], float]] = {
    "max": _max,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
