"""A machine with two made-up GPUs and a small detector of blobs on it: what whole runs over the fakes have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_tensorrt
from onnx import TensorProto, shape_inference

from redline.records import RunRecord, Trial

SAYS = fake_tensorrt.Engine.create_engine_inspector
"""What the fake's inspector says: FP32 of every layer, whatever it was asked for."""


def honest(engine: fake_tensorrt.Engine) -> Any:
    """The inspector of an engine that obtained what its graph asks for."""
    inspector = SAYS(engine)
    graph = shape_inference.infer_shapes(engine.model).graph
    half = {v.name for v in (*graph.value_info, *graph.input) if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for layer in inspector.layers:
        for tensor in layer["Inputs"]:
            tensor["Format/Datatype"] = "Half" if tensor["Name"] in half else "FP32"
    return inspector


GPU_TESTS = Path(__file__).parents[2] / "gpu"


def write(folder: Path, *, minutes: float = 0.1, precisions: tuple[str, ...] = ("fp32", "tf32", "fp16")) -> Path:
    """Scenes and their spec. `GPU_TESTS` is on the path by then."""
    from blob_net import project

    spec: Path = project(folder, scenes=9, minutes=minutes, precisions=precisions)
    return spec


def trials(record: RunRecord, runner: str = "tensorrt") -> list[Trial]:
    return [trial for trial in record.trials if trial.candidate.runner == runner]
