"""Graphs of one fixed shape, and the options that build them.

What takes a build of YOLOX-Nano its minutes is one thread that compiles and times kernels. Timing pieces of the graph in
processes side by side was tried and is of no use: 8.6 cannot join their timing caches ("Myelin error from unknown graph").
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from redline.engine.graph_facts import infer
from redline.records import BuildOptions, EngineProfile, OnnxModel

if TYPE_CHECKING:
    from tensorrt_gpu import Bench, Shape


def fixed(model: OnnxModel, shape: tuple[int, ...], folder: Path) -> OnnxModel:
    """The graph for inputs of `shape` alone."""
    graph = onnx.load(model.path)
    for dim, size in zip(graph.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    del graph.graph.value_info[:]
    shapes = {value.name: value for value in infer(graph)}
    for value in graph.graph.output:
        value.CopyFrom(shapes[value.name])
    data = graph.SerializeToString(deterministic=True)
    path = folder / f"fixed_{'x'.join(map(str, shape))}_{hashlib.sha256(data).hexdigest()[:12]}.onnx"
    path.write_bytes(data)
    return replace(model, path=str(path), digest=hashlib.sha256(data).hexdigest())


def exact(bench: Bench, name: str, shape: Shape, level: int) -> tuple[OnnxModel, BuildOptions]:
    """The graph of one fixed shape and the options of its build."""
    profile = EngineProfile(index=0, minimum=shape, optimum=shape, maximum=shape)
    options = BuildOptions(precision="fp16", profiles=(profile,), optimization_level=level)
    return fixed(bench.graph(name, True), shape, bench.given.work), options
