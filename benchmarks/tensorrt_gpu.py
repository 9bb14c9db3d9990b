"""TensorRT on a GPU against eager torch and torch.compile: builds, precision, latency, capacity, accuracy, moonshot.

    python benchmarks/tensorrt_gpu.py --weights DIR --data DIR --out DIR PHASE ...

Each phase writes <out>/<phase>.json as it goes, so that a killed run leaves what it had. Latency is of the network alone: the
preprocessed tensor lies on the GPU and raw heads end there, host clock from launch to synchronised.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_builds import LIBRARIES, BuildClock, Native, like
from gpu_models import detector, graph, roof_ms
from gpu_variants import is_native
from redline.doctor import inspect_machine
from redline.engine import cuda
from redline.engine.graph_facts import node_facts, read_graph, total_flop
from redline.engine.tensorrt_runner import TensorRTRunner
from redline.engine.tensorrt_store import _timings, build_engine, place_of
from redline.engine.tensorrt_versions import find
from redline.engine.torch_gpu_runner import TorchGpuRunner
from redline.measure.telemetry import telemetry
from redline.records import BuildOptions, EngineBuild, EngineProfile, OnnxModel, Telemetry
from redline.store import Store, dump
from redline.store.disk import write_file

PEAK_FLOPS = {"fp32": 66.9e12, "tf32": 494.7e12, "fp16": 989.4e12, "int8": 1978.9e12}
"""Dense peaks of an H100 / H200 SXM by the vendor's datasheet."""
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12}
"""Bytes per second of device memory, likewise."""
SOURCES = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
"""What convolution networks need; the others' libraries are absent here."""
PROTECTED = 20
RUNS = 2000
Shape = tuple[int, ...]


class BuiltOnly(Exception):
    """What a phase was to do is done: its engine and timings are in the store."""


class Bench:
    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.library: Any = None if all(phase.startswith("warm") for phase in given.phases) else find("tensorrt")
        if self.library is not None:
            self.library = like(LIBRARIES[given.how], self.library)
        given.work.mkdir(parents=True, exist_ok=True)
        self.store = Store(given.work / "store")
        self.rows: list[dict[str, Any]] = []
        self.phase, self.started = "", time.time()
        self.clock = BuildClock() if given.clock else None
        if self.clock is not None:
            self.clock.install()
        self.environment = json.loads(dump(inspect_machine()))
        name, capability, driver = cuda.describe(0)
        self.bandwidth = next(rate for part, rate in BANDWIDTH.items() if part in name)
        self.environment |= {
            "gpu": name, "capability": capability, "cuda_driver": driver, "torch_cuda": torch.version.cuda,
        }  # fmt: skip
        if self.library is not None:
            module = "module built for this Python from the published binding source"
            self.environment["tensorrt"] = f"{self.library.version}, {module}"

    def note(self, **row: Any) -> None:
        self.rows.append(row)
        text = json.dumps({"phase": self.phase, "environment": self.environment, "rows": self.rows}, indent=1, default=str)
        (self.given.out / f"{self.phase}.json").write_text(text)
        brief = {key: value for key, value in row.items() if key not in ("layers", "warnings", "telemetry", "refusals")}
        print(f"[{time.time() - self.started:6.1f}]", json.dumps(brief, default=str)[:900], flush=True)

    def graph(self, name: str, half: bool) -> OnnxModel:
        return graph(name, self.given.weights, self.given.graphs, half)

    def engine(self, name: str, precision: str, shapes: list[Shape], *, level: int = 3, low: int | None = None) -> EngineBuild:
        """The engine of model `name` with a profile for each of `shapes`. `low`: smallest batch of the last one."""
        profiles = [EngineProfile(index=i, minimum=s, optimum=s, maximum=s) for i, s in enumerate(shapes)]
        if low is not None:
            profiles[-1] = replace(profiles[-1], minimum=(low, *shapes[-1][1:]))
        kinds: dict[str, Any] = {"precision": precision, "profiles": tuple(profiles)}
        return self.build(name, self.graph(name, precision == "fp16"), BuildOptions(**kinds, optimization_level=level))

    def build(self, name: str, model: OnnxModel, options: BuildOptions) -> EngineBuild:
        library = like(Native, self.library) if is_native(name) else self.library
        if self.given.timings and not (known := _timings(self.store, library, place_of(options, 0))).exists():
            write_file(known, self.given.timings.read_bytes(), self.store.scratch)
        level = options.optimization_level if self.given.level is None else self.given.level
        build = build_engine(model, replace(options, tactic_sources=SOURCES, optimization_level=level), library, self.store)
        proof = build.proof
        seen = Counter("_".join(layer.tactic.split("_")[:2]) or layer.kind for layer in proof.layers)
        self.note(
            model=name, what="build", how=self.given.how, precision=options.precision, seconds=build.seconds,
            timing_cache=build.timing_cache,
            plan_mb=build.plan_bytes / 1e6, context_mb=(build.device_memory_bytes or 0) / 1e6, level=level,
            profiles=[[p.minimum, p.optimum, p.maximum] for p in options.profiles], proved=proof.proved,
            shares=dict(proof.shares), fallen=proof.fallen[:8], fallen_share=proof.fallen_share, proof_note=proof.note,
            engine_layers=len(proof.layers), tactics=dict(seen.most_common(12)), warnings=build.warnings[:5],
            clock=self.clock.summary() if self.clock else None,
        )  # fmt: skip
        if self.given.build_only:
            raise BuiltOnly
        return build

    def runner(self, build: EngineBuild, **how: Any) -> TensorRTRunner:
        plan, names = self.store.path(build.digest).read_bytes(), [fact.name for fact in build.outputs]
        return TensorRTRunner(plan, self.library, outputs=names, **how)

    def timings(self) -> Path:
        """The timing cache of this GPU."""
        return sorted((self.store.root / "timing").glob("*.cache"))[0]


