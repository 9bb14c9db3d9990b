"""The two exporters of torch, quiet, giving tidy graphs: the same network gives the same bytes."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from redline.errors import TrialError
from redline.export.quiet import quiet
from redline.nodes import MODULE
from redline.records import TensorFact
from redline.zoo.fold import fold_batchnorm

SCOPES = "pkg.torch.onnx.name_scopes"
WRAPPER = "net"
"""Attribute of `model.outputs.TupleOutputs` that holds the network."""
OPSET = 18
"""Lowest that torch.export's ONNX exporter writes natively and TensorRT 8.6 to 11 all read."""


def torch_export(module: nn.Module, shape: tuple[int, int, int, int], names: Sequence[str], dynamic: str, stride: int) -> Any:
    """torch.export, then ONNX. `dynamic`: "NHW" (H and W multiples of `stride`), "N" or "" . Raises whatever torch raises."""
    from torch.export import Dim, export

    axes: dict[int, Any] = {}
    if "N" in dynamic:
        axes[0] = Dim("N")
    if "H" in dynamic:
        axes |= {2: stride * Dim("h"), 3: stride * Dim("w")}
    images = torch.zeros(shape)
    shapes = (axes,) if axes else None
    with quiet(), torch.no_grad():
        exported = export(module, (images,), dynamic_shapes=shapes)
        program = torch.onnx.export(
            exported,
            (images,),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=["images"],
            output_names=list(names),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise TrialError("export-failed", "The exporter gave no graph")
    return program.model_proto


def torchscript(module: nn.Module, shape: tuple[int, int, int, int], names: Sequence[str], path: Path) -> Any:
    """The legacy tracing exporter, which writes `path`; N, H and W dynamic. Raises whatever torch raises."""
    random = torch.Generator().manual_seed(0)
    axes = {"images": {0: "N", 2: "H", 3: "W"}, **{name: {0: "N"} for name in names}}
    with quiet(), torch.no_grad():
        torch.onnx.export(
            module,
            (torch.rand(shape, generator=random),),
            str(path),
            dynamo=False,
            input_names=["images"],
            output_names=list(names),
            opset_version=OPSET,
            dynamic_axes=axes,
        )
    return onnx.load(str(path))


def fold_zoo(module: nn.Module) -> nn.Module:
    """A copy with batch norms folded if the network is redline's own, which exports faster; any other network as it is."""
    import copy

    from redline.zoo.retinanet import RetinaNet
    from redline.zoo.yolox import YOLOX

    if any(isinstance(part, (YOLOX, RetinaNet)) for part in module.children()):
        return fold_batchnorm(copy.deepcopy(module))
    return module


def tidy(model: onnx.ModelProto, outputs: Sequence[TensorFact], input_shape: tuple[int | str, ...]) -> bytes:
    """Name the dynamic axes, drop traces of the source code and inferred shapes, keep each node's module, serialise.

    Raises TrialError: export-too-large above protobuf's 2 GB.
    """
    graph = model.graph
    modules = [_module(node) for node in graph.node]
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        holder.doc_string = ""
        del holder.metadata_props[:]
    for node, module in zip(graph.node, modules, strict=True):
        if module:
            node.metadata_props.add(key=MODULE, value=module)
    del graph.value_info[:]
    shapes = [input_shape, *(fact.shape for fact in outputs)]
    for value, shape in zip((*graph.input, *graph.output), shapes, strict=True):
        set_shape(value, shape)
    if model.ByteSize() >= 2**31:
        raise TrialError(
            "export-too-large", "The graph does not fit one ONNX file", got=f"{model.ByteSize()} bytes", allowed="2 GiB"
        )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _module(node: onnx.NodeProto) -> str:
    """Path of the module that a node came from, below the wrapper that gives every network a tuple of outputs.

    torch.export's exporter lists the scopes from the outside in, the operation itself last; tracing puts them into the name.
    """
    noted = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    try:
        scopes = [str(scope) for scope in ast.literal_eval(noted)][:-1] if noted else []
    except (ValueError, SyntaxError, TypeError):
        scopes = []
    path = scopes[-1] if scopes else ".".join(node.name.strip("/").split("/")[:-1])
    if path == WRAPPER or path.startswith("_"):
        return ""
    return path.removeprefix(f"{WRAPPER}.")


def set_shape(value: onnx.ValueInfoProto, shape: Sequence[int | str]) -> None:
    """Sizes as integers are fixed; as strings they name a dynamic axis."""
    dims = value.type.tensor_type.shape
    del dims.dim[:]
    for size in shape:
        dim = dims.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size
