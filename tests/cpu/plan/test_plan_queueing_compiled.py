"""The compiled event core gives what the plain one gives, to the last digit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
from redline.plan.queueing import jit
from redline.plan.queueing.paths import simulate
from redline.records import LatencyCurve, Outage, ServedPath, ShapeLoad

shapes = tuple(
    ShapeLoad(name=name, curve=LatencyCurve(points=((1, ms), (4, 2.5 * ms)), cv=0.3), decode_ms=1.0, input_bytes=2_000_000)
    for name, ms in (("a", 4.0), ("b", 6.0))
)
path = ServedPath(
    shapes=shapes, rate_per_s=2000.0, decode_workers=4, decode_cv=0.5, max_batch=4, delay_ms=2.0, queue_limit=20, instances=2,
    grouping="equal", slowdown=(1.0, 1.6), link_gb_s=10.0, gpus_per_link=2, gpus=3, queues="two-choices", nodes=2,
    rested=((1.0, 0.0), (30.0, 2.0)),
    outages=(Outage(unit="gpu", index=1, at_s=0.2, seconds=0.3),), mean_up_s=1.0, mean_down_s=0.1,
)
print(jit.COMPILED, simulate(path, requests=3000, seed=7))
"""


def test_compiled_and_plain_agree() -> None:
    pytest.importorskip("numba")
    compiled, plain = (
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "NUMBA_DISABLE_JIT": disabled},
            capture_output=True,
            text=True,
            check=True,
            timeout=200,
        ).stdout
        for disabled in ("0", "1")
    )
    assert compiled.startswith("True Simulated(p50_ms=")
    assert compiled == plain
