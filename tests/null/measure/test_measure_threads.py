"""Real threads and a real clock, with tolerances for a busy machine."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from redline.measure.clock import PR_GET_TIMERSLACK, SystemClock, _timer_slack, quiet_process
from redline.measure.histogram import Histogram
from redline.measure.load import closed_loop, open_loop
from redline.measure.verdict import judge_latency


@pytest.fixture(autouse=True)
def _process_is_left_as_it_was() -> Iterator[None]:
    before = (gc.isenabled(), sys.getswitchinterval(), _timer_slack(PR_GET_TIMERSLACK, 0))
    yield
    assert (gc.isenabled(), sys.getswitchinterval(), _timer_slack(PR_GET_TIMERSLACK, 0)) == before


class Recorder:
    """Takes `seconds` an inference; remembers what was joined."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, joined: Sequence[int]) -> None:
        self.calls.append(tuple(joined))
        time.sleep(self.seconds)


def test_open_loop_sends_every_request_once_in_time_and_order() -> None:
    target = Recorder()
    load = open_loop(target, rate_per_s=400, seconds=0.5, seed=3)
    assert [request for call in target.calls for request in call] == list(range(200))
    assert (load.mode, load.offered_per_s, load.requests, load.errors, load.unfinished) == ("poisson", 400, 200, 0, 0)
    assert load.achieved_per_s == pytest.approx(200 / load.seconds)
    assert 0.5 <= load.seconds < 1
    assert Histogram.decode(load.histogram).count == 200
    assert 0 <= load.slip_p99_ms < 250
    assert load.mean_batch == 1


def stall(joined: Sequence[int]) -> None:
    time.sleep(0.2 if 20 in joined else 0.0005)


def slower_than(load_histogram: str, milliseconds: float) -> int:
    histogram = Histogram.decode(load_histogram)
    return sum(histogram.percentile(100 * (rank + 0.5) / histogram.count) > milliseconds for rank in range(histogram.count))


def test_a_stall_is_seen_by_every_request_due_meanwhile_and_by_one_of_a_closed_loop() -> None:
    """200 ms at 100/s: 20 requests are due during the stall; those above 50 ms are 15 of them, more on a busy machine."""
    opened = open_loop(stall, rate_per_s=100, seconds=0.8, mode="constant")
    closed = closed_loop(stall, concurrency=1, seconds=5, max_requests=80)
    assert 15 <= slower_than(opened.histogram, 50) <= 40
    assert 1 <= slower_than(closed.histogram, 150) <= 3
    assert opened.p90_ms > 50
    assert opened.max_ms >= 200
    assert closed.p90_ms < 50


def test_waiting_requests_are_joined_only_with_their_like() -> None:
    target = Recorder(0.01)
    load = open_loop(target, rate_per_s=1000, seconds=0.1, batch=8, same_batch=lambda request: request % 2)
    assert sorted(request for call in target.calls for request in call) == list(range(100))
    assert all(len({request % 2 for request in call}) == 1 and len(call) <= 8 for call in target.calls)
    assert load.mean_batch == pytest.approx(100 / len(target.calls))
    assert load.mean_batch > 2


def test_concurrency_is_the_number_of_inferences_in_flight() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def target(joined: Sequence[int]) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    open_loop(target, rate_per_s=500, seconds=0.1, concurrency=3)
    assert most == 3


def test_errors_are_counted_and_the_measurement_goes_on() -> None:
    def target(joined: Sequence[int]) -> None:
        if joined[0] % 10 == 3:
            raise RuntimeError(f"request {joined[0]}")

    load = open_loop(target, rate_per_s=500, seconds=0.2)
    assert (load.requests, load.errors, load.first_error) == (100, 10, "RuntimeError: request 3")
    assert load.achieved_per_s == pytest.approx(90 / load.seconds)


