"""What the gateway's metrics say: the objective, who has which role, and an `Observation` of each release."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from redline.observe.ledger import Increase
from redline.observe.scrape import Scrape
from redline.records import Objective, Observation

ROLES = ("active", "canary", "previous")


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a service promised, as its gateway tells it."""

    service: str
    objective: Objective
    error_pct: float


def promise_of(scrape: Scrape) -> Promise | None:
    """None if the endpoint is no gateway of redline."""
    for sample in scrape.samples:
        service = sample.labels.get("service")
        if sample.name == "redline_objective_seconds" and service is not None:
            rate = scrape.value("redline_objective_rate", service=service)
            ratio = scrape.value("redline_objective_error_ratio", service=service)
            # From 0.02 s to 20 ms and not to 20.000000000000004.
            objective = Objective(p95_ms=float(f"{1000 * sample.value:.12g}"), throughput=rate or 0.0)
            return Promise(service=service, objective=objective, error_pct=float(f"{100 * (ratio or 0.0):.12g}"))
    return None


def roles_of(scrape: Scrape) -> dict[int, tuple[str, ...]]:
    """Roles of each release that has one, "active" first."""
    held: dict[int, list[str]] = {}
    for sample in scrape.samples:
        number = sample.labels.get("release", "")
        if sample.name == "redline_release_role" and sample.value == 1 and number.isdecimal():
            held.setdefault(int(number), []).append(sample.labels.get("role", ""))
    return {number: tuple(role for role in ROLES if role in roles) for number, roles in held.items()}


def releases_in(increase: Increase) -> tuple[int, ...]:
    """Releases that the gateway counts anything of, ascending."""
    names = ("redline_requests_total", "redline_request_seconds_count", "redline_shadow_boxes_total")
    found = {number for name in names for number in increase.labels(name, "release") if number.isdecimal()}
    return tuple(sorted(int(number) for number in found))


def observation(increase: Increase, release: int, objective: Objective) -> Observation:
    """What was seen of a release; all zero if nothing was."""
    label = str(release)
    counts = bucket_counts(increase, label)
    requests = counts.get(math.inf, 0.0)
    answers = increase.of("redline_requests_total", release=label)
    errors = sum(value for labels, value in answers if labels.get("code", "").startswith("5"))
    same = increase.total("redline_shadow_boxes_total", release=label, outcome="same")
    differing = increase.total("redline_shadow_boxes_total", release=label, outcome="differing")
    p95_s = quantile_s(counts, 0.95)
    return Observation(
        release=release,
        seconds=increase.seconds,
        requests=round(requests),
        errors=round(errors),
        slow=round(requests - _within(counts, objective.p95_ms / 1000)),
        compared=round(same + differing),
        differing=round(differing),
        p95_ms=None if p95_s is None else 1000 * p95_s,
    )


def bucket_counts(increase: Increase, release: str | None = None) -> dict[float, float]:
    """Cumulative counts by upper edge (s), ascending, of one release or of all, over both entries."""
    wanted = {} if release is None else {"release": release}
    counts: dict[float, float] = {}
    for labels, value in increase.of("redline_request_seconds_bucket", **wanted):
        edge = float(labels.get("le", "inf"))
        counts[edge] = counts.get(edge, 0.0) + value
    return dict(sorted(counts.items()))


def quantile_s(counts: Mapping[float, float], quantile: float) -> float | None:
    """The quantile by linear interpolation within its bucket, as Prometheus' `histogram_quantile`; None without requests.

    `counts` are cumulative by upper edge, ascending. Beyond the last finite edge that edge is given.
    """
    total = counts.get(math.inf, 0.0)
    if total <= 0:
        return None
    low, below = 0.0, 0.0
    for edge, count in counts.items():
        if count >= quantile * total:
            if math.isinf(edge):
                return low
            return low + (edge - low) * (quantile * total - below) / (count - below) if count > below else edge
        low, below = edge, count
    return low


def _within(counts: Mapping[float, float], limit_s: float) -> float:
    """Requests within the limit. It is an edge in the gateway; where it is not, the next edge above is taken for it, so that
    nothing is called slow that may not be."""
    return next((count for edge, count in counts.items() if edge >= limit_s * (1 - 1e-9)), 0.0)
