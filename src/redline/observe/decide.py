"""Hold, promote or roll back: a pure function of what was counted since the release went on probation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from redline.records import Action, Objective, Observation, ServeSpec
from redline.records.serve import Decision

SLOW_ALLOWED = 0.05
"""What a P95 objective allows: 5 % of the requests may be later."""
ALPHA = 1e-4
"""Bound on the chance, over a whole probation, that one rule rolls back a release that is exactly at the edge of it."""
LEAST_ALLOWED = 1e-4
"""No finite sample proves that nothing ever fails: an allowed share of 0 is taken as 1 in 10,000, so that one event is none."""
EVENTS_PER_S = 10.0
"""Requests of one tenth of a second share their fate (a batch, a queue, a stall of the machine) and count as one."""
SETTLE_S, PLAIN_S, PLAIN = 3.0, 8.0, 0.5
"""Latency is judged after 8 s, or after 3 s where more than half of the requests are slow: cold caches, the switch itself and
one stall of the machine for a second are no fault of the release, and too few among the requests of 8 s to matter."""
BOXES_PER_EVENT = 14.0
"""Boxes of one image stand and fall together, so that an image is one event: Kish's design effect 1 + (m - 1) rho (Survey
Sampling, 1965) with rho = 1, for the m = 14 boxes that two answers to an image of COCO's 7.3 objects have."""
RECENT_S = 10.0
"""The window that callers should give as `recent`: it holds the evidence against a release that turns bad late in its hold."""
ENOUGH_REQUESTS = 72
"""Fewest requests whose order statistics give a P95 a two-sided 95 % interval: 0.95 ** n <= 0.025."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One share that may not exceed `allowed`: `events` of `trials` went wrong, `weight` trials count as one independent."""

    what: str
    events: int
    trials: int
    allowed: float
    weight: float = 1.0
    ready: bool = True

    @property
    def share(self) -> float:
        return self.events / self.trials if self.trials else 0.0

    @property
    def burn(self) -> float:
        return self.share / self.allowed

    @property
    def breached(self) -> bool:
        if not self.ready or self.share <= self.allowed:
            return False
        return log_evidence(self.events / self.weight, self.trials / self.weight, self.allowed) >= -math.log(ALPHA)

    def text(self) -> str:
        return f"{self.events} of {self.trials} {self.what} ({_percent(self.share)}, {_percent(self.allowed)} may)"

    def proof(self) -> str:
        least = lower_bound(self.events / self.weight, self.trials / self.weight)
        return (
            f"{self.events} of {self.trials} {self.what}: certainly more than {_percent(least)}, {_percent(self.allowed)} may"
        )


def decide(
    observation: Observation,
    objective: Objective,
    policy: ServeSpec,
    *,
    held_s: float,
    hold_s: float,
    recent: Observation | None = None,
) -> Action:
    """What to do with a release that has been on probation for `held_s` of `hold_s` seconds.

    `observation` has the counts since the probation began; it may be asked for as often as one likes while they grow. `recent`
    has those of the last `RECENT_S` seconds, judged alike: a past without fault must not hide that a release has turned bad.

    rollback: a lower bound of the share of slow requests (over the objective's P95), of errors, or of differing boxes lies
    above what is allowed (5 %, `policy.error_pct`, `policy.disagreement_pct`). The bound is that of `log_evidence`, which holds
    at all looks at once: a release at the very edge is rolled back with a chance of at most `ALPHA` for each of the three,
    however often it is judged; `recent` slides, so the bound is not its own: simulated, it adds a fifth of that. Counts are
    divided first by how many of them stand and fall together (`EVENTS_PER_S`, `BOXES_PER_EVENT`); errors are not, as a burst
    of them is what must end a release at once.

    promote: the hold is over, at least `ENOUGH_REQUESTS` were answered, and none of the three shares is above what is allowed.

    hold: otherwise. A release that had too little traffic, or is over a limit without proof, stays on probation beyond
    `hold_s`: the way back costs memory alone, and a release nobody used has shown nothing.
    """
    rules = _rules(observation, objective, policy)
    slow, failed, _ = rules
    breaches = [rule.proof() for rule in rules if rule.breached]
    if recent is not None and not breaches:
        within = f"in the last {recent.seconds:.0f} s "
        breaches = [within + rule.proof() for rule in _rules(recent, objective, policy) if rule.breached]
    decision: Decision = "rollback"
    reason = "; ".join(breaches)
    if not breaches:
        decision, reason = _judge(rules, observation, held_s, hold_s)
    return Action(decision=decision, reason=reason, burn_latency=slow.burn, burn_errors=failed.burn)


