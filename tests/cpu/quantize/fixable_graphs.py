"""Small graphs in which one channel spoils a tensor's range, and what they lose in INT8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from redline.engine.onnxruntime_runner import run_named
from redline.export.adjusted import adjust
from redline.export.quantized import export_int8, structure_of
from redline.quantize.placement import heavy_nodes, place, roundable
from redline.quantize.ranges import measure_ranges
from redline.quantizing import tensors_of
from redline.records import OnnxModel, TensorFact
from redline.records.quantize import CalibrationSet, ChannelFactors, QuantTable

SET = CalibrationSet(images=("a",), preprocess="p", selector="all", seed=0, input_shapes=((16, 16),))
PADDED = {"pads": [1, 1, 1, 1]}


def graph_of(nodes: Sequence[Any], weights: dict[str, Any], output: str, channels: int = 3) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", channels, "H", "W"])
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", "C", "h", "w"])
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "g", [image], [result], held)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def saved(model: onnx.ModelProto, folder: Path) -> OnnxModel:
    path = folder / "plain.onnx"
    onnx.save(model, str(path))
    fact = TensorFact(name="images", dtype="float32", shape=("N", 3, "H", "W"))
    return OnnxModel(path=str(path), digest="d", exporter="t", opset=18, input=fact, outputs=(fact,), dynamic=True, checks=())


def draw_weight(draw: Any, *shape: int) -> Any:
    return draw.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)


def chain(activation: str = "Relu", unlike: float = 100.0) -> onnx.ModelProto:
    """Dense, depthwise, dense. The first channel of the first layer is `unlike` times as large as the others; the depthwise
    layer makes up for it, so that the network as a whole does the same as with 1."""
    draw = np.random.default_rng(5)
    weights = {"a.w": draw_weight(draw, 8, 3, 3, 3), "d.w": draw_weight(draw, 8, 1, 3, 3), "c.w": draw_weight(draw, 4, 8, 1, 1)}
    weights["a.b"] = draw.normal(0, 0.1, 8).astype(np.float32)
    weights["a.w"][0] *= unlike
    weights["a.b"][0] *= unlike
    weights["d.w"][0] /= unlike
    nodes = [helper.make_node("Conv", ["images", "a.w", "a.b"], ["a"], name="A", **PADDED)]
    nodes += activate(activation, "a", "x")
    nodes += [helper.make_node("Conv", ["x", "d.w"], ["d"], name="D", group=8, **PADDED)]
    nodes += activate(activation, "d", "y")
    nodes += [helper.make_node("Conv", ["y", "c.w"], ["c"], name="C")]
    return graph_of(nodes, weights, "c")


def activate(kind: str, source: str, result: str) -> list[Any]:
    if kind != "SiLU":
        return [helper.make_node(kind, [source], [result], name=f"{kind}_{result}")]
    gate = f"{source}_gate"
    return [
        helper.make_node("Sigmoid", [source], [gate], name=f"sigmoid_{result}"),
        helper.make_node("Mul", [source, gate], [result], name=f"silu_{result}"),
    ]


def pictures(count: int = 4, seed: int = 0, channels: int = 3) -> list[Any]:
    draw = np.random.default_rng(seed)
    return [draw.normal(0, 1, (1, channels, 16, 16)).astype(np.float32) for _ in range(count)]


def run(model: onnx.ModelProto, batch: Any) -> Any:
    return next(iter(run_named(model.SerializeToString(), {"images": batch}, threads=1).values()))


def table_by_max(network: OnnxModel, batches: Sequence[Any], factors: Sequence[ChannelFactors] = ()) -> QuantTable:
    model = onnx.load(network.path)
    graph = adjust(model, factors)
    found = measure_ranges(tensors_of(network, graph, roundable(graph), 1), lambda: batches, roundable(graph))
    placement = place(graph, heavy_nodes(graph))
    return QuantTable(
        structure=structure_of(model), method="max", calibration=SET, points=placement.points, weights=placement.weights,
        scales=tuple((one.tensor, one.amax("max") / 127) for one in found), factors=tuple(factors),
        order=tuple(node.name for node in model.graph.node),
    )  # fmt: skip


def rounded(network: OnnxModel, table: QuantTable) -> onnx.ModelProto:
    return onnx.load(export_int8(network, Path(network.path).parent, table).path)


def loss(network: OnnxModel, table: QuantTable, batches: Sequence[Any]) -> float:
    """Mean squared error of the outputs in INT8 over the mean square of those in FP32."""
    plain, narrow = onnx.load(network.path), rounded(network, table)
    pairs = [(run(plain, batch), run(narrow, batch)) for batch in batches]
    return float(sum(np.square(p - n).mean() for p, n in pairs) / sum(np.square(p).mean() for p, _ in pairs))
