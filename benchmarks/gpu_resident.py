"""Image bytes to boxes on one GPU: preprocess kernel, TensorRT engine and post-process kernels as one CUDA graph.

    python benchmarks/gpu_resident.py --weights DIR --data DIR --out DIR retina_resident yolox_resident

Of each model: detections of the same decoded pixels against the reference path (numpy pre- and post-processing around the same
engine), latency from an image in device memory and from JPEG bytes in host memory to boxes on the host, highest throughput with
several pipelines in flight beside the network's own, and the highest Poisson rate with P95 <= 20 ms.

Predicted before the first run (H200): RetinaNet 800 resident P50 1.9 ms (network 1.6, pre 0.02, post 0.1, tables and copies
0.1), P95 2.0; 1080p JPEG 5 ms; YOLOX-Nano 640 resident 0.9 ms, JPEG 2 ms; throughput of JPEG in, boxes out at batch 8 with 3
pipelines: 85 % of the network's; 2,000/s within 20 ms on one GPU: YOLOX-Nano yes, RetinaNet no (its network alone reaches some
1,200/s).
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gpu_capacity import Workers, capacity, rates
from gpu_checks import read_rgb
from gpu_fixed import exact
from gpu_models import detector
from gpu_phases import RETINA, YOLOX, pair_of_profiles
from redline.engine.torch_gpu_runner import TorchGpuRunner
from redline.kernels.jpeg import JpegDecoder
from redline.predict import Predictor
from redline.records import Detections, Detector, DeviceImage, EngineBuild, Postprocess
from redline.resident import ResidentPipeline
from redline.vision import prepare
from tensorrt_gpu import Bench, main, timed

CLASSES = {"retina91": 91, "retina4": 4, "yolox640": 80, "yolox640-stem": 80}
POST: dict[str, Postprocess] = {}
NEAR_PX, NEAR = 0.05, 1e-3


def device_image(pixels: Any, device: int = 0) -> tuple[DeviceImage, Any]:
    """(record, the tensor that owns the memory)."""
    held = torch.zeros(pixels.size + 64, dtype=torch.uint8, device=f"cuda:{device}")
    held[: pixels.size].copy_(torch.from_numpy(pixels.reshape(-1)))
    height, width, _ = pixels.shape
    return DeviceImage(pointer=held.data_ptr(), height=height, width=width, row_bytes=3 * width), held


def same(found: Detections, wanted: Detections) -> tuple[int, int]:
    """(detections of `wanted` that `found` has, all of them): same label, box within NEAR_PX, score within NEAR."""
    hits, free = 0, np.ones(len(found.scores), bool)
    for box, score, label in zip(wanted.boxes, wanted.scores, wanted.labels, strict=True):
        near = free & (found.labels == label) & (np.abs(found.scores - score) <= NEAR)
        near &= np.abs(found.boxes - box).max(axis=1, initial=0.0) <= NEAR_PX * max(1.0, float(np.abs(box).max()) / 640)
        if near.any():
            free[int(np.argmax(near))] = False
            hits += 1
    return hits, len(wanted.scores)


@cache
def prepared(name: str, weights: Path) -> Detector:
    return detector(name, weights)


def threshold(bench: Bench, name: str, runner: Any, photo: Any) -> Postprocess:
    """Random weights put no score above RetinaNet's 0.05: the one that a hundredth of the scores are above, as is usual."""
    source = prepared(name, bench.given.weights)
    if name != "retina91":
        return source.postprocess
    logits = runner.run(prepare(photo, source.preprocess, "fixed")[0][None])[0].astype(np.float32)
    return replace(source.postprocess, score=float(1 / (1 + np.exp(-np.quantile(logits, 0.99)))))


def batches_of(runner: Any, input_hw: tuple[int, int]) -> list[int]:
    """Powers of two that the engine's profiles hold as a batch of this input size."""
    batches = [1 << power for power in range(10)]
    shapes = [(batch, 3, *input_hw) for batch in batches]
    spans = [(low, high) for low, _, high in runner.profiles]
    return [
        shape[0]
        for shape in shapes
        if any(all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)) for low, high in spans)
    ]


def pipeline(bench: Bench, name: str, runner: Any, images: int, **how: Any) -> ResidentPipeline:
    source = prepared(name, bench.given.weights)
    shape = runner.profiles[0][1][2:]
    parts = (source.preprocess, source.head, POST[name], CLASSES[name])
    fewer = () if bench.given.one_size else batches_of(runner, shape)
    return ResidentPipeline(runner, *parts, input_hw=shape, images=images, fewer=fewer, **how)


