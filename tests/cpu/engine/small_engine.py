"""A graph of three nodes and options to build it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from redline.records import BuildOptions, EngineProfile


def small_graph(operator: str = "Relu", seed: int = 0) -> onnx.ModelProto:
    """images (N, 3, H, W) -> stem (4 channels) -> operator -> last (2 channels): out (N, 2, H, W)."""
    draw = np.random.default_rng(seed)
    weights = {"stem.weight": (4, 3, 3, 3), "last.weight": (2, 4, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["images", "stem.weight"], ["x"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["x"], ["y"], name="act"),
        helper.make_node("Conv", ["y", "last.weight"], ["out"], name="last"),
    ]
    values = [numpy_helper.from_array(draw.normal(0, 0.3, shape).astype("float32"), name) for name, shape in weights.items()]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, "H", "W"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 2, "H", "W"])
    graph = helper.make_graph(nodes, "small", [images], [out], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def small_options(*spans: tuple[tuple[int, ...], tuple[int, ...]], **changed: object) -> BuildOptions:
    """A profile from each (minimum, maximum); its optimum is the maximum."""
    chosen = spans or (((1, 3, 8, 8), (2, 3, 8, 8)), ((1, 3, 16, 8), (2, 3, 16, 16)))
    profiles = tuple(EngineProfile(index=i, minimum=a, optimum=b, maximum=b) for i, (a, b) in enumerate(chosen))
    return BuildOptions(precision="fp32", profiles=profiles, **changed)  # type: ignore[arg-type]
