"""What a served process refuses to compute on: NaN and infinities, in tensors of every kind that a request or a network has."""

from __future__ import annotations

import numpy as np
import pytest

from redline.backend.network import finite


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 517, -1])
def test_one_value_that_is_no_number_is_found_wherever_it_lies(dtype, value, place):
    array = np.random.default_rng(0).normal(0, 1000, (3, 17, 19)).astype(dtype)
    assert finite(array)
    array.reshape(-1)[place] = value
    assert not finite(array)
    assert not finite(array[:, :, ::-1]), "in views too"


def test_largest_numbers_integers_and_nothing_at_all_are_finite():
    largest = np.finfo(np.float32).max
    assert finite(np.array([largest, -largest, largest], np.float32)), "their sum would not be"
    assert finite(np.array([[2**31 - 1, -(2**31)]], np.int32))
    assert finite(np.zeros((0, 4), np.float32))
