"""Releases to render: small, lawful, and easy to change."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from redline.records import (
    Candidate,
    Head,
    Library,
    Objective,
    PlanOrigin,
    Postprocess,
    Preprocess,
    Serving,
    TensorFact,
)
from redline.records.engine import EngineProfile
from redline.records.serve import EngineFacts, Golden, Release

NETWORK = b"not a network, but these tests only copy it"
IMAGES = {"a.jpg": b"first image", "b.png": b"second image"}
ORIGIN = PlanOrigin(
    graph="a" * 64, library="tensorrt", version="10.5.0", gpu="H100 9.0", rebuild="redline build d.toml --precision fp16"
)
SHARED_PROFILE = EngineProfile(index=0, minimum=(1, 3, 96, 96), optimum=(4, 3, 96, 96), maximum=(8, 3, 96, 96))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def onnx_engine(*, shape: tuple[int | str, ...] = ("N", 3, "H", "W")) -> EngineFacts:
    output = TensorFact(name="output", dtype="float32", shape=(shape[0], "anchors", 7))
    image = TensorFact(name="images", dtype="float32", shape=shape)
    return EngineFacts(format="onnx", digest=sha(NETWORK), input=image, outputs=(output,))


def tensorrt_engine(*profiles: EngineProfile) -> EngineFacts:
    return replace(onnx_engine(), format="tensorrt", profiles=profiles or (SHARED_PROFILE,), precision="fp16", origin=ORIGIN)


def profile(index: int, low: tuple[int, ...], best: tuple[int, ...], high: tuple[int, ...]) -> EngineProfile:
    """From (batch, height, width) triples."""
    shapes = [(batch, 3, height, width) for batch, height, width in (low, best, high)]
    return EngineProfile(index=index, minimum=shapes[0], optimum=shapes[1], maximum=shapes[2])


def candidate(pipeline: str = "fused", **changes: Any) -> Candidate:
    serving = Serving(
        pipeline=pipeline,  # type: ignore[arg-type]
        queue_delay_us=changes.pop("queue_delay_us", 2000),
        workers=changes.pop("workers", 3),
        queue_size=changes.pop("queue_size", 64),
    )
    base = Candidate(runner="onnxruntime", threads=2, batch=4, concurrency=2, shapes="fixed", serving=serving)
    return replace(base, **changes)


def release(pipeline: str = "fused", *, number: int = 3, **changes: Any) -> Release:
    of_candidate = {
        key: changes.pop(key)
        for key in (
            "queue_delay_us",
            "workers",
            "queue_size",
            "batch",
            "concurrency",
            "shapes",
            "device",
            "prepost",
            "cuda_graphs",
        )
        if key in changes
    }
    if "engine" in changes and changes["engine"].format == "tensorrt":
        plan = {"runner": "tensorrt", "precision": "fp16", "device": "cuda:0", "threads": 1, "cuda_graphs": True}
        of_candidate = {**plan, **of_candidate}
    base = Release(
        service="detector",
        number=number,
        created="2026-01-02T03:04:05.000+00:00",
        run="run-7",
        trial="0" * 64,
        candidate=candidate(pipeline, **of_candidate),
        engine=onnx_engine(),
        preprocess=Preprocess(size=(96, 96), stride=32),
        postprocess=Postprocess(max_detections=50),
        head=Head(kind="yolox"),
        labels="index",
        classes=("cat", "dog"),
        objective=Objective(p95_ms=20.0, throughput=30.0),
        accuracy=None,
        golden=tuple(
            Golden(file=name, sha256=sha(data), boxes=((1.0, 2.0, 3.0, 4.0),), scores=(0.5,), labels=(1,))
            for name, data in IMAGES.items()
        ),
        redline="0.1.0",
        tools=(Library(name="tensorrt", version="10.5.0"),),
    )
    return replace(base, **changes)


def given_files(folder: Path) -> dict[str, Any]:
    """What `write_repository` needs beside the release, written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net").write_bytes(NETWORK)
    for name, data in IMAGES.items():
        (folder / name).write_bytes(data)
    return {"network_file": folder / "net", "golden_files": {name: folder / name for name in IMAGES}}


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file and folder below, with content and modification time."""
    if not folder.exists():
        return {"": (b"absent", 0)}
    paths = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else (b"folder", 0)
        for path in paths
    }
