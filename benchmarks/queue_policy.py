"""What a queue policy costs on Triton 2.51: requests that come while an instance ends its last one may wait half a second.

Protocol: the demo detector, one process of one thread, batch 1 and 4, served without a queue policy, with a limit of its
length, with a timeout, and with both; closed loops of one, two and three callers for three seconds each, on a server of its own
each time, in two rounds. Stalls are requests that took longer than 400 ms.

    python benchmarks/queue_policy.py --work FOLDER [--output FILE]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

from redline.measure.load import closed_loop
from redline.serve import blocks, repository
from serving_case import Case, demo_case, parser, watched, write

POLICIES: dict[str, dict[str, int]] = {
    "none": {},
    "length": {"max_queue_size": 128},
    "timeout": {"default_timeout_microseconds": 5_000_000},
    "both": {"max_queue_size": 128, "default_timeout_microseconds": 5_000_000},
}
ROUNDS, CALLERS, SECONDS, STALL_S = 2, (1, 2, 3), 3.0, 0.4


def main() -> int:
    given = parser(__doc__).parse_args()
    case, result = demo_case(given.work, given.minutes), dict[str, Any]()
    with watched(result):
        tried = product(range(ROUNDS), POLICIES, (1, 4))
        result["rows"] = [row for _, policy, batch in tried for row in rows(case, policy, batch)]
    write(given, {case.name: result})
    return 0 if all(row["stalls"] == 0 for row in result["rows"] if row["policy"] == "none") else 1


def rows(case: Case, policy: str, batch: int) -> Iterator[dict[str, Any]]:
    candidate = case.fused(threads=1, batch=batch, concurrency=1, shapes="fixed")
    with rendered_with(POLICIES[policy]), case.served(candidate) as live:
        live.target([0])
        for callers in CALLERS:
            stalls = list[float]()

            def timed(requests: Any, stalls: list[float] = stalls) -> None:
                started = time.perf_counter()
                live.target(requests)
                if (spent := time.perf_counter() - started) > STALL_S:
                    stalls.append(spent)

            load = closed_loop(timed, concurrency=callers, batch=1, seconds=SECONDS, same_batch=live.same_batch)
            yield {
                "policy": policy,
                "batch": batch,
                "callers": callers,
                "requests_per_s": round(load.achieved_per_s, 1),
                "p50_ms": load.p50_ms,
                "p99_ms": load.p99_ms,
                "stalls": len(stalls),
            }


@contextmanager
def rendered_with(fields: dict[str, int]) -> Iterator[None]:
    """The rendering as it is, but for the policy; the check that refuses one is left out."""
    plain, check = blocks.batching, repository.check

    def batching(config: Any, *rest: Any, **more: Any) -> None:
        plain(config, *rest, **more)
        for name, value in fields.items():
            setattr(config.dynamic_batching.default_queue_policy, name, value)

    blocks.batching, repository.check = batching, lambda *_, **__: None  # type: ignore[assignment]
    try:
        yield
    finally:
        blocks.batching, repository.check = plain, check


if __name__ == "__main__":
    sys.exit(main())
