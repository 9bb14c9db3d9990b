"""What a release says of itself, read in the server's Python, which has neither pydantic nor redline's store."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from redline.records import EngineProfile, Head, PlanOrigin, Postprocess, Preprocess, ShapePolicy

T = TypeVar("T")
RELEASE = "release.json"
NETWORKS = {"onnx": "network.onnx", "tensorrt": "network.plan"}
"""File of the network by the engine's format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The part of a `records.Release` that its Python models act on."""

    service: str
    number: int
    threads: int
    batch: int
    concurrency: int
    pipeline: str
    shapes: ShapePolicy
    outputs: tuple[str, ...]
    """Names of the network's outputs, in the model's order."""
    input: str
    preprocess: Preprocess
    postprocess: Postprocess
    head: Head
    network: Path
    profiles: tuple[EngineProfile, ...]
    origin: PlanOrigin | None
    """Of a TensorRT plan; None for ONNX."""
    cuda_graphs: bool


def read_material(folder: Path) -> Material:
    """From `folder`/release.json. Raises OSError, KeyError or ValueError for what no release writes."""
    release = json.loads((folder / RELEASE).read_text(encoding="utf-8"))
    candidate, engine = release["candidate"], release["engine"]
    shapes = candidate["shapes"]
    return Material(
        service=release["service"],
        number=release["number"],
        threads=candidate["threads"],
        batch=candidate["batch"],
        concurrency=candidate["concurrency"],
        pipeline=candidate["serving"]["pipeline"],
        shapes=_tupled(shapes),
        outputs=tuple(output["name"] for output in engine["outputs"]),
        input=engine["input"]["name"],
        preprocess=_record(Preprocess, release["preprocess"]),
        postprocess=_record(Postprocess, release["postprocess"]),
        head=_record(Head, release["head"]),
        network=folder / NETWORKS[engine["format"]],
        profiles=tuple(_record(EngineProfile, profile) for profile in engine["profiles"]),
        origin=None if engine["origin"] is None else _record(PlanOrigin, engine["origin"]),
        cuda_graphs=candidate["cuda_graphs"],
    )


def _record(type: type[T], values: dict[str, Any]) -> T:
    names = {field.name for field in fields(type)}  # type: ignore[arg-type]
    return type(**{name: _tupled(value) for name, value in values.items() if name in names})


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value