def equal(
    bench: Bench, name: str, runner: Any, pipe: ResidentPipeline, paths: Sequence[Path], decoder: JpegDecoder | None = None
) -> None:
    """Against numpy before and after the same engine: from identical pixels, or each side from its own decoder's."""
    source = prepared(name, bench.given.weights)
    reference = Predictor(runner, source.preprocess, source.head, POST[name], "fixed")
    hits = total = extra = 0
    arrays: dict[str, list[Any]] = {}
    for path in paths:
        pixels = read_rgb(path)
        image, held = device_image(pixels)
        torch.cuda.synchronize()
        if decoder is not None:
            image = decoder.decode([path.read_bytes()], stream=pipe.stream.cuda_stream)[0].image  # type: ignore[assignment]
        pipe.launch([image])
        found, wanted = pipe.wait()[0], reference([pixels])[0]
        del held
        near, count = same(found, wanted)
        hits, total, extra = hits + near, total + count, extra + len(found.scores) - near
        for how, side in (("fp16", found), ("fp32", wanted)):
            for field in ("boxes", "scores", "labels"):
                arrays.setdefault(f"{how}_{field}", []).append(getattr(side, field))
            arrays.setdefault(f"{how}_counts", []).append(np.array([len(side.scores)]))
    joined = {key: np.concatenate(value) for key, value in arrays.items()}
    what = "equal" if decoder is None else "decoded on the GPU"
    file = bench.given.out / f"detections-{name}-{'resident' if decoder is None else 'jpeg'}.npz"
    np.savez_compressed(file, files=[path.name for path in paths], **joined)
    bench.note(model=name, what=what, images=len(paths), reference=total, found_again=hits, not_in_reference=extra)


def photo_paths(bench: Bench) -> list[Path]:
    return sorted((bench.given.data / "coco").iterdir())


def jpeg(pixels: Any) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG", quality=90)
    return held.getvalue()


def full_hd(path: Path) -> Any:
    """A photograph at 1080 x 1920."""
    return np.asarray(Image.fromarray(read_rgb(path)).resize((1920, 1080), Image.Resampling.BICUBIC))


def latency(bench: Bench, name: str, pipe: ResidentPipeline, decoder: JpegDecoder, photo: Any) -> None:
    image, held = device_image(photo)

    def resident() -> None:
        pipe.launch([image])
        pipe.wait()

    data = jpeg(photo)

    def encoded() -> None:
        (got,) = decoder.decode([data], stream=pipe.stream.cuda_stream)
        pipe.launch([got.image])  # type: ignore[list-item]
        pipe.wait()

    for what, call, runs in (("resident", resident, 2000), ("jpeg", encoded, 400)):
        bench.note(model=name, what=f"latency {what}", pixels=list(photo.shape), jpeg_bytes=len(data), **timed(call, runs, 6.0))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(pipe.stream):
        start.record()
        for _ in range(50):
            pipe._graphs[-1][1].replay()
        end.record()
    end.synchronize()
    bench.note(model=name, what="graph alone", gpu_ms=start.elapsed_time(end) / 50)
    del held


def network_alone(bench: Bench, name: str, runner: Any, images: int) -> None:
    """The same engine at the same batch, two lanes deep, input on the GPU."""
    shape = (images, 3, *runner.profiles[0][1][2:])

    def spin(lane: Any, rounds: int) -> None:
        torch.cuda.set_device(0)
        for _ in range(rounds):
            lane.compute(shape)
            lane.stream.wait()

    with ThreadPoolExecutor(2) as pool, runner.lane() as one, runner.lane() as two:
        for lane in (one, two):
            lane.upload(np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32))
            spin(lane, 3)
        start = time.perf_counter()
        list(pool.map(lambda lane: spin(lane, 100), (one, two)))
        seconds = time.perf_counter() - start
    bench.note(model=name, what="network alone", images=images, lanes=2, images_per_s=200 * images / seconds)


def eager(bench: Bench, name: str, photo: Any) -> None:
    """FP32 eager torch between numpy pre- and post-processing on the host, from decoded pixels to boxes."""
    source = prepared(name, bench.given.weights)
    runner = TorchGpuRunner(source.module)
    predict = Predictor(runner, source.preprocess, source.head, POST[name], "fixed")
    bench.note(
        model=name, what="latency eager fp32, host", pixels=list(photo.shape), **timed(lambda: predict([photo]), 60, 8.0)
    )
    runner.close()


def resident(bench: Bench, name: str, build: Callable[[], EngineBuild], images: int, paths: Sequence[Path]) -> None:
    runner, photo = bench.runner(build(), lanes=2), full_hd(paths[0])
    POST[name] = threshold(bench, name, runner, photo)
    for kernel in ("triton", "cuda"):
        pipe = pipeline(bench, name, runner, 1, kernel=kernel)
        image, held = device_image(photo)

        def once(pipe: Any = pipe, image: Any = image) -> None:
            pipe.launch([image])
            pipe.wait()

        bench.note(model=name, what=f"latency resident, {kernel} kernel", **timed(once, 500, 3.0))
        del held
    decoder = JpegDecoder(0, threads=2)
    equal(bench, name, runner, pipe, paths)
    equal(bench, name, runner, pipe, paths, decoder)
    latency(bench, name, pipe, decoder, photo)
    eager(bench, name, photo)
    network_alone(bench, name, runner, images)
    capacity(
        bench, name, lambda count: [pipeline(bench, name, runner, images) for _ in range(count)],
        images, {0: device_image(photo)}, files_of(bench, name, photo),
    )  # fmt: skip
    runner.close()


