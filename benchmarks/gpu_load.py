"""Requests that worker threads take from one queue: all at once, or by a Poisson process."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np


def served(
    queue: SimpleQueue[float | None], threads: Sequence[threading.Thread], taken: list[float], requests: int, rate: float | None
) -> dict[str, Any]:
    """Start `threads`, queue the time at which each request is due, end them by a None for each, and say what they `taken`, ms.

    `rate` a second; None: all at once, and no percentile says anything.
    """
    gaps = np.random.default_rng(0).exponential(1 / rate, requests) if rate else np.zeros(requests)
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    for due in start + np.cumsum(gaps):
        wait = due - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        queue.put(float(due))
    for _ in threads:
        queue.put(None)
    for thread in threads:
        thread.join()
    row: dict[str, Any] = {"images_per_s": requests / (time.perf_counter() - start), "answered": len(taken)}
    if rate:
        p50, p95, p99 = np.percentile(taken, (50, 95, 99))
        row |= {"offered_per_s": rate, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
    return row
