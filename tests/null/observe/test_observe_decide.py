"""Hold, promote, roll back: the bound against known values, false alarms at the very edge, and how soon a bad release goes."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from decide_case import HOLD_S, LOOK_S, LOOKS_S, OBJECTIVE, POLICY, chance_of_rollback, fewest, judged, rolled_back

from redline.observe.decide import ALPHA, LEAST_ALLOWED, RECENT_S, decide, log_evidence, lower_bound
from redline.records import Observation

RATES = (10, 30)


def test_the_evidence_is_the_mixed_likelihood_ratio() -> None:
    """Against the integral over the prior Beta(1/2, 1/2), by Gauss-Chebyshev quadrature (tolerance 1e-9)."""
    nodes = (1 + np.cos((2 * np.arange(1, 4001) - 1) * np.pi / 8000)) / 2
    for events, trials, allowed in [(3, 10, 0.05), (0, 40, 0.05), (7, 900, 0.001), (40, 40, 0.05), (31, 98, 0.3)]:
        ratio = np.mean((nodes / allowed) ** events * ((1 - nodes) / (1 - allowed)) ** (trials - events))
        assert log_evidence(events, trials, allowed) == pytest.approx(math.log(ratio), abs=1e-9)


def test_the_bound_is_where_the_evidence_reaches_its_level() -> None:
    for events, trials in [(1, 1), (5, 100), (31, 98), (98, 98), (7.5, 33.3)]:
        least = lower_bound(events, trials)
        assert 0 < least < events / trials
        assert log_evidence(events, trials, least) == pytest.approx(-math.log(ALPHA), abs=1e-6)
    assert lower_bound(0, 50) == 0.0


def test_the_bound_is_below_the_one_for_a_single_look() -> None:
    """Clopper and Pearson, 1934: the share p with P(X >= k | n, p) = ALPHA. Looking always costs, but not more than half."""
    for events, trials in [(10, 40), (30, 100), (100, 400)]:
        low, high = 0.0, events / trials
        for _ in range(60):
            p = (low + high) / 2
            tail = sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(events, trials + 1))
            low, high = (p, high) if tail < ALPHA else (low, p)
        assert 0.5 * low < lower_bound(events, trials) < low


@pytest.mark.parametrize("kind", ["slow", "errors", "differing"])
def test_more_of_it_never_speaks_for_the_release(kind: str) -> None:
    """The simulations rest on one line per look: beyond it, always."""
    limit = fewest(kind, 300, 20.0)
    for events in range(301):
        given = {kind: events, "compared": 300} if kind == "differing" else {kind: events}
        found = judged(0 if kind == "differing" else 300, 20.0, **given).decision
        assert (found == "rollback") == (events >= limit)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("kind", "edge"), [("slow", 0.05), ("errors", POLICY.error_pct / 100)])
def test_a_release_at_the_very_edge_is_practically_never_rolled_back(kind: str, edge: float, rate: int) -> None:
    """120 looks in 60 s. The bound is ALPHA = 1e-4 however many looks there are; exactly, it is less. Inside, it is nothing."""
    assert 0 < chance_of_rollback(kind, edge, rate)[-1] < ALPHA / 4
    assert chance_of_rollback(kind, 0.4 * edge, rate)[-1] < 2e-6


def test_the_simulation_and_the_exact_chance_agree() -> None:
    """12 % slow at 10/s: binomial counts drawn for 20,000 probations against the recursion, within four standard errors."""
    rng, probations = np.random.default_rng(1), 20_000
    events = rng.binomial(5, 0.12, (probations, len(LOOKS_S))).cumsum(axis=1)
    trials = np.broadcast_to(5 * np.arange(1, len(LOOKS_S) + 1), events.shape)
    simulated = np.isfinite(rolled_back("slow", trials, events)).mean()
    exact = chance_of_rollback("slow", 0.12, 10)[-1]
    assert 0.2 < exact < 0.98
    assert abs(simulated - exact) < 4 * math.sqrt(exact * (1 - exact) / probations)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    ("kind", "share", "within_s"), [("slow", 1.0, 3.0), ("slow", 0.3, 10.0), ("errors", 1.0, 0.5), ("errors", 0.2, 5.0)]
)
def test_a_bad_release_is_gone_within_ten_seconds(kind: str, share: float, within_s: float, rate: int) -> None:
    """All requests 50 ms late: all of them slow. 30 % slow: P95 far over. By then with a chance of at least 99 %."""
    chances = chance_of_rollback(kind, share, rate, 20.0)
    assert chances[LOOKS_S[: len(chances)] <= within_s][-1] > 0.99


def windows(share: np.ndarray, rate: int, probations: int, seed: int) -> np.ndarray:
    """Look at which the last ten seconds alone roll back, in seconds, inf for none. `share` slow by look; 1 % before."""
    rng, per_look, length = np.random.default_rng(seed), int(rate * LOOK_S), int(RECENT_S / LOOK_S)
    slow = rng.binomial(per_look, share, (probations, len(share))).cumsum(axis=1)
    recent = slow[:, length:] - slow[:, :-length]
    hits = recent >= fewest("slow", per_look * length, RECENT_S)
    return np.where(hits.any(axis=1), LOOKS_S[length:][hits.argmax(axis=1)], np.inf)


@pytest.mark.parametrize("rate", RATES)
def test_a_release_that_turns_bad_late_is_gone_as_soon(rate: int) -> None:
    """30 % slow after 40 s without fault: the last ten seconds show it, though the whole probation hides it. At the very edge
    they add less than 2 in 10,000 (15 in a million of 200,000 probations at 10/s)."""
    turned = np.where(LOOKS_S > 40, 0.3, 0.01)
    assert np.quantile(windows(turned, rate, 2_000, seed=7), 0.99) <= 50.0
    assert np.isfinite(windows(np.full(len(LOOKS_S), 0.05), rate, 20_000, seed=8)).mean() < 2e-4
    before, since = int(rate * 40), int(rate * 9)
    whole = Observation(release=4, seconds=49.0, requests=before + since, errors=0, slow=before // 100 + since * 3 // 10)
    recent = replace(whole, seconds=10.0, requests=rate * 10, slow=since * 3 // 10)
    given = {"held_s": 49.0, "hold_s": HOLD_S}
    assert decide(whole, OBJECTIVE, POLICY, **given).decision == "hold"
    action = decide(whole, OBJECTIVE, POLICY, **given, recent=recent)
    assert action.decision == "rollback"
    assert action.reason.startswith(f"in the last 10 s {recent.slow} of {recent.requests} requests took longer than 20 ms")


def test_a_worse_release_than_allowed_goes_in_the_end() -> None:
    """Three times the allowed share, too little for ten seconds, within the hold."""
    chances = chance_of_rollback("slow", 0.15, 30)
    assert chances[LOOKS_S <= 10.0][-1] < 0.5
    assert chances[-1] > 0.99


def probations_with(stalled: np.ndarray, seed: int) -> np.ndarray:
    """Time of each rollback at 30/s, 1 % slow, all of them in `stalled` tenths of a second: (probations, 600)."""
    rng = np.random.default_rng(seed)
    events = np.where(stalled, 3, rng.binomial(3, 0.01, stalled.shape)).cumsum(axis=1)[:, 4::5]
    trials = np.broadcast_to(15 * np.arange(1, len(LOOKS_S) + 1), events.shape)
    return rolled_back("slow", trials, events)


def test_a_stall_of_the_machine_does_not_roll_back_a_healthy_release() -> None:
    """One of a whole second, at any moment of the hold; or of half a second about once a minute."""
    tenth, start = np.arange(600), np.repeat(np.arange(600), 5)[:, None]
    assert not np.isfinite(probations_with((tenth >= start) & (tenth < start + 10), seed=2)).any()
    starts = np.random.default_rng(3).random((20_000, 600)) < 0.1 / 60
    stalled = starts.copy()
    for later in range(1, 5):
        stalled[:, later:] |= starts[:, :-later]
    assert np.isfinite(probations_with(stalled, seed=4)).mean() < 5e-4


def images(share: float, correlation: float, per_s: int, seed: int, probations: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Boxes compared and differing by each look. Boxes an image: geometric around 14, as skewed as COCO's; the share of an
    image that differs: Beta with mean `share`, variance `correlation` * share * (1 - share), or all or nothing for 1."""
    rng = np.random.default_rng(seed)
    shape = (probations, int(HOLD_S) * per_s)
    boxes = rng.geometric(1 / 14, shape)
    if correlation == 1:
        differing = boxes * (rng.random(shape) < share)
    else:
        total = (1 - correlation) / correlation
        differing = rng.binomial(boxes, rng.beta(share * total, (1 - share) * total, shape))
    by_look = np.maximum((LOOKS_S * per_s).astype(int) - 1, 0)
    return boxes.cumsum(axis=1)[:, by_look], differing.cumsum(axis=1)[:, by_look]


