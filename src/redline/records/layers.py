"""An engine looked into: the error of every stretch of its graph by itself, and the nodes whose error nothing explains."""

from __future__ import annotations

from dataclasses import dataclass

from redline.records.spec import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPoint:
    """One tensor of the engine against the reference. Errors are root mean squares relative to the reference's values."""

    tensor: str
    node: str
    """ONNX node that makes it."""
    operator: str
    module: str
    """Where the node came from in the source network ("backbone.stem"), "" if the graph does not say."""
    layers: int
    """Nodes with weights in the segment that ends here."""
    nodes: int
    total: float
    """Whole tensor against the reference's own run: all that has gathered from the input to here."""
    local: float
    """Against the reference fed with what the engine had at the segment's beginnings: what this segment alone adds, in the
    channel, row or column that is furthest beyond `explained`."""
    explained: float
    """What the precision explains there."""
    finite: bool
    """False: the engine has NaN or infinity."""

    @property
    def excess(self) -> float:
        """Local error in units of what is explained; above 1 the segment is suspect."""
        return self.local / self.explained if self.explained > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFault:
    """Nodes whose own error the precision does not explain."""

    nodes: tuple[str, ...]
    """One, or a fused group that is wrong as a whole while its parts, looked at, are right."""
    operators: tuple[str, ...]
    module: str
    tensor: str
    """What they make."""
    local: float
    explained: float
    finite: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParity:
    """An engine against the FP32 reference, tensor by tensor. See docs/layers.md."""

    engine: str
    """Name of the runner."""
    precision: Precision
    shape: tuple[int, ...]
    """Of the input that was compared, (N, 3, H, W)."""
    points: tuple[LayerPoint, ...]
    """Of the first look, in graph order; the graph's outputs included."""
    faults: tuple[LayerFault, ...]
    """In graph order: the first is where the error begins."""
    unconfirmed: tuple[str, ...]
    """Tensors whose segment was suspect and in which no node was found at fault."""
    looks: int
    """Engines that were built to find this out."""
    most_cuts: int
    """Tensors at most that a look adds to the graph's outputs, apart from those where a suspect segment begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryCheck:
    """An engine at one shape on or next to a limit of its profiles."""

    shape: tuple[int, ...]
    profile: int
    """Index of the profile that takes it, or whose limit it lies beyond."""
    taken: bool
    """Some profile takes it; False: the engine has to refuse it."""
    max_rel: float
    """As `TensorDelta` has it, of the output that is furthest off."""
    tolerance: float
    finite: bool
    """False: NaN or infinity in an output."""
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldNode:
    """A node that stays in FP32 in a graph that is FP16 otherwise."""

    node: str
    module: str
    why: str
