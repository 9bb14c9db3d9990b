"""An ONNX file as a detector: checked, described, run once for its output shapes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from redline.errors import BadInput
from redline.records import Preprocess, TensorFact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOATS = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.BFLOAT16: 2, onnx.TensorProto.DOUBLE: 8}
"""Bytes an element of the types that count as parameters."""


def read(path: Path) -> onnx.ModelProto:
    """The checked graph without its external data. Raises BadInput: model-onnx."""
    if not path.is_file():
        raise BadInput("model-onnx", f"Cannot read the ONNX file {str(path)!r}", got="no such file", fix="check model.onnx")
    try:
        onnx.checker.check_model(str(path))
        return onnx.load(str(path), load_external_data=False)
    except (onnx.checker.ValidationError, ValueError, RuntimeError, OSError) as error:
        message = " ".join(str(error).split())[:300]
        raise BadInput(
            "model-onnx",
            f"{path.name!r} is not a valid ONNX model",
            got=f"{type(error).__name__}: {message}",
            fix="export it again, or check that it was copied whole",
        ) from error


def digest(path: Path, model: onnx.ModelProto) -> str:
    """sha256 over the file and the external data files it names."""
    total = hashlib.sha256(path.read_bytes())
    files = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    for name in sorted(files):
        total.update((path.parent / name).read_bytes())
    return total.hexdigest()


def image_input(model: onnx.ModelProto) -> TensorFact:
    """The single float32 image input (N, 3, H, W), with its fixed or named sizes. Raises BadInput: model-onnx-input."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    facts = [value_fact(value) for value in inputs]
    if len(facts) == 1:
        (fact,) = facts
        names: tuple[int | str, ...] = ("N", 3, "H", "W")
        named = [size if isinstance(size, int) else name for size, name in zip(fact.shape, names, strict=False)]
        if fact.dtype == "float32" and len(fact.shape) == 4 and named[1] == 3 and named[0] in (1, "N"):
            return TensorFact(name=fact.name, dtype=fact.dtype, shape=tuple(named))
    raise BadInput(
        "model-onnx-input",
        "The ONNX model does not take one batch of images",
        got=", ".join(f"{fact.name}: {fact.dtype} {fact.shape}" for fact in facts) or "no input",
        allowed="one input, float32, (N, 3, H, W), N dynamic or 1",
        fix="export the network alone: preprocessing is described in [model.preprocess]",
    )


def value_fact(value: onnx.ValueInfoProto) -> TensorFact:
    """Name, dtype and shape of a graph input or output; unnamed sizes are "?"."""
    tensor = value.type.tensor_type
    known = onnx.TensorProto.DataType.Name(tensor.elem_type) if tensor.elem_type else "undefined"
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    return TensorFact(name=value.name, dtype={"FLOAT": "float32"}.get(known, known.lower()), shape=shape)


def check_size(fact: TensorFact, preprocess: Preprocess) -> None:
    """Raises BadInput: model-onnx-size if the graph fixes another input size than the preprocessing makes."""
    fixed = tuple(
        size if isinstance(size, int) else wanted for size, wanted in zip(fact.shape[2:], preprocess.size, strict=True)
    )
    if preprocess.resize in ("letterbox", "stretch") and fixed != preprocess.size:
        raise BadInput(
            "model-onnx-size",
            "The ONNX model takes another image size than the preprocessing makes",
            got=f"model {fact.shape[2]} x {fact.shape[3]}, preprocessing {preprocess.size[0]} x {preprocess.size[1]}",
            fix=f"set model.preprocess.size = {list(fixed)}, or export the model with dynamic height and width",
        )


def parameters(model: onnx.ModelProto) -> tuple[int, int]:
    """Number and bytes of the floating-point weights."""
    count = size = 0
    for tensor in model.graph.initializer:
        if tensor.data_type in FLOATS:
            elements = 1
            for length in tensor.dims:
                elements *= length
            count, size = count + elements, size + elements * FLOATS[tensor.data_type]
    return count, size


def session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU. Raises BadInput: model-onnx if it refuses the graph or is not installed."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BadInput("model-onnx", "ONNX Runtime is not installed", got=error, fix='pip install "redline[ort]"') from error
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no other base class
        raise BadInput("model-onnx", "ONNX Runtime refuses the ONNX model", got=" ".join(str(error).split())[:300]) from error


def run(path: Path, batch: NDArray[np.float32]) -> list[NDArray[Any]]:
    """All outputs for one batch."""
    opened = session(path)
    return list(opened.run(None, {opened.get_inputs()[0].name: batch}))
