"""What the user asked for, checked. `spec` builds these from TOML; every room may read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

HeadKind = Literal["yolox", "retinanet", "detections", "custom"]
Resize = Literal["letterbox", "shortest-side", "stretch", "none"]
Anchor = Literal["top-left", "center"]
Interpolation = Literal["bilinear", "nearest"]
Channels = Literal["rgb", "bgr"]
Activation = Literal["none", "sigmoid"]
BoxFormat = Literal["xyxy", "cxcywh"]
LabelMap = Literal["index", "category-id"]
MapEvidence = Literal["interval", "point"]
Overlap = Literal["refuse", "allow"]
Precision = Literal["fp32", "tf32", "fp16", "int8", "fp8"]
"""tf32: float32 tensors whose products lose 13 bits of their operands; never implied by fp32."""
Server = Literal["embedded", "container", "none"]
Hardware = Literal["this", "ampere-plus", "same-capability"]
"""GPUs a plan may run on: the one it was built on, Ampere and newer, or any of the same compute capability."""
TacticSource = Literal["CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
"""Libraries that TensorRT may take kernels from, by its names; 11 has the last two alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How a decoded RGB uint8 image of shape (H, W, 3) becomes a float32 network input of shape (3, H', W').

    Order: resize, channel order, ``(pixel * scale - mean) / std``, pad. `mean`, `std` and `fill` follow `channels`.
    `fill` is in pixel units (0..255) and goes through the same normalisation.
    """

    resize: Resize = "letterbox"
    size: tuple[int, int] = (640, 640)
    """letterbox, stretch: (height, width); shortest-side: (shortest side, cap of the longest side); none: unused."""
    anchor: Anchor = "top-left"
    interpolation: Interpolation = "bilinear"
    """Half-pixel centres, as OpenCV and torch with align_corners=False."""
    antialias: bool = False
    round_to_uint8: bool = True
    """Resize in uint8 (OpenCV's fixed point, result rounded to whole pixel levels) or in float32 without rounding."""
    stride: int = 32
    fill: tuple[float, float, float] = (114.0, 114.0, 114.0)
    channels: Channels = "rgb"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Postprocess:
    """How decoded boxes become detections. What is measured is what is deployed.

    A candidate is kept if its score is greater than `score`. NMS is greedy by descending score, ties by ascending
    (anchor index, class index); a box is dropped if IoU with a kept box (of its class if `class_aware`) is greater than `iou`.
    """

    score: float = 0.001
    iou: float = 0.65
    max_detections: int = 300
    class_aware: bool = True
    candidates_per_level: int | None = None
    """Keep at most this many highest-scored (anchor, class) pairs of each pyramid level before NMS (torchvision: 1000)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How raw network outputs become boxes and scores.

    yolox: one output (N, A, 5 + C): cx, cy, w, h per stride level, objectness, class scores; centre = (xy + grid) * stride,
    size = exp(wh) * stride, score = objectness * class.
    retinanet: class logits (N, A, C) and box deltas (N, A, 4) over `anchor_sizes` x `aspect_ratios` anchors of each level.
    detections: boxes (N, K, 4), scores (N, K), labels (N, K), already final (DETR style): no NMS.
    custom: `function` = "module:callable" taking the list of raw outputs (numpy, leading N) and the input (height, width),
    returning boxes (N, A, 4) xyxy in network-input pixels and scores (N, A, C).
    """

    kind: HeadKind
    strides: tuple[int, ...] = (8, 16, 32)
    activation: Activation = "none"
    """What is still to be applied to the network's scores (yolox: objectness and classes; retinanet: class logits)."""
    anchor_sizes: tuple[tuple[float, ...], ...] = ()
    aspect_ratios: tuple[float, ...] = ()
    box_format: BoxFormat = "xyxy"
    normalized: bool = False
    """Boxes of `detections` are fractions of the network input instead of pixels."""
    function: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Where the detector comes from: exactly one of `factory` ("package.module:callable") and `onnx` (absolute path)."""

    factory: str | None = None
    arguments: tuple[tuple[str, str | int | float | bool], ...] = ()
    """Keyword arguments of the factory, sorted by name."""
    onnx: str | None = None
    weights: str | None = None
    head: Head
    labels: LabelMap = "index"
    """index: class i is the i-th category by ascending id; category-id: class i is the category of id i."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    postprocess: Postprocess = field(default_factory=Postprocess)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRef:
    """A folder of images and, if labelled, a COCO json (absolute paths)."""

    images: str
    annotations: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    evaluate: DataRef
    calibrate: DataRef | None = None
    confirm: DataRef | None = None
    """Images that nothing is chosen on: the drop of what was chosen is measured on them again, with a narrower interval."""
    traffic: str | None = None
    """CSV with the header height,width,share."""
    overlap: Overlap = "refuse"
    """Of calibration images with those that accuracy is measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    p95_ms: float
    throughput: float
    """Inferences per second per node."""
    map_drop_pct: float = 0.5
    """Largest allowed drop, in percent of the FP32 value (relative)."""
    map_evidence: MapEvidence = "interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRTSpec:
    """How every TensorRT engine is built."""

    optimization_level: int = 3
    """0 (fastest build) to 5 (longest search)."""
    workspace_gib: float = 4.0
    """GPU memory that a kernel may use as scratch while the engine is built and run, GiB."""
    tactic_sources: tuple[TacticSource, ...] | None = None
    """None: all that this version has but those that newer ones dropped."""
    version_compatible: bool = False
    """The plan also runs on newer TensorRT; it may be slower."""
    hardware: Hardware = "this"
    timing_cache: bool = True
    """Reuse what earlier builds on this GPU timed, and keep what this one times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    devices: str = "auto"
    """auto: all GPUs of the first kind, or the CPU where there is none; cpu; cuda:0; several behind one queue: cuda:0,1."""
    precisions: tuple[Precision, ...] = ("fp32",)
    server: Server = "embedded"
    """embedded: a Triton on this machine; container: what is rendered is for NVIDIA's Triton image; none: nothing is served."""
    tensorrt: TensorRTSpec = field(default_factory=TensorRTSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    minutes: float = 10.0
    """Time for screening and load measurements; export, parity and baseline are always finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSpec:
    """The service that releases go to, and what a release on probation may do before it is rolled back."""

    name: str = "detector"
    port: int = 0
    """Of the gateway, loopback only; 0: a free one, kept over restarts."""
    canary_pct: float = 10.0
    """Share of the requests that a verified release answers before it is promoted."""
    canary_requests: int = 100
    """Requests shadowed to the canary before promotion; sent from the evaluation images where there is too little traffic."""
    hold_s: float = 60.0
    """Probation after promotion, seconds; the release before stays loaded meanwhile and after it."""
    error_pct: float = 0.1
    """Largest share of requests that may fail."""
    disagreement_pct: float = 5.0
    """Largest share of boxes that may differ between the active release and a canary, or the release before."""
    body_mb: float = 32.0
    """Largest request body, MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    path: str
    """The spec file (absolute)."""
    model: ModelSpec
    data: DataSpec
    objective: Objective
    target: TargetSpec = field(default_factory=TargetSpec)
    budget: Budget = field(default_factory=Budget)
    serve: ServeSpec = field(default_factory=ServeSpec)
