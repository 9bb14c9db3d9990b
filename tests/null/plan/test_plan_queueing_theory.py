"""Closed forms against each other and known values, and the simulation against independent recursions and exact chains."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queueing_case import CURVE, ended, path, servers

from redline.plan.queueing import state as at
from redline.plan.queueing import theory
from redline.plan.queueing.paths import simulate
from redline.plan.queueing.rate import highest_rate
from redline.records import ServedPath, ShapeLoad


def test_erlang_c_has_its_known_values() -> None:
    """One server waits with probability rho; two at an offered load of 1 with 1/3; five at 4 with 0.5541 (Erlang's table)."""
    assert theory.erlang_c(1, 0.7) == pytest.approx(0.7)
    assert theory.erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert theory.erlang_c(5, 4.0) == pytest.approx(0.5541, abs=5e-5)


def test_the_wait_of_m_d_1_has_the_mean_of_pollaczek_and_khinchine() -> None:
    times = np.linspace(0, 300, 601)
    survival = [1 - theory.m_d_1_wait(0.08, 10.0, float(time)) for time in times]
    assert survival[0] == pytest.approx(0.8)
    mean = float(np.sum(np.diff(times) * (np.array(survival[1:]) + np.array(survival[:-1])) / 2))
    assert mean == pytest.approx(0.8 * 10 / (2 * 0.2), rel=1e-3)


def test_the_chains_agree_where_they_meet() -> None:
    """One server, batches of one, constant service: all three are M/D/1, whose mean wait is 20 ms."""
    assert theory.m_d_c_mean_wait(1, 0.08, 10.0) == pytest.approx(20.0, rel=1e-6)
    batch, mean = theory.batch_server(0.08, np.array([0.0, 10.0]))
    assert batch == pytest.approx(1.0)
    assert mean == pytest.approx(30.0, rel=1e-6)


def test_many_servers_are_near_the_approximation_of_cosmetatos() -> None:
    """Published error: below 2 % at these loads."""
    for count, load in ((2, 0.8), (8, 0.9)):
        rate = load * count / 10
        m_m_c = theory.erlang_c(count, load * count) / (count / 10 - rate)
        factor = 1 + (1 - load) * (count - 1) * (math.sqrt(4 + 5 * count) - 2) / (16 * load * count)
        assert theory.m_d_c_mean_wait(count, rate, 10.0) == pytest.approx(factor * m_m_c / 2, rel=0.02)


@given(
    count=st.integers(1, 5),
    load=st.floats(0.2, 1.3),
    seed=st.integers(0, 99),
    law=st.sampled_from(["lognormal", "exponential"]),
)
@settings(max_examples=15, deadline=None)
def test_single_requests_end_as_kiefer_and_wolfowitz_say(count: int, load: float, seed: int, law: str) -> None:
    """To the last digits, and overloaded too: the n-th to start has the n-th service time."""
    world = ended(path((1, 10.0), cv=1.0, law=law, rate_per_s=100 * load * count, instances=count), 400, seed)
    exact = servers(world.times[:, at.ARRIVES], 10.0 * world.factors[0], count)
    np.testing.assert_allclose(world.times[:, at.DONE], exact, rtol=0, atol=1e-6)


def test_percentiles_are_those_of_m_m_2() -> None:
    """8,000 requests: theory lies within twice the simulation's own interval."""
    found = simulate(path((1, 10.0), cv=1.0, law="exponential", rate_per_s=120.0, instances=2), requests=8000)
    for level, seen in ((0.5, found.p50_ms), (0.95, found.p95_ms)):
        exact = theory.quantile(lambda time: 1 - theory.m_m_c_sojourn(2, 0.12, 10.0, time), level, 10.0)
        assert abs(seen.value - exact) <= seen.high - seen.low
        assert seen.relative < 0.2


def test_batches_are_those_of_the_exact_chain() -> None:
    """Load 0.6, 8,000 requests. Tolerance 4 %."""
    rate, times = 0.6 * 8 / 9, np.array([0.0, *(CURVE.ms(size) for size in range(1, 9))])
    found = simulate(path(*CURVE.points, rate_per_s=1000 * rate, max_batch=8), requests=8000)
    batch, mean = theory.batch_server(rate, times)
    assert found.mean_batch == pytest.approx(batch, rel=0.04)
    assert found.mean_ms == pytest.approx(mean, rel=0.04)
    assert found.lane_busy == pytest.approx(found.device_busy)


def test_next_to_no_load_waits_for_the_delay_and_overload_fills_the_batches() -> None:
    alone = simulate(path(*CURVE.points, rate_per_s=0.5, max_batch=8, delay_ms=3.0, overhead_ms=0.5), requests=500)
    assert alone.p95_ms.value == pytest.approx(3.0 + 4.0 + 0.5)
    full = simulate(path(*CURVE.points, rate_per_s=2000.0, max_batch=8), requests=4000)
    assert full.achieved_per_s == pytest.approx(8000 / 9, rel=0.01)


def test_the_highest_rate_of_m_d_1_is_that_of_theory() -> None:
    """The rate at which 95 % wait 30 ms or less, two seeds of 2,500 requests. Tolerance 4 %."""
    low, high = 0.01, 0.0999
    while high - low > 1e-6:
        rate = (low + high) / 2
        low, high = (rate, high) if theory.m_d_1_wait(rate, 10.0, 30.0) >= 0.95 else (low, rate)
    found = highest_rate(path((1, 10.0)), p95_ms=40.0, requests=2500, replications=2)
    assert found.rate_per_s.value == pytest.approx(1000 * low, rel=0.04)
    assert found.rate_per_s.low <= found.rate_per_s.value <= found.rate_per_s.high
    assert found.p95_ms == pytest.approx(40.0, rel=0.1)


def test_no_rate_is_within_less_than_one_service_time() -> None:
    found = highest_rate(path((1, 10.0)), p95_ms=9.0, requests=200, replications=2)
    assert found.rate_per_s.value == 0.0
    assert "even at" in found.reason


def test_measured_ratios_give_their_own_quantiles() -> None:
    """Half take 5 ms, half 15: next to no load shows them as they are."""
    ratios = (0.5,) * 50 + (1.5,) * 50
    curve = ShapeLoad(curve=path((1, 10.0)).shapes[0].curve)
    curve = ShapeLoad(curve=type(curve.curve)(points=((1, 10.0),), ratios=ratios))
    found = simulate(ServedPath(shapes=(curve,), rate_per_s=0.1), requests=2000)
    assert found.mean_ms == pytest.approx(10.0, rel=0.02)
    assert found.p95_ms.value == pytest.approx(15.0, rel=0.02)
