"""Costs of the exported detectors: published counts and rooflines, and every size against ONNX's own shape inference."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detector_graphs import Graphs

from redline.engine.graph_facts import node_facts, read_graph
from redline.plan.costs import read_costs
from redline.plan.roofline import roofline
from redline.records import DeviceFacts, ModelCosts, Sourced

PEAKS = {
    "a100-80": ({"fp32": 19.5, "tf32": 156, "fp16": 312, "int8": 624}, 2039),
    "h100-sxm": ({"fp32": 66.9, "tf32": 494.7, "fp16": 989.4, "int8": 1978.9}, 3350),
    "h200-sxm": ({"fp32": 66.9, "tf32": 494.7, "fp16": 989.4, "int8": 1978.9}, 4800),
}
"""NVIDIA's data sheets: dense TFLOP/s, GB/s."""
PUBLISHED = [
    (800, "a100-80", "fp32", 15.543, 1.008, 15.706, 64),
    (800, "a100-80", "tf32", 1.943, 1.008, 2.287, 440),
    (800, "a100-80", "fp16", 0.971, 0.504, 1.144, 879),
    (800, "a100-80", "int8", 0.486, 0.252, 0.572, 1759),
    (800, "h100-sxm", "fp32", 4.524, 0.614, 4.624, 216),
    (800, "h100-sxm", "tf32", 0.613, 0.614, 0.915, 1122),
    (800, "h100-sxm", "fp16", 0.306, 0.307, 0.457, 2244),
    (800, "h100-sxm", "int8", 0.153, 0.153, 0.229, 4488),
    (800, "h200-sxm", "fp32", 4.524, 0.428, 4.593, 218),
    (800, "h200-sxm", "tf32", 0.613, 0.428, 0.786, 1290),
    (800, "h200-sxm", "fp16", 0.306, 0.214, 0.393, 2580),
    (800, "h200-sxm", "int8", 0.153, 0.107, 0.197, 5160),
    (640, "a100-80", "fp32", 9.936, 0.688, 10.041, 100),
    (640, "a100-80", "tf32", 1.242, 0.688, 1.474, 688),
    (640, "a100-80", "fp16", 0.621, 0.344, 0.737, 1375),
    (640, "a100-80", "int8", 0.311, 0.172, 0.369, 2750),
    (640, "h100-sxm", "fp32", 2.892, 0.419, 2.960, 338),
    (640, "h100-sxm", "tf32", 0.392, 0.419, 0.598, 1754),
    (640, "h100-sxm", "fp16", 0.196, 0.209, 0.299, 3508),
    (640, "h100-sxm", "int8", 0.098, 0.105, 0.149, 7017),
    (640, "h200-sxm", "fp32", 2.892, 0.292, 2.937, 341),
    (640, "h200-sxm", "tf32", 0.392, 0.292, 0.510, 2017),
    (640, "h200-sxm", "fp16", 0.196, 0.146, 0.255, 4035),
    (640, "h200-sxm", "int8", 0.098, 0.073, 0.127, 8069),
]
"""RetinaNet-R50-FPN, 91 classes: pixels, GPU, arithmetic; ms of operations, traffic and layers at batch 1; img/s at 32."""


@pytest.fixture(scope="module")
def retinanet(graphs: Callable[[str], Graphs]) -> ModelCosts:
    return read_costs(graphs("retinanet").full.path)


def gpu(name: str) -> DeviceFacts:
    unknown = Sourced(value=None, source="not needed here")
    blank: dict[str, Any] = {field.name: unknown for field in fields(DeviceFacts) if field.type == "Sourced"}
    rates, bandwidth = PEAKS[name]
    peaks: Any = tuple((key, Sourced(value=rate, source="data sheet")) for key, rate in rates.items())
    given = blank | {"bandwidth_gb_s": Sourced(value=bandwidth, source="data sheet")}
    return DeviceFacts(name=name, title=name, peaks=peaks, **given)


def test_retinanet_counts_are_those_published(retinanet: ModelCosts) -> None:
    assert f"{retinanet.macs(1, 800, 800) / 1e9:.2f}" == "151.54", "torchvision's own figure, in GMAC"
    assert f"{retinanet.macs(1, 640, 640) / 1e9:.1f}" == "96.9"
    assert retinanet.macs(7, 800, 800) == 7 * retinanet.macs(1, 800, 800)
    assert retinanet.output_elements.at(1, 800, 800) == 120_087 * (91 + 4), "anchors by classes and coordinates"
    assert round(retinanet.parameters / 1e6, 1) == 34.0
    assert sum(layer.macs.text != "0" for layer in retinanet.layers) == 111
    assert not retinanet.unsized
    assert not retinanet.unknown


