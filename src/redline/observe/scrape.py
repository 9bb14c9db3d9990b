"""Fetch and parse Prometheus text. An endpoint that does not answer, or answers nonsense, is a result and not an error."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from redline.errors import BadInput

TIMEOUT_S = 2.0
MOST_BYTES = 16 << 20
GROWING = ("counter", "histogram", "summary")
ACCEPT = {"Accept": "text/plain;version=0.0.4"}


class Sample(NamedTuple):
    name: str
    """With `_bucket`, `_count` or `_sum`; a counter's always with `_total`, though Triton writes its own without."""
    labels: Mapping[str, str]
    value: float
    grows: bool
    """A counter, or a part of a histogram or summary: starts at 0 again with its process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """What an endpoint said at one moment."""

    url: str
    at_s: float
    """Of the clock given to `scrape`, when the answer came."""
    samples: tuple[Sample, ...] = ()
    error: str | None = None
    """Why there are no samples; None if the endpoint answered."""

    def value(self, name: str, **labels: str) -> float | None:
        """The first sample of that name whose labels include `labels`; None if there is none."""
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
        return None


def scrape(url: str, *, timeout_s: float = TIMEOUT_S, clock: Callable[[], float] = time.monotonic) -> Scrape:
    """Ask an endpoint for its metrics, without a proxy. `url` as `metrics_url` gives it."""
    try:
        body = _fetch(url, timeout_s)
        return Scrape(url=url, at_s=clock(), samples=parse(body))
    except HTTPError as error:
        reason = f"status {error.code}"
    except URLError as error:
        reason = str(getattr(error.reason, "strerror", None) or error.reason)
    except TimeoutError:
        reason = f"no answer within {timeout_s:g} s"
    except (OSError, HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
    return Scrape(url=url, at_s=clock(), error=reason)


def parse(text: str) -> tuple[Sample, ...]:
    """Every sample of an exposition (Prometheus text format). Raises ValueError if it is none."""
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError as error:
        what, fix = "prometheus-client is not installed", 'pip install "redline[triton]"'
        raise BadInput("watch.library", what, got=error, fix=fix) from error
    found = []
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                moment = sample.name.endswith("_created") or "quantile" in sample.labels
                grows = family.type in GROWING and not moment
                found.append(Sample(sample.name, sample.labels, float(sample.value), grows))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not Prometheus text: {error}") from error
    return tuple(found)


def metrics_url(given: str) -> str:
    """`host:port`, `http://host:port` or the whole address of an endpoint, as the latter. Raises BadInput for anything else."""
    address = given if "://" in given else f"http://{given}"
    problem = BadInput(
        "watch.url",
        "this is no address of a metrics endpoint",
        got=given,
        allowed="host:port, or http://host:port/metrics",
        fix="give the address that redline serve printed",
    )
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise problem from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or any(char.isspace() for char in given):
        raise problem
    return address if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/metrics"


def _fetch(url: str, timeout_s: float) -> str:
    with build_opener(ProxyHandler({})).open(Request(url, headers=ACCEPT), timeout=timeout_s) as answer:
        body: bytes = answer.read(MOST_BYTES + 1)
    if len(body) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
    return body.decode()
