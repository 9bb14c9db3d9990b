"""The tables of the file as pydantic models. Names are those of the records, where the defaults live too: what a file
does not say is not set here."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from redline.records import spec as records

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
LARGEST_SIDE = 16_384
DEVICES = re.compile(r"cuda:(0|[1-9]\d?)(,(0|[1-9]\d?))*")
SERVICE = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,39}")
"""It becomes a folder, part of URLs and of Triton's model names, where `_` joins it with the release's number."""


def _repeat(count: int) -> BeforeValidator:
    """One number stands for `count` equal ones."""
    return BeforeValidator(lambda value: [value] * count if _is_number(value) else value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reference(value: str) -> str:
    if not REFERENCE.fullmatch(value):
        raise ValueError('"package.module:callable"')
    return value


def _argument(value: object) -> object:
    if not isinstance(value, str | int | float | bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("a text, a finite number, true or false")
    return value


def _unique(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise ValueError("each of them once")
    return values


def _identifier(value: str) -> str:
    if not value.isidentifier():
        raise ValueError("the name of a keyword argument")
    return value


def _devices(value: str) -> str:
    if value in ("auto", "cpu"):
        return value
    indices = value.removeprefix("cuda:").split(",") if DEVICES.fullmatch(value) else []
    if not indices or len(set(indices)) != len(indices):
        raise ValueError('"auto", "cpu", "cuda:0" or several GPUs as in "cuda:0,1"')
    return value


def _service(value: str) -> str:
    if not SERVICE.fullmatch(value):
        raise ValueError("a letter, then letters, digits and - up to 40 characters")
    return value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Level = Annotated[float, Field(ge=0, le=255)]
Count = Annotated[int, Field(ge=1)]
Pair = Annotated[list[Side], Field(min_length=2, max_length=2), _repeat(2)]
Text = Annotated[str, Field(min_length=1)]
Reference = Annotated[str, AfterValidator(_reference)]
Argument = Annotated[Any, AfterValidator(_argument)]
Identifier = Annotated[str, AfterValidator(_identifier)]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PreprocessTable(Table):
    resize: records.Resize | None = None
    size: Pair | None = None
    anchor: records.Anchor | None = None
    interpolation: records.Interpolation | None = None
    antialias: bool | None = None
    round_to_uint8: bool | None = None
    stride: Side | None = None
    fill: Annotated[list[Level], Field(min_length=3, max_length=3), _repeat(3)] | None = None
    channels: records.Channels | None = None
    scale: Positive | None = None
    mean: Annotated[list[Finite], Field(min_length=3, max_length=3), _repeat(3)] | None = None
    std: Annotated[list[Positive], Field(min_length=3, max_length=3), _repeat(3)] | None = None


class PostprocessTable(Table):
    score: Annotated[float, Field(ge=0, lt=1)] | None = None
    iou: Annotated[float, Field(gt=0, le=1)] | None = None
    max_detections: Count | None = None
    class_aware: bool | None = None
    candidates_per_level: Count | None = None


class HeadTable(Table):
    kind: records.HeadKind
    strides: Annotated[list[Side], Field(min_length=1), AfterValidator(_unique)] | None = None
    activation: records.Activation | None = None
    anchor_sizes: Annotated[list[Annotated[list[Positive], Field(min_length=1)]], Field(min_length=1)] | None = None
    aspect_ratios: Annotated[list[Positive], Field(min_length=1)] | None = None
    box_format: records.BoxFormat | None = None
    normalized: bool | None = None
    function: Reference | None = None


class ModelTable(Table):
    factory: Reference | None = None
    arguments: dict[Identifier, Argument] | None = None
    onnx: Text | None = None
    weights: Text | None = None
    head: HeadTable
    labels: records.LabelMap | None = None
    preprocess: PreprocessTable | None = None
    postprocess: PostprocessTable | None = None


class RefTable(Table):
    images: Text
    annotations: Text | None = None


class DataTable(Table):
    evaluate: RefTable
    calibrate: RefTable | None = None
    confirm: RefTable | None = None
    traffic: Text | None = None
    overlap: records.Overlap | None = None


class ObjectiveTable(Table):
    p95_ms: Positive
    throughput: Positive
    map_drop_pct: Annotated[float, Field(gt=0, lt=100)] | None = None
    map_evidence: records.MapEvidence | None = None


class TensorRTTable(Table):
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    workspace_gib: Annotated[float, Field(gt=0, le=1_024, allow_inf_nan=False)] | None = None
    tactic_sources: Annotated[list[records.TacticSource], Field(min_length=1), AfterValidator(_unique)] | None = None
    version_compatible: bool | None = None
    hardware: records.Hardware | None = None
    timing_cache: bool | None = None


class TargetTable(Table):
    devices: Annotated[str, AfterValidator(_devices)] | None = None
    precisions: Annotated[list[records.Precision], Field(min_length=1), AfterValidator(_unique)] | None = None
    server: records.Server | None = None
    tensorrt: TensorRTTable | None = None


class BudgetTable(Table):
    minutes: Positive | None = None


class ServeTable(Table):
    name: Annotated[str, AfterValidator(_service)] | None = None
    port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    canary_pct: Annotated[float, Field(ge=0, le=50)] | None = None
    canary_requests: Annotated[int, Field(ge=1)] | None = None
    hold_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] | None = None
    error_pct: Annotated[float, Field(ge=0, lt=100)] | None = None
    disagreement_pct: Annotated[float, Field(ge=0, le=100)] | None = None
    body_mb: Annotated[float, Field(gt=0, le=1_024)] | None = None


class SpecFile(Table):
    model: ModelTable
    data: DataTable
    objective: ObjectiveTable
    target: TargetTable | None = None
    budget: BudgetTable | None = None
    serve: ServeTable | None = None


TABLES: dict[str, type[Table]] = {
    "": SpecFile,
    "model": ModelTable,
    "model.head": HeadTable,
    "model.preprocess": PreprocessTable,
    "model.postprocess": PostprocessTable,
    "data": DataTable,
    "data.evaluate": RefTable,
    "data.calibrate": RefTable,
    "data.confirm": RefTable,
    "objective": ObjectiveTable,
    "target": TargetTable,
    "target.tensorrt": TensorRTTable,
    "budget": BudgetTable,
    "serve": ServeTable,
}
"""Every table of the file by its dotted name."""
