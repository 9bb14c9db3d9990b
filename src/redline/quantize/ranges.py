"""Magnitudes of a network's tensors on calibration inputs: two passes, the largest of each tensor and then its histogram."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import BadInput
from redline.quantize.calibrators import BINS, LEVELS, every_amax
from redline.records.quantize import TensorRange

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.records.detect import Tensor

Inner = Callable[["Tensor", Sequence[str]], "dict[str, NDArray[Any]]"]
"""(batch, tensor names) -> those tensors of the FP32 network."""
SAMPLE = 1 << 18
"""Values of a tensor that its histogram takes of one input; its largest is of all values."""


@dataclass(slots=True)
class _Seen:
    largest: float
    counts: NDArray[np.int64]


def measure_ranges(inner: Inner, batches: Callable[[], Iterable[Tensor]], names: Sequence[str]) -> tuple[TensorRange, ...]:
    """`batches` gives the same inputs each time. Raises BadInput: quantize.range if a tensor is not finite or always zero."""
    largest = dict.fromkeys(names, 0.0)
    for batch in batches():
        for name, values in inner(batch, names).items():
            peak = float(np.abs(values).max(initial=0.0))
            if not np.isfinite(peak):
                raise _unusable(name, "NaN or infinity")
            largest[name] = max(largest[name], peak)
    seen = {name: _Seen(largest[name], np.zeros(BINS, np.int64)) for name in names}
    for name, found in seen.items():
        if not found.largest:
            raise _unusable(name, "nothing but zeros")
    for batch in batches():
        for name, values in inner(batch, names).items():
            seen[name].counts += _histogram(values, seen[name].largest)
    return tuple(TensorRange(tensor=name, by=every_amax(found.counts, found.largest)) for name, found in seen.items())


def channel_peaks(
    inner: Inner, batches: Callable[[], Iterable[Tensor]], names: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """(C,) largest magnitude of each channel of tensors (N, C, ...)."""
    peaks: dict[str, NDArray[np.float64]] = {}
    for batch in batches():
        for name, values in inner(batch, names).items():
            peak = np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != 1)).astype(np.float64)
            peaks[name] = np.maximum(peaks.get(name, peak), peak)
    return peaks


def rounding_errors(inner: Inner, batches: Callable[[], Iterable[Tensor]], scales: Mapping[str, float]) -> dict[str, float]:
    """Squared error of rounding over the square of the values, of each channel of a tensor (N, C, ...), mean over channels.

    Over channels, as one that is rounded away is lost to the next layer however small it is; one without values counts as 0.
    """
    sums = {name: [np.zeros(()), np.zeros(())] for name in scales}
    for batch in batches():
        for name, values in inner(batch, tuple(scales)).items():
            rounded = np.clip(np.rint(values / scales[name]), -LEVELS, LEVELS) * scales[name]
            axes = tuple(i for i in range(values.ndim) if i != 1)
            lost, whole = np.square(rounded - values).sum(axis=axes), np.square(values).sum(axis=axes)
            sums[name] = [sums[name][0] + lost, sums[name][1] + whole]
    tiny = np.finfo(np.float32).tiny
    return {name: float(np.mean(lost / np.maximum(whole, tiny))) for name, (lost, whole) in sums.items()}


def _histogram(values: NDArray[Any], largest: float) -> NDArray[np.int64]:
    flat = values.reshape(-1)
    step = max(1, flat.size // SAMPLE) | 1  # an odd stride visits every channel and column
    sample = np.abs(flat[::step])
    # A zero is a zero in INT8 too: behind a ReLU they would outweigh all that a limit is chosen for.
    places = (sample[sample > 0] * (BINS / largest)).astype(np.int64)
    return np.bincount(np.minimum(places, BINS - 1), minlength=BINS)


def _unusable(tensor: str, got: str) -> BadInput:
    fix = "look at the calibration images, or leave the node that reads it out of INT8"
    return BadInput("quantize.range", f"The range of tensor {tensor} cannot be measured", got=got, fix=fix)
