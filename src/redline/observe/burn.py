"""How fast a service uses up what its objective allows: multi-window, multi-burn-rate.

The Site Reliability Workbook (Beyer, Murphy, Rensin, Kawahara, Thorne; O'Reilly 2018), chapter 5 "Alerting on SLOs", section 6
and table 5-8. Burn rate 1 uses up the error budget exactly in the period of the objective (30 days). A pair of windows alerts
if both burn: the long one so that it matters, the short one, a twelfth of it, so that it is still going on.
"""

from __future__ import annotations

from dataclasses import dataclass

from redline.observe.decide import LEAST_ALLOWED, SLOW_ALLOWED
from redline.observe.gateway import observation, releases_in
from redline.observe.ledger import Increase
from redline.records import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two windows and the burn rate above which both must be."""

    name: str
    short: str
    long: str
    rate: float


FAST = Pair(name="fast", short="5m", long="1h", rate=14.4)
"""2 % of a 30-day budget in one hour: worth waking somebody."""
SLOW = Pair(name="slow", short="30m", long="6h", rate=6.0)
"""5 % of it in six hours: worth a ticket."""
LIVE_S = (10.0, 120.0)
"""The windows on the screen, of the same proportion: short enough for somebody who watches a release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """Burn rates of a service over one window; above 1 the objective is being missed."""

    window_s: float
    seconds: float
    """Of the window that were seen."""
    requests: int
    latency: float
    """Share of requests over the objective's P95, over the 5 % that it allows."""
    errors: float
    """Share of failed requests over the allowed share."""


def burn(increase: Increase, window_s: float, objective: Objective, error_pct: float) -> Burn:
    """Over all releases of the service: a client does not care which one let it down."""
    seen = [observation(increase, release, objective) for release in releases_in(increase)]
    requests = sum(one.requests for one in seen)
    return Burn(
        window_s=window_s,
        seconds=increase.seconds,
        requests=requests,
        latency=sum(one.slow for one in seen) / max(requests, 1) / SLOW_ALLOWED,
        errors=sum(one.errors for one in seen) / max(requests, 1) / max(error_pct / 100, LEAST_ALLOWED),
    )


def threshold(pair: Pair, allowed: float) -> float:
    """The share above which a pair alerts: its burn rate times what is allowed, but at most nine tenths of the way from there
    to all. A generous objective would otherwise never alert: 14.4 times 7 % is more than every request.
    """
    return min(pair.rate * allowed, allowed + 0.9 * (1 - allowed))
