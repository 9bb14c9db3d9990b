"""Several GPUs behind one shared queue: capacity and latency under Poisson load, against one GPU."""

from __future__ import annotations

import contextlib
import threading
import time
from queue import SimpleQueue
from typing import Any

from cuda.bindings import runtime as cudart

from gpu_load import served
from redline.engine.cuda import ok
from redline.engine.tensorrt_runner import TensorRTRunner
from redline.records import EngineBuild
from tensorrt_gpu import Bench

LANES = 2
"""In flight on each GPU: one computes while the other's input is on its way."""
REQUESTS = 1000
LOAD = 0.8


class Pool:
    """Worker threads, `LANES` for each GPU, that take requests from one queue. A request is its due time."""

    def __init__(self, runners: list[TensorRTRunner], batch: Any, *, fed: bool) -> None:
        self.queue: SimpleQueue[float | None] = SimpleQueue()
        self.taken: list[float] = []
        self.by_gpu = [0] * len(runners)
        self.batch, self.fed = batch, fed
        self.threads = [threading.Thread(target=self._work, args=(i, r)) for i, r in enumerate(runners) for _ in range(LANES)]

    def _work(self, index: int, runner: TensorRTRunner) -> None:
        with runner.lane() as lane:
            while (due := self.queue.get()) is not None:
                if self.fed:
                    lane.upload(self.batch)
                lane.compute(self.batch.shape)
                lane.stream.wait()
                self.taken.append((time.perf_counter() - due) * 1000)
                self.by_gpu[index] += 1

    def run(self, rate: float | None) -> dict[str, Any]:
        """`REQUESTS` requests all at once (None), or due at `rate` a second by a Poisson process."""
        return served(self.queue, self.threads, self.taken, REQUESTS, rate) | {"by_gpu": self.by_gpu}


def pair(bench: Bench, build: EngineBuild, batch: Any) -> None:
    """resident: the input lies on the GPU; fed: it is copied through pinned memory for every request."""
    count = int(ok(cudart.cudaGetDeviceCount()))
    plan = bench.store.path(build.digest).read_bytes()
    with contextlib.ExitStack() as stack:
        runners = [TensorRTRunner(plan, bench.library, device=device, lanes=LANES) for device in range(count)]
        for runner in runners:
            stack.callback(runner.close)
            warm_up(runner, batch)
        for fed in (False, True):
            rates: dict[str, float] = {}
            for name, used in {"first": runners[:1], "last": runners[-1:], "all": runners}.items():
                rows = [Pool(used, batch, fed=fed).run(None) for _ in range(2)]
                best = max(rows, key=lambda row: row["images_per_s"])
                rates[name] = best["images_per_s"]
                loaded = Pool(used, batch, fed=fed).run(LOAD * len(used) * rates["first"])
                bench.note(
                    what="pair", gpus=name, count=len(used), input="fed" if fed else "resident", lanes_each=LANES,
                    capacity=best, times_the_first=rates[name] / rates["first"], load=LOAD, under_load=loaded,
                )  # fmt: skip


def warm_up(runner: TensorRTRunner, batch: Any) -> None:
    """Captures the graph of every lane; the input then lies in each."""
    with contextlib.ExitStack() as stack:
        lanes = [stack.enter_context(runner.lane()) for _ in range(LANES)]
        for lane in lanes:
            lane.upload(batch)
            for _ in range(3):
                lane.compute(batch.shape)
                lane.stream.wait()
