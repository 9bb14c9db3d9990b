"""The search for the knee on simulated targets whose knee is known from theory."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_queue import simulated_load

from redline.measure.knee import MAX_STEPS, find_knee
from redline.records import Knee, Load, Noise


class FakeClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, deadline: float) -> None:
        self.time = max(self.time, deadline)


def flat(rate: float, p95_ms: float, requests: int = 100) -> Load:
    """Every request takes `p95_ms`; nothing queues."""
    return simulated_load(lambda joined: p95_ms / 1000, rate=rate, seconds=requests / rate, mode="constant", workers=requests)


def step_at(capacity: float, below: float = 50.0, above: float = 400.0) -> Callable[[float], Load]:
    return lambda rate: flat(rate, below if rate <= capacity else above)


def search(measure_at: Callable[[float], Load], **changes: object) -> Knee:
    settings = {"p95_ms": 150.0, "start_rate": 20.0, "low": 1.0, "high": 1000.0, "noise": None, **changes}
    return find_knee(measure_at, **settings)  # type: ignore[arg-type]


@given(st.floats(1.0, 1000.0), st.floats(0.5, 2000.0))
@settings(max_examples=15, deadline=None)
def test_a_sharp_knee_is_found_within_the_resolution(capacity: float, start: float) -> None:
    knee = search(step_at(capacity), start_rate=start)
    assert capacity / 1.05 - 1e-9 <= knee.rate_per_s <= capacity
    assert len(knee.steps) <= MAX_STEPS
    found = [step for step in knee.steps if step.offered_per_s == knee.rate_per_s]
    assert found[0].p95_ms <= 150


@pytest.mark.parametrize("off", [0.2, 0.7, 0.97, 1.03, 1.4, 6.0])
def test_small_steps_from_a_near_guess_take_fewer_and_from_a_far_one_still_arrive(off: float) -> None:
    """The knee is at 100; a guess within 3 % of it is enclosed by 10 % steps in less than by doubling from 70 %."""
    near = search(step_at(100.0), start_rate=100.0 * off, growth=1.1)
    assert 100 / 1.05 - 1e-9 <= near.rate_per_s <= 100
    assert len(near.steps) <= 13
    if 0.95 < off < 1.05:
        assert len(near.steps) < len(search(step_at(100.0), start_rate=70.0).steps)


def test_the_knee_of_m_m_1_is_that_of_theory() -> None:
    """P95 = ln(20) / (mu - lambda), so 150 ms at mu = 100 is met up to lambda = 80.03. 10 %: resolution and 8,000 requests."""

    def measure_at(rate: float) -> Load:
        services = np.random.default_rng(round(rate * 1000)).exponential(0.01, 8_000)
        return simulated_load(lambda joined: float(services[joined[0]]), rate=rate, seconds=8_000 / rate, seed=11)

    knee = search(measure_at, noise=Noise(p95_ms=(), relative=0.03))
    assert knee.rate_per_s == pytest.approx(100 - math.log(20) / 0.15, rel=0.1)


def test_nothing_passes_and_everything_passes() -> None:
    assert search(step_at(0.5)).rate_per_s == 0.0
    assert search(step_at(5000)).rate_per_s == 1000.0
    assert search(step_at(5000), low=30, high=30).rate_per_s == 30


def test_a_disturbed_step_does_not_hide_a_higher_knee() -> None:
    """The first measurement is disturbed: 8 % of its requests, and 90 %, more than one repeat can outweigh."""
    for disturbed, expected in ((0.08, 400), (0.9, 20)):
        calls = count()

        def measure_at(rate: float, share: float = disturbed, calls: count[int] = calls) -> Load:
            if next(calls):
                return flat(rate, 50 if rate <= 400 else 400, requests=200)
            return simulated_load(
                lambda joined: 0.9 if joined[0] < share * 200 else 0.05,
                rate=rate,
                seconds=200 / rate,
                mode="constant",
                workers=200,
            )

        assert search(measure_at).rate_per_s == pytest.approx(expected, rel=0.06)


def test_a_borderline_step_is_repeated_once_and_judged_on_both() -> None:
    """145 ms is within 10 % of 150: repeated, and passes without a margin; 155 ms fails in the same way."""
    noise = Noise(p95_ms=(), relative=0.1)
    within = search(lambda rate: flat(rate, 145), low=20, high=20, noise=noise)
    beyond = search(lambda rate: flat(rate, 155), low=20, high=20, noise=noise)
    assert (within.rate_per_s, len(within.steps)) == (20, 2)
    assert (beyond.rate_per_s, len(beyond.steps)) == (0, 2)


def test_a_late_generator_never_passes() -> None:
    def measure_at(rate: float) -> Load:
        return simulated_load(lambda joined: 0.01, rate=rate, seconds=200 / rate, slip_s=0.1 if rate > 50 else 0.0, workers=200)

    assert 50 / 1.05 <= search(measure_at).rate_per_s <= 50


def test_no_step_begins_after_the_deadline() -> None:
    clock = FakeClock()

    def measure_at(rate: float) -> Load:
        clock.time += 10
        return step_at(400)(rate)

    knee = search(measure_at, deadline=25.0, now=clock.now)
    assert [step.offered_per_s for step in knee.steps] == [20, 40, 80]
    assert knee.rate_per_s == 80
    assert search(measure_at, deadline=25.0, now=clock.now) == Knee(rate_per_s=0.0, steps=())


@given(st.integers(0, 2**16), st.floats(0.0, 0.6))
@settings(max_examples=15, deadline=None)
def test_noise_never_breaks_the_bounds(seed: int, spread: float) -> None:
    """Whatever the noise, the search ends and its answer was measured to pass: alone, or with its repeat."""
    rng = np.random.default_rng(seed)
    knee = search(
        lambda rate: flat(rate, 75 * (1 + rate / 100) * rng.lognormal(0, spread), 80), noise=Noise(p95_ms=(), relative=0.05)
    )
    assert len(knee.steps) <= MAX_STEPS
    passed = [step.p95_ms <= 150 for step in knee.steps if step.offered_per_s == knee.rate_per_s]
    assert knee.rate_per_s == 0.0 or any(passed)


@pytest.mark.parametrize("changes", [{"low": 0.0}, {"low": 10.0, "high": 5.0}, {"resolution": 0.0}])
def test_a_range_that_is_none_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no range"):
        search(step_at(10), **changes)
