"""A few lines over onnx.helper: operators appended one by one, constants given as numbers. Knows nothing of detectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray


@dataclass(slots=True)
class GraphBuilder:
    """Collects nodes and initializers; every name starts with `prefix`. Values are passed around by tensor name."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output; returns the output's name."""
        return self.ops(kind, *inputs, count=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, count: int, **attributes: Any) -> list[str]:
        """Append a node of `count` outputs; returns their names."""
        outputs = [f"{self.prefix}{kind}_{len(self.nodes)}_{index}" for index in range(count)]
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), outputs, name=outputs[0] + "_node", **attributes))
        return outputs

    def const(self, value: Any, dtype: DTypeLike) -> str:
        name = f"{self.prefix}constant_{len(self.initializers)}"
        array: NDArray[Any] = np.array(value, dtype)
        self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        """1-D int64 constant."""
        return self.const(values, np.int64)

    def float(self, value: Any) -> str:
        return self.const(value, np.float32)

    def cast(self, value: str, dtype: DTypeLike) -> str:
        return self.op("Cast", value, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def columns(self, value: str, *indices: int) -> str:
        """Columns of the last axis."""
        return self.op("Gather", value, self.ints(*indices), axis=-1)
