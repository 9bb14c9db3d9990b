"""FP16 as a property of the graph: weights and activations in float16, inputs and outputs as before (docs/adr/0010)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from redline.errors import TrialError
from redline.export.quiet import quiet
from redline.records import OnnxModel

SENSITIVE = ("Exp", "Softmax", "ReduceSum", "ReduceMean", "LayerNormalization", "NonMaxSuppression", "TopK", "Range", "CumSum")
"""Operators that stay in float32: their results leave float16's range (65,504) or lose counts and indices above 2,048."""


def export_half(network: OnnxModel, folder: Path, *, wide_nodes: Sequence[str] = (), keep_outputs: bool = True) -> OnnxModel:
    """Write network_fp16.onnx to `folder`; the nodes named in `wide_nodes` stay in float32, as `SENSITIVE` operators do.

    What one such node hands to another stays in float32 too, so that it may leave float16's range on the way.

    Inputs stay float32, and outputs too unless `keep_outputs` is false: float16 outputs halve the traffic of large heads.
    Raises TrialError: export-half if the converter fails or a weight does not fit float16.
    """
    try:
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    except ImportError as error:
        fix = 'pip install "redline[ort]"'
        raise TrialError("export-half", "The FP16 converter comes with ONNX Runtime", got=error, fix=fix) from error
    model = onnx.load(network.path)
    _require_range(model, wide_nodes)
    # Resize by nearest neighbour copies values: the converter's caution would only add casts around it.
    blocked = sorted((set(DEFAULT_OP_BLOCK_LIST) | set(SENSITIVE)) - {"Resize", "Upsample", "Max", "Min"})
    kept = [value.name for value in (*model.graph.input, *(model.graph.output if keep_outputs else ()))]
    try:
        with quiet():
            half = convert_float_to_float16(
                model, keep_io_types=kept, op_block_list=blocked, node_block_list=list(wide_nodes), min_positive_val=5.96e-08
            )
    except Exception as error:  # the converter runs shape inference and raises what that raises
        text = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise TrialError("export-half", "The graph cannot be converted to FP16", got=text) from error
    _join(half.graph)
    _sort(half.graph)
    path = folder / "network_fp16.onnx"
    data = half.SerializeToString(deterministic=True)
    path.write_bytes(data)
    held = f"; {len(wide_nodes)} nodes held in float32" if wide_nodes else ""
    note = f"float16 by onnxruntime.transformers.float16{held}"
    outputs = network.outputs if keep_outputs else tuple(replace(fact, dtype="float16") for fact in network.outputs)
    digest = hashlib.sha256(data).hexdigest()
    return replace(network, path=str(path), digest=digest, outputs=outputs, notes=(*network.notes, note))


def _sort(graph: onnx.GraphProto) -> None:
    """Every node after those it reads: the converter appends its casts, and shape inference then stops at them."""
    waiting = list(graph.node)
    known = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    ordered: list[onnx.NodeProto] = []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            raise TrialError("export-half", "The converted graph has a cycle", got=waiting[0].name)
        ordered += ready
        known.update(name for node in ready for name in node.output)
        done = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in done]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _join(graph: onnx.GraphProto) -> None:
    """Casts that the converter put back to back go: between two nodes in float32, and between one and an input or output.

    The converter casts the result of every such node to float16, and back for the next one: what is too large is lost there.
    """
    made = {name: node for node in graph.node for name in node.output}
    ends = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    stale: set[str] = set()
    gone: list[str] = []
    for wide in [node for node in graph.node if _is_cast(node, onnx.TensorProto.FLOAT)]:
        narrow = made.get(wide.input[0])
        if narrow is None or not _is_cast(narrow, onnx.TensorProto.FLOAT16):
            continue
        source, result = narrow.input[0], wide.output[0]
        if result not in ends:
            renamed[result] = source
        elif source in made and source not in renamed:
            renamed[source] = result
        else:
            continue
        gone.append(wide.name)
        stale |= {source, result, narrow.output[0]}
    _rename(graph, renamed, stale, set(gone))
    read = {name for node in graph.node for name in node.input} | ends
    dead = [n for n in graph.node if n.output[0] in stale and n.output[0] not in read and _is_cast(n, onnx.TensorProto.FLOAT16)]
    # What only nodes in float32 read has its own name again.
    back = {n.input[0]: n.output[0] for n in dead if n.input[0] not in ends and n.name.endswith("_cast_to_fp16_node")}
    _rename(graph, back, stale, {node.name for node in dead})


def _is_cast(node: onnx.NodeProto, kind: int) -> bool:
    """One of the converter's own, to `kind`."""
    ours = node.name.startswith("graph_") or node.name.endswith(("_cast_to_fp16_node", "_cast_to_fp32_node"))
    return node.op_type == "Cast" and ours and any(a.name == "to" and a.i == kind for a in node.attribute)


def _rename(graph: onnx.GraphProto, names: dict[str, str], stale: set[str], gone: set[str]) -> None:
    """Tensors renamed and the nodes `gone` left out; what was noted of the types of `stale` ones is dropped."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node if node.name not in gone]
    for node in kept:
        for tensors in (node.input, node.output):
            for place, name in enumerate(tensors):
                while name in names:
                    name = names[name]
                tensors[place] = name
    del graph.node[:]
    graph.node.extend(kept)
    noted = [value for value in graph.value_info if value.name not in stale]
    kinds = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in noted]
    del graph.value_info[:]
    graph.value_info.extend(kinds)


def _require_range(model: onnx.ModelProto, wide_nodes: Sequence[str]) -> None:
    import numpy as np
    from onnx import numpy_helper

    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            largest = float(np.abs(numpy_helper.to_array(weight)).max(initial=0.0))
            node = next((n.name for n in model.graph.node if weight.name in n.input and n.name not in wide_nodes), None)
            if largest > 65504 and node is not None:
                fix = f"hold node {node} in float32: redline build --precision fp16 --wide {node}"
                raise TrialError("export-half", f"Weight {weight.name} does not fit float16", got=f"{largest:g}", fix=fix)
