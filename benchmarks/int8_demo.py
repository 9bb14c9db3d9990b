"""The demo detector in ONNX Runtime's INT8 on this CPU: speed of the network and drop of AP on thousands of generated scenes.

    python benchmarks/int8_demo.py --work DIR --output FILE [--scenes 2000]

Graphs: everything in INT8 by each calibrator; the same with the first layer and the last of each branch in FP32; with all of
the head in FP32. Times: medians of runs in turn on one image, as ratios to FP32 in the same process, with one thread and two.
Drops: relative to FP32, with the 95 % interval over the same scenes, which are a series of their own.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from int8_coverage import scenes
from redline.data.coco import read_bytes
from redline.demo_project import CALIBRATION
from redline.doctor import inspect_machine
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.export import export_onnx
from redline.export.quantized_cpu import CPU_CALIBRATORS, export_cpu_int8
from redline.model.load import load_detector
from redline.nodes import module_of
from redline.parity import ground_truth, map_drop, observe
from redline.quantize.placement import heavy_nodes, with_activations
from redline.records import Head, ModelSpec, OnnxModel, Preprocess
from redline.sensitivity import Scales
from redline.store import dump
from redline.vision import decode, prepare

SEEDS = (8_500_000, 8_600_000)
"""Series of scenes for evaluation and calibration, apart from all others."""
SIDE, RUNS, RESAMPLES = 320, 60, 2000


def faster(paths: dict[str, str], tensor: Any, *, threads: int, runs: int = RUNS, skipped: int = 5) -> dict[str, float]:
    """Median time of the graph called fp32 over each one's, of runs in turn on one image; the first `skipped` do not count."""
    runners = {name: OnnxRuntimeRunner(path, threads=threads, concurrent=False) for name, path in paths.items()}
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(runs):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.run(tensor[None])
            taken[name].append(time.perf_counter() - start)
    middle = {name: float(np.median(values[skipped:])) for name, values in taken.items()}
    return {name: middle["fp32"] / value for name, value in middle.items()}


def last_layers(model: onnx.ModelProto) -> list[str]:
    """Layers with weights that no other such layer comes after: the last of each branch of a head."""
    layers, feeds, found = set(heavy_nodes(model)), set[str](), []
    for node in reversed(model.graph.node):
        before_another = bool(feeds.intersection(node.output))
        if node.name in layers and not before_another:
            found.append(node.name)
        if node.name in layers or before_another:
            feeds.update(node.input)
    return found[::-1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--scenes", type=int, default=2000)
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    spec = ModelSpec(
        factory="redline.zoo:demo", head=Head(kind="yolox"), preprocess=Preprocess(size=(SIDE, SIDE), channels="rgb")
    )
    detector = load_detector(spec)
    network = export_onnx(detector, given.work, input_hw=(SIDE, SIDE))
    held = scenes(given.work / "calibrate", CALIBRATION, SEEDS[1])
    inputs = [prepare(decode(read_bytes(image), name=image.path), detector.preprocess, "fixed")[0] for image in held.images]
    dataset = scenes(given.work / "evaluate", given.scenes, SEEDS[0])
    scales = Scales(network, detector, [decode(read_bytes(i), name=i.path) for i in dataset.images], given.work, threads=2)
    reference = scales.detections(None)
    truth = ground_truth(dataset, reference, "index")
    before = observe(truth, reference).evaluation
    model = onnx.load(network.path)
    nodes = {node.name: node for node in model.graph.node}
    layers = heavy_nodes(model)
    kept = {
        "none": (), "first and last": (layers[0], *last_layers(model)),
        "head": tuple(name for name in layers if "head" in module_of(nodes[name])),
    }  # fmt: skip
    graphs: dict[str, OnnxModel] = {}
    for method in CPU_CALIBRATORS:
        for title, names in kept.items():
            wide = with_activations(model, names) if names else ()
            label = f"{method}, in FP32: {title}"
            graphs[label] = export_cpu_int8(network, given.work, inputs, method, keep_wide=wide, name=f"g{len(graphs)}")
    result: dict[str, Any] = {
        "what": "the demo detector in INT8 on ONNX Runtime CPU", "environment": json.loads(dump(inspect_machine())),
        "scenes": given.scenes, "calibration_images": CALIBRATION, "layers": len(layers),
        "times_faster_than_fp32": {
            f"{n} threads": faster({"fp32": network.path} | {k: g.path for k, g in graphs.items()}, inputs[0], threads=n)
            for n in (1, 2)
        },
        "rows": [],
    }  # fmt: skip
    for label, found in graphs.items():
        after = observe(truth, scales.seen_by(replace(network, path=found.path))).evaluation
        lost = json.loads(dump(map_drop(before, after, resamples=RESAMPLES, budget_pct=0.5)))
        keys = ("reference_ap", "candidate_ap", "relative_pct", "relative_low_pct", "relative_high_pct")
        faster = {key: row[label] for key, row in result["times_faster_than_fp32"].items()}
        result["rows"].append({"graph": label, "faster": faster} | {key: lost[key] for key in keys})
        print(json.dumps(result["rows"][-1]), flush=True)
        given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
