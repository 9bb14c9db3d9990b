"""The phases of the GPU benchmark: which models, shapes and builds each one measures."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from gpu_models import detector
from redline.engine.torch_gpu_runner import TorchGpuRunner
from redline.export.half import export_half
from redline.plan.profiles import choose_profiles
from redline.predict import Predictor
from redline.records import BuildOptions, Preprocess, ShapeShare, Traffic
from redline.vision import input_size
from tensorrt_gpu import Bench, compare_all, gflop, images, inspect, rebuild, time_engine

RETINA = (1, 3, 800, 800)
YOLOX = [(1, 3, 640, 640), (1, 3, 416, 416), (32, 3, 640, 640)]


def yolox(bench: Bench) -> None:
    compare_all(bench, "yolox640", YOLOX, 1.0, level=2, eager=True)
    rebuild(bench, "yolox640", YOLOX, 2)


def retina(bench: Bench) -> None:
    compare_all(bench, "retina91", [RETINA], 1 / 100, level=3, eager=True)
    rebuild(bench, "retina91", [RETINA], 3)


def retina_batch(bench: Bench) -> None:
    """Batch 1 to 32 in one profile."""
    half, flop = bench.graph("retina91", True), gflop(bench.graph("retina91", False), RETINA)
    build = bench.engine(half, "fp16", [(32, 3, 800, 800)], level=2, low=1)
    bench.built("retina91", build)
    for count in (32, 16, 8, 4):
        time_engine(bench, "retina91", "fp16", build, images((count, 3, 800, 800), 0.01), flop=flop)


def retina_wide(bench: Bench) -> None:
    shape = (1, 3, 800, 1344)
    build = bench.engine(bench.graph("retina91", True), "fp16", [shape], level=2)
    bench.built("retina91", build)
    time_engine(bench, "retina91", "fp16", build, images(shape, 0.01), flop=gflop(bench.graph("retina91", False), shape))


def tf32(bench: Bench) -> None:
    """FP32 and TF32 engines, one shape."""
    full = bench.graph("retina91", False)
    for precision in ("tf32", "fp32"):
        build = bench.engine(full, precision, [RETINA], level=2)
        bench.built(f"retina91 {precision}", build)
        time_engine(bench, "retina91", precision, build, images(RETINA, 0.01), flop=gflop(full, RETINA))


def moonshot(bench: Bench) -> None:
    """Packed pyramid levels, and outputs left in FP16."""
    flop = gflop(bench.graph("retina91", False), RETINA)
    packed = bench.engine(bench.graph("packed", True), "fp16", [RETINA], level=3)
    bench.built("retina91 packed", packed)
    time_engine(bench, "retina91 packed", "fp16", packed, images(RETINA, 0.01), flop=flop)
    inspect(bench, "retina91 packed", packed, images(RETINA, 0.01))
    folder = bench.given.work / "half_io"
    folder.mkdir(exist_ok=True)
    for name in ("retina91", "yolox640"):
        narrow = export_half(bench.graph(name, False), folder, keep_outputs=False)
        shape = RETINA if name == "retina91" else (1, 3, 640, 640)
        build = bench.engine(narrow, "fp16", [shape], level=3)
        bench.built(f"{name} fp16 outputs", build)
        scale = 0.01 if name == "retina91" else 1.0
        time_engine(
            bench, f"{name} fp16 outputs", "fp16", build, images(shape, scale), flop=gflop(bench.graph(name, False), shape)
        )


def bccd(bench: Bench) -> None:
    """Accuracy of RetinaNet at 640 x 864: detections are written, and evaluated where the labels are."""
    half = bench.graph("retina4", True)
    build = bench.engine(half, "fp16", [(1, 3, 640, 864)], level=2)
    bench.built("retina4", build)
    accuracy(bench, "retina4", "bccd", bench.runner(build))
    time_engine(
        bench,
        "retina4",
        "fp16",
        build,
        images((1, 3, 640, 864), 0.01),
        flop=gflop(bench.graph("retina4", False), (1, 3, 640, 864)),
    )


def coco(bench: Bench) -> None:
    """Accuracy of YOLOX-Nano at 640 and 416 on the engine of phase yolox."""
    build = bench.engine(bench.graph("yolox640", True), "fp16", YOLOX, level=2, low=1)
    for name in ("yolox640", "yolox416"):
        accuracy(bench, name, "coco", bench.runner(build))


def accuracy(bench: Bench, name: str, data: str, runner: Any) -> None:
    """Detections of the engine and of FP32 eager torch on the same images, as one npz."""
    source = detector(name, bench.given.weights)
    reference = TorchGpuRunner(source.module)
    arrays: dict[str, Any] = {}
    files = sorted((bench.given.data / data).iterdir())
    for how, used in (("fp16", runner), ("fp32", reference)):
        predict = Predictor(used, source.preprocess, source.head, source.postprocess, "fixed")
        found = [predict([cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)])[0] for path in files]
        for field in ("boxes", "scores", "labels"):
            arrays[f"{how}_{field}"] = np.concatenate([getattr(one, field) for one in found])
        arrays[f"{how}_counts"] = np.array([len(one.scores) for one in found])
    np.savez_compressed(bench.given.out / f"detections-{name}.npz", files=[path.name for path in files], **arrays)
    counts = [int(arrays[f"{how}_counts"].sum()) for how in ("fp16", "fp32")]
    bench.note(model=name, what="detections", images=len(files), fp16=counts[0], fp32=counts[1])
    runner.close()
    reference.close()


def mix(bench: Bench) -> None:
    """A histogram of real photographs on YOLOX-Nano: exact shapes, buckets, one dynamic profile; requests one at a time."""
    counted: dict[tuple[int, int], int] = {}
    for path in sorted((bench.given.data / "coco").iterdir()):
        height, width = cv2.imread(str(path)).shape[:2]
        counted[height, width] = counted.get((height, width), 0) + 1
    total = sum(counted.values())
    shares = tuple(
        ShapeShare(height=h, width=w, share=n / total) for (h, w), n in sorted(counted.items(), key=lambda kv: -kv[1])
    )
    traffic, preprocess = Traffic(shapes=shares, origin="coco_val61"), Preprocess(size=(640, 640), channels="bgr")
    half = bench.graph("yolox640", True)
    for kind, shapes in (("bucketed", None), ("dynamic", "minimal"), ("exact", "minimal")):
        chosen = choose_profiles(traffic, preprocess, kind, batch=1)  # type: ignore[arg-type]
        policy: Any = shapes or tuple(sorted(chosen.shapes, key=lambda hw: (hw[0] * hw[1], hw)))
        options = BuildOptions(
            precision="fp16", profiles=chosen.profiles, tactic_sources=("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
        )
        build = bench_build(bench, half, replace(options, optimization_level=2))
        runner = bench.runner(build)
        sizes = [input_size(hw, preprocess, policy) for hw, n in counted.items() for _ in range(n)]
        order = np.random.default_rng(1).permutation(len(sizes) * 20) % len(sizes)
        batches = {size: images((1, 3, *size), 1.0) for size in set(sizes)}
        for size in batches:
            runner.run(batches[size])
        taken = []
        for index in order:
            start = time.perf_counter()
            runner.run(batches[sizes[index]])
            taken.append((time.perf_counter() - start) * 1000)
        p50, p95, p99 = np.percentile(taken, (50, 95, 99))
        area = sum(h * w for h, w in sizes) / len(sizes)
        bench.note(
            what="mix", kind=kind, profiles=len(chosen.profiles), distinct_inputs=len(batches), waste_predicted=chosen.waste,
            mean_input_pixels=area, p50_ms=float(p50), p95_ms=float(p95), p99_ms=float(p99),
            images_per_s=1000 / float(np.mean(taken)),
            build_s=build.seconds, context_mb=(build.device_memory_bytes or 0) / 1e6, requests=len(taken),
        )  # fmt: skip
        runner.close()


def bench_build(bench: Bench, model: Any, options: BuildOptions) -> Any:
    from redline.engine.tensorrt_store import build_engine

    build = build_engine(model, options, bench.library, bench.store)
    bench.built("yolox640", build)
    return build


PHASES = {
    "yolox": yolox, "retina": retina, "retina_batch": retina_batch, "retina_wide": retina_wide, "tf32": tf32,
    "moonshot": moonshot, "bccd": bccd, "coco": coco, "mix": mix,
}  # fmt: skip
