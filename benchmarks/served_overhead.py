"""What a server adds to a request: JPEG bytes through Triton, through the gateway, and a tensor through shared memory.

Protocol: batch 1, one thread, one request at a time. In blocks of 20 requests after 5 that do not count, in an order of blocks
drawn anew each time, an image takes each of the ways: in-process (decode, preprocess, network, post-process), Triton directly
and the gateway (HTTP, encoded image, the answer unpacked). Then, likewise, its preprocessed tensor: in-process (network,
post-process) and through system shared memory (tensor and placement written each time, the answer unpacked). Differences are
of medians over all rounds, in milliseconds of this machine.

    python benchmarks/served_overhead.py --work FOLDER [--shared FOLDER] [--rounds 400] [--output FILE]
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np

from redline import vision
from redline.backend.answer import placement_numbers
from redline.data import read_bytes
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.predict import Predictor
from redline.records import Routes
from redline.serve.client import Endpoint, SharedTensor
from redline.serve.gateway.app import Gateway, new_event_loop
from redline.serve.gateway.limits import limits_of
from redline.serve.gateway.metrics import Metrics
from redline.serve.gateway.routing import RouteTable
from redline.serve.gateway.upstream import Address
from redline.serve.loader import read_release
from redline.serve.names import model_name
from serving_case import Case, cases, parser, watched, write

IMAGES = 16
BLOCK, WARM = 20, 5
TARGETS_MS = {"triton": 2.0, "shared_memory": 1.5, "gateway_over_triton": 0.7}


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=400)
    given = options.parse_args()
    results = {case.name: measure(case, given.rounds) for case in cases(given)}
    results["targets_ms"] = TARGETS_MS
    write(given, results)
    met = [results[name]["met"] for name in results if name != "targets_ms"]
    return 0 if all(all(one.values()) for one in met) else 1


def measure(case: Case, rounds: int) -> dict[str, Any]:
    candidate = case.fused(threads=1, batch=1, concurrency=1, shapes="fixed")
    model, encoded = case.spec.model, [read_bytes(image) for image in case.dataset.images[:IMAGES]]
    runner = OnnxRuntimeRunner(case.graphs.network.path, threads=1, concurrent=True)  # type: ignore[union-attr]
    predict = Predictor(runner, model.preprocess, model.head, model.postprocess, "fixed")
    prepared = [vision.prepare(vision.decode(data, name="image"), model.preprocess, "fixed") for data in encoded]
    result: dict[str, Any] = {"rounds": rounds, "images": len(encoded)}
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(case.served(candidate))
        gateway = stack.enter_context(gateway_of(live))
        server, name = live.host.server().known, model_name("tune", live.number, "tensor")
        shape = prepared[0][0].shape
        shared = stack.enter_context(
            contextlib.closing(SharedTensor(server.http_port, name, live.number, server.admin_key, shape))
        )
        stack.enter_context(watched(result))
        direct = live.endpoint

        def post_only(index: int) -> None:
            outputs = runner.run(prepared[index][0][None])
            vision.postprocess(outputs, model.head, model.postprocess, [prepared[index][1]])

        def through_memory(index: int) -> None:
            np.copyto(shared.images, prepared[index][0])
            shared.placement[:] = placement_numbers(prepared[index][1])
            shared.detect()

        images: dict[str, Callable[[int], Any]] = {
            "in_process": lambda index: predict.from_bytes([encoded[index]]),
            "triton": lambda index: direct.detect(encoded[index]),
            "gateway": lambda index: gateway.detect(encoded[index]),
        }
        tensors: dict[str, Callable[[int], Any]] = {"tensor_in_process": post_only, "shared_memory": through_memory}
        times = interleaved(images, rounds, len(encoded)) | interleaved(tensors, rounds, len(encoded))
    median = {name: statistics.median(values) for name, values in times.items()}
    added = {
        "triton": median["triton"] - median["in_process"],
        "shared_memory": median["shared_memory"] - median["tensor_in_process"],
        "gateway_over_triton": median["gateway"] - median["triton"],
    }
    result["median_ms"] = median
    result["p95_ms"] = {name: float(np.percentile(values, 95)) for name, values in times.items()}
    result["added_ms"] = added
    result["met"] = {name: bool(added[name] <= limit) for name, limit in TARGETS_MS.items()}
    return result


def interleaved(ways: dict[str, Callable[[int], Any]], rounds: int, images: int) -> dict[str, list[float]]:
    """Blocks of one way, in an order drawn anew: one by one, each request would find the other way's network in the caches."""
    generator, times = random.Random(0), {name: list[float]() for name in ways}
    for block in range(-(-rounds // BLOCK)):
        for name in generator.sample(list(ways), len(ways)):
            for turn in range(WARM + BLOCK):
                index = (block * BLOCK + turn) % images
                started = perf_counter()
                ways[name](index)
                if turn >= WARM:
                    times[name].append(1000 * (perf_counter() - started))
    return times


@contextlib.contextmanager
def gateway_of(live: Any) -> Iterator[Endpoint]:
    """The gateway, in a process of its own as in a service, in front of the same server and release."""
    context = get_context("spawn")
    mine, theirs = context.Pipe()
    release = read_release(live.host.repository, "tune", live.number)
    process = context.Process(target=run_gateway, args=(theirs, live.host.server().known.http_port, release), daemon=True)
    process.start()
    endpoint = Endpoint(mine.recv(), "tune")
    try:
        yield endpoint
    finally:
        endpoint.close()
        process.terminate()
        process.join()


def run_gateway(pipe: Any, port: int, release: Any) -> None:
    async def serve() -> None:
        table, metrics = (
            RouteTable(Routes(active=release.number)),
            Metrics("tune", objective_s=1, rate_per_s=1, error_ratio=0.1),
        )
        gateway = Gateway(
            "tune",
            table=table,
            address=Address(port=port),
            releases={release.number: limits_of(release)},
            metrics=metrics,
        )
        pipe.send(await gateway.start())
        await asyncio.Event().wait()

    new_event_loop().run_until_complete(serve())


if __name__ == "__main__":
    sys.exit(main())
