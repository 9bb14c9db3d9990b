"""What INT8 rests on: which images, which ranges, where values are rounded. A table travels to another machine as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redline.records.detect import ImageRef, OnnxModel

Calibrator = Literal["max", "percentile", "entropy", "mse"]
CALIBRATORS: tuple[Calibrator, ...] = ("max", "percentile", "entropy", "mse")
Number = Literal["int8", "fp8"]
"""What values are rounded to: INT8, or FP8 (E4M3: four bits of exponent, three of mantissa, no infinity)."""


Selector = Literal["cover", "first", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraitCoverage:
    """How well a choice of images shows one trait of all of them."""

    trait: str
    """shape, brightness, contrast, objects or class."""
    covered: int
    """Strata with at least one image in the choice."""
    strata: int
    """Strata that the whole set has."""
    distance: float
    """Half the sum of the differences of the strata's shares, of the choice and of the whole set: 0 equal, 1 nothing shared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    selector: Selector
    traits: tuple[TraitCoverage, ...]

    @property
    def share(self) -> float:
        """Of all strata of all traits, those covered."""
        return sum(trait.covered for trait in self.traits) / max(1, sum(trait.strata for trait in self.traits))


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationChoice:
    """Images to calibrate on, what they show of the set they come from, and what other choices of as many would have shown."""

    images: tuple[ImageRef, ...]
    seed: int
    coverage: Coverage
    others: tuple[Coverage, ...]
    """Of the selectors that were not used; random: the mean of several draws, counts rounded down."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSet:
    """The images that ranges were measured on, and all that decided which they are and what the network saw of them."""

    images: tuple[str, ...]
    """sha256 of each file, in the order used."""
    preprocess: str
    """Digest of the preprocessing record."""
    selector: str
    """How they were chosen: "cover", "first", "random" or "all"."""
    seed: int
    input_shapes: tuple[tuple[int, int], ...]
    """Height and width of the network inputs, without repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRange:
    """Largest magnitudes of one tensor: of all values seen, and by each calibrator."""

    tensor: str
    by: tuple[tuple[Calibrator, float], ...]

    def amax(self, method: Calibrator) -> float:
        return dict(self.by)[method]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Ranges of a network's tensors on a calibration set."""

    network: str
    """Digest of the ONNX graph."""
    calibration: CalibrationSet
    tensors: tuple[TensorRange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantPoint:
    """An edge of the graph that is rounded: input number `input` of `node`, which carries `tensor`."""

    node: str
    input: int
    tensor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement8:
    """Where a graph is rounded, and which edges must share one scale for compilers to fuse them."""

    points: tuple[QuantPoint, ...]
    weights: tuple[str, ...]
    """Nodes whose weight (input 1) is rounded, one scale for each output channel."""
    shared: tuple[tuple[str, ...], ...]
    """Groups of tensors of one scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFactors:
    """Channels of one layer given other units before anything is rounded; exact in floating point. Factors are positive."""

    node: str
    made: tuple[float, ...] = ()
    """What each channel that the layer makes is divided by, in its weights and bias; the layer that reads it multiplies."""
    read: tuple[float, ...] = ()
    """What the layer's weights for each channel that it reads are multiplied by."""
    divide: bool = False
    """The channels read are divided by `read` in the graph, before they are rounded; else the layer before made them so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBias:
    """What is added to the bias of a rounded layer, for each channel that it makes, in the units of `ChannelFactors`."""

    node: str
    added: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantTable:
    """Scales and places: all that a machine needs, beside the FP32 graph, to write the graph in INT8 or FP8."""

    structure: str
    """Digest of the graph's operators and wiring without names: equal on machines whose exporters name tensors differently."""
    method: str
    """Calibrator of the scales."""
    calibration: CalibrationSet
    scales: tuple[tuple[str, float], ...]
    """tensor -> scale: a value is scale * n, n an integer in -127 .. 127 or an E4M3 in -448 .. 448. The zero point is 0."""
    points: tuple[QuantPoint, ...]
    weights: tuple[str, ...]
    order: tuple[str, ...] = ()
    """Names of the nodes in graph order, by which a graph of equal structure and other names is matched."""
    number: Number = "int8"
    factors: tuple[ChannelFactors, ...] = ()
    """Applied before anything is rounded; scales and points are of the graph that results."""
    biases: tuple[LayerBias, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that are quantised, or kept, together."""

    name: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratorLoss:
    method: Calibrator
    divergence: float
    """Of the whole network's detections in INT8 from those in FP32, on the calibration images."""


Fix = Literal["equalised layers", "scaled inputs", "bias correction", "clipping search"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FixOutcome:
    """What one remedy against the loss of rounding did on the calibration images, on top of those kept before it."""

    fix: Fix
    before: float
    """Divergence without it, with all that was kept before it."""
    after: float | None
    """Divergence with it; None: there was nothing to try."""
    kept: bool
    taken: int
    """Pairs of layers, inputs, layers or tensors that it changed."""
    passed: tuple[tuple[str, int], ...] = ()
    """Why the others were passed over, and how many."""
    evaluations: int = 0
    """Graphs weighed."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Equalisation:
    """Factors found for a network and what they rest on."""

    factors: tuple[ChannelFactors, ...]
    taken: int
    """Pairs of layers, or inputs of depthwise layers."""
    passed: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What one group does to the detections: alone in INT8, or, in ONNX Runtime's form, by being in INT8 with all others."""

    group: LayerGroup
    divergence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedPoint:
    """A choice of groups kept in FP16: what it is predicted to lose and take, and what was measured of it."""

    kept: tuple[str, ...]
    """Names of the groups in FP16."""
    predicted_loss: float
    """Sum of the divergences of the groups in INT8."""
    predicted_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Graph:
    """An INT8 graph of a run, which candidates with these `wide` layers are made from."""

    wide: tuple[str, ...]
    onnx: OnnxModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Record:
    """What the INT8 of a run rests on: images and how they were chosen, calibrators and layers by what they lose."""

    choice: CalibrationChoice
    calibration: CalibrationSet
    losses: tuple[CalibratorLoss, ...]
    """Least first: the first one's ranges are used, unless a remedy that was kept has chosen anew."""
    fixes: tuple[FixOutcome, ...] = ()
    """Remedies that were tried, in their order, before layers were weighed; those kept are in every graph."""
    sensitivities: tuple[Sensitivity, ...] = ()
    """Empty where the budget was too small to weigh groups of layers."""
    frontier: tuple[MixedPoint, ...] = ()
    """Which groups stay in FP16, ascending loss, by the time that the plan expects of them on this GPU; empty: no plan."""
    graphs: tuple[Int8Graph, ...] = ()
