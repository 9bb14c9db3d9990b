"""Latencies in a mergeable histogram: HdrHistogram with one fixed setting, so that any two of ours can be merged."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import numpy as np
from hdrh.codec import HdrCookieException, HdrHistogramEncoder, HdrLengthException
from hdrh.histogram import HdrHistogram

from redline.errors import StoreError

LOWEST_US = 1
HIGHEST_US = 600_000_000
"""Ten minutes."""
DIGITS = 3
RELATIVE_ERROR = 1 / 1024
"""Widest bucket over its value: 3 digits need 2 * 10**3 <= 2048 sub-buckets, of which the upper half is in use."""
ROUNDING_MS = 0.001
"""Latencies are rounded up to whole microseconds."""
UNREADABLE = (zlib.error, HdrCookieException, HdrLengthException)


class Histogram:
    """Counts of latencies. `clamped` counts values outside 1 us .. 10 min, recorded as the nearest end."""

    def __init__(self) -> None:
        self._counts = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
        self.clamped = 0
        """Of the values recorded here; the encoded form does not carry it."""

    @property
    def count(self) -> int:
        return int(self._counts.get_total_count())

    def record(self, milliseconds: float) -> None:
        self.record_all((milliseconds,))

    def record_all(self, milliseconds: Iterable[float]) -> None:
        """Raises ValueError for NaN: a latency that is not a number has no place in the order."""
        values = np.asarray(tuple(milliseconds), dtype=np.float64)
        if np.isnan(values).any():
            raise ValueError("a latency is NaN")
        # The small subtraction keeps 0.003 ms, which is 3.0000000000000004 us in binary, at 3 us.
        micros = np.ceil(values * 1000 - 1e-6)
        kept = np.clip(micros, LOWEST_US, HIGHEST_US)
        self.clamped += int((micros != kept).sum())
        for value, count in zip(*np.unique(kept.astype(np.int64), return_counts=True), strict=True):
            self._counts.record_value(int(value), int(count))

    def percentile(self, percent: float) -> float:
        """Smallest recorded latency (ms) that at least `percent` % of the latencies do not exceed (nearest rank).

        The upper edge of its bucket is returned: never below the true value, above it by at most `RELATIVE_ERROR`
        of it plus `ROUNDING_MS`. Raises ValueError if nothing was recorded.
        """
        if not self.count:
            raise ValueError("an empty histogram has no percentiles")
        rank = min(max(math.ceil(percent * self.count / 100 - 1e-9), 1), self.count)
        # The library's own percentile rounds the rank to nearest, which can be one too low, and walks the counts in Python.
        index = int(np.searchsorted(np.cumsum(np.ctypeslib.as_array(self._counts.counts)), rank))
        return float(self._counts.get_highest_equivalent_value(self._counts.get_value_from_index(index))) / 1000

    def add(self, other: Histogram) -> None:
        self._counts.add(other._counts)
        self.clamped += other.clamped

    def encode(self) -> str:
        """HdrHistogram V2 compressed format in base64; equal counts give equal text."""
        return str(self._counts.encode().decode("ascii"))

    @classmethod
    def decode(cls, text: str) -> Histogram:
        """Raises StoreError "histogram-unreadable" for text that `encode` did not write."""
        found = cls()
        try:
            payload = HdrHistogramEncoder.decode(text.encode("ascii"))
            head = payload.payload
            setting = (head.lowest_trackable_value, head.highest_trackable_value, head.significant_figures)
            if setting == (LOWEST_US, HIGHEST_US, DIGITS):
                found._counts = HdrHistogram(*setting, hdr_payload=payload)
                return found
            why = f"a histogram of {setting} instead of {(LOWEST_US, HIGHEST_US, DIGITS)} (lowest us, highest us, digits)"
        except (*UNREADABLE, ValueError, IndexError, MemoryError, OverflowError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
        raise StoreError(
            "histogram-unreadable",
            "A stored latency histogram cannot be read.",
            got=why,
            allowed="the text that an earlier measurement wrote",
            fix="Measure again.",
        )


def merge(*encoded: str) -> str:
    """The histogram of all latencies of the given ones, encoded. Associative and commutative; of none: an empty one."""
    total = Histogram()
    for text in encoded:
        total.add(Histogram.decode(text))
    return total.encode()
