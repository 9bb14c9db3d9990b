"""Increases over windows, whatever restarted in between; a release's counts against those that the gateway itself gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from observe_case import OBJECTIVE_S, RATE, FakeGateway

from redline.observe.burn import burn
from redline.observe.gateway import bucket_counts, observation, promise_of, quantile_s, releases_in, roles_of
from redline.observe.ledger import Ledger
from redline.observe.scrape import Sample, Scrape, parse
from redline.records import Objective, Routes

OBJECTIVE = Objective(p95_ms=1000 * OBJECTIVE_S, throughput=RATE)


def scraped(at_s: float, **values: float) -> Scrape:
    return Scrape(url="u", at_s=at_s, samples=tuple(Sample(name, {}, value, True) for name, value in values.items()))


def test_windows_begin_at_a_scrape() -> None:
    ledger = Ledger(60.0)
    assert ledger.over(10.0).total("a") == 0
    for second in range(100):
        ledger.add(scraped(float(second), a=3.0 * second))
    for window, seconds in [(0.0, 1.0), (1.0, 1.0), (9.5, 10.0), (10.0, 10.0), (60.0, 60.0), (1000.0, 60.0)]:
        assert ledger.over(window).seconds == seconds
        assert ledger.over(window).total("a") == 3 * seconds


def test_what_was_before_the_first_scrape_is_not_counted_and_what_appears_later_is() -> None:
    ledger = Ledger(60.0)
    ledger.add(scraped(0.0, a=1000.0))
    ledger.add(scraped(1.0, a=1001.0, b=5.0))
    assert ledger.over(60.0).total("a") == 1
    assert ledger.over(60.0).total("b") == 5


def test_an_endpoint_that_is_away_hides_nothing() -> None:
    ledger = Ledger(60.0)
    ledger.add(scraped(0.0, a=10.0))
    ledger.add(Scrape(url="u", at_s=1.0, error="Connection refused"))
    ledger.add(scraped(5.0, a=16.0))
    assert ledger.over(60.0).seconds == 5.0
    assert ledger.over(60.0).total("a") == 6


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_a_restart_costs_at_most_what_was_counted_since_the_last_scrape(steps: list[tuple[int, bool]]) -> None:
    """A counter that starts again and is at once as high as before looks like one that went on, as in Prometheus."""
    ledger, value, known, hidden = Ledger(1e9), 100, 0, 0
    ledger.add(scraped(0.0, a=value))
    for index, (grown, restarted) in enumerate(steps):
        before = value
        value = grown if restarted else value + grown
        known += grown
        hidden += before if restarted and value >= before else 0
        ledger.add(scraped(index + 1.0, a=float(value)))
    assert ledger.over(1e9).total("a") == known - hidden


def test_all_counters_of_a_release_start_again_together() -> None:
    """After the restart more requests were slow than before, so that their bucket alone would not tell."""
    gateway, ledger = FakeGateway(Routes(active=4)), Ledger(60.0)
    gateway.serve(4, 100, ms=10.0)
    gateway.serve(4, 2, ms=30.0)
    ledger.add(gateway.scrape(0.0))
    gateway.restart()
    gateway.serve(4, 10, ms=30.0)
    ledger.add(gateway.scrape(1.0))
    seen = observation(ledger.over(60.0), 4, OBJECTIVE)
    assert (seen.requests, seen.slow) == (10, 10)


def test_a_summary_that_falls_is_no_restart() -> None:
    ledger = Ledger(60.0)
    for at_s, quantile, count in [(0.0, 9.0, 10.0), (1.0, 4.0, 12.0)]:
        text = f'# TYPE s summary\ns{{quantile="0.5"}} {quantile}\ns_count {count}\n'
        ledger.add(Scrape(url="u", at_s=at_s, samples=parse(text)))
    assert ledger.over(60.0).total("s_count") == 2


def test_an_observation_is_the_gateways_own() -> None:
    """Against `Metrics.observation`, which the service decides by: every count the same, from text alone."""
    rng, gateway, ledger = np.random.default_rng(1), FakeGateway(Routes(active=4)), Ledger(60.0)
    gateway.serve(4, 50, ms=30.0)
    since = gateway.metrics.snapshot(4)
    ledger.add(gateway.scrape(0.0))
    for seconds in rng.gamma(9, 0.0015, 400):
        gateway.metrics.answered(4, "tensor" if seconds > 0.015 else "bytes", 503 if seconds > 0.03 else 200, float(seconds))
    gateway.metrics.answered(4, "bytes", 400, 0.5)
    gateway.metrics.answered(None, "bytes", 413, 0.5)
    gateway.metrics.answered(3, "bytes", 200, 0.5)
    gateway.metrics.compared(4, 90, 7)
    ledger.add(gateway.scrape(4.0))
    seen, own = observation(ledger.over(60.0), 4, OBJECTIVE), gateway.metrics.observation(4, since)
    for name in ("release", "requests", "errors", "slow", "compared", "differing"):
        assert getattr(seen, name) == getattr(own, name), name
    assert seen.requests == 400
    assert 0 < seen.errors < seen.slow < 100
    assert seen.seconds == 4.0
    assert releases_in(ledger.over(60.0)) == (3, 4)


def test_a_quantile_is_within_its_bucket() -> None:
    """Neighbouring edges differ by 15.5 %: the estimate lies within that of the sample's quantile."""
    rng, gateway, ledger = np.random.default_rng(2), FakeGateway(), Ledger(60.0)
    ledger.add(gateway.scrape(0.0))
    latencies = rng.gamma(9, 0.0015, 2000)
    for seconds in latencies:
        gateway.metrics.answered(4, "bytes", 200, float(seconds))
    ledger.add(gateway.scrape(1.0))
    counts = bucket_counts(ledger.over(60.0), "4")
    for quantile in (0.5, 0.95, 0.99):
        found = quantile_s(counts, quantile)
        assert found == pytest.approx(float(np.quantile(latencies, quantile)), rel=0.155)
    assert quantile_s({}, 0.95) is None
    assert quantile_s({0.1: 0.0, math.inf: 10.0}, 0.95) == 0.1
    assert quantile_s({0.1: 10.0, 0.2: 20.0, math.inf: 20.0}, 0.75) == pytest.approx(0.15)


