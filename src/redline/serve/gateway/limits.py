"""What a request may be: sizes and times for all of them, names, types and dimensions for each release's models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from redline.records import Release
from redline.records.serve import Role
from redline.serve.names import DETECTIONS, IMAGE, IMAGES, PLACEMENT, PLACEMENT_NUMBERS
from redline.serve.shapes import image_dims

ITEM_BYTES: Mapping[str, int] = {"FP32": 4, "FP64": 8, "INT32": 4, "BYTES": 4}
"""KServe datatypes that served models use. BYTES: the length before each element, so the least that one takes."""
DTYPES: Mapping[str, str] = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that hold whatever is served."""

    body_bytes: int = 32_000_000
    json_bytes: int = 1_048_576
    """Of the JSON part; tensors beside it are binary and count as body."""
    json_depth: int = 16
    """Triton 2.51 dies of 200,000; a request of its protocol has 4 levels and a tensor's own dimensions."""
    id_characters: int = 128
    line_bytes: int = 8190
    """Of the request line, and of one header."""
    headers: int = 64
    upload_s: float = 20.0
    """From the headers to the last byte of the body."""
    idle_s: float = 75.0
    """Of a connection between requests, or before its first one is complete."""
    answer_s: float = 10.0
    """Wait for Triton, queue included."""
    connect_s: float = 2.0
    probe_s: float = 1.0
    """Wait for Triton's word on a model's readiness."""
    in_flight: int = 512
    buffered_bytes: int = 512_000_000
    """Of all bodies held at once."""
    shadows: int = 4
    """Shadow requests in flight; more are skipped and counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLimit:
    """An input as the model's configuration has it: `dims` without the batch axis, -1 where any size will do."""

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    inputs: tuple[TensorLimit, ...]
    outputs: tuple[str, ...] = DETECTIONS
    max_batch: int
    by_name: Mapping[str, TensorLimit] = field(init=False, repr=False, compare=False)
    """The inputs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {tensor.name: tensor for tensor in self.inputs})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseLimits:
    """What the gateway must know of a release to judge a request to it."""

    release: int
    classes: tuple[str, ...]
    """Name of each label; "" or beyond the end: no name."""
    entry: ModelLimits
    tensor: ModelLimits
    at_once: int = 512
    """Requests that may be with Triton, shadows included: what is being computed and what waits."""

    def model(self, role: Role) -> ModelLimits:
        return self.entry if role == "entry" else self.tensor


def limits_of(release: Release) -> ReleaseLimits:
    """The limits that a release's rendered configuration has, and that of its queue, which it has not (`blocks.batching`)."""
    serving = release.candidate.serving
    assert serving is not None
    return ReleaseLimits(
        release=release.number,
        classes=release.classes,
        entry=entry_limits(release.candidate.batch),
        tensor=tensor_limits(release.candidate.batch, image_dims(release)),
        at_once=release.candidate.concurrency * release.candidate.batch + serving.queue_size,
    )


def entry_limits(max_batch: int) -> ModelLimits:
    return ModelLimits(inputs=(TensorLimit(name=IMAGE, datatype="BYTES", dims=(1,)),), max_batch=max_batch)


def tensor_limits(max_batch: int, images: tuple[int, ...]) -> ModelLimits:
    """`images`: (3, height, width), -1 where dynamic."""
    inputs = (
        TensorLimit(name=IMAGES, datatype="FP32", dims=images),
        TensorLimit(name=PLACEMENT, datatype="FP64", dims=(PLACEMENT_NUMBERS,)),
    )
    return ModelLimits(inputs=inputs, max_batch=max_batch)
