"""The clock of a measurement, and a process that keeps still while it runs."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PR_SET_TIMERSLACK = 29
PR_GET_TIMERSLACK = 30
"""prctl(2)."""
TIMER_SLACK_NS = 1_000
"""Linux delays a sleeper by up to its slack, 50 us unless told otherwise."""
SWITCH_INTERVAL_S = 0.000_5
"""How long a thread in pure Python may keep a due dispatcher waiting; Python's own default is 5 ms."""
YIELD_S = 0.000_05
"""Last stretch before a deadline: yield in a loop instead of sleeping, about as long as a wake-up takes."""


class Clock(Protocol):
    def now(self) -> float:
        """Seconds, never going back."""
        ...

    def sleep_until(self, deadline: float) -> None: ...


class SystemClock:
    """`time.monotonic`; sleeps to an absolute deadline, so that lateness never adds up."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(left - YIELD_S if left > YIELD_S else 0)


@contextmanager
def quiet_process() -> Iterator[None]:
    """Collects garbage, then keeps the collector off, the calling thread's timer slack small and GIL hand-overs quick.

    All three are as before afterwards. The first and the last hold for the whole process: one measurement at a time.
    """
    collecting, interval = gc.isenabled(), sys.getswitchinterval()
    slack = _timer_slack(PR_GET_TIMERSLACK, 0)
    gc.collect()
    gc.disable()
    sys.setswitchinterval(min(interval, SWITCH_INTERVAL_S))
    _timer_slack(PR_SET_TIMERSLACK, TIMER_SLACK_NS)
    try:
        yield
    finally:
        if slack > 0:
            _timer_slack(PR_SET_TIMERSLACK, slack)
        sys.setswitchinterval(interval)
        if collecting:
            gc.enable()


def _timer_slack(option: int, nanoseconds: int) -> int:
    """Result of prctl, -1 if the kernel refuses (then sleeps are about 50 us later, which slip shows)."""
    return int(ctypes.CDLL(None).prctl(option, ctypes.c_ulong(nanoseconds), 0, 0, 0))
