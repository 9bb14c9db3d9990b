"""When is an error of a stretch of a network explained by its precision? Arrays with known errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from redline.errors import TrialError
from redline.parity.layers import MARGIN, ROUNDINGS, TAILS, UNIT, layer_error, roundings, total_error

SHAPE = (2, 8, 16, 16)
HALF = 2.0**-11


def tensor(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Any:
    return np.random.default_rng(seed).normal(0, 1, shape)


def rounded(values: Any) -> Any:
    return values.astype(np.float16)


def test_rounding_to_the_type_is_explained_and_a_scaled_layer_is_not() -> None:
    truth = tensor()
    clean = layer_error(truth, rounded(truth), rounded(truth), "fp16")
    # A uniform rounding error has 1 / sqrt(3) of half a step, and steps lie between 1 and 1/2 unit of the value.
    assert HALF / 4 < clean.local < HALF / math.sqrt(3)
    assert clean.local < clean.explained / 4
    scaled = layer_error(truth, rounded(truth * 1.05), rounded(truth), "fp16")
    assert scaled.local == pytest.approx(0.05, rel=0.02)
    assert scaled.local > 8 * scaled.explained


def test_what_is_explained_is_the_formula() -> None:
    truth, control = np.full(SHAPE, 3.0), np.full(SHAPE, 3.006)
    found = layer_error(truth, np.full(SHAPE, 3.3), control, "fp16")
    own = MARGIN * ROUNDINGS * UNIT["fp16"] * (3 + TAILS[0] * 3)
    assert found.local == pytest.approx(0.1)
    assert found.explained == pytest.approx(math.hypot(MARGIN * 0.006, own) / 3, rel=1e-4)


def test_one_bad_channel_or_row_is_not_diluted_by_the_others() -> None:
    truth = tensor()
    for place in (np.s_[:, 3], np.s_[:, :, 5], np.s_[..., 7]):
        wrong = truth.copy()
        wrong[place] *= 1.05
        assert layer_error(truth, wrong, rounded(truth), "fp16").local == pytest.approx(0.05, rel=1e-6)
    scores = np.concatenate([tensor(1, (1, 5000, 4)) * 300, tensor(2, (1, 5000, 1)) * 0.5], 2)
    wrong = scores.copy()
    wrong[..., 4] *= 1.05
    found = layer_error(scores, wrong, rounded(scores), "fp16")
    assert found.local == pytest.approx(0.05, rel=1e-6)
    assert found.local > found.explained


def test_an_axis_of_many_places_is_judged_by_runs() -> None:
    truth = tensor(0, (1, 9000, 4))
    wrong = truth.copy()
    wrong[:, 4500:4530] *= 1.05
    found = layer_error(truth, wrong, rounded(truth), "fp16")
    assert found.local > 0.03
    assert found.local > found.explained


def test_a_dead_channel_accuses_nobody() -> None:
    truth = tensor()
    truth[:, 2] = 1e-6
    noisy = rounded(truth).astype(np.float64)
    noisy[:, 2] = 3e-6
    found = layer_error(truth, noisy, rounded(truth), "fp16")
    assert found.local < found.explained


def test_infinity_is_beyond_everything_unless_the_reference_has_it_too() -> None:
    truth, wrong = tensor(), tensor()
    wrong[0, 0, 0, 0] = np.inf
    found = layer_error(truth, wrong, None, "fp16")
    assert (found.local, found.finite, found.judged) == (math.inf, False, True)
    fed = layer_error(wrong, wrong, None, "fp16")
    assert (fed.local, fed.finite, fed.judged) == (0.0, False, False)
    assert total_error(truth, wrong) == math.inf


def test_where_the_graph_itself_overflows_nothing_is_explained_by_that() -> None:
    truth = tensor()
    control = np.full(SHAPE, np.inf)
    assert layer_error(truth, truth * 1.05, control, "fp16").local > layer_error(truth, truth * 1.05, control, "fp16").explained


def test_precisions_are_told_apart() -> None:
    truth = tensor()
    narrow = rounded(truth)
    assert layer_error(truth, narrow, None, "fp32").local > layer_error(truth, narrow, None, "fp32").explained
    assert layer_error(truth, narrow, None, "tf32").local < layer_error(truth, narrow, None, "tf32").explained
    single = truth.astype(np.float32)
    assert layer_error(truth, single, None, "fp32").local < layer_error(truth, single, None, "fp32").explained


def test_sums_of_a_narrow_type_wander_as_measured() -> None:
    """Sums of 2304 products, sixteen at a time exactly and those added up in float16, against `roundings`."""
    draw = np.random.default_rng(0)
    products = draw.normal(0, 1, (400, 144, 16)).sum(2)
    total = np.zeros(400, np.float16)
    for block in range(144):
        total = (total.astype(np.float32) + products[:, block]).astype(np.float16)
    exact = products.sum(1)
    measured = float(np.sqrt(((total - exact) ** 2).mean()) / np.sqrt((exact**2).mean()))
    assert measured / HALF < MARGIN * roundings(2304)
    assert measured / HALF > 0.3 * roundings(2304)
    assert roundings(0) == ROUNDINGS


def test_another_shape_is_refused() -> None:
    with pytest.raises(TrialError, match=r"\(2, 8, 16, 15\)") as caught:
        layer_error(tensor(), tensor()[..., :15], None, "fp16")
    assert caught.value.code == "parity-outputs"
    assert total_error(tensor(), tensor() * 1.02) == pytest.approx(0.02)