def test_overload_stops_early_and_counts_who_still_waits() -> None:
    """20 ms each at 200/s: the backlog is 0.3 s old after about 0.4 s; half of the latencies are above 0.1 s."""
    start = time.perf_counter()
    load = open_loop(Recorder(0.02), rate_per_s=200, seconds=30, max_backlog_s=0.3)
    assert time.perf_counter() - start < 5
    assert load.errors == 0
    assert load.unfinished > 20
    assert load.requests - load.unfinished < 60
    assert load.achieved_per_s < 60
    assert load.p95_ms > 250
    assert load.max_ms == pytest.approx(300, rel=0.5)
    assert judge_latency(load, p95_ms=200, noise=None, rate=200).answer != "pass"


def test_a_hanging_target_is_given_up_and_reported() -> None:
    release = threading.Event()
    start = time.perf_counter()
    opened = open_loop(lambda joined: release.wait(60) and None, rate_per_s=100, seconds=20, max_backlog_s=0.2)
    closed = closed_loop(lambda joined: release.wait(60) and None, concurrency=2, batch=2, seconds=0.1, max_wait_s=0.2)
    assert time.perf_counter() - start < 5
    release.set()
    assert (opened.errors, opened.first_error) == (1, "no answer within 0.2 s")
    assert opened.unfinished == opened.requests - 1
    assert opened.max_ms >= 400
    assert opened.achieved_per_s == 0
    assert (closed.requests, closed.errors, closed.mean_batch) == (4, 4, 2)
    assert closed.p50_ms >= 299


def test_closed_loop_keeps_every_client_busy() -> None:
    target = Recorder(0.01)
    load = closed_loop(target, concurrency=2, batch=3, seconds=0.3)
    assert (load.mode, load.offered_per_s, load.slip_p99_ms) == ("closed", None, 0)
    assert {len(call) for call in target.calls} == {3}
    assert load.mean_batch == 3
    assert load.p50_ms >= 10
    assert 100 < load.achieved_per_s <= 600
    assert sorted(request for call in target.calls for request in call) == list(range(load.requests))


def test_closed_loop_joins_only_likes_and_stops_at_the_count() -> None:
    target = Recorder(0.001)
    load = closed_loop(target, concurrency=2, batch=2, seconds=10, max_requests=31, same_batch=lambda request: request % 3)
    assert load.requests == 31
    assert load.seconds < 5
    assert all(len({request % 3 for request in call}) == 1 for call in target.calls)


def test_slip_is_the_lateness_of_the_generator() -> None:
    class LateClock(SystemClock):
        def sleep_until(self, deadline: float) -> None:
            super().sleep_until(deadline + 0.02)

    load = open_loop(lambda joined: None, rate_per_s=20, seconds=0.5, mode="constant", clock=LateClock())
    assert 20 <= load.slip_p99_ms < 60
    assert load.p50_ms >= 20


def test_the_process_is_quiet_during_a_measurement_even_if_it_is_interrupted() -> None:
    seen: list[tuple[bool, float]] = []
    open_loop(lambda joined: seen.append((gc.isenabled(), sys.getswitchinterval())), rate_per_s=100, seconds=0.02)
    assert {(on, round(interval, 6)) for on, interval in seen} == {(False, 0.0005)}

    class Interrupted(SystemClock):
        def sleep_until(self, deadline: float) -> None:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        open_loop(lambda joined: None, rate_per_s=100, seconds=1, clock=Interrupted())
    assert threading.active_count() <= before


def test_the_collector_stays_off_if_it_was_off() -> None:
    gc.disable()
    try:
        with quiet_process():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("changes", [{"concurrency": 0}, {"batch": 0}])
def test_no_crew_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        open_loop(lambda joined: None, rate_per_s=10, seconds=1, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        closed_loop(lambda joined: None, seconds=1, **{"concurrency": 1, "batch": 1, **changes})


@pytest.mark.parametrize("changes", [{"seconds": 0.0}, {"max_requests": 0}])
def test_an_empty_closed_loop_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        closed_loop(lambda joined: None, concurrency=1, **{"seconds": 1.0, **changes})  # type: ignore[arg-type]
