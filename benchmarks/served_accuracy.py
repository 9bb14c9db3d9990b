"""AP through the server with JPEG bytes against in-process, and every image's detections, over several network shapes.

Protocol: for shape policies "fixed", "minimal" and five buckets, and for the pipelines fused, bls and ensemble, every image of
the evaluation set is sent as encoded bytes to a real Triton, 32 at a time, so that the server joins requests of different sizes
into batches of up to 4, and compared with the same pipeline in-process: AP, count, order, labels, boxes and scores. The shapes
that reached the network are counted from the policy and the images' sizes.

    python benchmarks/served_accuracy.py --work FOLDER [--shared FOLDER] [--output FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from redline import vision
from redline.data import read_bytes
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.parity import differs, ground_truth, observe
from redline.plan.buckets import choose_buckets
from redline.predict import Predictor
from redline.records import Detections, Serving, ShapePolicy
from redline.records.run import Pipeline
from serving_case import Case, cases, parser, write

TOLERANCE = 0.001
AT_ONCE = 32
BUCKETS = 5
LEAST_SHAPES = 5


def main() -> int:
    given = parser(__doc__).parse_args()
    results = {case.name: measure(case) for case in cases(given)}
    write(given, results)
    rows = [row for rows in results.values() for row in rows]
    most = max(row["tensor_shapes"] for row in rows)
    return 0 if all(row["ap_gap"] <= TOLERANCE and not row["different"] for row in rows) and most >= LEAST_SHAPES else 1


def measure(case: Case) -> list[dict[str, Any]]:
    preprocess = case.spec.model.preprocess
    buckets = choose_buckets(case.traffic, preprocess, most=BUCKETS, switch_cost=0.0)
    policies: dict[str, ShapePolicy] = {"fixed": "fixed", "minimal": "minimal", "buckets": buckets.policy}
    rows, encoded = [], [read_bytes(image) for image in case.dataset.images]
    for name, policy in policies.items():
        wanted = in_process(case, policy, encoded)
        pipelines: Sequence[Pipeline] = ("fused", "bls", "ensemble") if name == "buckets" else ("fused",)
        for pipeline in pipelines:
            candidate = case.fused(threads=1, batch=4, concurrency=1, shapes=policy, serving=Serving(pipeline=pipeline))
            with case.served(candidate) as live, ThreadPoolExecutor(AT_ONCE) as pool:
                found = list(pool.map(live.endpoint.detect, encoded))
                batch = live.host.server().control.statistics(*_joining(live, pipeline)).mean_batch
            differences = [d for d in map(differs, wanted, found) if d is not None]
            before, after = average_precision(case, wanted, wanted), average_precision(case, wanted, found)
            sizes = {vision.input_size((image.height, image.width), preprocess, policy) for image in case.dataset.images}
            rows.append(
                {
                    "shapes": name,
                    "pipeline": pipeline,
                    "images": len(found),
                    "tensor_shapes": len(sizes),
                    "ap_in_process": before,
                    "ap_served": after,
                    "ap_gap": abs(after - before),
                    "different": len(differences),
                    "first_difference": differences[0] if differences else None,
                    "mean_batch_at_the_server": batch,
                }
            )
    return rows


def _joining(live: Any, pipeline: Pipeline) -> tuple[str, int]:
    """The model at which requests are joined."""
    from redline.serve.names import model_name

    return model_name("tune", live.number, "network" if pipeline == "ensemble" else "entry"), live.number


def in_process(case: Case, policy: ShapePolicy, encoded: Sequence[bytes]) -> list[Detections]:
    assert case.graphs.network is not None
    model = case.spec.model
    runner = OnnxRuntimeRunner(case.graphs.network.path, threads=1, concurrent=False)
    predict = Predictor(runner, model.preprocess, model.head, model.postprocess, policy)
    found = [one for data in encoded for one in predict.from_bytes([data])]
    runner.close()
    return found


def average_precision(case: Case, reference: Sequence[Detections], found: Sequence[Detections]) -> float:
    truth = ground_truth(case.dataset, reference, case.spec.model.labels)
    return observe(truth, found).evaluation.accuracy.ap


if __name__ == "__main__":
    sys.exit(main())
