"""What a server adds to a request: JPEG bytes through Triton, through the gateway, and a tensor through shared memory.

Protocol: batch 1, one thread, one request at a time. In every round, in an order drawn anew, one image takes each of the ways:
in-process (decode, preprocess, network, post-process), Triton directly and the gateway (HTTP, encoded image), and the
preprocessed tensor in-process (network, post-process) and through system shared memory (HTTP, tensor written each time, answers
read). Differences are of medians over all rounds, in milliseconds of this machine.

    python benchmarks/served_overhead.py --work FOLDER [--shared FOLDER] [--rounds 400] [--output FILE]
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import tritonclient.http as http
import tritonclient.utils.shared_memory as shm

from redline import api, vision
from redline.backend.answer import placement_numbers
from redline.data import read_bytes
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.predict import Predictor
from redline.serve.client import Endpoint
from redline.serve.control import ADMIN_HEADER
from redline.serve.names import model_name
from serving_case import Case, cases, parser, watched, write

IMAGES = 16
TARGETS_MS = {"triton": 2.0, "shared_memory": 1.5, "gateway_over_triton": 0.7}
REGION_IN, REGION_OUT = "redline_bench_in", "redline_bench_out"


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
    with case.served(candidate) as live, gateway_of(case, candidate) as gateway, watched(result):
        server = live.host.server().known
        direct = Endpoint(server.http_port, model_name("tune", live.number, "entry"), live.number)
        tensor = shared_memory(server, model_name("tune", live.number, "tensor"), live.number, prepared[0][0])

        def post_only(index: int) -> None:
            outputs = runner.run(prepared[index][0][None])
            vision.postprocess(outputs, model.head, model.postprocess, [prepared[index][1]])

        ways: dict[str, Callable[[int], Any]] = {
            "in_process": lambda index: predict.from_bytes([encoded[index]]),
            "triton": lambda index: direct.send(encoded[index]),
            "gateway": lambda index: gateway.send(encoded[index]),
            "tensor_in_process": post_only,
            "shared_memory": lambda index: tensor(prepared[index][0], placement_numbers(prepared[index][1])),
        }
        times = interleaved(ways, rounds, len(encoded))
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
    generator, times = random.Random(0), {name: [] for name in ways}
    for turn in range(rounds + 20):
        for name in generator.sample(list(ways), len(ways)):
            started = perf_counter()
            ways[name](turn % images)
            if turn >= 20:
                times[name].append(1000 * (perf_counter() - started))
    return times


@contextlib.contextmanager
def gateway_of(case: Case, candidate: Any) -> Iterator[Endpoint]:
    """The same candidate behind the gateway of a service: released once, then asked by its stable name."""
    from rich import print as show

    from redline.report.service import outcome_text

    outcome = api.release(case.spec.path, runs=case.runs, progress=False, candidate=candidate)
    show(outcome_text(outcome))
    try:
        yield Endpoint(int(outcome.gateway_port or 0), case.spec.serve.name)
    finally:
        api.stop_service(case.spec.path, runs=case.runs)


def shared_memory(server: Any, model: str, version: int, example: Any) -> Callable[[Any, Any], None]:
    client = http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
    key = {ADMIN_HEADER: server.admin_key}
    inside = shm.create_shared_memory_region(REGION_IN, f"/{REGION_IN}", example.nbytes + 64)
    client.register_system_shared_memory(REGION_IN, f"/{REGION_IN}", example.nbytes + 64, headers=key)
    images = http.InferInput("images", [1, *example.shape], "FP32")
    images.set_shared_memory(REGION_IN, example.nbytes)
    placement = http.InferInput("placement", [1, 8], "FP64")
    placement.set_shared_memory(REGION_IN, 64, offset=example.nbytes)

    def ask(tensor: Any, numbers: Any) -> None:
        shm.set_shared_memory_region(inside, [tensor])
        shm.set_shared_memory_region(inside, [numbers], offset=example.nbytes)
        answer = client.infer(model, [images, placement], model_version=str(version))
        assert answer.as_numpy("count") is not None

    return ask


if __name__ == "__main__":
    sys.exit(main())
