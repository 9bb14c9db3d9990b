"""Verdicts on given loads: three answers, reasons with figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from measure_queue import simulated_load

from redline.measure.histogram import Histogram
from redline.measure.summary import Samples, merge_loads, summarise
from redline.measure.verdict import judge_latency, noise_pilot, requests_needed
from redline.records import Load, Noise, Telemetry

STEADY = simulated_load(lambda joined: 0.1, rate=5, seconds=60, mode="constant")
"""P95 100 ms at 5/s."""
NOISE = Noise(p95_ms=(90.0, 110.0), relative=0.1)


@pytest.mark.parametrize(
    ("objective", "noise", "answer"),
    [
        (150.0, NOISE, "pass"),
        (110.3, NOISE, "pass"),
        (109.0, NOISE, "inconclusive"),
        (109.0, None, "pass"),
        (95.0, NOISE, "inconclusive"),
        (95.0, None, "fail"),
        (89.9, NOISE, "fail"),
    ],
)
def test_the_noise_is_the_margin_on_both_sides(objective: float, noise: Noise | None, answer: str) -> None:
    verdict = judge_latency(STEADY, p95_ms=objective, noise=noise, rate=5)
    assert verdict.answer == answer
    assert "100.0" in verdict.reason
    assert f"{objective:g} ms" in verdict.reason


def test_a_late_generator_gives_no_verdict() -> None:
    late = replace(STEADY, slip_p99_ms=15.1)
    verdict = judge_latency(late, p95_ms=150, noise=None, rate=5)
    assert verdict.answer == "inconclusive"
    assert "15.10 ms" in verdict.reason
    assert judge_latency(replace(STEADY, slip_p99_ms=14.9), p95_ms=150, noise=None, rate=5).answer == "pass"


COOL = Telemetry(
    gpu="H100", samples=3, sm_mhz=(1980, 1980), memory_mhz=(2619, 2619), temperature_c=(40, 41), power_w=(300.0, 310.0),
    throttle=("power cap",), processes=0, throttled=False,
)  # fmt: skip
HOT = replace(COOL, throttle=("thermal (hardware)", "power cap"), throttled=True)


def test_a_throttled_gpu_gives_no_verdict_whatever_the_latency() -> None:
    for objective in (150, 50):
        verdict = judge_latency(replace(STEADY, gpus=(COOL, HOT)), p95_ms=objective, noise=None, rate=5)
        assert verdict.answer == "inconclusive"
        assert "thermal (hardware)" in verdict.reason
    assert judge_latency(replace(STEADY, gpus=(COOL, COOL)), p95_ms=150, noise=None, rate=5).answer == "pass"


def test_merged_loads_keep_the_telemetry_of_each() -> None:
    merged = merge_loads([replace(STEADY, gpus=(COOL,)), replace(STEADY, gpus=(HOT,))])
    assert merged.gpus == (COOL, HOT)
    assert merged.throttled == ("thermal (hardware)", "power cap")


def test_errors_fail_and_the_first_is_named() -> None:
    broken = replace(STEADY, errors=1, first_error="RuntimeError: out of memory")
    verdict = judge_latency(broken, p95_ms=150, noise=None, rate=5)
    assert verdict.answer == "fail"
    assert "1 of 300" in verdict.reason
    assert "out of memory" in verdict.reason
    assert judge_latency(replace(broken, requests=3), p95_ms=150, noise=None, rate=5).answer == "fail"


def test_a_rate_that_is_not_reached_fails() -> None:
    slow = replace(STEADY, achieved_per_s=4.8, unfinished=12)
    verdict = judge_latency(slow, p95_ms=150, noise=None, rate=5)
    assert verdict.answer == "fail"
    assert "4.80/s of 5/s" in verdict.reason
    assert "12 unfinished" in verdict.reason


def test_the_tail_after_the_window_is_not_held_against_the_rate() -> None:
    """80 requests in 1 s, each answered after 140 ms: the last answer is 12 % after the window."""
    due = np.arange(80) / 80
    samples = Samples(due=due, sent=due, ended=due + 0.14, inferences=80, errors=0, unfinished=0, first_error=None)
    load = summarise(samples, mode="constant", offered_per_s=80, window_s=1)
    assert load.achieved_per_s == pytest.approx(80 / (79 / 80 + 0.14))
    assert judge_latency(load, p95_ms=150, noise=None, rate=80).answer == "pass"


def test_a_lower_rate_or_a_closed_loop_says_nothing_about_the_objective() -> None:
    lower = judge_latency(STEADY, p95_ms=150, noise=None, rate=20)
    closed = judge_latency(replace(STEADY, mode="closed", offered_per_s=None), p95_ms=150, noise=None, rate=5)
    assert (lower.answer, closed.answer) == ("inconclusive", "inconclusive")
    assert "offered 5/s" in lower.reason
    assert "closed loop" in closed.reason


def test_too_few_requests_give_no_verdict() -> None:
    few, enough = (simulated_load(lambda joined: 0.01, rate=1, seconds=count, mode="constant") for count in (71, 72))
    verdict = judge_latency(few, p95_ms=150, noise=None, rate=1)
    assert verdict.answer == "inconclusive"
    assert "71 requests" in verdict.reason
    assert "72 needed" in verdict.reason
    assert judge_latency(enough, p95_ms=150, noise=None, rate=1).answer == "pass"


def test_requests_needed_is_the_binomial_bound() -> None:
    """Probability that all n are below the true P95: 0.95**n; half of 5 % may lie beyond each end."""
    assert requests_needed() == 72
    assert 0.95**72 <= 0.025 < 0.95**71
    assert requests_needed(99) == 368
    assert 0.99**368 <= 0.025 < 0.99**367


def test_noise_is_the_half_range_over_the_mean() -> None:
    loads = iter([replace(STEADY, p95_ms=value) for value in (95.0, 100.0, 105.0)])
    assert noise_pilot(lambda: next(loads)) == Noise(p95_ms=(95.0, 100.0, 105.0), relative=pytest.approx(0.05))
    with pytest.raises(ValueError, match="at least 2"):
        noise_pilot(lambda: STEADY, repeats=1)


def test_merged_loads_are_one_load_of_all_requests() -> None:
    parts: list[Load] = []
    answers = []
    for count, latency in ((60, 0.01), (140, 0.03)):
        due = np.arange(count) / 20
        ended = due + latency * np.linspace(0.5, 1, count)
        answers.append(ended - due)
        samples = Samples(
            due=due,
            sent=due + latency / 100,
            ended=ended,
            inferences=count // 2,
            errors=1,
            unfinished=0,
            first_error=f"E{count}",
        )
        parts.append(summarise(samples, mode="constant", offered_per_s=20, window_s=count / 20))
    merged = merge_loads(parts)
    whole = Histogram()
    whole.record_all(np.concatenate(answers) * 1000)
    assert (merged.requests, merged.errors, merged.first_error) == (200, 2, "E60")
    assert merged.histogram == whole.encode()
    assert merged.p95_ms == whole.percentile(95)
    assert merged.mean_ms == pytest.approx(np.concatenate(answers).mean() * 1000)
    assert merged.max_ms == pytest.approx(30)
    assert merged.achieved_per_s == pytest.approx(198 / 10, rel=0.01)
    assert merged.mean_batch == pytest.approx(2)
    assert merged.slip_p99_ms == pytest.approx(0.3)
    assert merge_loads(parts[:1]).p99_ms == parts[0].p99_ms


def test_different_rates_are_not_merged() -> None:
    with pytest.raises(ValueError, match="one rate"):
        merge_loads([STEADY, replace(STEADY, offered_per_s=6.0)])
    with pytest.raises(ValueError, match="one rate"):
        merge_loads([])