def images(shape: Shape, scale: float) -> Any:
    """Random pictures: never zeros, which are faster."""
    return (np.random.default_rng(0).uniform(0, 255, shape) * scale).astype(np.float32)


def timed(call: Callable[[], Any], runs: int, seconds: float) -> dict[str, Any]:
    """Percentiles in ms of `call`, which returns when the GPU is done; at most `runs` or `seconds`."""
    for _ in range(PROTECTED):
        call()
    taken: list[float] = []
    found: list[Telemetry] = []
    with telemetry(0, found):
        end = time.perf_counter() + seconds
        while len(taken) < runs and time.perf_counter() < end:
            start = time.perf_counter()
            call()
            taken.append((time.perf_counter() - start) * 1000)
    p50, p95, p99 = np.percentile(taken, (50, 95, 99))
    return {
        "runs": len(taken), "p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99), "max_ms": max(taken),
        "p99_over_p50": float(p99 / p50), "telemetry": json.loads(dump(found[0])),
    }  # fmt: skip


def time_engine(
    bench: Bench,
    name: str,
    precision: str,
    build: EngineBuild,
    shape: Shape,
    *,
    scale: float,
    graphs: bool = True,
    label: str | None = None,
) -> None:
    """Network only."""
    before = cuda.memory(0)[0]
    runner = bench.runner(build, graphs=graphs)
    with runner.lane() as lane:
        lane.upload(images(shape, scale))

        def call() -> None:
            lane.compute(shape)
            lane.stream.wait()

        call()
        free = cuda.memory(0)[0]
        row = timed(call, RUNS if shape[0] == 1 else 200, 8.0)
        row["gpu_mb_taken"] = (before - free) / 1e6
        row["gpu_bytes_taken_by_the_runs"] = free - cuda.memory(0)[0]
        row["cuda_graphs"] = len(lane.graphs)
    runner.close()
    row["built_as"] = label or name
    report(bench, name, f"tensorrt {precision}{' graph' if graphs else ' stream'}", precision, shape, row)


def time_torch(
    bench: Bench, name: str, precision: str, shape: Shape, *, scale: float, compiled: bool = False, seconds: float = 5.0
) -> None:
    module = detector(name, bench.given.weights).module
    started = time.perf_counter()
    runner = TorchGpuRunner(module, precision=precision, compiled=compiled)  # type: ignore[arg-type]

    def work(call: Any) -> dict[str, Any]:
        tensor = runner.place(images(shape, scale))

        def once() -> None:
            call(tensor)
            torch.cuda.synchronize()

        once()
        return {"first_s": time.perf_counter() - started, **timed(once, RUNS if shape[0] == 1 else 100, seconds)}

    try:
        report(bench, name, f"torch {'compile' if compiled else 'eager'} {precision}", precision, shape, runner.on_gpu(work))
    finally:
        runner.close()


def report(bench: Bench, name: str, how: str, precision: str, shape: Shape, row: dict[str, Any]) -> None:
    narrow = precision in ("fp16", "int8")
    # Of the FP16 graph's bytes INT8 moves half: the limit of a graph in INT8 throughout.
    bandwidth = bench.bandwidth * (2 if precision == "int8" else 1)
    flop, roof = limits(bench.graph(name, narrow), shape, PEAK_FLOPS[precision], bandwidth)
    bench.note(
        model=name, what="latency", how=how, shape=list(shape), gflop_per_image=flop / shape[0] / 1e9,
        images_per_s=1000 * shape[0] / row["p50_ms"], compute_roof_ms=flop / PEAK_FLOPS[precision] * 1000,
        layer_roof_ms=roof, share_of_layer_roof=roof / row["p50_ms"], **row,
    )  # fmt: skip


@cache
def limits(model: OnnxModel, shape: Shape, peak: float, bandwidth: float) -> tuple[float, float]:
    """Operations, and the layers' roofline in ms."""
    return total_flop(node_facts(read_graph(model.path), shape)), roof_ms(model, shape, peak, bandwidth)


def main(phases: dict[str, Any] | None = None, about: str | None = __doc__) -> None:
    from gpu_phases import PHASES

    known = PHASES if phases is None else phases
    options = argparse.ArgumentParser(description=about)
    options.add_argument("phases", nargs="+", choices=sorted(known))
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "redline-gpu")
    options.add_argument("--graphs", type=Path, help="where the ONNX graphs are; default: --work")
    options.add_argument("--data", type=Path)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--clock", action="store_true", help="say where a build's time goes (it costs a little)")
    options.add_argument("--how", choices=LIBRARIES, default="asked", help="see gpu_builds.py")
    options.add_argument("--build-only", action="store_true", help="a phase ends with its first build")
    options.add_argument("--one-size", action="store_true", help="a pipeline has a graph of its full batch alone")
    options.add_argument("--timings", type=Path, help="a timing cache to begin with")
    options.add_argument("--level", type=int, help="optimisation level of every build; default: each phase's own")
    given = options.parse_args()
    given.graphs = given.graphs or given.work
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given)
    for phase in given.phases:
        bench.phase, bench.rows = phase, []
        try:
            known[phase](bench)
        except BuiltOnly:
            continue
        except Exception as error:  # a phase that fails must not take the others' device time along
            traceback.print_exc()
            bench.note(what="failure", error=f"{type(error).__name__}: {error}"[:600])


if __name__ == "__main__":
    main()
