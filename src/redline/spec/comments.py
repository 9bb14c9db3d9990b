"""The words of the file that `redline init` writes."""

from __future__ import annotations

HEADER = """\
# What redline is to deploy, on which data it is checked, and what it must reach. Run it with: redline run <this file>
# Paths are relative to this file. A key that is left out has the default given in docs/spec.md.
"""

INTRODUCTIONS = {
    "model": ("Exactly one of factory (PyTorch) and onnx (an exported file).",),
    "model.arguments": ("Keyword arguments of the factory.",),
    "model.preprocess": (
        "From a decoded RGB image to the network input: resize, channel order, (pixel * scale - mean) / std, pad.",
    ),
    "model.postprocess": ("What is measured is what is deployed.",),
    "data": (
        "Images and, if there are labels, a COCO json. Without labels, agreement with the FP32 model is measured instead.",
    ),
    "objective": ("Yours to set.",),
    "target.tensorrt": ("How engines for a GPU are built.",),
}

COMMENTS = {
    "model.factory": '"package.module:callable" that returns a torch.nn.Module',
    "model.onnx": "inputs (N, 3, H, W) float32",
    "model.weights": "state dict: .safetensors, .pt or .pth",
    "model.head": 'how outputs become boxes: "yolox", "retinanet", "detections" or "package.module:callable"',
    "model.labels": '"index": class i is the i-th category by id; "category-id": class i is the category of id i',
    "model.head.kind": '"yolox", "retinanet", "detections" or "custom"',
    "model.head.strides": "pixels per cell of each pyramid level",
    "model.head.activation": 'still to be applied to the scores: "none" or "sigmoid"',
    "model.head.box_format": '"xyxy" or "cxcywh"',
    "model.head.normalized": "boxes are fractions of the network input",
    "model.head.function": '"package.module:callable"',
    "model.preprocess.resize": '"letterbox", "shortest-side", "stretch" or "none"',
    "model.preprocess.size": "[height, width]; for shortest-side [shortest side, longest side allowed]",
    "model.preprocess.anchor": 'where a letterbox puts the image: "top-left" or "center"',
    "model.preprocess.interpolation": '"bilinear" or "nearest"',
    "model.preprocess.antialias": "smooth before shrinking",
    "model.preprocess.round_to_uint8": "resize in whole pixel levels (OpenCV on uint8) or in float32 (torch)",
    "model.preprocess.stride": "input sides are padded to a multiple of this",
    "model.preprocess.fill": "padding, in pixel levels 0..255",
    "model.preprocess.channels": '"rgb" or "bgr"',
    "model.preprocess.scale": "1 for 0..255, 1/255 for 0..1",
    "model.preprocess.mean": "per channel, after scale",
    "model.preprocess.std": "per channel, after scale",
    "model.postprocess.score": "keep scores above this",
    "model.postprocess.iou": "suppress boxes that overlap a better one by more than this",
    "model.postprocess.max_detections": "per image",
    "model.postprocess.class_aware": "suppress within a class only",
    "model.postprocess.candidates_per_level": "best of each pyramid level before suppression",
    "data.evaluate": "checked on these",
    "data.calibrate": "for calibrating lower precisions; never evaluated",
    "data.confirm": "many more, which nothing is chosen on: what was chosen is checked on them again",
    "data.overlap": '"allow": calibration images may be evaluated on, and the run warns',
    "data.traffic": "image sizes to expect, header height,width,share",
    "objective.p95_ms": "95 % of requests faster than this, milliseconds",
    "objective.throughput": "inferences per second that this machine must serve",
    "objective.map_drop_pct": "largest loss of mAP, percent of the FP32 value",
    "objective.map_evidence": '"interval": the 95 % interval must be within it; "point": the estimate is enough',
    "target.devices": '"auto" (all GPUs of one kind, or the CPU), "cpu", "cuda:0" or "cuda:0,1"',
    "target.precisions": 'any of "fp32", "tf32", "fp16", "int8", "fp8"',
    "target.server": '"embedded": Triton on this machine, "container": files for NVIDIA\'s image, "none"',
    "target.tensorrt.optimization_level": "0 (fastest build) to 5 (longest search for kernels)",
    "target.tensorrt.workspace_gib": "scratch memory that a kernel may use, GiB",
    "target.tensorrt.tactic_sources": "libraries to take kernels from",
    "target.tensorrt.version_compatible": "runs on newer TensorRT too; it may be slower",
    "target.tensorrt.hardware": '"this" GPU, "ampere-plus" or "same-capability"',
    "target.tensorrt.timing_cache": "reuse and keep what builds on this GPU timed",
    "budget.minutes": "for screening and load measurements",
    "serve.name": "of the service; its models and URLs carry it",
    "serve.port": "of the gateway, loopback only; 0: a free one",
    "serve.canary_pct": "percent of the requests that a verified release answers before it is promoted",
    "serve.canary_requests": "requests answered by both releases and compared before promotion",
    "serve.hold_s": "seconds on probation after promotion, in which a breach rolls back",
    "serve.error_pct": "percent of requests that may fail",
    "serve.disagreement_pct": "percent of boxes that may differ from the release before",
    "serve.body_mb": "largest request, MB",
}

OPTIONAL = {
    "model.weights": 'weights = "detector.safetensors"       # state dict: .safetensors, .pt or .pth',
    "model.postprocess.candidates_per_level": "candidates_per_level = 1000  # best of each pyramid level before suppression",
    "data.calibrate": 'calibrate = { images = "calib/images" }  # for calibrating lower precisions; never evaluated',
    "data.confirm": 'confirm = { images = "more/images" }      # many more: what was chosen is checked on them again',
    "data.traffic": 'traffic = "traffic.csv"                # image sizes to expect, header height,width,share',
}
"""Shown as a comment where a key is not set."""