def log_evidence(events: float, trials: float, allowed: float) -> float:
    """Log of the evidence that the true share is not `allowed`; reaching log(1/alpha) is a proof at level alpha.

    The likelihood ratio of the binomial mixed over Beta(1/2, 1/2) against the one at `allowed`:
    B(k + 1/2, n - k + 1/2) / B(1/2, 1/2) / (p ** k * (1 - p) ** (n - k)). It is a martingale while the share is `allowed`,
    so by Ville's inequality it ever reaches 1/alpha with a chance of at most alpha (H. Robbins, Statistical methods related to
    the law of the iterated logarithm, 1970; S. Howard et al., Time-uniform, nonparametric, nonasymptotic confidence sequences,
    2021). The mixture is that of R. Krichevsky and V. Trofimov, 1981: it costs at most log(2 sqrt(n)) whatever the true share.
    `events` and `trials` may be fractions.
    """
    if allowed >= 1:
        return 0.0
    mixed = _log_beta(events + 0.5, trials - events + 0.5) - _log_beta(0.5, 0.5)
    return mixed - events * math.log(allowed) - (trials - events) * math.log1p(-allowed)


def lower_bound(events: float, trials: float) -> float:
    """The smallest share that `log_evidence` does not refute at level `ALPHA`; 0 without events."""
    if events <= 0:
        return 0.0
    low, high = 0.0, events / trials
    for _ in range(60):
        middle = (low + high) / 2
        if middle > 0 and log_evidence(events, trials, middle) < -math.log(ALPHA):
            high = middle
        else:
            low = middle
    return low


def _rules(seen: Observation, objective: Objective, policy: ServeSpec) -> tuple[_Rule, _Rule, _Rule]:
    requests, compared = max(seen.requests, 0), max(seen.compared, 0)
    crowd = requests / (EVENTS_PER_S * seen.seconds) if seen.seconds > 0 else 1.0
    slow = _within(seen.slow, requests)
    return (
        _Rule(
            what=f"requests took longer than {objective.p95_ms:g} ms",
            events=slow,
            trials=requests,
            allowed=SLOW_ALLOWED,
            weight=max(crowd, 1.0),
            ready=seen.seconds >= (SETTLE_S if slow > PLAIN * requests else PLAIN_S),
        ),
        _Rule(
            what="requests failed",
            events=_within(seen.errors, requests),
            trials=requests,
            allowed=max(policy.error_pct / 100, LEAST_ALLOWED),
        ),
        _Rule(
            what="boxes differ",
            events=_within(seen.differing, compared),
            trials=compared,
            allowed=max(policy.disagreement_pct / 100, LEAST_ALLOWED),
            weight=BOXES_PER_EVENT,
        ),
    )


def _judge(rules: tuple[_Rule, ...], seen: Observation, held_s: float, hold_s: float) -> tuple[Decision, str]:
    told = "; ".join(rule.text() for rule in rules if rule.trials) or "no requests"
    if held_s < hold_s:
        return "hold", f"{max(hold_s - held_s, 0):.0f} s of probation left: {told}"
    if seen.requests < ENOUGH_REQUESTS:
        return "hold", f"too few requests to judge by, {ENOUGH_REQUESTS} are needed: {told}"
    doubtful = [rule.text() for rule in rules if rule.share > rule.allowed]
    if doubtful:
        return "hold", f"over the objective, but not for certain yet: {'; '.join(doubtful)}"
    return "promote", told


def _within(events: int, trials: int) -> int:
    """Counters are read one after the other: a request may be in one of them already and not yet in the other."""
    return min(max(events, 0), trials)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
