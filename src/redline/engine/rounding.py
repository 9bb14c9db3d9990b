"""A graph as an ideal compiler of a narrower one would compute it: every tensor rounded where that one is narrow, sums wide.

ONNX Runtime's own execution of a float16 graph on a CPU is no such thing: it drops casts between operators and so rounds less.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from redline.engine.cuts import FLOATS, Wiring

NARROW = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def rounded_graph(model: onnx.ModelProto, wiring: Wiring, asked: onnx.ModelProto, wiring_asked: Wiring) -> onnx.ModelProto:
    """`model` (FP32) with weights and tensors rounded to the types they have in `asked`; names stay as they are."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {weight.name: weight.data_type for weight in asked.graph.initializer}
    for weight in copy.graph.initializer:
        kind = weights.get(weight.name, TensorProto.FLOAT)
        if weight.data_type == TensorProto.FLOAT and kind in NARROW:
            array = numpy_helper.to_array(weight)
            narrow = array.astype(helper.tensor_dtype_to_np_dtype(kind)).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(narrow, weight.name))
    nodes = []
    for value in copy.graph.input:
        kind = _read_as(value.name, wiring_asked)
        if kind in NARROW:
            for node in copy.graph.node:
                for place, name in enumerate(node.input):
                    if name == value.name:
                        node.input[place] = f"{name}__rounded"
            nodes += _casts(value.name, f"{value.name}__rounded", kind)
    for node in copy.graph.node:
        nodes.append(node)
        for place, name in enumerate(list(node.output)):
            kind = _made_as(name, wiring_asked)
            if kind in NARROW and wiring.kinds.get(name) in FLOATS:
                node.output[place] = f"{name}__wide"
                nodes += _casts(f"{name}__wide", name, kind)
    graph = helper.make_graph(nodes, "rounded", copy.graph.input, copy.graph.output, copy.graph.initializer)
    result: onnx.ModelProto = helper.make_model(graph, opset_imports=copy.opset_import, ir_version=copy.ir_version)
    return result


def _casts(source: str, result: str, kind: int) -> list[onnx.NodeProto]:
    narrow = f"{result}__narrow"
    return [
        helper.make_node("Cast", [source], [narrow], name=f"{narrow}_cast", to=kind),
        helper.make_node("Cast", [narrow], [result], name=f"{result}__cast", to=TensorProto.FLOAT),
    ]


def _read_as(name: str, wiring: Wiring) -> int:
    """Type in which an input is worked with: that of the cast which alone reads it."""
    readers = [wiring.nodes[index] for index in wiring.readers.get(name, ())]
    casts = [node for node in readers if node.op_type == "Cast"]
    return wiring.kinds.get(casts[0].output[0], 0) if casts else 0


def _made_as(name: str, wiring: Wiring) -> int:
    """Type of a tensor, or of what was cast to it: outputs are widened at the very end."""
    maker = wiring.maker.get(name)
    node = None if maker is None else wiring.nodes[maker]
    if node is not None and node.op_type == "Cast" and wiring.kinds.get(node.input[0]) in NARROW:
        return wiring.kinds[node.input[0]]
    return wiring.kinds.get(name, 0)
