"""Hand-made graphs, and a GPU by the figures of its data sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from redline.records import DeviceFacts, FusionGroup, LayerCost, ModelCosts, Size, Sourced, UnknownOperator

UNKNOWN = Sourced(value=None, source="not needed here")
SHEET = "NVIDIA data sheet"


def gpu(name: str = "h100-sxm", peaks: dict[str, float | None] | None = None, bandwidth: float | None = 3350) -> DeviceFacts:
    peaks = {"fp32": 66.9, "tf32": 494.7, "fp16": 989.4, "int8": 1978.9} if peaks is None else peaks
    blank: dict[str, Any] = {field.name: UNKNOWN for field in fields(DeviceFacts) if field.type == "Sourced"}
    rates: Any = tuple((key, Sourced(value=rate, source=SHEET)) for key, rate in peaks.items())
    given = blank | {"bandwidth_gb_s": Sourced(value=bandwidth, source=SHEET)}
    return DeviceFacts(name=name, title=name.upper(), peaks=rates, **given)


def saved(
    folder: Path,
    nodes: Sequence[Any],
    weights: dict[str, Any],
    dims: Sequence[Any] = ("N", 3, "H", "W"),
    output: str = "out",
    opset: int = 18,
) -> Path:
    """The graph with one picture as input, its weights as initializers."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, list(dims))
    out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), "graph", [image], [out], held)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("there", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return path


def layer(name: str, kind: Any, macs: str = "0", channels: int = 64) -> LayerCost:
    return LayerCost(
        name=name,
        operator={"conv": "Conv", "depthwise": "Conv", "matmul": "MatMul", "move": "Transpose"}.get(kind, "Relu"),
        kind=kind,
        module="",
        output=name,
        macs=Size(macs),
        input_elements=Size("0"),
        output_elements=Size("0"),
        weight_elements=0,
        fixed_bytes=Size("0"),
        channels_in=channels,
        channels_out=channels,
    )


def costs(
    *parts: tuple[str, Any, str, str, int], unknown: tuple[UnknownOperator, ...] = (), size: Any = (None,) * 3
) -> ModelCosts:
    """Kernels of one layer each: (name, kind, MACs, elements read and as many written, weights)."""
    groups = tuple(
        FusionGroup(
            name=name,
            kind=kind,
            layers=(name,),
            macs=Size(macs),
            input_elements=Size(moved),
            output_elements=Size(moved),
            weight_elements=weights,
            fixed_bytes=Size("0"),
            unfused_elements=Size(f"3*({moved})"),
        )
        for name, kind, macs, moved, weights in parts
    )
    layers = tuple(layer(name, kind, macs) for name, kind, macs, _, _ in parts)
    return ModelCosts(
        graph_digest="0" * 64,
        size=size,
        output_elements=Size("10*N"),
        parameters=0,
        layers=layers,
        groups=groups,
        unknown=unknown,
        unsized=(),
    )
