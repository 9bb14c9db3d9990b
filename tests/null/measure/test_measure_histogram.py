"""Reference: numpy's nearest-rank percentile ("inverted_cdf") of the same latencies."""

from __future__ import annotations

import warnings
from contextlib import suppress
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redline.errors import StoreError
from redline.measure.histogram import HIGHEST_US, RELATIVE_ERROR, ROUNDING_MS, Histogram, merge

LATENCIES = st.lists(st.floats(min_value=0.001, max_value=HIGHEST_US / 1000), min_size=1, max_size=60)
ANY_LATENCIES = st.lists(st.floats(min_value=-1e3, max_value=1e9), max_size=30)


def of(latencies: list[float]) -> Histogram:
    histogram = Histogram()
    histogram.record_all(latencies)
    return histogram


@given(LATENCIES, st.sampled_from([0.0, 1.0, 50.0, 90.0, 95.0, 99.0, 100.0]))
def test_percentile_is_numpys_within_the_stated_error_and_never_below(latencies: list[float], percent: float) -> None:
    exact = float(np.percentile(latencies, percent, method="inverted_cdf"))
    found = of(latencies).percentile(percent)
    assert exact - 1e-6 <= found <= exact * (1 + RELATIVE_ERROR) + ROUNDING_MS + 1e-6


@given(st.lists(ANY_LATENCIES, min_size=1, max_size=4))
def test_merging_equals_recording_everything_into_one(parts: list[list[float]]) -> None:
    merged = merge(*(of(part).encode() for part in parts))
    assert merged == of([value for part in parts for value in part]).encode()


@given(ANY_LATENCIES, ANY_LATENCIES, ANY_LATENCIES)
@settings(max_examples=50)
def test_merge_is_associative_and_commutative(a: list[float], b: list[float], c: list[float]) -> None:
    x, y, z = (of(part).encode() for part in (a, b, c))
    assert merge(merge(x, y), z) == merge(x, merge(y, z))
    assert len({merge(*order) for order in permutations((x, y, z))}) == 1


@given(ANY_LATENCIES)
def test_decoding_gives_back_what_was_encoded(latencies: list[float]) -> None:
    histogram = of(latencies)
    back = Histogram.decode(histogram.encode())
    assert (back.count, back.encode()) == (len(latencies), histogram.encode())


def test_merge_of_nothing_is_empty_and_neutral() -> None:
    some = of([1.0, 20.0]).encode()
    assert Histogram.decode(merge()).count == 0
    assert merge(merge(), some) == some


def test_values_out_of_range_are_clamped_and_counted() -> None:
    histogram = of([-5.0, 0.0, 0.001, 7.0, 600_000.0, 600_001.0, float("inf")])
    assert (histogram.count, histogram.clamped) == (7, 4)
    assert histogram.percentile(0) == 0.001
    assert histogram.percentile(100) == pytest.approx(600_000, rel=RELATIVE_ERROR)


def test_one_at_a_time_equals_all_at_once() -> None:
    values = [0.2, 3.5, 3.5, 900.0]
    single = Histogram()
    for value in values:
        single.record(value)
    assert single.encode() == of(values).encode()


def test_no_percentile_of_nothing_and_no_nan() -> None:
    with pytest.raises(ValueError, match="empty"):
        Histogram().percentile(95)
    with pytest.raises(ValueError, match="NaN"):
        Histogram().record(float("nan"))


@pytest.mark.parametrize("text", ["", "abc", "AAAA", "é", of([5.0]).encode()[:-8], of([5.0]).encode() + "AAAA"])
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(StoreError) as caught:
        Histogram.decode(text)
    assert caught.value.code == "histogram-unreadable"


@given(st.integers(0, 59), st.sampled_from("ABCDwxyz019+/="))
def test_a_changed_letter_is_refused_or_reads_as_some_histogram(position: int, letter: str) -> None:
    text = of([1.0, 2.0, 700.0]).encode()
    position %= len(text)
    with suppress(StoreError):
        assert Histogram.decode(text[:position] + letter + text[position + 1 :]).count >= 0


def test_another_setting_is_refused() -> None:
    from hdrh.histogram import HdrHistogram

    with pytest.raises(StoreError, match="instead of"):
        Histogram.decode(HdrHistogram(1, 10**12, 5).encode().decode())


def test_the_library_gives_no_warning_with_this_numpy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert of([1.5, np.float64(2.5)]).percentile(100) == pytest.approx(2.5, rel=RELATIVE_ERROR)
