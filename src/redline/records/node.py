"""What each resource of a node allows, apart from the network itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DecodePlace = Literal["host", "gpu", "none"]
Resource = Literal["network", "h2d", "d2h", "pcie-switch", "nvlink", "jpeg-gpu", "jpeg-host", "nic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One server and what one image moves through it. None is unknown, and what depends on it is then unknown too."""

    gpus: int
    request_bytes: float
    """What a request brings over the network: the JPEG as it is sent."""
    input_bytes: float
    """The tensor of one image that the network reads."""
    output_bytes: float
    """The network's outputs of one image, which come back from the GPU."""
    decode: DecodePlace = "host"
    """Where a JPEG becomes pixels: on the host the tensor crosses PCIe, on the GPU the JPEG does; "none": tensors are sent."""
    network_per_s: float | None = None
    """Images a second of the network on one GPU."""
    host_cores: int | None = None
    """Cores that decode."""
    decode_ms: float | None = None
    """One image on one core."""
    jpeg_per_s: float | None = None
    """Images a second that one GPU decodes, by its JPEG engines or its cores."""
    nic_gbit_s: float | None = None
    """One direction."""
    gpus_per_switch: int | None = None
    """GPUs behind one PCIe switch; 1: each has the root's link for itself."""
    switch_gb_s: float | None = None
    """One direction of a switch's link to the root; None: as fast as one GPU's link."""
    answer_bytes: float | None = None
    """What is sent back over the network card; None: the outputs themselves."""
    nvlink_bytes: float = 0.0
    """Bytes of one image that go from one GPU to another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLimit:
    """The most that one resource allows of the whole node."""

    resource: Resource
    title: str
    per_s: float | None
    """Images a second; None: unknown."""
    formula: str
    """With its numbers; where it is unknown, what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLimits:
    """All resources: the known ones with the lowest first, and the unknown ones, any of which may be lower still."""

    device: str
    node: Node
    known: tuple[NodeLimit, ...]
    unknown: tuple[NodeLimit, ...]

    @property
    def first(self) -> NodeLimit | None:
        """The known limit that bites first."""
        return self.known[0] if self.known else None