def test_boxes_of_an_image_do_not_count_as_many() -> None:
    """At the very edge, 1 image/s. Correlated at 0.3: under 1 %. All or nothing per image, the worst there is: under 3 %, but
    taken as independent boxes a seventh would go at the last look alone. At 2 % of the boxes: none."""
    edge = POLICY.disagreement_pct / 100
    assert np.isfinite(rolled_back("differing", *images(edge, 0.3, 1, seed=3))).mean() < 0.01
    assert np.isfinite(rolled_back("differing", *images(edge, 1.0, 1, seed=4))).mean() < 0.03
    assert not np.isfinite(rolled_back("differing", *images(0.02, 0.3, 1, seed=5))).any()
    trials, events = (counts[:, -1].tolist() for counts in images(edge, 1.0, 1, seed=4))
    proofs = [k > edge * n and log_evidence(k, n, edge) >= -math.log(ALPHA) for k, n in zip(events, trials, strict=True)]
    assert np.mean(proofs) > 0.1


@pytest.mark.parametrize(("share", "within_s"), [(1.0, 5.0), (0.5, 10.0)])
def test_another_answer_is_seen_soon(share: float, within_s: float) -> None:
    """3 images compared a second: 30 requests/s of which a tenth is shadowed. By then with a chance of at least 95 %."""
    gone = rolled_back("differing", *images(share, 1.0 if share == 1 else 0.3, 3, seed=6, probations=200))
    assert np.quantile(gone, 0.95) <= within_s


