"""Counts that add over replicas. Reference for a quantile: numpy's nearest rank of all latencies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from redline.records import Routes
from redline.serve.gateway import Metrics
from redline.serve.gateway.metrics import EDGES_PER_DECADE, edges_s, quantile_ms

STEP = 10 ** (1 / EDGES_PER_DECADE)
LATENCIES_S = st.lists(st.floats(0.0021, 0.199), min_size=1, max_size=60)


def metrics(objective_s: float = 0.02) -> Metrics:
    return Metrics("detector", objective_s=objective_s, rate_per_s=100.0, error_ratio=0.001)


def after(latencies_s: Iterable[float], release: int = 1) -> Metrics:
    one = metrics()
    for index, seconds in enumerate(latencies_s):
        one.answered(release, "tensor" if index % 3 == 0 else "bytes", 200, seconds)
    return one


def exposed(one: Metrics) -> list[tuple[str, dict[str, str], float]]:
    text = one.exposition(Routes(active=1), up=True, in_flight=0).decode()
    return [(s.name, s.labels, s.value) for family in text_string_to_metric_families(text) for s in family.samples]


def merged_buckets(*replicas: Metrics) -> dict[float, int]:
    """What Prometheus' `sum by (le)` gives, as counts of each bucket."""
    cumulative: dict[float, int] = {}
    for replica in replicas:
        for name, labels, value in exposed(replica):
            if name == "redline_request_seconds_bucket":
                edge = float(labels["le"])
                cumulative[edge] = cumulative.get(edge, 0) + int(value)
    edges = sorted(cumulative)
    return {edge: cumulative[edge] - (cumulative[before] if before else 0) for before, edge in pairwise([None, *edges])}


@given(LATENCIES_S, LATENCIES_S)
def test_two_replicas_added_have_the_p95_of_all_their_requests(one: list[float], other: list[float]) -> None:
    exact = float(np.percentile(one + other, 95, method="inverted_cdf")) * 1000
    found = quantile_ms(merged_buckets(after(one), after(other)), 0.95)
    assert found is not None
    assert exact - 1e-9 <= found <= exact * STEP * 1.00001
    assert found == quantile_ms(merged_buckets(after(one + other)), 0.95)


@pytest.mark.parametrize("objective_s", [0.02, 0.0333, 0.123456789, 1 / 3, 60.0])
def test_the_objective_is_an_edge_exactly_and_edges_ascend(objective_s: float) -> None:
    edges = edges_s(objective_s)
    assert edges[EDGES_PER_DECADE] == objective_s
    assert list(edges) == sorted(set(edges))
    assert edges[0] == pytest.approx(objective_s / 10, rel=1e-5)
    assert edges[-1] == pytest.approx(objective_s * 10, rel=1e-5)
    assert max(b / a for a, b in pairwise(edges)) < STEP * 1.0001


@given(st.lists(st.sampled_from([0.0199, 0.02, math.nextafter(0.02, 1), 0.021]), min_size=1, max_size=40))
def test_slow_requests_are_counted_exactly(latencies_s: list[float]) -> None:
    one = metrics()
    before = one.snapshot(1)
    for seconds in latencies_s:
        one.answered(1, "bytes", 200, seconds)
    seen = one.observation(1, before)
    assert (seen.requests, seen.slow) == (len(latencies_s), sum(seconds > 0.02 for seconds in latencies_s))


def test_a_clients_error_counts_as_an_answer_but_not_against_the_release() -> None:
    one = metrics()
    before = one.snapshot(1)
    for code in (200, 400, 413, 500, 503, 504):
        one.answered(1, "bytes", code, 0.001)
    one.answered(None, "bytes", 408, 9.0)
    one.answered(2, "bytes", 500, 9.0)
    seen = one.observation(1, before)
    assert (seen.requests, seen.errors, seen.slow) == (4, 3, 0)
    counted = {
        (labels["release"], labels["code"]): value for name, labels, value in exposed(one) if name == "redline_requests_total"
    }
    assert counted == {("1", c): 1.0 for c in ("200", "400", "413", "500", "503", "504")} | {
        ("", "408"): 1.0,
        ("2", "500"): 1.0,
    }


def test_an_observation_is_what_came_since_its_snapshot_and_only_that() -> None:
    one = after([0.001] * 7 + [0.5] * 3)
    one.compared(1, 10, 4)
    before = one.snapshot(1)
    empty = one.observation(1, before)
    assert (empty.requests, empty.errors, empty.slow, empty.compared, empty.p95_ms) == (0, 0, 0, 0, None)
    one.answered(1, "bytes", 200, 0.015)
    one.answered(1, "tensor", 502, 0.03)
    one.compared(1, 6, 1)
    one.compared(2, 100, 100)
    seen = one.observation(1, before)
    assert (seen.requests, seen.errors, seen.slow, seen.compared, seen.differing) == (2, 1, 1, 7, 1)
    assert seen.p95_ms is not None
    assert 30 <= seen.p95_ms <= 30 * STEP
    assert seen.seconds >= 0


def test_a_quantile_beyond_the_last_edge_is_the_last_edge() -> None:
    one = metrics()
    before = one.snapshot(1)
    one.answered(1, "bytes", 200, 99.0)
    assert one.observation(1, before).p95_ms == edges_s(0.02)[-1] * 1000


def test_roles_follow_the_routes() -> None:
    one = metrics()
    one.exposition(Routes(active=1, canary=2), up=True, in_flight=0)
    text = one.exposition(Routes(active=2, previous=1), up=False, in_flight=3).decode()
    samples = {
        (s.name, s.labels.get("release"), s.labels.get("role")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }
    roles = {key[1:]: value for key, value in samples.items() if key[0] == "redline_release_role"}
    assert roles == {("1", "active"): 0, ("2", "canary"): 0, ("2", "active"): 1, ("1", "previous"): 1}
    assert samples["redline_server_up", None, None] == 0
    assert samples["redline_in_flight", None, None] == 3


def test_every_promised_series_has_its_name() -> None:
    one = metrics()
    one.answered(1, "bytes", 200, 0.01)
    one.compared(1, 1, 0)
    one.skipped(1)
    one.restarted()
    one.switched("promote")
    one.lost(2)
    found = {name for name, _, _ in exposed(one) if not name.endswith(("_created", "_bucket"))}
    assert found == {
        "redline_requests_total",
        "redline_request_seconds_count",
        "redline_request_seconds_sum",
        "redline_shadow_boxes_total",
        "redline_shadow_skipped_total",
        "redline_release_role",
        "redline_server_up",
        "redline_in_flight",
        "redline_server_restarts_total",
        "redline_lost_requests_total",
        "redline_switches_total",
        "redline_objective_seconds",
        "redline_objective_rate",
        "redline_objective_error_ratio",
    }
    assert one.registry.get_sample_value("redline_lost_requests_total", {"service": "detector"}) == 2
