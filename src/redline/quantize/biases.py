"""The mean that rounding adds to each channel of a layer, taken off its bias.

Empirical bias correction (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.2 and appendix D) compares a layer in INT8 with the same layer in floating point, layer by layer, with all before it
corrected. Here every layer has a twin in floating point in the INT8 graph itself, which reads what the rounded layers before it
made: what these shift is in both, so that one run tells what each layer's own rounding shifts, for all layers at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from redline.records.quantize import LayerBias

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

TWIN = "__twin"
SHIFT = "__shift"
PASSES = 2
"""The first corrects each layer for the inputs that it had; the second for those that the corrected layers before it make."""


def correctable(model: onnx.ModelProto, rounded: Collection[str]) -> tuple[str, ...]:
    """Convolutions among `rounded` with a constant bias or none, in graph order."""
    weights = {weight.name for weight in model.graph.initializer}
    found = [node for node in model.graph.node if node.op_type == "Conv" and node.name in rounded]
    return tuple(node.name for node in found if weights.issuperset(name for name in node.input[1:] if name))


def twin_graph(
    plain: onnx.ModelProto, narrow: onnx.ModelProto, rounded: Collection[str], layers: Sequence[str]
) -> onnx.ModelProto:
    """Outputs LAYER__shift, (N, C, 1, 1): mean of each channel of a layer's twin less that of the layer itself.

    `plain`: the floating-point graph. `narrow`: the same in INT8, with equal names of nodes and tensors. `rounded`: the nodes
    that are in INT8. Between them the twins' side has no rounding either: that of a residual's other branch or before pooling
    is counted as the next layer's.
    """
    import onnx
    from onnx import TensorProto, helper

    result = onnx.ModelProto()
    result.CopyFrom(narrow)
    graph = result.graph
    made = {name for node in plain.graph.node if node.name in rounded for name in node.output}
    known = {value.name for value in plain.graph.input} - {weight.name for weight in plain.graph.initializer} | {""}
    for weight in plain.graph.initializer:
        graph.initializer.add().CopyFrom(weight)
        graph.initializer[-1].name += TWIN
    for node in plain.graph.node:
        twin = graph.node.add()
        twin.CopyFrom(node)
        twin.name += TWIN
        twin.input[:] = [name if name in made or name in known else name + TWIN for name in node.input]
        twin.output[:] = [name + TWIN if name else "" for name in node.output]
    outputs = {node.name: node.output[0] for node in plain.graph.node}
    del graph.output[:]
    for layer in layers:
        name = outputs[layer]
        graph.node.append(helper.make_node("Sub", [name + TWIN, name], [f"{layer}__apart"], name=f"{layer}__sub"))
        graph.node.append(helper.make_node("GlobalAveragePool", [f"{layer}__apart"], [layer + SHIFT], name=f"{layer}__mean"))
        graph.output.append(helper.make_tensor_value_info(layer + SHIFT, TensorProto.FLOAT, None))
    return result


def added(biases: Sequence[LayerBias], shifts: Mapping[str, NDArray[np.float64]]) -> tuple[LayerBias, ...]:
    """`biases` and, on top, the mean shift of each layer (C,)."""
    before = {entry.node: np.asarray(entry.added) for entry in biases}
    total = {layer: before.get(layer, 0.0) + shift for layer, shift in shifts.items()}
    return tuple(LayerBias(node=layer, added=tuple(float(value) for value in values)) for layer, values in total.items())