@pytest.mark.parametrize("requests", [1, 2, 5, 40, 1000])
def test_one_error_never_rolls_back(requests: int) -> None:
    assert judged(requests, 5.0, errors=1).decision == "hold"
    strict = replace(POLICY, error_pct=0.0)
    seen = Observation(release=4, seconds=5.0, requests=requests, errors=1, slow=0)
    action = decide(seen, OBJECTIVE, strict, held_s=5.0, hold_s=HOLD_S)
    assert action.decision == "hold"
    assert action.burn_errors == pytest.approx(1 / requests / LEAST_ALLOWED)


@pytest.mark.parametrize(("requests", "errors"), [(3, 3), (30, 5), (300, 9)])
def test_a_burst_of_errors_rolls_back_at_once(requests: int, errors: int) -> None:
    action = judged(requests, 0.5, errors=errors)
    assert action.decision == "rollback"
    assert action.reason.startswith(f"{errors} of {requests} requests failed: certainly more than ")
    assert action.burn_errors == pytest.approx(errors / requests / 0.001)


def test_latency_waits_until_the_switch_is_over() -> None:
    assert judged(60, 2.5, slow=60).decision == "hold"
    assert judged(90, 3.0, slow=60).decision == "rollback"
    assert judged(210, 7.5, slow=100).decision == "hold"
    assert judged(240, 8.0, slow=100).decision == "rollback"


