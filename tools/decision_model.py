"""What the decision pages compute with: the two networks' costs, the result files, the published figures, and short forms of
the plan's functions.

The costs are the costs.json that `redline plan` leaves for `redline.zoo:retinanet_resnet50_fpn` (91 classes) and
`redline.zoo:yolox_nano`, compressed.
"""

from __future__ import annotations

import functools
import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from redline.plan.decide import Case
from redline.plan.devices import device
from redline.plan.efficiency import shipped_table
from redline.plan.ladder import Image
from redline.plan.queueing.paths import simulate
from redline.plan.queueing.rate import highest_rate
from redline.plan.roofline import roofline
from redline.records import (
    Arithmetic,
    LatencyCurve,
    ModelCosts,
    Objective,
    RateAnswer,
    Roofline,
    ServedPath,
    ShapeLoad,
    Simulated,
)
from redline.store import load

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "tools" / "decisions"
RESULTS = ROOT / "benchmarks" / "results"
RETINANET, YOLOX = "retinanet-r50", "yolox-nano"
TITLES = {RETINANET: "RetinaNet-R50", YOLOX: "YOLOX-Nano"}
SIZES = {RETINANET: 800, YOLOX: 416}
P95_MS, RATE = 20.0, 2000.0
"""The objective that the pages ask about."""
REQUESTS, MORE, SEED = 10_000, 40_000, 1
"""Simulated: for each rate that a search tries, and at a rate that is given."""


@functools.cache
def costs(model: str) -> ModelCosts:
    return load(ModelCosts, gzip.decompress((HERE / f"{model}.costs.json.gz").read_bytes()))


@functools.cache
def published() -> dict[str, Any]:
    return tomllib.loads((HERE / "published.toml").read_text("utf-8"))


@functools.cache
def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text("utf-8"))
    return found


def network(model: str, gpu: str, arithmetic: Arithmetic, batch: int = 1, hw: tuple[int, int] | None = None) -> Roofline:
    """Of an engine under a CUDA graph, by the packaged efficiency table."""
    height, width = hw or (SIZES[model], SIZES[model])
    return roofline(costs(model), device(gpu), arithmetic, batch, height, width, table=shipped_table())


def expected_ms(model: str, gpu: str, arithmetic: Arithmetic, batch: int = 1, hw: tuple[int, int] | None = None) -> float:
    return network(model, gpu, arithmetic, batch, hw).expected_us / 1000


def case(model: str, gpu: str, arithmetic: Arithmetic = "fp16") -> Case:
    """The plan's own question for `model` on `gpu`."""
    return Case(
        costs=costs(model),
        device=device(gpu),
        image=Image(height=SIZES[model], width=SIZES[model]),
        objective=Objective(p95_ms=P95_MS, throughput=RATE),
        arithmetic=arithmetic,
        table=shipped_table(),
    )


def path(curve: LatencyCurve, **knobs: Any) -> ServedPath:
    return ServedPath(shapes=(ShapeLoad(curve=curve),), **{"rate_per_s": 1.0, **knobs})


def highest(served: ServedPath, p95_ms: float = P95_MS) -> RateAnswer:
    return highest_rate(served, p95_ms=p95_ms, requests=REQUESTS, replications=1, seed=SEED)


def at_rate(curve: LatencyCurve, rate: float, **knobs: Any) -> Simulated:
    return simulate(path(curve, rate_per_s=rate, **knobs), requests=MORE, seed=SEED)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; columns after the first to the right where they hold figures."""
    body = [list(row) for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, digits: int = 3) -> str:
    """At least `digits` significant ones, thousands set apart."""
    if value == 0:
        return "0"
    whole = len(str(int(abs(value))))
    decimals = max(0, digits - whole) if abs(value) >= 1 else digits - 1
    return f"{value:,.{decimals}f}"


def ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def times(value: float) -> str:
    return f"{value:.2f}x"


def mb(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def pct(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