def test_the_promise_and_the_roles_are_read_from_the_gateway() -> None:
    gateway = FakeGateway(Routes(active=3, previous=2, canary=4))
    promise = promise_of(gateway.scrape(0.0))
    assert promise is not None
    assert (promise.service, promise.objective, promise.error_pct) == ("detector", OBJECTIVE, 0.1)
    assert roles_of(gateway.scrape(0.0)) == {3: ("active",), 2: ("previous",), 4: ("canary",)}
    gateway.routes = Routes(active=4, previous=3)
    assert roles_of(gateway.scrape(0.0)) == {4: ("active",), 3: ("previous",)}
    assert promise_of(scraped(0.0, a=1.0)) is None


def test_burn_rates_are_of_the_whole_service() -> None:
    gateway, ledger = FakeGateway(), Ledger(60.0)
    ledger.add(gateway.scrape(0.0))
    assert burn(ledger.over(10.0), 10.0, OBJECTIVE, 0.1).latency == 0.0
    gateway.serve(3, 170, ms=10.0)
    gateway.serve(4, 29, ms=30.0)
    gateway.serve(4, 1, ms=1.0, code=503)
    ledger.add(gateway.scrape(10.0))
    found = burn(ledger.over(10.0), 10.0, OBJECTIVE, 0.1)
    assert found.requests == 200
    assert found.latency == pytest.approx(29 / 200 / 0.05)
    assert found.errors == pytest.approx(1 / 200 / 0.001)
    assert found.seconds == 10.0
