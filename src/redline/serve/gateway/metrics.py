"""What the gateway counts, for Prometheus and for the guard. Replicas' counts can be added: all use the same edges."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from redline.records import Observation, Routes
from redline.records.serve import Cause

Entry = Literal["bytes", "tensor"]
ENTRIES: tuple[Entry, ...] = ("bytes", "tensor")
EDGES_PER_DECADE = 16
"""Neighbouring edges differ by 15.5 %."""
ROLES = ("active", "previous", "canary")


def edges_s(objective_s: float) -> tuple[float, ...]:
    """Bucket edges from a tenth to ten times the objective, which is itself an edge, exactly: `le=objective` is then exact.

    They depend on the objective alone. The others have six digits, so that every machine writes the same text.
    """
    steps = range(-EDGES_PER_DECADE, EDGES_PER_DECADE + 1)
    return tuple(objective_s if step == 0 else float(f"{objective_s * 10 ** (step / EDGES_PER_DECADE):.6g}") for step in steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Counters of one release at one moment."""

    at_s: float
    """Monotonic clock."""
    errors: int
    buckets: tuple[int, ...]
    """Requests in each bucket (not cumulative), the last without an upper edge."""
    same: int
    differing: int


class Metrics:
    """One registry for one service. `objective_s`: the P95 objective; `error_ratio`: the share of requests that may fail."""

    def __init__(self, service: str, *, objective_s: float, rate_per_s: float, error_ratio: float) -> None:
        self.service = service
        self.edges = edges_s(objective_s)
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "redline_requests", "Requests by answer", ("service", "release", "entry", "code"), registry=registry
        )
        self._seconds = Histogram(
            "redline_request_seconds",
            "From the last byte of a request to its answer, client errors left out",
            ("service", "release", "entry"),
            buckets=self.edges,
            registry=registry,
        )
        self._boxes = Counter(
            "redline_shadow_boxes",
            "Boxes of compared answers, of both sides; release: the newer of the two",
            ("service", "release", "outcome"),
            registry=registry,
        )
        self._skips = Counter(
            "redline_shadow_skipped",
            "Comparisons left out: too many at once, or no answer",
            ("service", "release"),
            registry=registry,
        )
        self._role = Gauge(
            "redline_release_role", "1 for the release in a role", ("service", "release", "role"), registry=registry
        )
        self._up = self._gauge("redline_server_up", "1 while Triton's process runs")
        self._in_flight = self._gauge("redline_in_flight", "Requests that the gateway is answering")
        self._restarts = self._counter("redline_server_restarts", "Restarts of Triton")
        self._lost = self._counter("redline_lost_requests", "Requests lost with Triton")
        self.lost_requests = 0
        self._switches = Counter("redline_switches", "Changes of the active release", ("service", "cause"), registry=registry)
        for name, value in (("seconds", objective_s), ("rate", rate_per_s), ("error_ratio", error_ratio)):
            self._gauge(f"redline_objective_{name}", "The service's objective").set(value)
        self._series: dict[tuple[int | None, Entry, int], tuple[Counter, Histogram | None]] = {}
        self._roles_set: set[tuple[str, str]] = set()

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ("service",), registry=self.registry).labels(self.service)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ("service",), registry=self.registry).labels(self.service)

    def answered(self, release: int | None, entry: Entry, code: int, seconds: float) -> None:
        """`release` None: refused before it was routed. The time of a client's error (4xx) is not recorded."""
        key = release, entry, code
        series = self._series.get(key) or self._series_of(key)
        series[0].inc()
        if series[1] is not None:
            series[1].observe(seconds)

    def _series_of(self, key: tuple[int | None, Entry, int]) -> tuple[Counter, Histogram | None]:
        release, entry, code = key
        label = "" if release is None else str(release)
        timed = release is not None and not 400 <= code < 500
        series = (
            self._requests.labels(self.service, label, entry, str(code)),
            self._seconds.labels(self.service, label, entry) if timed else None,
        )
        self._series[key] = series
        return series

    def compared(self, release: int, same: int, differing: int) -> None:
        self._boxes.labels(self.service, str(release), "same").inc(same)
        self._boxes.labels(self.service, str(release), "differing").inc(differing)

    def skipped(self, release: int) -> None:
        self._skips.labels(self.service, str(release)).inc()

    def lost(self, requests: int = 1) -> None:
        self._lost.inc(requests)
        self.lost_requests += requests

    def restarted(self) -> None:
        self._restarts.inc()

    def switched(self, cause: Cause) -> None:
        self._switches.labels(self.service, cause).inc()

    def exposition(self, routes: Routes, *, up: bool, in_flight: int) -> bytes:
        """Prometheus text. Roles and gauges are as the arguments say, now."""
        held = {(str(number), role) for role in ROLES if (number := getattr(routes, role)) is not None}
        self._roles_set |= held
        for release, role in self._roles_set:
            self._role.labels(self.service, release, role).set((release, role) in held)
        self._up.set(up)
        self._in_flight.set(in_flight)
        return generate_latest(self.registry)

    def snapshot(self, release: int) -> Snapshot:
        label = str(release)
        buckets = dict.fromkeys((*self.edges, float("inf")), 0)
        totals = {"errors": 0, "same": 0, "differing": 0}
        wanted = ("redline_requests_total", "redline_request_seconds_bucket", "redline_shadow_boxes_total")
        for family in self.registry.restricted_registry(wanted).collect():
            for sample in family.samples:
                labels, value = sample.labels, int(sample.value)
                if labels.get("release") != label:
                    continue
                if "le" in labels:
                    buckets[float(labels["le"])] += value
                elif "outcome" in labels:
                    totals[labels["outcome"]] += value
                elif labels.get("code", "") >= "500":
                    totals["errors"] += value
        cumulative = tuple(buckets.values())
        counts = tuple(now - before for now, before in zip(cumulative, (0, *cumulative), strict=False))
        return Snapshot(at_s=time.monotonic(), buckets=counts, **totals)

    def observation(self, release: int, since: Snapshot) -> Observation:
        """What was seen of `release` since `since`, a snapshot of the same release."""
        now = self.snapshot(release)
        buckets = tuple(a - b for a, b in zip(now.buckets, since.buckets, strict=True))
        fast = sum(buckets[: EDGES_PER_DECADE + 1])
        return Observation(
            release=release,
            seconds=now.at_s - since.at_s,
            requests=sum(buckets),
            errors=now.errors - since.errors,
            slow=sum(buckets) - fast,
            compared=now.same + now.differing - since.same - since.differing,
            differing=now.differing - since.differing,
            p95_ms=quantile_ms(dict(zip((*self.edges, float("inf")), buckets, strict=True)), 0.95),
        )


def quantile_ms(buckets: Mapping[float, int], quantile: float) -> float | None:
    """The upper edge (s, given as ms) of the bucket that holds the quantile: never below the true one, except that beyond the
    last finite edge that edge is given, as Prometheus does. `buckets`: upper edge to count, ascending, not cumulative.
    None if all are empty.
    """
    total, seen, last = sum(buckets.values()), 0, 0.0
    if not total:
        return None
    for edge, count in buckets.items():
        last = edge if edge != float("inf") else last
        seen += count
        if seen >= quantile * total:
            break
    return last * 1000
