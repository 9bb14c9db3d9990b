"""Switching releases under load: failed requests, and the P95 around each switch.

Protocol: the detector is released, its knee through the gateway is searched, and the gateway gets an open Poisson load at 60 %
of it from a process of its own. Meanwhile the active release is switched five times (three rollouts, two rollbacks), each
release loaded beside the one that serves. Every answer's status is kept; a switch's P95 is that of the requests due from one
second before to two seconds after it.

    python benchmarks/served_switches.py --work FOLDER [--shared FOLDER] [--output FILE]
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from redline import api
from redline.data import read_bytes
from redline.measure.knee import find_knee
from redline.measure.load import intended_times, open_loop
from redline.records import Load
from redline.releasing import choice_to_serve
from redline.serve.admin import running_service
from redline.serve.client import Endpoint
from redline.serving import service_folder
from serving_case import Case, cases, parser, watched, write

SHARE = 0.6
REQUESTS = 1_500
CLIENTS = 32
AROUND_S = (-1.0, 2.0)


def main() -> int:
    given = parser(__doc__).parse_args()
    results = {case.name: measure(case) for case in cases(given)}
    write(given, results)
    return 0 if all(one["failed"] == 0 and one["requests"] >= 1000 for one in results.values()) else 1


def measure(case: Case) -> dict[str, Any]:
    objective, result = case.spec.objective, dict[str, Any]()
    try:
        first = api.release(case.spec.path, runs=case.runs, progress=False)
        if first.verdict.answer != "pass" or first.gateway_port is None:
            raise SystemExit(f"{case.name}: the first release did not pass: {first.verdict.reason}")
        with watched(result):
            knee = search_knee(case, first.gateway_port)
            result |= {"objective_p95_ms": objective.p95_ms, "knee_per_s": knee}
            result |= switches(case, first.gateway_port, SHARE * knee, first.release)
    finally:
        api.stop_service(case.spec.path, runs=case.runs)
    return result


def search_knee(case: Case, port: int) -> float:
    endpoint, mix = Endpoint(port, case.spec.serve.name), [read_bytes(image) for image in case.dataset.images]

    def at(rate: float) -> Load:
        def send(requests: Any) -> None:
            for request in requests:
                endpoint.send(mix[request % len(mix)])

        return open_loop(send, rate_per_s=rate, seconds=max(3.0, 100 / rate), concurrency=CLIENTS, max_backlog_s=2.0)

    p95 = case.spec.objective.p95_ms
    return find_knee(at, p95_ms=p95, start_rate=case.spec.objective.throughput, low=2.0, high=1000.0, noise=None).rate_per_s


def switches(case: Case, port: int, rate: float, first: int) -> dict[str, Any]:
    seconds = max(REQUESTS / rate, 40.0)
    images = [image.path for image in case.dataset.images]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(time.monotonic).result()  # the process is there before the load begins
        load = pool.submit(run_load, port, case.spec.serve.name, images, rate, seconds)
        time.sleep(3.0)
        made = [act_of(case, kind) for kind in ("release", "rollback", "release", "rollback", "release")]
        due, ended, failures = load.result()
    latency = 1000 * (ended - due)
    rows = []
    for kind, at, seconds_taken, to in made:
        near = (due >= at + AROUND_S[0]) & (due <= at + AROUND_S[1])
        rows.append(
            {
                "kind": kind,
                "to": to,
                "switch_ms": 1000 * seconds_taken,
                "requests_around": int(near.sum()),
                "p95_ms_around": float(np.percentile(latency[near], 95)) if near.any() else None,
            }
        )
    return {
        "rate_per_s": rate,
        "requests": len(due),
        "failed": len(failures),
        "first_failure": failures[0] if failures else None,
        "p50_ms": float(np.percentile(latency, 50)),
        "p95_ms": float(np.percentile(latency, 95)),
        "p99_ms": float(np.percentile(latency, 99)),
        "max_ms": float(latency.max()),
        "switches": rows,
    }


def act_of(case: Case, kind: str) -> tuple[str, float, float, int | None]:
    """One switch through the service's own acts: the copies that are released differ in their number alone."""
    from redline.networks import graph_network
    from redline.releasing import expect, golden_files, make_release
    from redline.serve.repository import releases_in, write_repository
    from redline.serve.state import REPOSITORY

    folder = service_folder(case.spec, case.runs)
    service = running_service(folder)
    assert service is not None
    if kind == "release":
        candidate, trial = choice_to_serve(case.record)
        network = graph_network(case.record, case.runs)
        expected = expect(case.spec, case.record, candidate, network)
        number = 1 + max(releases_in(folder / REPOSITORY, case.spec.serve.name))
        made = make_release(case.spec, case.record, candidate, trial, expected, number, engine=network.engine)
        with golden_files(made, expected) as files:
            write_repository(folder / REPOSITORY, made, "embedded", network_file=network.path, golden_files=files)
        service.stage(number)
        at = time.monotonic()
        switch = service.promote(number, hold_s=0.0)
    else:
        at = time.monotonic()
        switch = service.rollback(to=None, reason="benchmark")
    time.sleep(3.0)
    return kind, at, switch.seconds, switch.to


def run_load(
    port: int, model: str, images: list[str], rate: float, seconds: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[str]]:
    """In a process of its own: due and end times on the machine's monotonic clock, and what failed."""
    from threading import Lock

    encoded, endpoint = [Path(path).read_bytes() for path in images], Endpoint(port, model)
    due = intended_times("poisson", rate_per_s=rate, seconds=seconds, seed=1)
    began, ended, failures, lock = [0.0], np.zeros(len(due)), list[str](), Lock()

    def send(requests: Any) -> None:
        with lock:
            began[0] = began[0] or time.monotonic() - due[requests[0]]
        for request in requests:
            try:
                endpoint.send(encoded[request % len(encoded)])
            except Exception as error:  # whatever it is, it is a failed request
                failures.append(f"{type(error).__name__}: {error}")
            ended[request] = time.monotonic()

    open_loop(send, rate_per_s=rate, seconds=seconds, seed=1, concurrency=CLIENTS)
    return due + began[0], ended, failures


if __name__ == "__main__":
    sys.exit(main())