def test_retinanet_splits(retinanet: ModelCosts) -> None:
    """34 % backbone, 7 % pyramid, 59 % heads, of which 75 % on the finest level."""
    parts = dict.fromkeys(("body", "fpn", "head"), 0)
    finest, products = 0, [layer for layer in retinanet.layers if layer.macs.text != "0"]
    for layer in products:
        part = next(name for name in parts if name in layer.module.split("."))
        parts[part] += layer.macs.at(1, 800, 800)
        finest += layer.macs.at(1, 800, 800) if part == "head" and layer.input_elements.at(1, 800, 800) == 256 * 100**2 else 0
    assert [round(count / 1e9) for count in parts.values()] == [52, 10, 89]
    assert round(100 * finest / parts["head"]) == 75


@pytest.mark.parametrize(("pixels", "name", "arithmetic", "compute", "traffic", "layers", "rate"), PUBLISHED)
def test_published_rooflines_within_three_percent(
    retinanet: ModelCosts, pixels: int, name: str, arithmetic: Any, compute: float, traffic: float, layers: float, rate: float
) -> None:
    one = roofline(retinanet, gpu(name), arithmetic, 1, pixels, pixels, convention="layers")
    many = roofline(retinanet, gpu(name), arithmetic, 32, pixels, pixels, convention="layers")
    assert one.compute_us / 1000 == pytest.approx(compute, rel=0.03)
    assert one.memory_us / 1000 == pytest.approx(traffic, rel=0.03)
    assert one.roof_us / 1000 == pytest.approx(layers, rel=0.03)
    assert 32e6 / many.roof_us == pytest.approx(rate, rel=0.03)


@pytest.mark.parametrize(("name", "step"), [("retinanet", 128), ("yolox", 32)])
def test_every_size_is_that_of_shape_inference(graphs: Callable[[str], Graphs], tmp_path: Path, name: str, step: int) -> None:
    path = without_weights(graphs(name).full.path, tmp_path / "bare.onnx")
    costs, draw = read_costs(graphs(name).full.path), random.Random(name)
    sized = {layer.output: layer for layer in costs.layers}
    for _ in range(3):
        at = (draw.randint(1, 12), step * draw.randint(2, 12), step * draw.randint(2, 12))
        truth = inferred(path, at)
        fixed = {output for output, layer in sized.items() if layer.fixed_bytes.text != "0"}
        known = sized.keys() & truth.keys() - fixed
        assert len(known) > 0.9 * len(sized)
        assert {output: sized[output].output_elements.at(*at) for output in known} == {
            output: truth[output] for output in known
        }
        counted = {fact.output: fact.flop for fact in node_facts(read_graph(path), (at[0], 3, *at[1:]))}
        assert {output: 2 * layer.macs.at(*at) for output, layer in sized.items()} == {o: counted[o] for o in sized}


def without_weights(path: str, bare: Path) -> str:
    """The graph with its large weights as inputs: their sizes are all that shapes depend on."""
    model = onnx.load(path)
    for weight in [weight for weight in model.graph.initializer if np.prod(weight.dims) > 256]:
        model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
        model.graph.initializer.remove(weight)
    onnx.save(model, bare)
    return str(bare)


def inferred(path: str, at: tuple[int, int, int]) -> dict[str, int]:
    model = onnx.load(path)
    del model.graph.value_info[:]
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (at[0], 3, *at[1:]), strict=True):
        dim.dim_value = size
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    found = {}
    for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = int(np.prod([dim.dim_value for dim in dims], dtype=np.int64))
    return found


def test_kernels_of_the_exported_detectors(graphs: Callable[[str], Graphs], retinanet: ModelCosts) -> None:
    """Every activation joins its convolution, but SiLU no depthwise one; residuals and the pyramid's sums do too."""
    heads = [group for group in retinanet.groups if group.kind == "conv"]
    assert len(heads) == 111
    joined = [name for group in heads for name in group.layers]
    assert {layer.name for layer in retinanet.layers if layer.operator in ("Add", "Relu")} <= set(joined)
    both = [group for group in heads if group.output_elements.at(1, 800, 800) == 2 * 256 * 13**2]
    assert len(both) == 1, "P6 is written as it is for the heads, and rectified for P7"
    yolox = read_costs(graphs("yolox").full.path)
    depthwise = [group for group in yolox.groups if group.kind == "depthwise"]
    assert len(depthwise) == 30
    assert all(len(group.layers) == 1 for group in depthwise), "its sigmoid and product are a kernel of their own"
    apart = [group for group in yolox.groups if group.kind == "pointwise" and len(group.layers) == 2]
    assert len(apart) >= 30
    assert any(len(group.layers) == 3 for group in yolox.groups if group.kind == "conv"), "convolution, sigmoid, product"
