"""Graphs that TensorRT cannot take, found before minutes are spent on a build; each with the ONNX node and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, numpy_helper

from redline.errors import TrialError

if TYPE_CHECKING:
    import onnx

    from redline.engine.tensorrt_versions import Library

UNTAKEN = {
    "StringNormalizer": "strings have no place in an engine: do it before the network",
    "TfIdfVectorizer": "strings have no place in an engine: do it before the network",
    "SequenceConstruct": "replace the sequence by Concat or Stack: TensorRT has tensors only",
    "SequenceAt": "replace the sequence by Gather: TensorRT has tensors only",
    "SequenceInsert": "replace the sequence by Concat: TensorRT has tensors only",
    "SplitToSequence": "use Split: TensorRT has tensors only",
    "Unique": "its output has a shape that depends on data: leave it to post-processing",
    "Multinomial": "random sampling does not repeat: leave it out of the graph",
    "Optional": "remove the optional: TensorRT has tensors only",
    "DeformConv": "no TensorRT layer: use a plugin, or another network",
    "Det": "no TensorRT layer: compute it outside",
}
TYPES = {
    TensorProto.STRING: "string",
    TensorProto.COMPLEX64: "complex64",
    TensorProto.COMPLEX128: "complex128",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT64: "uint64",
    TensorProto.UINT16: "uint16",
}
FIXES = {"float64": "export in float32", "uint64": "use int64", "uint16": "use int32"}
MAX_OPSET = {8: 18, 10: 22, 11: 24}
"""Highest opset that the parsers of a major version document."""


@dataclass(frozen=True, slots=True)
class Problem:
    node: str
    what: str
    fix: str


def lint(model: onnx.ModelProto, library: Library | None = None) -> tuple[Problem, ...]:
    """Why TensorRT would not take the graph; empty if nothing is known against it. `library` adds what its own parser knows."""
    problems: list[Problem] = []
    made = {name: node.name or node.op_type for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        name = node.name or node.op_type
        if node.domain not in ("", "ai.onnx", "trt.plugins"):
            problems.append(Problem(name, f"operator {node.op_type} of domain {node.domain}", "export with standard operators"))
        elif node.op_type in UNTAKEN:
            problems.append(Problem(name, f"operator {node.op_type}", UNTAKEN[node.op_type]))
        if node.op_type == "Cast":
            targets = [attribute.i for attribute in node.attribute if attribute.name == "to"]
            problems += [_typed(name, "casts to", TYPES[target]) for target in targets if target in TYPES]
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type in TYPES:
            problems.append(_typed(made.get(value.name, value.name), "has type", TYPES[tensor.elem_type]))
        if value in model.graph.input and not tensor.HasField("shape"):
            problems.append(Problem(value.name, "input of unknown rank", "export with a fixed number of dimensions"))
    problems += _weights(model)
    if library is not None and any(weight.data_type == TensorProto.FLOAT8E4M3FN for weight in model.graph.initializer):
        reason = library.no_fp8()
        problems += [Problem("graph", reason, "round to INT8 instead")] if reason is not None else []
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    most = MAX_OPSET.get(int(library.version.split(".")[0]), 99) if library is not None and library.name == "tensorrt" else 99
    if library is not None and opset > most:
        what = f"opset {opset} ({library.name} {library.version} reads up to {most})"
        problems.append(Problem("graph", what, "export with a lower opset"))
    return tuple(problems)


def require_clean(problems: tuple[Problem, ...]) -> None:
    """Raises TrialError: engine-lint, naming every node, if there are problems."""
    if problems:
        got = "; ".join(f"node {problem.node}: {problem.what}" for problem in problems[:8])
        fix = "; ".join(dict.fromkeys(problem.fix for problem in problems))
        raise TrialError("engine-lint", "TensorRT cannot take this graph", got=got, fix=fix)


def _weights(model: onnx.ModelProto) -> list[Problem]:
    users = {name: node.name or node.op_type for node in model.graph.node for name in node.input}
    found = []
    for weight in model.graph.initializer:
        node = users.get(weight.name, weight.name)
        if weight.data_type in TYPES:
            found.append(_typed(node, f"weight {weight.name} has type", TYPES[weight.data_type]))
        elif weight.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) and weight.data_location == TensorProto.DEFAULT:
            array = numpy_helper.to_array(weight)
            if not np.isfinite(array).all():
                fix = "repair the weights, or keep this node in float32 if they overflowed float16"
                found.append(Problem(node, f"weight {weight.name} holds NaN or infinity", fix))
    return found


def _typed(node: str, verb: str, kind: str) -> Problem:
    return Problem(node, f"{verb} {kind}", FIXES.get(kind, "TensorRT has no such type: leave it out of the graph"))
