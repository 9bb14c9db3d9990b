"""What a compiled engine was built from, what was asked of it and what it obtained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redline.records.detect import TensorFact
from redline.records.layers import BoundaryCheck, LayerParity
from redline.records.spec import Hardware, Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """One optimization profile of a TensorRT engine: shapes (N, 3, H, W)."""

    index: int
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Every knob of a TensorRT build, explicit: two plans of equal options, graph and machine are interchangeable."""

    precision: Precision
    """What the graph asks for; it decides flags on TensorRT 8.6 alone, and TF32 everywhere."""
    profiles: tuple[EngineProfile, ...]
    optimization_level: int = 3
    """0 (fastest build) to 5 (longest search)."""
    workspace_bytes: int = 4 << 30
    tactic_sources: tuple[str, ...] | None = None
    """Names of TensorRT's TacticSource, such as "EDGE_MASK_CONVOLUTIONS"; None: the library's default."""
    version_compatible: bool = False
    """The plan also runs on newer TensorRT; it may be slower."""
    hardware: Hardware = "this"
    timing_cache: bool = True
    """False: every kernel is timed anew, and no timing is kept."""
    capabilities: tuple[str, ...] = ()
    """Compute capabilities such as "8.9" to build for without a GPU (TensorRT-RTX only); empty: the GPU here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOrigin:
    """What a TensorRT plan was built from, with and on: where it may run."""

    graph: str
    """Digest of the ONNX graph."""
    library: str
    """tensorrt or tensorrt-rtx."""
    version: str
    gpu: str
    """Name and compute capability."""
    hardware: Hardware = "this"
    version_compatible: bool = False
    rebuild: str = "redline build"
    """The command that builds it anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFact:
    """A layer of a built engine, as its inspector tells it."""

    name: str
    kind: str
    precision: str
    """fp32, fp16, bf16, int8, fp8, int32 ... of what it computes with; "unknown" where the inspector does not say."""
    tactic: str
    nodes: tuple[str, ...]
    """ONNX nodes fused into it; empty for layers of TensorRT's own, such as reformats."""
    flop: float
    """Operations of those nodes at the profile's optimum; a multiply-add counts as two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionProof:
    """Does the engine compute with what was asked for? `shares`: fraction of the FLOP by obtained precision, largest first."""

    asked: Precision
    shares: tuple[tuple[str, float], ...]
    layers: tuple[LayerFact, ...]
    fallen: tuple[str, ...]
    """Layers that fell back to a wider type although the graph asked for a narrower one, by descending FLOP."""
    fallen_share: float
    """Their part of the FLOP."""
    allowed_share: float
    proved: bool
    note: str = ""
    """Why nothing could be proved, where the inspector gives no types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBuild:
    """One finished build. Its plan is the object `digest` of the store."""

    digest: str
    plan_bytes: int
    onnx: str
    """Digest of the graph."""
    library: str
    """tensorrt or tensorrt-rtx."""
    version: str
    gpu: str
    """Name and compute capability; "" for an ahead-of-time build."""
    driver: str
    options: BuildOptions
    seconds: float
    timing_cache: Literal["cold", "warm", "none"]
    """warm: an earlier build's timings were reused."""
    device_memory_bytes: int | None
    """Scratch memory of one execution context; None where the plan could not be opened here."""
    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]
    proof: PrecisionProof
    warnings: tuple[str, ...] = ()
    """What TensorRT's log said at level warning, without repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """State of a GPU over a measurement, sampled by NVML."""

    gpu: str
    samples: int
    sm_mhz: tuple[int, int]
    """Lowest and highest clock seen."""
    memory_mhz: tuple[int, int]
    temperature_c: tuple[int, int]
    power_w: tuple[float, float]
    throttle: tuple[str, ...]
    """Reasons seen that slow the clocks (thermal, power brake, hardware, software power cap)."""
    processes: int | None
    """Other processes with memory on this GPU; None where NVML does not tell."""
    throttled: bool
    """A measurement under any reason of `SLOWING` gives no verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """Where the time of one inference goes, medians in milliseconds."""

    fill_ms: float
    """Host: the caller's array into pinned memory."""
    enqueue_ms: float
    """Host: handing the network to the GPU; it overlaps with the GPU's own time."""
    upload_ms: float
    gpu_ms: float
    download_ms: float
    gap_ms: float
    wall_ms: float
    repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    name: str
    ms: float
    nodes: tuple[str, ...]
    """ONNX nodes fused into the layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """An engine that a run built, and where its time went when it was measured alone."""

    build: EngineBuild
    shape: tuple[int, ...] | None = None
    """Input (N, 3, H, W) of `anatomy` and `layers`; None: it never ran."""
    anatomy: Anatomy | None = None
    layers: tuple[LayerTime, ...] = ()
    """Slowest first, by TensorRT's profiler, without a CUDA graph."""
    boundaries: tuple[BoundaryCheck, ...] = ()
    """Every boundary shape of its profiles, run and compared; empty: they were not run, because its parity failed before."""
    layer_parity: LayerParity | None = None
    """None: its parity gave no reason to look inside, or another engine of the same graph was looked into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRTFacts:
    """The TensorRT that was found, asked by name for what it can do."""

    library: str
    """tensorrt or tensorrt-rtx; "" if none loads."""
    version: str
    abilities: tuple[str, ...]
    problem: str | None
    """Why it cannot be used, with what to do; None if it can."""
