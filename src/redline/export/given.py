"""A given ONNX file is passed on; only its batch axis may be freed, and only where that is shown to change nothing."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from redline.errors import TrialError
from redline.export.check import compare, onnx_outputs, open_session, pictures
from redline.export.exporters import set_shape
from redline.records import Detector, OnnxModel, ShapeCheck, TensorFact


def export_given(detector: Detector, folder: Path, input_hw: tuple[int, int]) -> OnnxModel:
    """The given file, or one in `folder` with its batch axis freed or its external weights taken in.

    `dynamic` is true if N, H and W all are; `input.shape` says what is fixed.
    """
    path = Path(detector.onnx_path or "")
    model = onnx.load(str(path))
    image = detector.facts.inputs[0]
    notes: list[str] = []
    checks: tuple[ShapeCheck, ...] = ()
    if any(tensor.external_data for tensor in onnx.load(str(path), load_external_data=False).graph.initializer):
        path = folder / "network.onnx"
        onnx.save(model, str(path))
        notes.append("external weights were taken into the file")
    if image.shape[0] == 1:
        freed = _freed(detector, path, folder / "network-batch.onnx", model, input_hw)
        if isinstance(freed, str):
            notes.append(f"the batch stays 1: {freed}")
        else:
            path, checks = folder / "network-batch.onnx", freed
            image = replace(image, shape=("N", *image.shape[1:]))
            notes.append("the batch axis was made dynamic; each image of a batch gives what it gives alone")
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    return OnnxModel(
        path=str(path),
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        exporter="given",
        opset=opset,
        input=image,
        outputs=_outputs(detector.facts.outputs, image),
        dynamic=all(isinstance(image.shape[axis], str) for axis in (0, 2, 3)),
        checks=checks,
        notes=tuple(notes),
    )


def _outputs(facts: tuple[TensorFact, ...], image: TensorFact) -> tuple[TensorFact, ...]:
    return tuple(replace(fact, shape=(image.shape[0], *fact.shape[1:])) for fact in facts)


def _freed(
    detector: Detector, path: Path, target: Path, model: onnx.ModelProto, input_hw: tuple[int, int]
) -> tuple[ShapeCheck, ...] | str:
    """Write the graph with a named batch axis and compare a batch of three with its images one by one; or why it cannot be."""
    weights = {tensor.name for tensor in model.graph.initializer}
    _, _, height, width = detector.facts.inputs[0].shape
    hw = (height if isinstance(height, int) else input_hw[0], width if isinstance(width, int) else input_hw[1])
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    del freed.graph.value_info[:]
    for entry in (*freed.graph.input, *freed.graph.output):
        dims = entry.type.tensor_type.shape.dim
        if len(dims) and entry.name not in weights:
            set_shape(entry, ["N", *(dim.dim_value or dim.dim_param or "?" for dim in dims[1:])])
    target.write_bytes(freed.SerializeToString(deterministic=True))
    shape4 = (3, 3, *hw)
    batch = pictures(detector.preprocess, shape4)
    try:
        session = open_session(path)
        singles = [onnx_outputs(session, batch[i : i + 1]) for i in range(len(batch))]
        reference = [np.concatenate(parts) for parts in zip(*singles, strict=True)]
        return (compare(shape4, reference, onnx_outputs(open_session(target), batch), detector.head.kind),)
    except (TrialError, ValueError) as error:
        target.unlink()
        return " ".join(str(error).split())[:200]
