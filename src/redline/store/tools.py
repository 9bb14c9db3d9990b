"""Versions of the installed libraries that shape a result; read from their metadata, never by importing them."""

from __future__ import annotations

import functools
import platform
from importlib import metadata

from redline.records import Library

SHAPING = (
    "faster-coco-eval",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "opencv-python-headless",
    "pillow",
    "torch",
)


@functools.cache
def tool_versions() -> tuple[Library, ...]:
    """Python and those of `SHAPING` that are installed."""
    found = [Library(name=name, version=installed(name)) for name in SHAPING]
    return (Library(name="python", version=platform.python_version()), *(tool for tool in found if tool.version is not None))


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
