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


COMPARED = "2026-11-29-h200-plan-compared.json"
INT8 = "2026-11-29-h200-int8-retinanet.json"


def seen_on_h200() -> dict[str, Any]:
    """What the plan expected of an H200, written down before, beside what was measured: RetinaNet under a CUDA graph."""
    rows = {(row["how"], row["shape"][0]): row for row in result(COMPARED)["rows"] if row["model"] == "retina91"}
    narrow = rows["tensorrt int8 graph", 32]
    verdict = next(row for row in result(INT8)["phases"]["retina_32"] if row["what"] == "verdict")
    batches = [row["measured_us"] / row["expected_us"] - 1 for (how, n), row in rows.items() if "fp16" in how and n > 1]
    return {
        "compared_file": COMPARED,
        "int8_file": INT8,
        "int8_batch": narrow["shape"][0],
        "int8_expected_ms": ms(narrow["expected_us"] / 1000),
        "int8_measured_ms": ms(narrow["measured_us"] / 1000),
        "int8_gain": times(verdict["times_faster"]),
        "int8_gain_expected": times(rows["tensorrt fp16 graph", 32]["expected_us"] / narrow["expected_us"]),
        "int8_rate": number(verdict["int8_images_per_s"]),
        "int8_rate_expected": number(narrow["shape"][0] / narrow["expected_us"] * 1e6),
        "batches": " to ".join(str(n) for n in (min(n for _, n in rows if n > 1), max(n for _, n in rows))),
        "batches_off": " to ".join(pct(-off) for off in (max(batches), min(batches))),
    }
