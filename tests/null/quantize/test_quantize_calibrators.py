"""Calibrators against what a sample of values says by brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from redline.errors import BadInput
from redline.quantize.calibrators import BINS, LEVELS, PERCENTILE, amax_of, every_amax
from redline.quantize.ranges import measure_ranges
from redline.records.quantize import CALIBRATORS, TensorRange


def histogram(values: Any) -> tuple[Any, float]:
    largest = float(np.abs(values).max())
    return np.histogram(np.abs(values), BINS, (0, largest))[0], largest


def loss(values: Any, amax: float) -> float:
    """Mean squared error of symmetric INT8 with the limit `amax`."""
    step = amax / LEVELS
    return float(np.mean((np.clip(np.rint(values / step), -LEVELS, LEVELS) * step - values) ** 2))


def heavy_tail() -> Any:
    draw = np.random.default_rng(0)
    return np.concatenate([draw.normal(0, 1, 100_000), draw.normal(0, 12, 40)])


def test_max_is_the_largest_and_none_exceeds_it() -> None:
    counts, largest = histogram(heavy_tail())
    found = dict(every_amax(counts, largest))
    assert list(found) == list(CALIBRATORS)
    assert found["max"] == largest
    assert all(0 < amax <= largest for amax in found.values())


def test_mse_finds_the_limit_that_loses_least_on_the_values_themselves() -> None:
    values = heavy_tail()
    counts, largest = histogram(values)
    chosen = amax_of(counts, largest, "mse")
    least = min(loss(values, limit) for limit in np.linspace(0.02, 1, 400) * largest)
    assert loss(values, chosen) <= 1.02 * least
    assert loss(values, chosen) < 0.7 * loss(values, largest)


def test_percentile_is_numpys_within_a_bin() -> None:
    values = heavy_tail()
    counts, largest = histogram(values)
    expected = np.percentile(np.abs(values), PERCENTILE)
    assert amax_of(counts, largest, "percentile") == pytest.approx(expected, abs=largest / BINS)


def test_entropy_clips_a_heavy_tail_and_keeps_an_even_spread() -> None:
    counts, largest = histogram(heavy_tail())
    assert 3 < amax_of(counts, largest, "entropy") < 0.6 * largest
    even = np.random.default_rng(1).uniform(-1, 1, 200_000)
    counts, largest = histogram(even)
    assert amax_of(counts, largest, "entropy") > 0.95


def inner(values: Any) -> Any:
    return lambda batch, names: {name: values[name](batch) for name in names}


def test_ranges_are_the_same_in_any_order_and_ignore_zeros() -> None:
    draw = np.random.default_rng(2)
    batches = [draw.normal(0, 1, (1, 3, 64, 64)).astype(np.float32) for _ in range(4)]
    dead = {"relu": lambda x: np.where(x > 1.5, x, 0), "kept": lambda x: x[x > 1.5]}
    one = measure_ranges(inner(dead), lambda: batches, ["relu", "kept"])
    other = measure_ranges(inner(dead), lambda: batches[::-1], ["relu", "kept"])
    assert one == other
    relu, kept = (dict(found.by) for found in one)
    assert relu["max"] == max(float(batch.max()) for batch in batches)
    assert relu == kept, "nine in ten values are zero, which costs INT8 nothing"


@pytest.mark.parametrize(
    ("made", "got"), [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (0.0, "nothing but zeros")]
)
def test_a_range_that_is_none_names_its_tensor(made: float, got: str) -> None:
    batch = np.ones((1, 3, 8, 8), np.float32)
    values = {"good": lambda x: x, "conv2d_7": lambda x: x * np.float32(made)}
    with pytest.raises(BadInput) as caught:
        measure_ranges(inner(values), lambda: [batch], ["good", "conv2d_7"])
    assert caught.value.code == "quantize.range"
    assert "tensor conv2d_7" in str(caught.value)
    assert caught.value.got == got


def test_a_range_gives_its_calibrators_by_name() -> None:
    found = TensorRange(tensor="x", by=(("max", 2.0), ("mse", 1.5)))
    assert found.amax("mse") == 1.5
