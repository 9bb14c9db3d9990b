"""The zoo's detectors as ONNX graphs in both precisions, pictures for them, and planted faults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.export import export_onnx
from redline.export.half import export_half
from redline.model.load import load_detector
from redline.records import Head, ModelSpec, OnnxModel, Preprocess
from redline.store import dump, load
from redline.zoo.retinanet import ANCHOR_SIZES, ASPECT_RATIOS, STRIDES

LARGEST = {"demo": (320, 320), "yolox": (416, 416), "retinanet": (192, 256)}
"""Height and width at which each is exported and run; all three take any multiple of their stride."""
IMAGENET: dict[str, Any] = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "channels": "rgb"}


@dataclass(frozen=True)
class Graphs:
    name: str
    full: OnnxModel
    half: OnnxModel
    batch: Any
    """(1, 3, H, W): a smooth picture as the network expects it."""


def detector_spec(name: str) -> ModelSpec:
    """demo: trained weights; yolox (Nano) and retinanet (ResNet-50, raw heads): random ones, the same every time."""
    size = LARGEST[name]
    if name != "retinanet":
        factory = {"demo": "redline.zoo:demo", "yolox": "redline.zoo:yolox_nano"}[name]
        return ModelSpec(factory=factory, head=Head(kind="yolox"), preprocess=Preprocess(size=size))
    head = Head(kind="retinanet", strides=STRIDES, anchor_sizes=ANCHOR_SIZES, aspect_ratios=ASPECT_RATIOS, activation="sigmoid")
    preprocess = Preprocess(resize="shortest-side", size=size, round_to_uint8=False, fill=(0, 0, 0), **IMAGENET)
    return ModelSpec(factory="redline.zoo:retinanet_resnet50_fpn", head=head, labels="category-id", preprocess=preprocess)


def export_both(name: str, folder: Path) -> Graphs:
    """Exported to `folder` unless it is there."""
    spec = detector_spec(name)
    records = [folder / "full.json", folder / "half.json"]
    if all(record.exists() for record in records):
        full, half = (load(OnnxModel, record.read_bytes()) for record in records)
        return Graphs(name, full, half, picture(spec.preprocess, LARGEST[name]))
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    detector = load_detector(spec)
    if name != "demo":
        _liven(detector.module, picture(detector.preprocess, LARGEST[name]))
    full = export_onnx(detector, folder, input_hw=LARGEST[name])
    half = export_half(full, folder)
    for record, model in zip(records, (full, half), strict=True):
        record.write_bytes(dump(model))
    return Graphs(name, full, half, picture(spec.preprocess, LARGEST[name]))


def _liven(module: torch.nn.Module, batch: Any) -> None:
    """Random weights as initialised let a signal die out over the depth; here the products of a convolution have variance 1."""
    draw = torch.Generator().manual_seed(0)
    done: set[torch.nn.Module] = set()

    def scale(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        bias = 0.0 if layer.bias is None else layer.bias[None, :, None, None]
        factor = 1.0 if layer in done else float((output - bias).std())
        done.add(layer)
        layer.weight.data /= factor
        return (output - bias) / factor + bias

    layers = [part for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
    for layer in layers:
        torch.nn.init.normal_(layer.weight, generator=draw)
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    with torch.no_grad():
        module(torch.from_numpy(batch))
    for hook in hooks:
        hook.remove()


def picture(preprocess: Preprocess, hw: tuple[int, int]) -> Any:
    """Blurred noise over the whole range of brightness."""
    noise = np.random.default_rng(0).uniform(0, 255, (*hw, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255
    scaled = (smooth * preprocess.scale - preprocess.mean) / preprocess.std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def planted(node: str, factor: float = 1.05, threads: int = 2) -> Any:
    """A compiler that scales the weights of one node of whatever graph it is given."""

    def build(model: OnnxModel) -> OnnxRuntimeRunner:
        graph = onnx.load(model.path)
        target = next(entry for entry in graph.graph.node if entry.name == node)
        weights = {weight.name: weight for weight in graph.graph.initializer}
        place, name = next((i, name) for i, name in enumerate(target.input) if name in weights)
        array = numpy_helper.to_array(weights[name])
        graph.graph.initializer.append(numpy_helper.from_array((array * factor).astype(array.dtype), f"{name}_planted"))
        target.input[place] = f"{name}_planted"
        onnx.save(graph, model.path)
        return compiled(model, threads)

    return build


def compiled(model: OnnxModel, threads: int = 2) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(model.path, threads=threads, concurrent=False)


def narrow_sums(model: OnnxModel, sizes: dict[str, Any], node: str = "", factor: float = 1.05) -> OnnxRuntimeRunner:
    """A compiler whose convolutions add up in float16: noise of the size that a random walk of their roundings has.

    `sizes`: root mean square of each channel of each convolution's output. `node`: as in `planted`.
    """
    graph = onnx.load(model.path)
    weights = {weight.name: tuple(weight.dims) for weight in graph.graph.initializer}
    nodes = []
    for index, entry in enumerate(graph.graph.node):
        nodes.append(entry)
        name = entry.output[0]
        if entry.op_type != "Conv" or name not in sizes:
            continue
        steps = np.prod(weights[entry.input[1]][1:]) / 16
        scale = sizes[name] * 2.0**-11 * np.sqrt(max(1.0, steps) / 3)
        entry.output[0] = f"{name}_exact"
        shape = (1, -1, *[1] * 2)
        graph.graph.initializer.append(numpy_helper.from_array(scale.reshape(shape).astype(np.float16), f"{name}_scale"))
        exact, noise = entry.output[0], f"{name}_noise"
        like: dict[str, Any] = {"dtype": TensorProto.FLOAT16, "seed": float(index)}
        nodes += [
            helper.make_node("RandomNormalLike", [exact], [noise], name=f"{entry.name}_noise", **like),
            helper.make_node("Mul", [noise, f"{name}_scale"], [f"{noise}_scaled"], name=f"{entry.name}_scale"),
            helper.make_node("Add", [exact, f"{noise}_scaled"], [name], name=f"{entry.name}_add"),
        ]
    copies = [onnx.NodeProto.FromString(entry.SerializeToString()) for entry in nodes]
    del graph.graph.node[:]
    graph.graph.node.extend(copies)
    onnx.save(graph, model.path)
    return planted(node, factor)(model) if node else compiled(model)