def test_a_rollback_says_all_that_is_wrong() -> None:
    action = judged(100, 10.0, slow=60, errors=40, compared=200, differing=150)
    assert [part.split(": ")[0] for part in action.reason.split("; ")] == [
        "60 of 100 requests took longer than 20 ms",
        "40 of 100 requests failed",
        "150 of 200 boxes differ",
    ]
    assert action.burn_latency == pytest.approx(12.0)


def test_promotion_needs_the_hold_and_evidence() -> None:
    assert judged(1000, 59.0, slow=20).decision == "hold"
    assert judged(1000, 60.0, slow=20).decision == "promote"
    few = judged(71, 600.0)
    assert few.decision == "hold"
    assert "72 are needed" in few.reason
    assert judged(72, 600.0).decision == "promote"
    assert judged(0, 600.0).reason == "too few requests to judge by, 72 are needed: no requests"


@pytest.mark.parametrize("given", [{"slow": 60}, {"errors": 3}, {"compared": 1000, "differing": 60}])
def test_over_a_limit_without_proof_is_neither_promoted_nor_rolled_back(given: dict[str, int]) -> None:
    action = judged(1000, 60.0, **given)
    assert action.decision == "hold"
    assert action.reason.startswith("over the objective, but not for certain yet")


def test_what_was_not_compared_does_not_stand_in_the_way() -> None:
    assert "boxes" not in judged(1000, 60.0).reason
    assert "0 of 40 boxes differ (0 %, 5 % may)" in judged(1000, 60.0, compared=40).reason


def test_counters_read_one_after_the_other_do_no_harm() -> None:
    """A request may be counted as slow or failed and not yet as answered."""
    assert judged(0, 1.0, slow=1, errors=1).decision == "hold"
    assert judged(2, 0.0, slow=3, errors=-1).burn_latency == pytest.approx(20.0)


def test_all_boxes_may_differ_where_the_policy_says_so() -> None:
    seen = Observation(release=4, seconds=60.0, requests=100, errors=0, slow=0, compared=5000, differing=5000)
    free = replace(POLICY, disagreement_pct=100.0)
    assert decide(seen, OBJECTIVE, free, held_s=60.0, hold_s=60.0).decision == "promote"


def test_the_documented_delays_are_the_computed_ones() -> None:
    """The table of docs/observe.md, row by row."""
    shares = {
        "every request 50 ms late": ("slow", 1.0),
        "30 % slow": ("slow", 0.3),
        "every request fails": ("errors", 1.0),
        "20 % fail": ("errors", 0.2),
        "5 % fail": ("errors", 0.05),
    }
    text = (Path(__file__).parents[3] / "docs" / "observe.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| ([\d.]+) s \| ([\d.]+) s \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for name, rate, median, late in rows:
        chances = chance_of_rollback(*shares[name], int(rate), 20.0)
        assert (LOOKS_S[(chances > 0.5).argmax()], LOOKS_S[(chances > 0.99).argmax()]) == (float(median), float(late)), name


def test_the_documented_false_alarms_are_the_computed_ones() -> None:
    """The sentence below that table. What is simulated there has tests of its own above."""
    edge, errors = chance_of_rollback("slow", 0.05, 10)[-1], chance_of_rollback("errors", 0.001, 10)[-1]
    inside = chance_of_rollback("slow", 0.02, 10)[-1]
    computed = (
        f"exactly 5 % slow, {1e6 * edge:.0f} in a million at 10/s; exactly 0.1 % errors, {1e6 * errors:.0f} in a million; "
        f"2 % slow, {1e12 * inside:.0f} in 10^12"
    )
    text = (Path(__file__).parents[3] / "docs" / "observe.md").read_text(encoding="utf-8")
    assert computed in " ".join(text.split())
