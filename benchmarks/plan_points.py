"""TensorRT engines that result files timed, what the plan says of each, and tables fitted on them."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from gpu_models import STEM, graph
from redline.plan.costs import read_costs
from redline.plan.devices import device
from redline.plan.efficiency import BELIEF, PUBLISHED, KernelTime, Measured, calibrate, kernel_times
from redline.plan.roofline import roofline
from redline.records import Arithmetic, LayerTime
from redline.records.cost import EfficiencyTable, ModelCosts, Roofline

RESULTS = Path(__file__).parent / "results"
NAME = re.compile(r"[A-Za-z_]\w*")
PLAIN = ("int8", "fp16")
"""Labels of the INT8 benchmark for the model's own graph."""
RESIZED = {"yolox416": "yolox640"}
"""The same graph at another size: result files name it by the size it was exported at."""


@dataclass(frozen=True)
class Point:
    """One engine at one shape, launched one way; the median of its quiet measurements."""

    device: str
    model: str
    shape: tuple[int, ...]
    how: str
    """As "tensorrt fp16 graph" or "torch eager fp32"."""
    p50_ms: tuple[float, ...] = ()
    files: tuple[str, ...] = ()
    level: int | None = None
    """Lowest optimisation level of the builds in its phase. 0, where the library takes the first kernel that works, is a point
    by itself.
    """

    @property
    def family(self) -> str:
        return "YOLOX-Nano" if self.model.startswith("yolox") else "RetinaNet"

    @property
    def us(self) -> float:
        return 1000 * statistics.median(self.p50_ms)

    @property
    def arithmetic(self) -> Arithmetic:
        (found,) = [word for word in self.how.split() if word in get_args(Arithmetic)]
        return found  # type: ignore[return-value]

    @property
    def key(self) -> tuple[str, str, tuple[int, ...], str]:
        return self.device, self.model, self.shape, self.how


def rows(files: Sequence[Path]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(file, device, row) of GPU benchmarks, one file a phase or several phases in a file; other files hold none."""
    for path in files:
        read = json.loads(path.read_text("utf-8"))
        if not isinstance(read, dict) or "gpu" not in (environment := read.get("environment", {})):
            continue
        name = device(environment["gpu"]).name
        for phase in (*read.get("phases", {}).values(), read.get("rows", ())):
            whole = [row for row in phase if isinstance(row, dict)]
            levels = [row["level"] for row in whole if row.get("what") == "build" and "level" in row]
            yield from ((path.name, name, {"level": min(levels, default=None)} | row) for row in whole)


def points(files: Sequence[Path], how: str = "tensorrt") -> list[Point]:
    """Of TensorRT engines, or of other runners whose name begins so; rows while others used the GPU are left out.

    So are rows of another graph than the model's own, which `built_as` names.
    """
    found: dict[tuple[str, str, tuple[int, ...], str, bool], list[tuple[float, str, int | None]]] = defaultdict(list)
    for file, name, row in rows(files):
        if row.get("what") != "latency" or not row["how"].startswith(how) or row["telemetry"]["processes"]:
            continue
        if row.get("built_as", row["model"]) in (row["model"], *PLAIN):
            model = row["model"].removesuffix(STEM)  # two casts more than the model's own
            key = name, model, tuple(row["shape"]), row["how"], row["level"] == 0
            found[key].append((row["p50_ms"], file, row["level"]))
    return [
        Point(
            *key[:4],
            tuple(p50 for p50, _, _ in seen),
            tuple(sorted({file for _, file, _ in seen})),
            min((level for _, _, level in seen if level is not None), default=None),
        )
        for key, seen in sorted(found.items())
    ]


def kernels(costs: ModelCosts, model: str, on: str, files: Sequence[Path]) -> tuple[KernelTime, ...]:
    """Of the model's engine for one image on a device, if its layers were timed; none of level 0."""
    mine = {
        (file, row.get("what")): row
        for file, name, row in rows(files)
        if (row.get("model"), name) == (model, on) and row["level"] != 0 and row.get("shape", [1])[0] == 1
    }
    listed_in = next((file for file, what in mine if what == "layers" and "columns" in mine[file, what]), None)
    if listed_in is None:
        return ()
    listed, whole = mine[listed_in, "layers"], mine[listed_in, "anatomy"]["gpu_ms"]
    layers = [LayerTime(name=name, ms=us / 1000, nodes=tuple(NAME.findall(name))) for name, us, *_ in listed["layers"]]
    return kernel_times(costs, layers, whole)


class Case:
    """`weights`, `work`: as in tensorrt_gpu.py; times do not depend on the weights' values."""

    def __init__(self, weights: Path, work: Path, files: Sequence[Path]) -> None:
        @cache
        def costs(model: str, half: bool) -> ModelCosts:
            return read_costs(graph(RESIZED.get(model, model), weights, work, half=half).path)

        self.costs: Callable[[str, bool], ModelCosts] = costs
        self.kernels = cache(lambda model, on: kernels(costs(model, True), model, on, files))

    def predict(self, point: Point, table: EfficiencyTable) -> Roofline:
        """From the costs of the graph that the engine is built from; INT8, for which there is none, from the FP16 one."""
        n, _, h, w = point.shape
        costs = self.costs(point.model, point.arithmetic in ("fp16", "int8"))
        graphs = point.how.endswith("graph")
        return roofline(costs, device(point.device), point.arithmetic, n, h, w, cuda_graph=graphs, table=table)

    def fit(self, known: Sequence[Point], source: str, belief: float = BELIEF) -> EfficiencyTable:
        """On these points alone, from published figures."""
        if not known:
            return PUBLISHED
        runs, seen = [], set()
        for point in known:
            fresh = (point.model, point.device) not in seen and point.how == "tensorrt fp16 graph" and point.shape[0] == 1
            layers = self.kernels(point.model, point.device) if fresh else ()
            seen.update({(point.model, point.device)} if layers else ())
            runs.append(Measured(prediction=self.predict(point, PUBLISHED), step_us=point.us, kernels=layers))
        return calibrate(runs, PUBLISHED, source=source, belief=belief)


def errors(percent: Sequence[float]) -> dict[str, float]:
    sizes = [abs(error) for error in percent]
    return {"points": len(sizes), "median_pct": round(statistics.median(sizes), 1), "worst_pct": max(sizes)}
