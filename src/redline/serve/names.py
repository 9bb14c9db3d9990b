"""Names of Triton models: one place, so that renderer, gateway and clients agree."""

from __future__ import annotations

from redline.records.serve import Role

IMAGE = "image"
IMAGES = "images"
PLACEMENT = "placement"
DETECTIONS = ("boxes", "scores", "labels", "count", "error")
"""Outputs of every model that answers with detections, in this order."""
PLACEMENT_NUMBERS = 8
"""source height and width, input height and width, scale y and x, offset y and x."""


def model_name(service: str, release: int, role: Role) -> str:
    """The Triton model of one step of a release; its only version is the release's number."""
    base = f"{service}_r{release}"
    return base if role == "entry" else f"{base}_{role}"


def stable_name(service: str, role: Role) -> str:
    """The name that clients use; always the active release. Only entry and tensor have one."""
    return service if role == "entry" else f"{service}_{role}"
