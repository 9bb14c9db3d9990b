"""What a server adds to a request: JPEG bytes through Triton, through the gateway, and a tensor through shared memory.

Protocol: batch 1, one thread, one request at a time. What runs the network in another process is compared in blocks of 20
requests after 5 that do not count, in an order of ways drawn anew for each block: an image in-process (decode, preprocess,
network, post-process) and through Triton (HTTP, encoded image, the answer unpacked); a decoded image in-process (preprocess,
network, post-process) and through system shared memory (preprocessed into it, the answer unpacked). What uses the same network
is compared request by request, in an order drawn anew, with the same image: Triton directly and through the gateway. An
addition is the median of the differences, of blocks' medians or of requests, with a bootstrap interval of 95 %, in milliseconds
of this machine.

    python benchmarks/served_overhead.py --work FOLDER [--shared FOLDER] [--rounds 400] [--output FILE]
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    decoded = [vision.decode(data, name="image") for data in encoded]
    result: dict[str, Any] = {"rounds": rounds, "images": len(encoded)}
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(case.served(candidate))
        gateway = stack.enter_context(gateway_of(live))
        server, name = live.host.server().known, model_name("tune", live.number, "tensor")
        shape = vision.prepare(decoded[0], model.preprocess, "fixed")[0].shape
        shared = stack.enter_context(
            contextlib.closing(SharedTensor(server.http_port, name, live.number, server.admin_key, shape))
        )
        stack.enter_context(watched(result))
        direct = live.endpoint

        def prepared_here(index: int) -> None:
            tensor, placement = vision.prepare(decoded[index], model.preprocess, "fixed")
            vision.postprocess(runner.run(tensor[None]), model.head, model.postprocess, [placement])

        def through_memory(index: int) -> None:
            _, placement = vision.prepare(decoded[index], model.preprocess, "fixed", out=shared.images)
            shared.placement[:] = placement_numbers(placement)
            shared.detect()

        def in_process(index: int) -> None:
            predict.from_bytes([encoded[index]])

        def triton(index: int) -> None:
            direct.detect(encoded[index])

        def through_gateway(index: int) -> None:
            gateway.detect(encoded[index])

        image = interleaved({"in_process": in_process, "triton": triton}, rounds, len(encoded), BLOCK, WARM)
        tensor = interleaved(
            {"tensor_in_process": prepared_here, "shared_memory": through_memory}, rounds, len(encoded), BLOCK, WARM
        )
        behind = interleaved({"triton_beside": triton, "gateway": through_gateway}, rounds, len(encoded), 1, 0)
    added = {
        "triton": added_by(image["triton"], image["in_process"]),
        "shared_memory": added_by(tensor["shared_memory"], tensor["tensor_in_process"]),
        "gateway_over_triton": added_by(behind["gateway"], behind["triton_beside"]),
    }
    times = {name: values.ravel() for name, values in (image | tensor | behind).items()}
    median = {name: float(np.median(values)) for name, values in times.items()}
    result["median_ms"] = median
    result["p95_ms"] = {name: float(np.percentile(values, 95)) for name, values in times.items()}
    result["added_ms"] = added
    result["met"] = {name: bool(added[name]["ms"] <= limit) for name, limit in TARGETS_MS.items()}
    return result


def interleaved(
    ways: dict[str, Callable[[int], Any]], rounds: int, images: int, block: int, warm: int
) -> dict[str, NDArray[np.float64]]:
    """(blocks, block) milliseconds of each way; in every block all ways take the same images, in an order drawn anew."""
    generator, times = random.Random(0), {name: list[list[float]]() for name in ways}
    for number in range(-(-rounds // block)):
        for name in generator.sample(list(ways), len(ways)):
            taken = []
            for turn in range(warm + block):
                index = (number * block + turn) % images
                started = perf_counter()
                ways[name](index)
                taken.append(1000 * (perf_counter() - started))
            times[name].append(taken[warm:])
    return {name: np.array(values) for name, values in times.items()}


def added_by(longer: NDArray[np.float64], shorter: NDArray[np.float64]) -> dict[str, Any]:
    differences = np.median(longer, axis=1) - np.median(shorter, axis=1)
    drawn = np.random.default_rng(0).choice(differences, (2000, len(differences)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return {"ms": float(np.median(differences)), "interval_ms": [float(low), float(high)], "differences": len(differences)}


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
