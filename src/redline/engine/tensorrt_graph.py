"""Forms that some TensorRT parser misreads, written so that every version reads them alike. What is computed stays the same."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which `Shape` has no start and end (opset 15): the parser of 8.6 ignores them and gives the whole shape.

    The Slice that takes their place has the node's name and output, so nodes are found by name as before.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for node in model.graph.node:
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type != "Shape" or not bounds.keys() & {"start", "end"}:
            copy.graph.node.append(node)
            continue
        whole = f"{node.output[0]}_whole"
        limits = {"start": bounds.get("start", 0), "end": bounds.get("end", np.iinfo(np.int32).max)}
        names = [f"{node.output[0]}_{name}" for name in limits]
        for name, value in zip(names, limits.values(), strict=True):
            copy.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
        copy.graph.node.append(helper.make_node("Shape", [node.input[0]], [whole], name=f"{node.name}_whole"))
        copy.graph.node.append(helper.make_node("Slice", [whole, *names], [node.output[0]], name=node.name))
    return copy
