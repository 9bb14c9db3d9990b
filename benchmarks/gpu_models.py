"""The detectors that the GPU benchmark runs, their graphs and their rooflines."""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import sys
import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from gpu_variants import VARIANTS, export_variant, is_native, narrow_input
from redline.engine.graph_facts import node_facts, read_graph
from redline.export import export_onnx
from redline.export.half import export_half
from redline.export.quantized import export_int8
from redline.model.load import load_detector
from redline.quantizing import narrowed
from redline.records import Detector, Head, ModelSpec, OnnxModel, Postprocess, Preprocess
from redline.records.quantize import QuantTable
from redline.store import dump, load
from redline.zoo import retinanet as zoo

IMAGENET = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "channels": "rgb"}
STEM = "-stem"
"""An FP16 graph whose stem stays in FP32."""
WIDTH = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2}
TABLES = Path(__file__).parent / "int8"
"""Scales and places, made by int8_tables.py."""
TORCHVISION = Postprocess(score=0.05, iou=0.5, max_detections=300, candidates_per_level=1000)


def spec(name: str, weights: Path) -> ModelSpec:
    """retina91: random weights, speed only; retina4: BCCD; yolox640, yolox416: COCO; a name that ends in -stem: `stem_of`."""
    if name.startswith("yolox"):
        size = int(name.removesuffix(STEM)[5:])
        return ModelSpec(
            factory="redline.zoo:yolox_nano",
            weights=str(weights / "yolox_nano_fused_state_dict.pt"),
            head=Head(kind="yolox"),
            preprocess=Preprocess(size=(size, size), channels="bgr"),
        )
    head = Head(
        kind="retinanet",
        strides=zoo.STRIDES,
        anchor_sizes=zoo.ANCHOR_SIZES,
        aspect_ratios=zoo.ASPECT_RATIOS,
        activation="sigmoid",
    )
    random = name != "retina4"
    size = (800, 800) if random else (639, 853)
    preprocess = Preprocess(resize="shortest-side", size=size, round_to_uint8=False, fill=(0, 0, 0), **IMAGENET)  # type: ignore[arg-type]
    return ModelSpec(
        factory="redline.zoo:retinanet_resnet50_fpn",
        arguments=(("num_classes", 91 if random else 4),),
        weights=None if random else str(weights / "model.safetensors"),
        head=head,
        labels="category-id",
        preprocess=preprocess,
        postprocess=TORCHVISION,
    )


def detector(name: str, weights: Path) -> Detector:
    torch.manual_seed(0)
    return load_detector(spec(name, weights))


def graph(name: str, weights: Path, folder: Path, half: bool) -> OnnxModel:
    """Exported once to `folder`, FP32 and FP16; of several processes one exports and the others wait."""
    record = folder / name / ("half.json" if half else "full.json")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if record.exists():
            return load(OnnxModel, record.read_bytes())
        full, lower = prepared(name, detector("retina91" if name in VARIANTS else name, weights), folder / name)
        (folder / name / "full.json").write_bytes(dump(full))
        (folder / name / "half.json").write_bytes(dump(lower))
    return load(OnnxModel, record.read_bytes())


def quantised(
    name: str, weights: Path, folder: Path, table: str, keep_wide: Collection[str], half: bool, *, plain: bool = False
) -> OnnxModel:
    """The INT8 graph that benchmarks/int8/TABLE.json makes of the model's FP32 or FP16 graph; `keep_wide`: layers left out.

    `plain`: layers alone are rounded, not residual branches, pooling, Resize and Concat.
    """
    held = load(QuantTable, (TABLES / f"{table}.json").read_bytes())
    source = graph(name, weights, folder, half)
    if keep_wide:
        held = narrowed(read_graph(graph(name, weights, folder, False).path), held, keep_wide)
    if plain:
        held = replace(held, points=tuple(point for point in held.points if point.node in held.weights))
    called = f"{table}-{len(keep_wide)}-{'half' if half else 'full'}{'-plain' if plain else ''}-{os.getpid()}"
    return export_int8(source, folder / name, held, name=called)


def prepared(name: str, source: Detector, folder: Path) -> tuple[OnnxModel, OnnxModel]:
    folder.mkdir(parents=True, exist_ok=True)
    hw: Any = {"retina4": (640, 864)}.get(name, source.preprocess.size)
    if name not in VARIANTS:
        full = export_onnx(source, folder, input_hw=hw)
        return full, export_half(full, folder, wide_nodes=stem_of(full) if name.endswith(STEM) else ())
    full = export_variant(name, source, folder, (1, 3, *hw))
    half = export_half(full, folder, keep_outputs=not is_native(name))
    return full, narrow_input(half) if is_native(name) else half


def stem_of(network: OnnxModel) -> list[str]:
    """The nodes up to the second convolution: what works on pixels of 0 to 255, the largest numbers of YOLOX."""
    nodes = onnx.load(network.path, load_external_data=False).graph.node
    second = [index for index, node in enumerate(nodes) if node.op_type == "Conv"][1]
    return [node.name for node in nodes[:second]]


def roof_ms(model: OnnxModel, shape: tuple[int, ...], peak_flops: float, bytes_per_second: float) -> float:
    """Sum over convolutions and products of max(operations / peak, (inputs + outputs + weights) / bandwidth), milliseconds.

    The method of the public roofline tables: each layer's tensors go to memory once; all else is free.
    """
    graph = onnx.load(model.path)
    del graph.graph.value_info[:]
    for dim, size in zip(graph.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    for value in graph.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
    sizes: dict[str, int] = {w.name: math.prod(w.dims) * WIDTH.get(w.data_type, 4) for w in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        tensor = value.type.tensor_type
        sizes[value.name] = math.prod(d.dim_value for d in tensor.shape.dim) * WIDTH.get(tensor.elem_type, 4)
    flop = {fact.output: fact.flop for fact in node_facts(read_graph(model.path), shape)}
    heavy = [node for node in inferred.node if flop.get(node.output[0])]
    times = [
        max(flop[n.output[0]] / peak_flops, sum(sizes.get(t, 0) for t in (*n.input, n.output[0])) / bytes_per_second)
        for n in heavy
    ]
    return 1000 * math.fsum(times)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Export graphs ahead of the benchmark.")
    options.add_argument("names", nargs="+")
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "redline-gpu")
    given = options.parse_args()
    for wanted in given.names:
        print(wanted, graph(wanted, given.weights, given.work, half=True).digest, file=sys.stderr, flush=True)
