"""Images in, boxes out: the records that the detector's own rooms exchange. Arrays are numpy's; nothing here imports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from redline.records.spec import Head, Postprocess, Preprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]  # (H, W, 3), RGB
    Tensor = NDArray[np.float32]

ShapePolicy = Literal["fixed", "minimal"] | tuple[tuple[int, int], ...]
"""fixed: letterbox to exactly `Preprocess.size`; minimal: pad only to the next multiple of `Preprocess.stride`; a tuple of
buckets (height, width): pad what "minimal" gives to the smallest bucket that holds it, so that few shapes reach the network."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detections:
    """One image's detections, sorted by descending score, in pixels of the decoded (EXIF-upright) image."""

    boxes: NDArray[np.float32]
    """(K, 4) x1, y1, x2, y2."""
    scores: NDArray[np.float32]
    """(K,)"""
    labels: NDArray[np.int64]
    """(K,) class index of the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the resized image lies in the network input; enough to map boxes back."""

    source_hw: tuple[int, int]
    input_hw: tuple[int, int]
    scale_yx: tuple[float, float]
    """Resized size over source size, per axis, exactly as used by the resize."""
    offset_yx: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Ground truth of one image: `boxes` are (x, y, width, height) in pixels as COCO has them."""

    boxes: tuple[tuple[float, float, float, float], ...]
    category_ids: tuple[int, ...]
    areas: tuple[float, ...]
    crowd: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    id: int
    path: str
    height: int
    width: int
    """Size of the decoded, EXIF-upright image, pixels."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    id: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Images in ascending id order and, if labelled, one `Truth` an image."""

    name: str
    images: tuple[ImageRef, ...]
    truths: tuple[Truth, ...] | None
    categories: tuple[Category, ...]
    """Ascending id; empty if unlabelled."""
    digest: str
    """sha256 over image digests, annotations and categories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeShare:
    height: int
    width: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Histogram of source image sizes; shares sum to 1, largest share first."""

    shapes: tuple[ShapeShare, ...]
    origin: str
    """Path of the traffic file, or "evaluation images"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Shape buckets for a traffic and what padding to them costs; see `plan.buckets`.

    Waste is the area of the network inputs over the area of the resized images in them, minus 1, weighted by share of requests.
    """

    buckets: tuple[ShapeShare, ...]
    """Ascending area, with the share of the requests that each takes (0 for a largest one that no request needs)."""
    waste: float
    waste_fixed: float
    """The same under "fixed"."""
    waste_minimal: float
    """The same under "minimal"; it is of the stride alone, and no set of buckets has less."""
    exact: bool
    """No other set costs less; False: the best that a local search found."""

    @property
    def policy(self) -> tuple[tuple[int, int], ...]:
        """As `Candidate.shapes` has it."""
        return tuple((bucket.height, bucket.width) for bucket in self.buckets)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFact:
    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """Dynamic axes by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    name: str
    digest: str
    """sha256 over structure, source files of its classes and weights by name (torch), or over the file (ONNX)."""
    parameters: int
    weight_bytes: int
    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]
    classes: int | None
    """None where the head does not say (detections)."""
    origin: Literal["torch", "onnx"]
    notes: tuple[str, ...] = ()
    """What a reader should know of the weights, such as NaN in them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detector:
    """A loaded detector: `module` is a torch.nn.Module in eval mode on the CPU, or None if the model is an ONNX file."""

    module: Any
    onnx_path: str | None
    facts: ModelFacts
    head: Head
    preprocess: Preprocess
    postprocess: Postprocess


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeCheck:
    """One shape at which ONNX Runtime was compared with torch."""

    shape: tuple[int, int, int, int]
    max_abs: float
    """Largest absolute difference over all outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An exported graph. Inputs and outputs are named; N, H and W are dynamic unless the source file fixed them."""

    path: str
    digest: str
    exporter: Literal["torch.export", "torchscript", "given"]
    opset: int
    input: TensorFact
    outputs: tuple[TensorFact, ...]
    dynamic: bool
    checks: tuple[ShapeCheck, ...]
    fallback_reason: str | None = None
    """Why the first exporter was not used."""
    notes: tuple[str, ...] = ()
    """What was changed in a given file, or what the exporter warned of."""


NmsOperator = Literal["onnx", "efficient", "topk"]
"""How a graph suppresses: ONNX NonMaxSuppression; TensorRT's EfficientNMS plugin, which sees its 4,096 best (box, class) pairs
at most and leaves the order of equal scores open; or not at all, for networks that need none: the highest scores only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphForm:
    """How pre- and post-processing lie in an end-to-end graph."""

    nms: NmsOperator = "onnx"
    fixed: bool = False
    """For engines: outputs of the fixed size `Postprocess.max_detections` with a count, and an image cast before it is read."""


class Runner(Protocol):
    """A compiled network. Thread-safe; arrays in and out are C-contiguous numpy arrays the caller owns."""

    name: str

    def run(self, batch: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) float32 -> raw outputs in the model's order, leading axis N."""
        ...

    def close(self) -> None: ...


class Predict(Protocol):
    """Preprocess + runner + post-process as one callable."""

    def __call__(self, images: Sequence[Image]) -> list[Detections]: ...
