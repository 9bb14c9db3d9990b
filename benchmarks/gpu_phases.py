"""The phases of the GPU benchmark: which models, shapes and builds each one measures."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpu_builds import BuildClock
from gpu_checks import accuracy, check, inspect, read_rgb
from gpu_fixed import exact
from gpu_pair import pair
from redline.engine.tensorrt_builder import build_plan
from redline.export.half import export_half
from redline.plan.profiles import choose_profiles
from redline.records import BuildOptions, EngineBuild, EngineProfile, OnnxModel, Preprocess, ShapeShare, Traffic
from redline.vision import input_size
from tensorrt_gpu import Bench, Shape, images, time_engine, time_torch

RETINA: Shape = (1, 3, 800, 800)
NORMAL = 0.01
"""Scale of random pixels for RetinaNet, whose input is normalised; YOLOX takes 0 to 255."""
YOLOX: list[Shape] = [(1, 3, 640, 640), (1, 3, 416, 416)]


def warm(bench: Bench) -> None:
    """torch.compile from nothing: `first_s` is what a user waits. Later phases find its cache."""
    time_torch(bench, "retina91", "fp16", RETINA, scale=NORMAL, compiled=True, seconds=0.5)


def warm_two(bench: Bench) -> None:
    """What the phases with two profiles compile."""
    for name, shape, scale in (("yolox640", YOLOX[0], 1.0), ("retina91", RETINA, NORMAL), ("yolox640", YOLOX[1], 1.0)):
        for count in (32, 1):
            time_torch(bench, name, "fp16", (count, *shape[1:]), scale=scale, compiled=True, seconds=0.2)


def warm_yolox(bench: Bench) -> None:
    for shape in YOLOX:
        time_torch(bench, "yolox640", "fp16", shape, scale=1.0, compiled=True, seconds=0.5)


def retina_build(bench: Bench) -> EngineBuild:
    build = bench.engine("retina91", "fp16", [RETINA])
    first = bench.given.work / "first.cache"
    if not first.exists():
        shutil.copy(bench.timings(), first)
    return build


def retina_rebuild(bench: Bench) -> None:
    """The same build with the timings of the first: in a fresh process, then in the same one."""
    build, known = retina_build(bench), (bench.given.work / "first.cache").read_bytes()
    for where in ("fresh process", "same process"):
        clock = BuildClock()
        clock.install()
        plan = build_plan(bench.graph("retina91", True).path, build.options, bench.library, timing_cache=known)
        bench.note(
            model="retina91", what="rebuild", where=where, first_s=build.seconds, second_s=plan.seconds, clock=clock.summary(),
            times_faster=build.seconds / plan.seconds, same_bytes=plan.data == bench.store.path(build.digest).read_bytes(),
        )  # fmt: skip


def retina(bench: Bench) -> None:
    build, batch = retina_build(bench), images(RETINA, NORMAL)
    time_engine(bench, "retina91", "fp16", build, RETINA, scale=NORMAL)
    time_torch(bench, "retina91", "fp16", RETINA, scale=NORMAL, compiled=True, seconds=6)
    time_engine(bench, "retina91", "fp16", build, RETINA, scale=NORMAL, graphs=False)
    for precision in ("fp32", "tf32"):
        time_torch(bench, "retina91", precision, RETINA, scale=NORMAL)
    time_engine(bench, "retina91", "fp16", build, RETINA, scale=NORMAL)
    check(bench, "retina91", build, batch)
    inspect(bench, "retina91", build, batch)


def retina_many(bench: Bench) -> None:
    """Batches of 1 to 32 in one profile, tuned for 32."""
    build = bench.engine("retina91", "fp16", [(32, *RETINA[1:])], level=2, low=1)
    for count in (32, 16, 8, 4, 1):
        time_engine(bench, "retina91", "fp16", build, (count, *RETINA[1:]), scale=NORMAL)
    time_torch(bench, "retina91", "fp16", (32, *RETINA[1:]), scale=NORMAL, compiled=True)


def retina_wide(bench: Bench) -> None:
    shape = (1, 3, 800, 1344)
    build = bench.engine("retina91", "fp16", [shape], level=2)
    time_engine(bench, "retina91", "fp16", build, shape, scale=NORMAL)


def wide_type(bench: Bench, precision: str) -> None:
    """An FP32 or TF32 engine, one shape."""
    build = bench.engine("retina91", precision, [RETINA], level=2)
    time_engine(bench, "retina91", precision, build, RETINA, scale=NORMAL)


def yolox_build(bench: Bench, shape: Shape) -> EngineBuild:
    """Built and timed at once, whatever else runs; the phase that follows measures on a quiet machine."""
    build = bench.engine("yolox640", "fp16", [shape])
    time_engine(bench, "yolox640", "fp16", build, shape, scale=1.0)
    return build


def pair_of_profiles(bench: Bench, name: str, shape: Shape, **how: Any) -> EngineBuild:
    """One engine with two profiles: batch 1, and batches of 1 to 32 tuned for 32."""
    return bench.engine(name, "fp16", [shape, (32, *shape[1:])], low=2, **how)


def retina_two(bench: Bench) -> None:
    build = pair_of_profiles(bench, "retina91", RETINA)
    for count in (1, 4, 8, 16, 32, 1):
        time_engine(bench, "retina91", "fp16", build, (count, *RETINA[1:]), scale=NORMAL)
    time_torch(bench, "retina91", "fp16", RETINA, scale=NORMAL, compiled=True, seconds=4)
    for precision in ("tf32", "fp32"):
        time_torch(bench, "retina91", precision, RETINA, scale=NORMAL, seconds=2)
    check(bench, "retina91", build, images(RETINA, NORMAL))
    inspect(bench, "retina91", build, images(RETINA, NORMAL))


def yolox_two(bench: Bench, shape: Shape, name: str) -> None:
    build = pair_of_profiles(bench, name, shape)
    for count in (1, 32, 1):
        time_engine(bench, name, "fp16", build, (count, *shape[1:]), scale=1.0)
    for count in (1, 32):
        time_torch(bench, name, "fp16", (count, *shape[1:]), scale=1.0, compiled=True, seconds=4)
    for precision in ("fp32", "tf32"):
        time_torch(bench, name, precision, shape, scale=1.0, seconds=3)
    accuracy(bench, name.replace("640", str(shape[2])), "coco", build)
    check(bench, name, build, images(shape, 1.0))
    inspect(bench, name, build, images(shape, 1.0))


def yolox(bench: Bench, shape: Shape) -> None:
    build = bench.engine("yolox640", "fp16", [shape])
    time_engine(bench, "yolox640", "fp16", build, shape, scale=1.0)
    time_torch(bench, "yolox640", "fp16", shape, scale=1.0, compiled=True)
    time_engine(bench, "yolox640", "fp16", build, shape, scale=1.0, graphs=False)
    for precision in ("fp32", "tf32"):
        time_torch(bench, "yolox640", precision, shape, scale=1.0, seconds=3)
    time_engine(bench, "yolox640", "fp16", build, shape, scale=1.0)
    accuracy(bench, f"yolox{shape[2]}", "coco", build)
    check(bench, "yolox640", build, images(shape, 1.0))
    inspect(bench, "yolox640", build, images(shape, 1.0))


def yolox_many(bench: Bench, shape: Shape) -> None:
    """Batches of 1 to 32 in one profile, tuned for 32."""
    build = bench.engine("yolox640", "fp16", [(32, *shape[1:])], level=2, low=1)
    for count in (32, 1):
        time_engine(bench, "yolox640", "fp16", build, (count, *shape[1:]), scale=1.0)
    time_torch(bench, "yolox640", "fp16", (32, *shape[1:]), scale=1.0, compiled=True, seconds=3)


def yolox_exact(bench: Bench, count: int) -> None:
    """One shape, at level 3 if no other is asked for."""
    shape = (count, *YOLOX[0][1:])
    model, options = exact(bench, "yolox640", shape, 3)
    build = bench.build("yolox640", model, options)
    for compiled in (False, True, False):
        if compiled:
            time_torch(bench, "yolox640", "fp16", shape, scale=1.0, compiled=True, seconds=4)
        else:
            time_engine(bench, "yolox640", "fp16", build, shape, scale=1.0)
    if count == 1:
        accuracy(bench, "yolox640", "coco", build)
    check(bench, "yolox640", build, images(shape, 1.0))
    inspect(bench, "yolox640", build, images(shape, 1.0))


def bccd(bench: Bench) -> None:
    """Accuracy of RetinaNet at 640 x 864."""
    shape = (1, 3, 640, 864)
    build = bench.engine("retina4", "fp16", [shape], level=2)
    accuracy(bench, "retina4", "bccd", build)
    time_engine(bench, "retina4", "fp16", build, shape, scale=NORMAL)
    time_torch(bench, "retina4", "fp32", shape, scale=NORMAL, seconds=2)


def moonshot(bench: Bench, name: str) -> None:
    build, batch = bench.engine(name, "fp16", [RETINA]), images(RETINA, NORMAL)
    time_engine(bench, name, "fp16", build, RETINA, scale=NORMAL)
    check(bench, name, build, batch)
    inspect(bench, name, build, batch)


def half_outputs(bench: Bench) -> None:
    """Outputs left in FP16."""
    folder = bench.given.work / "half_outputs"
    folder.mkdir(exist_ok=True)
    for name, shape, scale in (("retina91", RETINA, NORMAL), ("yolox640", YOLOX[0], 1.0)):
        narrow = export_half(bench.graph(name, False), folder, keep_outputs=False)
        profile = EngineProfile(index=0, minimum=shape, optimum=shape, maximum=shape)
        label = f"{name}, FP16 outputs"
        build = bench.build(label, narrow, BuildOptions(precision="fp16", profiles=(profile,)))
        time_engine(bench, name, "fp16", build, shape, scale=scale, label=label)


def converters(bench: Bench) -> None:
    """YOLOX-Nano graphs that other converters made, found as <data>/converters/NAME.onnx."""
    shape = YOLOX[0]
    profile = EngineProfile(index=0, minimum=shape, optimum=shape, maximum=shape)
    for path in sorted((bench.given.data / "converters").glob("*.onnx")):
        model = given_graph(path, bench.graph("yolox640", True))
        label = f"yolox640 by {path.stem}"
        build = bench.build(label, model, BuildOptions(precision="fp16", profiles=(profile,)))
        for _ in range(2):
            time_engine(bench, "yolox640", "fp16", build, shape, scale=1.0, label=label)


def given_graph(path: Path, like: OnnxModel) -> OnnxModel:
    import hashlib

    return replace(like, path=str(path), digest=hashlib.sha256(path.read_bytes()).hexdigest())


KINDS = ("dynamic", "bucketed", "exact")


def mix(bench: Bench, kinds: tuple[Any, ...] = KINDS) -> None:
    """A histogram of real photographs on YOLOX-Nano: exact shapes, buckets, one dynamic profile; requests one at a time."""
    counted: dict[tuple[int, int], int] = {}
    for path in sorted((bench.given.data / "coco").iterdir()):
        height, width = read_rgb(path).shape[:2]
        counted[height, width] = counted.get((height, width), 0) + 1
    total = sum(counted.values())
    ordered = sorted(counted.items(), key=lambda item: -item[1])
    traffic = Traffic(
        shapes=tuple(ShapeShare(height=h, width=w, share=n / total) for (h, w), n in ordered), origin="coco_val61"
    )
    # A stride of 64 leaves 8 shapes of these photographs, so that each can have a profile of its own.
    preprocess = Preprocess(size=(640, 640), channels="bgr", stride=64)
    for kind in kinds:
        chosen = choose_profiles(traffic, preprocess, kind, batch=1)
        policy: Any = tuple(sorted(chosen.shapes, key=lambda hw: (hw[0] * hw[1], hw))) if kind == "bucketed" else "minimal"
        options = BuildOptions(precision="fp16", profiles=chosen.profiles, optimization_level=2)
        build = bench.build("yolox640", bench.graph("yolox640", True), options)
        sizes = [input_size(hw, preprocess, policy) for hw, n in counted.items() for _ in range(n)]
        area = sum(h * w for h, w in sizes) / len(sizes)
        bench.note(
            model="yolox640", what="mix", kind=kind, profiles=len(chosen.profiles), distinct_inputs=len(set(sizes)),
            waste_predicted=chosen.waste, waste_measured=area / least_area(counted, preprocess) - 1, mean_input_pixels=area,
            build_s=build.seconds, context_mb=(build.device_memory_bytes or 0) / 1e6, **requests(bench, build, sizes),
        )  # fmt: skip


def least_area(counted: dict[tuple[int, int], int], preprocess: Preprocess) -> float:
    """Mean area of the resized images themselves."""
    height, width = preprocess.size
    scales = {hw: min(height / hw[0], width / hw[1]) for hw in counted}
    total = sum(n * round(hw[0] * scales[hw]) * round(hw[1] * scales[hw]) for hw, n in counted.items())
    return total / sum(counted.values())


def requests(bench: Bench, build: EngineBuild, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """Latency through pinned memory of 20 times the histogram in random order, and of the network alone."""
    runner = bench.runner(build)
    batches = {size: images((1, 3, *size), 1.0) for size in set(sizes)}
    for size in batches:
        runner.run(batches[size])
    order = np.random.default_rng(1).permutation(len(sizes) * 20) % len(sizes)
    row: dict[str, Any] = {"requests": len(order)}
    with runner.lane() as lane:
        for what in ("copies_and_network", "network"):
            taken = []
            for index in order:
                batch = batches[sizes[index]]
                start = time.perf_counter()
                if what == "network":
                    lane.compute(batch.shape)
                    lane.stream.wait()
                else:
                    lane.run(batch)
                taken.append((time.perf_counter() - start) * 1000)
            p50, p95, p99 = np.percentile(taken, (50, 95, 99))
            row[what] = {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "images_per_s": 1000 / float(np.mean(taken))}
    runner.close()
    return row


PHASES: dict[str, Any] = {
    "warm": warm, "warm_two": warm_two, "warm_yolox": warm_yolox,
    "retina_build": retina_build, "retina_rebuild": retina_rebuild, "retina": retina,
    "retina_many": retina_many, "retina_wide": retina_wide, "bccd": bccd,
    "wide_tf32": partial(wide_type, precision="tf32"), "wide_fp32": partial(wide_type, precision="fp32"),
    "packed": lambda bench: moonshot(bench, "packed"), "native": lambda bench: moonshot(bench, "native"),
    "packed_native": lambda bench: moonshot(bench, "packed-native"),
    "rows_native": lambda bench: moonshot(bench, "rows-native"),
    "half_outputs": half_outputs, "converters": converters, "mix": mix,
    "pair": lambda bench: pair(bench, retina_build(bench), images(RETINA, NORMAL)),
    "pair_two": lambda bench: pair(bench, pair_of_profiles(bench, "retina91", RETINA), images(RETINA, NORMAL)),
    "retina_two": retina_two,
    **{f"yolox_exact_{count}": partial(yolox_exact, count=count) for count in (1, 32)},
    **{
        f"yolox_two_{shape[2]}{end}": partial(yolox_two, shape=shape, name=f"yolox640{end}")
        for shape in YOLOX for end in ("", "-stem")
    },
    **{f"mix_{kind}": partial(mix, kinds=(kind,)) for kind in KINDS},
    **{f"yolox_build_{shape[2]}": partial(yolox_build, shape=shape) for shape in YOLOX},
    **{f"yolox_{shape[2]}": partial(yolox, shape=shape) for shape in YOLOX},
    **{f"yolox_many_{shape[2]}": partial(yolox_many, shape=shape) for shape in YOLOX},
}  # fmt: skip
