"""Magnitudes of a network's tensors on calibration inputs: two passes, the largest of each tensor and then its histogram."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import BadInput
from redline.quantize.calibrators import BINS, every_amax
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
