"""Simulated load against queueing theory: intended times, joining and percentiles together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_queue import answer_times, simulated_load

from redline.measure.backlog import Backlog
from redline.measure.load import intended_times


def test_m_m_1_percentiles_are_those_of_theory() -> None:
    """M/M/1: time in the system is exponential with rate mu - lambda. Tolerance: 5 % at 100,000 requests."""
    rng = np.random.default_rng(1)
    services = rng.exponential(1 / 100, 100_000)
    load = simulated_load(lambda joined: float(services[joined[0]]), rate=60, seconds=100_000 / 60, seed=2)
    for percent, found in ((50, load.p50_ms), (95, load.p95_ms), (99, load.p99_ms)):
        assert found == pytest.approx(-math.log(1 - percent / 100) / (100 - 60) * 1000, rel=0.05)
    assert load.mean_ms == pytest.approx(1000 / (100 - 60), rel=0.05)


def test_m_d_1_mean_is_that_of_theory() -> None:
    """Pollaczek-Khinchine: wait = rho * service / (2 * (1 - rho)). Tolerance 3 %."""
    load = simulated_load(lambda joined: 0.01, rate=70, seconds=1000, seed=3)
    assert load.mean_ms == pytest.approx(10 + 0.7 * 10 / (2 * 0.3), rel=0.03)


def test_m_m_2_mean_is_that_of_theory() -> None:
    """M/M/2: mean time in the system = service / (1 - rho**2), rho = lambda / (2 mu). Tolerance 4 %."""
    services = np.random.default_rng(4).exponential(0.01, 100_000)
    load = simulated_load(lambda joined: float(services[joined[0]]), rate=140, seconds=100_000 / 140, workers=2, seed=5)
    assert load.mean_ms == pytest.approx(10 / (1 - 0.7**2), rel=0.04)


def test_joining_raises_capacity() -> None:
    """A batch of any size takes 10 ms, so 250/s is 2.5 times the capacity of single inferences."""
    single = simulated_load(lambda joined: 0.01, rate=250, seconds=10)
    joined = simulated_load(lambda joined: 0.01, rate=250, seconds=10, batch=8)
    assert single.p95_ms > 5000
    assert single.achieved_per_s == pytest.approx(100, rel=0.01)
    assert joined.p95_ms < 25
    assert 2 < joined.mean_batch < 4


def test_one_stall_costs_every_request_that_arrives_during_it() -> None:
    """200 ms at 100/s, else 1 ms: requests due every 10 ms from the stall's start wait for its rest."""
    due = intended_times("constant", rate_per_s=100, seconds=3, seed=0)
    ended, _ = answer_times(due, lambda joined: 0.2 if joined[0] == 100 else 0.001)
    elevated = np.flatnonzero(ended - due > 0.01)
    assert elevated.tolist() == list(range(100, 122))
    # Request 100 + k waits what is left of the stall and of the k requests before it.
    assert (ended - due)[110] == pytest.approx(0.2 - 0.1 + 10 * 0.001, abs=1e-9)


@pytest.mark.parametrize("mode", ["poisson", "constant"])
def test_intended_times_hold_the_rate_and_the_seed(mode: str) -> None:
    due = intended_times(mode, rate_per_s=50, seconds=100, seed=7)  # type: ignore[arg-type]
    assert len(due) == 5000
    assert (np.diff(due) >= 0).all()
    assert due[0] >= 0
    assert due[-1] < 100
    assert due.tolist() == intended_times(mode, rate_per_s=50, seconds=100, seed=7).tolist()  # type: ignore[arg-type]


def test_poisson_gaps_are_exponential_and_constant_gaps_equal() -> None:
    """Kolmogorov-Smirnov distance to the exponential; 1.63 / sqrt(n) is its 1 % point."""
    gaps = np.sort(np.diff(intended_times("poisson", rate_per_s=50, seconds=100, seed=8)))
    distance = np.abs(-np.expm1(-50 * gaps) - np.arange(1, len(gaps) + 1) / len(gaps)).max()
    assert distance < 1.63 / math.sqrt(len(gaps))
    steady = np.diff(intended_times("constant", rate_per_s=50, seconds=100, seed=8))
    assert np.allclose(steady, 0.02, atol=1e-12)
    other = intended_times("poisson", rate_per_s=50, seconds=100, seed=9)
    assert other[0] != intended_times("poisson", rate_per_s=50, seconds=100, seed=8)[0]


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-1, 1), (1, 0), (0.1, 1), (float("nan"), 1)])
def test_no_load_is_refused(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="no load"):
        intended_times("poisson", rate_per_s=rate, seconds=seconds, seed=0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 5))
def test_the_backlog_starts_with_the_oldest_joins_equals_and_loses_none(keys: list[int], batch: int) -> None:
    backlog = Backlog(keys.__getitem__)
    backlog.put(range(len(keys)))
    left = list(range(len(keys)))
    while left:
        joined = backlog.take(batch)
        assert list(joined) == [request for request in left if keys[request] == keys[left[0]]][:batch]
        left = [request for request in left if request not in joined]
        assert len(backlog) == len(left)
    assert backlog.take(batch) == ()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**16))
@settings(max_examples=40)
def test_no_answer_comes_before_its_request_and_service(workers: int, batch: int, seed: int) -> None:
    services = np.random.default_rng(seed).exponential(0.02, 300)

    def service(joined: Sequence[int]) -> float:
        return float(services[list(joined)].max())

    due = intended_times("poisson", rate_per_s=100, seconds=3, seed=seed)
    ended, inferences = answer_times(due, service, workers=workers, batch=batch)
    assert (ended >= due + services - 1e-12).all()
    assert math.ceil(300 / batch) <= inferences <= 300
