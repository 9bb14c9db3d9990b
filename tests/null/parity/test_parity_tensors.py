import numpy as np
import pytest

from redline import parity
from redline.errors import TrialError


def test_deltas_by_hand_over_two_inputs():
    reference = [(np.array([[1.0, -4.0]], np.float32),), (np.array([[0.5, 100.0]], np.float32),)]
    candidate = [(np.array([[1.5, -4.0]], np.float32),), (np.array([[0.25, 102.0]], np.float32),)]
    (delta,) = parity.compare_tensors(["logits"], iter(reference), iter(candidate), "fp32")
    assert (delta.name, delta.max_abs, delta.max_rel, delta.mean_abs, delta.finite) == ("logits", 2.0, 0.5, 2.75 / 4, True)
    assert delta.tolerance == parity.TOLERANCE["fp32"] == 1e-3


def test_relative_error_of_large_values_is_relative_to_them():
    (delta,) = parity.compare_tensors(["x"], [(np.array([200.0]),)], [(np.array([201.0]),)], "fp16")
    assert delta.max_rel == pytest.approx(1 / 200)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_non_finite_values_are_flagged_and_kept_out_of_the_figures(bad, side):
    arrays = [np.array([1.0, 2.0], np.float32), np.array([1.0, 2.5], np.float32)]
    arrays[side][0] = bad
    good = np.zeros(3, np.float32)
    first, second = parity.compare_tensors(["a", "b"], [(arrays[0], good)], [(arrays[1], good)], "fp32")
    assert (first.finite, first.max_abs, first.mean_abs) == (False, 0.5, 0.5)
    assert (second.finite, second.max_abs) == (True, 0.0)


def test_all_nan_is_flagged():
    (delta,) = parity.compare_tensors(["a"], [(np.full(3, np.nan),)], [(np.full(3, np.nan),)], "fp32")
    assert (delta.finite, delta.max_abs, delta.mean_abs) == (False, 0.0, 0.0)


@pytest.mark.parametrize(
    "candidate",
    [[(np.zeros((1, 4)),)], [(np.zeros((1, 3)), np.zeros(1))], [], [(np.zeros((1, 3)),)] * 2],
    ids=["shape", "number", "fewer inputs", "more inputs"],
)
def test_outputs_that_do_not_correspond(candidate):
    with pytest.raises(TrialError) as caught:
        parity.compare_tensors(["a"], [(np.zeros((1, 3)),)], candidate, "fp32")
    assert caught.value.code == "parity-outputs"


def test_tolerances_widen_with_precision():
    bounds = [parity.TOLERANCE[precision] for precision in ("fp32", "fp16", "int8", "fp8")]
    assert bounds[0] < bounds[1] < bounds[2] <= bounds[3] < float("inf")


def test_determinism_sees_one_bit():
    value = np.array([1.0, np.nan], np.float32)
    assert parity.determinism(lambda: [value], 4).identical
    calls = iter([value, value, np.nextafter(value, np.float32(2))])
    result = parity.determinism(lambda: [next(calls)], 3)
    assert (result.repeats, result.identical) == (3, False)
    zeros = iter([np.zeros(1), -np.zeros(1)])
    assert not parity.determinism(lambda: [next(zeros)], 2).identical
