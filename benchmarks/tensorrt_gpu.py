"""TensorRT on a GPU against eager torch and torch.compile: latency, capacity, builds, precision, determinism, moonshot.

    python benchmarks/tensorrt_gpu.py --weights DIR --out DIR PHASE ...

Each phase writes <out>/<phase>.json as it goes, so that a killed run leaves what it had. Latency is of the network alone: the
preprocessed tensor lies on the GPU and raw heads end there, host clock from launch to synchronised.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_models import detector, graph
from redline.doctor import inspect_machine
from redline.engine import cuda
from redline.engine.graph_facts import node_facts, read_graph, total_flop
from redline.engine.tensorrt_anatomy import anatomy, layer_times
from redline.engine.tensorrt_builder import build_plan
from redline.engine.tensorrt_runner import TensorRTRunner
from redline.engine.tensorrt_store import build_engine
from redline.engine.tensorrt_versions import find
from redline.engine.torch_gpu_runner import TorchGpuRunner
from redline.errors import RedlineError
from redline.measure.telemetry import telemetry
from redline.records import BuildOptions, EngineBuild, EngineProfile, OnnxModel, Telemetry
from redline.store import Store, dump

PEAK_FLOPS = {"fp32": 66.9e12, "tf32": 494.7e12, "fp16": 989.4e12}
"""Dense peaks of an H100 / H200 SXM by the vendor's datasheet."""
SOURCES = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
"""What convolution networks need; the others' libraries are absent here."""
PROTECTED = 20
RUNS = 2000


class Bench:
    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.library = given, find("tensorrt")
        self.store = Store(given.work / "store")
        self.rows: list[dict[str, Any]] = []
        self.phase, self.started = "", time.time()
        self.environment = json.loads(dump(inspect_machine()))
        name, capability, driver = cuda.describe(0)
        self.environment |= {
            "gpu": name, "capability": capability, "cuda_driver": driver, "torch_cuda": torch.version.cuda,
            "tensorrt": f"{self.library.version}, module built for this Python from the published binding source",
        }  # fmt: skip

    def note(self, **row: Any) -> None:
        self.rows.append(row)
        text = json.dumps({"phase": self.phase, "environment": self.environment, "rows": self.rows}, indent=1, default=str)
        (self.given.out / f"{self.phase}.json").write_text(text)
        brief = {key: value for key, value in row.items() if key not in ("layers", "warnings", "histogram_us")}
        print(f"[{time.time() - self.started:6.1f}]", json.dumps(brief, default=str)[:900], flush=True)

    def graph(self, name: str, half: bool) -> OnnxModel:
        return graph(name, self.given.weights, self.given.work, half)

    def engine(
        self, model: OnnxModel, precision: str, shapes: list[tuple[int, ...]], *, level: int = 3, low: int | None = None
    ) -> EngineBuild:
        """A profile for each of `shapes`; `low`: smallest batch of the last one."""
        profiles = [EngineProfile(index=i, minimum=s, optimum=s, maximum=s) for i, s in enumerate(shapes)]
        if low is not None:
            profiles[-1] = replace(profiles[-1], minimum=(low, *shapes[-1][1:]))
        options = BuildOptions(precision=precision, profiles=tuple(profiles), optimization_level=level, tactic_sources=SOURCES)  # type: ignore[arg-type]
        return build_engine(model, options, self.library, self.store)

    def runner(self, build: EngineBuild, **how: Any) -> TensorRTRunner:
        return TensorRTRunner(self.store.path(build.digest).read_bytes(), self.library, **how)

    def built(self, name: str, build: EngineBuild) -> None:
        proof = build.proof
        self.note(
            model=name, what="build", seconds=build.seconds, timing_cache=build.timing_cache, plan_mb=build.plan_bytes / 1e6,
            context_mb=(build.device_memory_bytes or 0) / 1e6, level=build.options.optimization_level,
            profiles=[p.maximum for p in build.options.profiles], shares=dict(proof.shares), fallen=proof.fallen[:8],
            fallen_share=proof.fallen_share, proved=proof.proved, proof_note=proof.note, engine_layers=len(proof.layers),
            warnings=build.warnings[:5],
        )  # fmt: skip


