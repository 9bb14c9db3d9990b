"""Open-loop load, the measurement that verdicts rest on, and closed-loop load, the quick look at capacity.

Open: requests arrive when they would, whether or not earlier ones are done, and latency runs from that intended time;
so a stall costs every request that arrived during it (coordinated omission corrected). Closed: a client waits for its answer.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from redline.measure.backlog import SameBatch
from redline.measure.clock import Clock, SystemClock, quiet_process
from redline.measure.crew import Crew, Target
from redline.measure.summary import Samples, summarise
from redline.records import Load

Arrivals = Literal["poisson", "constant"]

LEAD_S = 0.01
"""From the start of the threads to the first intended time."""


def open_loop(
    target: Target,
    *,
    rate_per_s: float,
    seconds: float,
    mode: Arrivals = "poisson",
    concurrency: int = 1,
    batch: int = 1,
    seed: int = 0,
    same_batch: SameBatch | None = None,
    clock: Clock | None = None,
    max_backlog_s: float = 10.0,
) -> Load:
    """Sends requests 0, 1, 2 ... at times drawn up front; up to `batch` waiting ones that may be joined go together.

    Overload: once the oldest unfinished request is older than `max_backlog_s`, nothing more is sent, waiting requests
    count as `unfinished` with their age then as latency, and those in flight get another `max_backlog_s` before they
    count as errors with their age. So slow requests are never left out, and the call returns at the latest about
    `seconds` + 2 * `max_backlog_s` after its start, even if the target hangs (its thread is left behind, as a daemon).
    Raises ValueError for a rate, duration, concurrency or batch that makes no load.
    """
    clock = clock if clock is not None else SystemClock()
    due = intended_times(mode, rate_per_s=rate_per_s, seconds=seconds, seed=seed)
    keys = None if same_batch is None else [same_batch(request) for request in range(len(due))]
    crew = Crew(
        target, concurrency=concurrency, batch=batch, clock=clock, same_batch=None if keys is None else keys.__getitem__
    )
    with crew, quiet_process():
        start = clock.now() + LEAD_S
        if not (_send_all(crew, due + start, clock, max_backlog_s) and _drain(crew, due + start, clock, max_backlog_s)):
            crew.drop_waiting()
            crew.wait(clock.now() + max_backlog_s)
        crew.seal(f"no answer within {max_backlog_s:g} s")
        samples = _samples(crew, start, due)
    stopped = len(samples.sent) < len(due)
    return summarise(samples, mode=mode, offered_per_s=rate_per_s, window_s=0.0 if stopped else len(due) / rate_per_s)


def closed_loop(
    target: Target,
    *,
    concurrency: int,
    batch: int = 1,
    seconds: float,
    max_requests: int | None = None,
    same_batch: SameBatch | None = None,
    clock: Clock | None = None,
    max_wait_s: float = 10.0,
) -> Load:
    """`concurrency` * `batch` clients, each of which sends its next request when its last one is answered.

    Latency from the actual send, so a stall is seen once by each client: it shows capacity, not what users would see.
    Answers that have not come `max_wait_s` after the window count as errors. Raises ValueError as `open_loop`.
    """
    clock = clock if clock is not None else SystemClock()
    clients = concurrency * batch
    limit = max_requests if max_requests is not None else 2**63
    if not (seconds > 0 and limit > 0):
        raise ValueError(f"seconds and max_requests must be above 0, got {seconds} and {max_requests}")
    stop = math.inf

    def refill(finished: int, sent: int, now: float) -> int:
        return min(finished, limit - sent) if now < stop else 0

    crew = Crew(target, concurrency=concurrency, batch=batch, clock=clock, same_batch=same_batch, refill=refill)
    with crew, quiet_process():
        start = clock.now()
        stop = start + seconds
        crew.send(min(clients, limit))
        crew.wait(stop + max_wait_s)
        crew.seal(f"no answer within {max_wait_s:g} s after the window")
        samples = _samples(crew, start, None)
    return summarise(samples, mode="closed", offered_per_s=None, window_s=0.0)


def intended_times(mode: Arrivals, *, rate_per_s: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """(n,) ascending seconds from the start, n = round(rate * seconds), over a window of n / rate.

    constant: every 1 / rate. poisson: sorted uniform times, which is a Poisson process given its count (the offered rate
    is then exact, so that achieved rates can be compared with it). Raises ValueError if n < 1.
    """
    if not (rate_per_s > 0 and seconds > 0) or (count := round(rate_per_s * seconds)) < 1:
        raise ValueError(f"{rate_per_s} requests/s over {seconds} s make no load")
    if mode == "constant":
        return np.arange(count, dtype=np.float64) / rate_per_s
    return np.sort(np.random.default_rng(seed).uniform(0, count / rate_per_s, count))


def _send_all(crew: Crew, due: NDArray[np.float64], clock: Clock, max_backlog_s: float) -> bool:
    """False: stopped early, with everything due by then sent."""
    times = due.tolist()
    for request, time in enumerate(times):
        clock.sleep_until(time)
        oldest = crew.oldest_unfinished()
        if oldest is not None and clock.now() - times[oldest] > max_backlog_s:
            crew.send(int(np.searchsorted(due, clock.now(), side="right")) - request)
            return False
        crew.send()
    return True


def _drain(crew: Crew, due: NDArray[np.float64], clock: Clock, max_backlog_s: float) -> bool:
    """Waits for the last answers; False once the oldest request is too old."""
    while (oldest := crew.oldest_unfinished()) is not None:
        limit = float(due[oldest]) + max_backlog_s
        if clock.now() >= limit:
            return False
        crew.wait(limit)
    return True


def _samples(crew: Crew, start: float, due: NDArray[np.float64] | None) -> Samples:
    sent = np.asarray(crew.sent) - start
    return Samples(
        due=due[: len(sent)] if due is not None else sent,
        sent=sent,
        ended=np.asarray(crew.ended) - start,
        inferences=crew.inferences,
        errors=crew.errors,
        unfinished=crew.unfinished,
        first_error=crew.first_error,
    )
