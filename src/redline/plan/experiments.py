"""What would confirm each step of the ladder: metric, tool, command and the figure that counts as success."""

from __future__ import annotations

from redline.records import Experiment, StepKey

RUN = "redline run detector.toml"
WITHIN = 0.4
"""A prediction is confirmed within 40 % (the worst error asked of the roofline)."""

KNOWN: dict[StepKey, tuple[str, str, str]] = {
    "fp32-eager": ("P50 and P95 of the baseline trial", "redline run", RUN),
    "tf32-eager": ("P50 of the torch-eager tf32 trial", "redline run", 'precisions = ["fp32", "tf32"]; ' + RUN),
    "fp16-eager": ("P50 of the FP16 module without a graph", "torch.utils.benchmark", "time module.half() on the device"),
    "engine": (
        "P50 of the tensorrt fp16 trial without CUDA graphs",
        "redline build",
        "redline build detector.toml --precision fp16",
    ),
    "cuda-graph": ("P50 of the tensorrt fp16 trial", "redline run", 'precisions = ["fp32", "fp16"]; ' + RUN),
    "int8": ("P50 and mAP drop of an INT8 engine", "redline run", "an engine from a graph with Q/DQ, as an ONNX model"),
    "gpu-prepost": ("P50 from the encoded image to boxes", "redline run", "the candidates in kernels of " + RUN),
    "batching": ("highest rate within the P95 at the batch", "redline run", RUN),
    "more-gpus": ("highest rate within the P95 of all GPUs", "redline run", 'devices = "auto"; ' + RUN),
}


def experiment(key: StepKey, expected: float | None, unit: str = "ms") -> Experiment:
    """`expected`: the figure predicted, in `unit`; None where there is none."""
    metric, tool, command = KNOWN[key]
    success = (
        "a first measurement" if expected is None else f"{expected * (1 - WITHIN):.3g} to {expected * (1 + WITHIN):.3g} {unit}"
    )
    return Experiment(metric=metric, tool=tool, command=command, success=success)