def images(shape: tuple[int, ...], scale: float) -> Any:
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
    bench: Bench, name: str, precision: str, build: EngineBuild, batch: Any, *, graphs: bool = True, flop: float
) -> None:
    """Network only."""
    runner = bench.runner(build, graphs=graphs)
    with runner.lane() as lane:
        lane.upload(batch)

        def call() -> None:
            lane.compute(batch.shape)
            lane.stream.wait()

        free = cuda.memory(0)[0]
        row = timed(call, RUNS if batch.shape[0] == 1 else 200, 8.0)
        row["bytes_taken_by_2000_runs"] = free - cuda.memory(0)[0]
        row["cuda_graphs"] = len(lane.graphs)
    runner.close()
    report(bench, name, f"tensorrt {precision}{' graph' if graphs else ' stream'}", precision, batch, row, flop)


def time_torch(bench: Bench, name: str, module: Any, precision: str, batch: Any, *, compiled: bool, flop: float) -> None:
    runner = TorchGpuRunner(module, precision=precision, compiled=compiled)  # type: ignore[arg-type]
    started = time.perf_counter()

    def work(call: Any) -> dict[str, Any]:
        tensor = runner.place(batch)

        def once() -> None:
            call(tensor)
            torch.cuda.synchronize()

        once()
        first = time.perf_counter() - started
        row = timed(once, RUNS if batch.shape[0] == 1 else 60, 6.0 if compiled or batch.shape[0] > 1 else 4.0)
        return {"first_s": first, **row}

    how = "compile" if compiled else "eager"
    try:
        report(bench, name, f"torch {how} {precision}", precision, batch, runner.on_gpu(work), flop)
    finally:
        runner.close()


def report(bench: Bench, name: str, how: str, precision: str, batch: Any, row: dict[str, Any], flop: float) -> None:
    roof = flop * batch.shape[0] / PEAK_FLOPS[precision] * 1000
    per_second = 1000 * batch.shape[0] / row["p50_ms"]
    bench.note(
        model=name, what="latency", how=how, shape=list(batch.shape), gflop=flop / 1e9, images_per_s=per_second,
        compute_roof_ms=roof, share_of_compute_roof=roof / row["p50_ms"], **row,
    )  # fmt: skip


def gflop(model: OnnxModel, shape: tuple[int, ...]) -> float:
    return total_flop(node_facts(read_graph(model.path), (1, *shape[1:])))


def compare_all(
    bench: Bench, name: str, shapes: list[tuple[int, ...]], scale: float, *, level: int, eager: bool, batched: bool = True
) -> None:
    """One FP16 engine with a profile for each shape, against torch at the first shape, and at the last where it is a batch."""
    half, source = bench.graph(name, True), detector(name, bench.given.weights)
    flop = {shape: gflop(bench.graph(name, False), shape) for shape in shapes}
    build = bench.engine(half, "fp16", shapes, level=level, low=1 if len(shapes) > 1 else None)
    bench.built(name, build)
    first = images(shapes[0], scale)
    time_engine(bench, name, "fp16", build, first, flop=flop[shapes[0]])
    time_engine(bench, name, "fp16", build, first, graphs=False, flop=flop[shapes[0]])
    check(bench, name, build, first)
    inspect(bench, name, build, first)
    for shape in shapes[1:]:
        time_engine(bench, name, "fp16", build, images(shape, scale), flop=flop[shape])
    time_torch(bench, name, source.module, "fp16", first, compiled=True, flop=flop[shapes[0]])
    if eager:
        for precision in ("fp32", "tf32"):
            time_torch(bench, name, source.module, precision, first, compiled=False, flop=flop[shapes[0]])
    if batched and shapes[-1][0] > 1:
        time_torch(bench, name, source.module, "fp16", images(shapes[-1], scale), compiled=True, flop=flop[shapes[-1]])


