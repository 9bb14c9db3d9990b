"""Pipelines of one or several GPUs that take requests from one queue: saturated, and under Poisson load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import torch

from gpu_load import served
from redline.kernels.jpeg import JpegDecoder
from redline.records import DeviceImage
from redline.resident import ResidentPipeline
from tensorrt_gpu import Bench

LIMIT_MS = 20.0
Held = tuple[DeviceImage, Any]
"""An image in device memory, and the tensor that owns it."""


class Workers:
    """Threads that take requests from one queue, as many at once as their pipelines take: decode, launch, wait.

    `files`: what each request brings as bytes; without them each is the image of `images` that lies on the pipeline's GPU.
    """

    def __init__(
        self, pipes: Sequence[ResidentPipeline], most: int, images: dict[int, Held], files: Sequence[bytes] | None
    ) -> None:
        self.pipes, self.most, self.images, self.files = pipes, most, images, files
        self.queue: SimpleQueue[float | None] = SimpleQueue()
        self.taken: list[float] = []
        self.by_gpu = dict.fromkeys((pipe.device for pipe in pipes), 0)
        self.decoders = [JpegDecoder(pipe.device, threads=2) for pipe in pipes] if files else []

    def work(self, index: int) -> None:
        pipe, over = self.pipes[index], False
        torch.cuda.set_device(pipe.device)
        while not over:
            due = [self.queue.get()]
            while len(due) < self.most and not self.queue.empty():
                due.append(self.queue.get())
            over = None in due
            asked = [at for at in due if at is not None]
            for _ in range(due.count(None) - 1):
                self.queue.put(None)
            if not asked:
                break
            pipe.launch(self.decoded(index, asked) if self.files else [self.images[pipe.device][0]] * len(asked))
            pipe.wait(len(asked))
            now = time.perf_counter()
            self.taken += [(now - at) * 1000 for at in asked]
            self.by_gpu[pipe.device] += len(asked)

    def decoded(self, index: int, asked: Sequence[float]) -> list[DeviceImage]:
        assert self.files is not None
        batch = [self.files[int(at * 1e6) % len(self.files)] for at in asked]
        found = self.decoders[index].decode(batch, stream=self.pipes[index].stream.cuda_stream)
        return [one.image for one in found if one.image is not None]

    def run(self, requests: int, rate: float | None) -> dict[str, Any]:
        """`requests` at once (None) or by a Poisson process; latency from the time each was due."""
        self.taken, self.by_gpu = [], dict.fromkeys(self.by_gpu, 0)
        threads = [threading.Thread(target=self.work, args=(index,)) for index in range(len(self.pipes))]
        return served(self.queue, threads, self.taken, requests, rate) | {"by_gpu": list(self.by_gpu.values())}


Make = Callable[[int], list[ResidentPipeline]]
"""(pipelines a GPU) -> pipelines of all GPUs used."""


def capacity(
    bench: Bench,
    name: str,
    make: Make,
    most: int,
    images: dict[int, Held],
    files: Sequence[bytes],
    counts: Sequence[int] = (2, 3, 4),
) -> None:
    """Saturated, then the highest of rising rates whose P95 is within the limit."""
    for what, given in (("resident", None), ("jpeg", files)):
        for count in counts:
            workers = Workers(make(count), most, images, given)
            workers.run(20 * most * len(workers.pipes), None)
            row = workers.run(min(6000, 150 * most * len(workers.pipes)), None)
            bench.note(model=name, what=f"capacity {what}", images=most, pipelines_each=count, gpus=len(images), **row)
            if count == 3:
                rates(bench, name, what, workers, [share * row["images_per_s"] for share in (0.5, 0.7, 0.8, 0.9, 0.95)])


def rates(bench: Bench, name: str, what: str, workers: Workers, offered: Sequence[float]) -> None:
    for rate in offered:
        row = workers.run(int(min(6000, max(800, 2 * rate))), rate)
        bench.note(
            model=name, what=f"poisson {what}", within=row["p95_ms"] <= LIMIT_MS, images=workers.most,
            pipelines=len(workers.pipes), gpus=len(workers.by_gpu), **row,
        )  # fmt: skip
        if row["p95_ms"] > 2 * LIMIT_MS:
            break
