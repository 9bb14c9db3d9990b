"""From the times of single requests to the record of a load measurement, and from several such records to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redline.measure.histogram import Histogram, merge
from redline.records import Load, LoadMode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """One entry a request, seconds from the start: when it was due, when it was sent, when its answer came."""

    due: NDArray[np.float64]
    sent: NDArray[np.float64]
    ended: NDArray[np.float64]
    inferences: int
    errors: int
    unfinished: int
    first_error: str | None


def summarise(samples: Samples, *, mode: LoadMode, offered_per_s: float | None, window_s: float) -> Load:
    """Every request counts in the latencies, answered well or not; only those answered well count in the rate.

    `seconds` runs to the last answer, and at least to the end of the window.
    """
    latency_ms = (samples.ended - samples.due) * 1000
    slip_ms = (samples.sent - samples.due) * 1000
    histogram = Histogram()
    histogram.record_all(latency_ms)
    requests = len(latency_ms)
    seconds = max(window_s, float(samples.ended.max()))
    good = requests - samples.errors - samples.unfinished
    return Load(
        mode=mode,
        offered_per_s=offered_per_s,
        achieved_per_s=good / seconds,
        seconds=seconds,
        requests=requests,
        errors=samples.errors,
        mean_ms=float(latency_ms.mean()),
        p50_ms=histogram.percentile(50),
        p90_ms=histogram.percentile(90),
        p95_ms=histogram.percentile(95),
        p99_ms=histogram.percentile(99),
        max_ms=float(latency_ms.max()),
        slip_p99_ms=float(np.percentile(slip_ms, 99, method="inverted_cdf")),
        mean_batch=(requests - samples.unfinished) / max(samples.inferences, 1),
        histogram=histogram.encode(),
        first_error=samples.first_error,
        unfinished=samples.unfinished,
    )


def merge_loads(loads: Sequence[Load]) -> Load:
    """Repeats of one measurement as one. Percentiles from the merged histogram; slip's P99 is the worst of them.

    Raises ValueError for none, or for different modes or rates.
    """
    if len({(load.mode, load.offered_per_s) for load in loads}) != 1:
        raise ValueError("only repeats at one rate and in one mode can be merged")
    first = loads[0]
    if len(loads) == 1:
        return first
    encoded = merge(*(load.histogram for load in loads))
    histogram = Histogram.decode(encoded)
    seconds = sum(load.seconds for load in loads)
    requests = sum(load.requests for load in loads)
    executed = [load.requests - load.unfinished for load in loads]
    inferences = sum(count / load.mean_batch for count, load in zip(executed, loads, strict=True) if count)
    return Load(
        mode=first.mode,
        offered_per_s=first.offered_per_s,
        achieved_per_s=sum(load.achieved_per_s * load.seconds for load in loads) / seconds,
        seconds=seconds,
        requests=requests,
        errors=sum(load.errors for load in loads),
        mean_ms=sum(load.mean_ms * load.requests for load in loads) / requests,
        p50_ms=histogram.percentile(50),
        p90_ms=histogram.percentile(90),
        p95_ms=histogram.percentile(95),
        p99_ms=histogram.percentile(99),
        max_ms=max(load.max_ms for load in loads),
        slip_p99_ms=max(load.slip_p99_ms for load in loads),
        mean_batch=sum(executed) / inferences if inferences else 0.0,
        histogram=encoded,
        first_error=next((load.first_error for load in loads if load.first_error is not None), None),
        unfinished=sum(load.unfinished for load in loads),
        gpus=tuple(gpu for load in loads for gpu in load.gpus),
    )
