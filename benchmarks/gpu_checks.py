"""What the GPU benchmark checks and looks into: repeats, graphs, zero copies, refusals, anatomy, layers, detections."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from gpu_models import detector
from gpu_variants import is_native, rows_of
from redline.engine.tensorrt_anatomy import anatomy, layer_times
from redline.engine.tensorrt_runner import TensorRTRunner
from redline.engine.torch_gpu_runner import TorchGpuRunner
from redline.errors import RedlineError
from redline.predict import Predictor
from redline.records import EngineBuild
from redline.store import dump
from tensorrt_gpu import Bench


def check(bench: Bench, name: str, build: EngineBuild, batch: Any) -> None:
    """Graph and plain outputs equal, 100 repeats bit-identical, zero-copy equal, against FP32 eager torch."""
    graphed, plain, lanes = bench.runner(build), bench.runner(build, graphs=False), bench.runner(build, lanes=3)
    first = graphed.run(batch)
    repeats = all(_equal(first, graphed.run(batch)) for _ in range(100))
    same = _equal(first, plain.run(batch))
    lent = torch.from_numpy(batch).to("cuda", torch.float16 if is_native(name) else torch.float32)
    zero_copy = _equal(first, tuple(torch.utils.dlpack.from_dlpack(array).cpu().numpy() for array in graphed.infer(lent)))
    with ThreadPoolExecutor(3) as pool:
        several = all(_equal(first, got) for got in pool.map(lanes.run, [batch] * 24))
    source = detector(name, bench.given.weights)
    reference = TorchGpuRunner(source.module)
    truth = reference.run(batch)
    reference.close()
    rows = rows_of(name, source, first) if is_native(name) else first
    pairs = list(zip(rows, truth, strict=True))
    refusals = refused(bench, build, graphed)
    for runner in (graphed, plain, lanes):
        runner.close()
    bench.note(
        model=name, what="check", identical_100=repeats, graph_equals_plain=same, zero_copy_equals=zero_copy,
        three_lanes_equal=several, refusals=refusals, max_abs_to_fp32_eager=[float(np.abs(a - b).max()) for a, b in pairs],
        mean_abs_to_fp32_eager=[float(np.abs(a - b).mean()) for a, b in pairs],
        spread_of_fp32_eager=[float(b.std()) for _, b in pairs],
        largest_of_fp32_eager=[float(np.abs(b).max()) for _, b in pairs],
    )  # fmt: skip


def _equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def refused(bench: Bench, build: EngineBuild, runner: TensorRTRunner) -> dict[str, str]:
    """What bad plans and shapes are told."""
    plan = bench.store.path(build.digest).read_bytes()
    cases: dict[str, Callable[[], Any]] = {
        "truncated": lambda: TensorRTRunner(plan[: len(plan) // 2], bench.library),
        "not an engine": lambda: TensorRTRunner(b"no engine at all" * 100, bench.library),
        "shape": lambda: runner.run(np.ones((1, 3, 96, 96), np.float32)),
    }
    return {what: answer(case) for what, case in cases.items()}


def answer(case: Callable[[], Any]) -> str:
    try:
        case()
    except RedlineError as error:
        return error.text()[:400]
    return "NOT REFUSED"


def inspect(bench: Bench, name: str, build: EngineBuild, batch: Any, label: str = "") -> None:
    """Anatomy of an inference and the time, type and kernel of each layer."""
    called = label or name
    runner = bench.runner(build)
    text = runner.engine.create_engine_inspector().get_engine_information(bench.library.module.LayerInformationFormat.JSON)
    (bench.given.out / f"inspector-{called}.json.gz").write_bytes(gzip.compress(text.encode()))
    bench.note(model=name, what="anatomy", built_as=called, shape=list(batch.shape), **json.loads(dump(anatomy(runner, batch))))
    times, facts = layer_times(runner, batch, build.proof.layers), {layer.name: layer for layer in build.proof.layers}
    runner.close()
    rows = []
    for layer in times:
        fact = facts.get(layer.name)
        about = (fact.precision, round(fact.flop / 1e9, 4), fact.tactic, fact.nodes) if fact else ("", 0.0, "", ())
        rows.append((layer.name, round(layer.ms * 1000, 2), *about))
    total = sum(layer.ms for layer in times)
    bench.note(
        model=name, what="layers", built_as=called, shape=list(batch.shape), count=len(times), sum_ms=total,
        mapped_share=sum(t.ms for t in times if t.nodes) / total,
        columns=["name", "us", "precision", "gflop", "tactic", "nodes"], layers=rows,
    )  # fmt: skip


def read_rgb(path: Path) -> Any:
    picture: Any = cv2.imread(str(path))
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def accuracy(bench: Bench, name: str, data: str, build: EngineBuild, label: str = "") -> None:
    """Detections of the engine and of FP32 eager torch on the same images, as one npz; evaluated where the labels are.

    `label`: tells engines of one model apart in the file's name.
    """
    narrow = build.options.precision
    source = detector(name, bench.given.weights)
    arrays: dict[str, Any] = {}
    files = sorted((bench.given.data / data).iterdir())
    for how, used in ((narrow, bench.runner(build)), ("fp32", TorchGpuRunner(source.module))):
        predict = Predictor(used, source.preprocess, source.head, source.postprocess, "fixed")
        found = [predict([read_rgb(path)])[0] for path in files]
        for field in ("boxes", "scores", "labels"):
            arrays[f"{how}_{field}"] = np.concatenate([getattr(one, field) for one in found])
        arrays[f"{how}_counts"] = np.array([len(one.scores) for one in found])
        used.close()
    file = bench.given.out / f"detections-{name}{label and '@' + label}.npz"
    np.savez_compressed(file, files=[path.name for path in files], **arrays)
    counts = {how: int(arrays[f"{how}_counts"].sum()) for how in (narrow, "fp32")}
    bench.note(model=name, what="detections", images=len(files), built_as=label or name, **counts)