def check(bench: Bench, name: str, build: EngineBuild, batch: Any) -> None:
    """Graph and plain outputs equal, 100 repeats bit-identical, zero-copy equal, against FP32 eager torch."""
    graphed, plain = bench.runner(build), bench.runner(build, graphs=False)
    first = graphed.run(batch)
    repeats = all(all(np.array_equal(a, b) for a, b in zip(first, graphed.run(batch), strict=True)) for _ in range(100))
    same = all(np.array_equal(a, b) for a, b in zip(first, plain.run(batch), strict=True))
    shared = [torch.from_dlpack(array).cpu().numpy() for array in graphed.infer(torch.from_numpy(batch).cuda())]
    zero_copy = all(np.array_equal(a, b) for a, b in zip(first, shared, strict=True))
    lanes = bench.runner(build, lanes=3)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lanes.run, [batch] * 24))
    several = all(all(np.array_equal(a, b) for a, b in zip(first, got, strict=True)) for got in together)
    reference = TorchGpuRunner(detector(name if name not in ("packed",) else "retina91", bench.given.weights).module)
    truth = reference.run(batch)
    reference.close()
    worst = [float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1))) for a, b in zip(first, truth, strict=True)]
    mean = [float(np.mean(np.abs(a - b))) for a, b in zip(first, truth, strict=True)]
    refusals = refused(bench, build, graphed)
    for runner in (graphed, plain, lanes):
        runner.close()
    bench.note(
        model=name, what="check", identical_100=repeats, graph_equals_plain=same, zero_copy_equals=zero_copy,
        three_lanes_equal=several, max_rel_to_fp32_eager=worst, mean_abs_to_fp32_eager=mean, refusals=refusals,
    )  # fmt: skip


def refused(bench: Bench, build: EngineBuild, runner: TensorRTRunner) -> dict[str, str]:
    """What bad plans and shapes are told."""
    plan, said = bench.store.path(build.digest).read_bytes(), {}
    cases: dict[str, Callable[[], Any]] = {
        "truncated": lambda: TensorRTRunner(plan[: len(plan) // 2], bench.library),
        "not an engine": lambda: TensorRTRunner(b"no engine at all" * 100, bench.library),
        "shape": lambda: runner.run(np.ones((1, 3, 96, 96), np.float32)),
    }
    for what, case in cases.items():
        said[what] = answer(case)
    return said


def answer(case: Callable[[], Any]) -> str:
    try:
        case()
    except RedlineError as error:
        return error.text()[:400]
    return "NOT REFUSED"


def inspect(bench: Bench, name: str, build: EngineBuild, batch: Any) -> None:
    runner = bench.runner(build)
    bench.note(model=name, what="anatomy", shape=list(batch.shape), **json.loads(dump(anatomy(runner, batch))))
    times = layer_times(runner, batch, build.proof.layers)
    total = sum(layer.ms for layer in times)
    top = [f"{layer.ms * 1000:.1f} us {layer.name[:90]}" for layer in times[:12]]
    bench.note(
        model=name, what="layers", count=len(times), sum_ms=total, mapped_share=sum(t.ms for t in times if t.nodes) / total,
        slowest=top, layers=[(t.name, t.ms, t.nodes) for t in times],
    )  # fmt: skip
    runner.close()


def rebuild(bench: Bench, name: str, shapes: list[tuple[int, ...]], level: int) -> None:
    """The same build with the timings of the first."""
    half = bench.graph(name, True)
    known = sorted((bench.store.root / "timing").glob("*.cache"))[0].read_bytes()
    build = bench.engine(half, "fp16", shapes, level=level, low=1 if len(shapes) > 1 else None)
    plan = build_plan(half.path, build.options, bench.library, timing_cache=known)
    bench.note(
        model=name, what="rebuild", first_s=build.seconds, second_s=plan.seconds, times_faster=build.seconds / plan.seconds,
        same_bytes=plan.data == bench.store.path(build.digest).read_bytes(),
    )  # fmt: skip


def main() -> None:
    from gpu_phases import PHASES

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("phases", nargs="+", choices=sorted(PHASES))
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "redline-gpu")
    options.add_argument("--data", type=Path)
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given)
    for phase in given.phases:
        bench.phase, bench.rows = phase, []
        try:
            PHASES[phase](bench)
        except Exception as error:  # a phase that fails must not take the others' device time along
            import traceback

            traceback.print_exc()
            bench.note(what="failure", error=f"{type(error).__name__}: {error}"[:600])


if __name__ == "__main__":
    main()