def files_of(bench: Bench, name: str, photo: Any) -> list[bytes]:
    """RetinaNet of a fixed square takes one size; YOLOX takes every photograph."""
    return [path.read_bytes() for path in photo_paths(bench)] if name.startswith("yolox") else [jpeg(photo)]


def objective(bench: Bench, name: str, build: EngineBuild, batches: Sequence[int]) -> None:
    """JPEG in, boxes out, on one GPU and on all behind one queue: saturated, then rates around 2,000/s."""
    count, photo = torch.cuda.device_count(), full_hd(photo_paths(bench)[0])
    runners = [bench.runner(build, lanes=2, device=device) for device in range(count)]
    POST[name] = threshold(bench, name, runners[0], photo)
    files = files_of(bench, name, photo)
    for used in (runners, runners[:1]) if count > 1 else (runners,):
        held = {runner.device: device_image(photo, runner.device) for runner in used}
        for images in batches:
            for each in (2, 3):
                pipes = [pipeline(bench, name, runner, images) for runner in used for _ in range(each)]
                workers = Workers(pipes, images, held, files)
                workers.run(40 * len(pipes), None)
                workers.run(200, 200.0)  # one image at a time too: what decodes and computes few is loaded at its first use
                row = workers.run(4000, None)
                bench.note(model=name, what="capacity jpeg", images=images, pipelines_each=each, gpus=len(used), **row)
                steps = [share * row["images_per_s"] for share in (0.3, 0.45, 0.6, 0.7, 0.8, 0.9)]
                rates(bench, name, "jpeg", workers, [rate for rate in sorted((*steps, 2000.0)) if rate < row["images_per_s"]])
    for runner in runners:
        runner.close()


def retina_build(bench: Bench) -> EngineBuild:
    return pair_of_profiles(bench, "retina91", RETINA)


def yolox_build(bench: Bench) -> EngineBuild:
    return pair_of_profiles(bench, "yolox640-stem", YOLOX[0])


def exact_resident(bench: Bench) -> None:
    """Latency around the engine of gpu_phases' yolox_exact_1."""
    name, shape = "yolox640", (1, 3, *YOLOX[0][2:])
    runner, decoder = bench.runner(bench.build(name, *exact(bench, name, shape, 3))), JpegDecoder(0, threads=2)
    POST[name] = prepared(name, bench.given.weights).postprocess
    paths = photo_paths(bench)
    for kernel in ("cuda", "triton", "cuda"):
        pipe = pipeline(bench, name, runner, 1, kernel=kernel)
        bench.note(model=name, what="kernel", kernel=kernel)
        latency(bench, name, pipe, decoder, full_hd(paths[0]))
    equal(bench, name, runner, pipe, paths)
    runner.close()


def bccd_resident(bench: Bench, precision: str) -> None:
    """Accuracy of the kernels around the engine of gpu_phases' bccd, or one in FP32, whose rounding hides nothing."""
    name = "retina4"
    runner, decoder = bench.runner(bench.engine(name, precision, [(1, 3, 640, 864)], level=2)), JpegDecoder(0, threads=2)
    POST[name] = prepared(name, bench.given.weights).postprocess
    pipe, paths = pipeline(bench, name, runner, 1), sorted((bench.given.data / "bccd").iterdir())
    equal(bench, name, runner, pipe, paths)
    equal(bench, name, runner, pipe, paths, decoder)
    latency(bench, name, pipe, decoder, read_rgb(paths[0]))
    eager(bench, name, read_rgb(paths[0]))
    runner.close()


PHASES: dict[str, Any] = {
    "retina_resident": lambda bench: resident(bench, "retina91", partial(retina_build, bench), 8, photo_paths(bench)[:12]),
    "yolox_resident": lambda bench: resident(bench, "yolox640-stem", partial(yolox_build, bench), 16, photo_paths(bench)),
    "yolox_exact_resident": exact_resident,
    **{f"bccd_resident_{precision}": partial(bccd_resident, precision=precision) for precision in ("fp16", "fp32")},
    "yolox_objective": lambda bench: objective(bench, "yolox640-stem", yolox_build(bench), (16, 8)),
    "retina_objective": lambda bench: objective(bench, "retina91", retina_build(bench), (8, 4)),
}

if __name__ == "__main__":
    main(PHASES)
