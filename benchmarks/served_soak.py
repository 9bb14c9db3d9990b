"""100,000 requests through the gateway: failures, and what the processes' memory does.

Protocol: the detector is released, then the gateway gets a constant open load at 60 % of its knee (given or searched) from a
process of its own until so many requests are sent. Every five seconds the resident memory of the service, the server and each
of its Python processes is read. Growth is the last tenth's median over that of the second tenth: start-up is over by then.

    python benchmarks/served_soak.py --work FOLDER [--requests 100000] [--rate R] [--output FILE]
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import psutil

from redline import api
from redline.serve.admin import running_service
from redline.serving import service_folder
from served_switches import SHARE, run_load, search_knee
from serving_case import demo_case, parser, watched, write

EVERY_S = 5.0
MOST_GROWTH = 0.02


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=100_000)
    options.add_argument("--rate", type=float, help="requests/s; default: 60 %% of the knee")
    given = options.parse_args()
    case, result = demo_case(given.work, given.minutes), dict[str, Any]()
    try:
        outcome = api.release(case.spec.path, runs=case.runs, progress=False)
        if outcome.gateway_port is None or outcome.verdict.answer != "pass":
            raise SystemExit(outcome.verdict.reason)
        rate = given.rate or SHARE * search_knee(case, outcome.gateway_port)
        with watched(result):
            result |= soak(case, outcome.gateway_port, rate, given.requests)
    finally:
        api.stop_service(case.spec.path, runs=case.runs)
    write(given, {case.name: result})
    return 0 if result["failed"] == 0 and result["growth"]["total"] < MOST_GROWTH else 1


def soak(case: Any, port: int, rate: float, requests: int) -> dict[str, Any]:
    service = running_service(service_folder(case.spec, case.runs))
    assert service is not None
    images = [image.path for image in case.dataset.images]
    rows: list[dict[str, float]] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        load = pool.submit(run_load, port, case.spec.serve.name, images, rate, requests / rate)
        while not load.done():
            rows.append(memory(service.info.pid))
            time.sleep(EVERY_S)
        due, ended, failures = load.result()
    tenth, answered = max(1, len(rows) // 10), ended > 0
    latency = 1000 * (ended - due)[answered]  # an overloaded load generator stops sending: what was not sent has failed too
    restarts = sum(event.kind == "server-died" for event in service.status().events)
    growth = {
        name: statistics.median(row.get(name, 0.0) for row in rows[-tenth:])
        / max(statistics.median(row.get(name, 0.0) for row in rows[tenth : 2 * tenth]), 1.0)
        - 1
        for name in rows[-1]
    }
    return {
        "rate_per_s": rate,
        "requests": len(due),
        "failed": len(failures) + int((~answered).sum()),
        "unsent": int((~answered).sum()),
        "first_failure": failures[0] if failures else None,
        "server_restarts": restarts,
        "p50_ms": float(statistics.median(latency)),
        "p95_ms": float(sorted(latency)[int(0.95 * len(latency))]),
        "memory_mib_first": rows[tenth],
        "memory_mib_last": rows[-1],
        "growth": growth,
    }


def memory(pid: int) -> dict[str, float]:
    """Resident MiB of the service, the server and its Python processes together, and their sum."""
    service = psutil.Process(pid)
    found = {"service": service.memory_info().rss, "server": 0, "models": 0}
    for child in service.children(recursive=True):
        kind = "server" if child.name().startswith("tritonserver") else "models"
        found[kind] += child.memory_info().rss
    sizes = {name: size / 2**20 for name, size in found.items()}
    return {**sizes, "total": sum(sizes.values())}


if __name__ == "__main__":
    sys.exit(main())
