"""The plan: what each step is expected to give, whether the objective can be met and on what, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redline.records.node import NodeLimits
from redline.records.simulation import FleetAnswer
from redline.records.spec import Objective

StepKey = Literal[
    "fp32-eager", "tf32-eager", "fp16-eager", "engine", "cuda-graph", "int8", "gpu-prepost", "batching", "more-gpus"
]
Confidence = Literal["calibrated", "roof share", "assumed", "none"]
"""calibrated: kernels of these kinds were measured; roof share: a share of the roof taken from others; assumed: rests on a
number nobody measured here; none: no figure."""
Answer = Literal["go", "no-go", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What would confirm a step."""

    metric: str
    tool: str
    command: str
    success: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderStep:
    """One step from FP32 eager upwards; figures are of an image from its bytes to its boxes, times None where unknown."""

    key: StepKey
    title: str
    why: str
    p50_ms: float | None
    p95_ms: float | None
    images_per_s: float | None
    """Of all GPUs of the step."""
    batch: int
    gpus: int
    network_ms: float | None
    """Of `p50_ms`: one inference of the network."""
    roof_ms: float | None
    """The network at the roof."""
    gain: float | None
    """P50 of the step before over this one's; of the rates for batching and more GPUs."""
    map_risk: str
    confidence: Confidence
    evidence: str
    experiment: Experiment


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAnswer:
    """What one kind of device needs for the objective."""

    device: str
    title: str
    gpus: int | None
    """None: no number of them meets the P95, or it is not known."""
    arithmetic: str
    batch: int
    delay_ms: float
    instances: int
    rate_per_gpu: float | None
    """Highest rate of one within the P95."""
    full_per_gpu: float | None
    """What full batches one after the other give on one: no load stays below it for long."""
    p95_ms: float | None
    """Of the GPUs together behind one queue, at the objective's rate."""
    usd_per_hour: float | None
    """Of all of them; None: no price is known."""
    usd_per_million: float | None
    """Images, at the objective's rate."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """One number of the plan, changed, and what that does."""

    name: str
    taken: str
    changed: str
    effect: str
    gpus: float | None
    """Fractional GPUs that the objective then needs; None: none are enough."""
    weight: float
    """Relative change of the GPUs needed: the larger, the more the answer rests on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Can the objective be met, on what and at what price."""

    answer: Answer
    reason: str
    devices: tuple[DeviceAnswer, ...]
    """Cheapest per image first, those that cannot last."""
    assumptions: tuple[Assumption, ...]
    """The heaviest first."""
    advice: tuple[str, ...]
    """What to change where the answer is no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeavyKernel:
    """One of the kernels that cost most."""

    name: str
    kind: str
    bound: str
    expected_us: float
    roof_us: float
    share: float
    """Of the network's expected time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """plan.json. `size` is N, H, W of the latency figures."""

    schema_version: int
    model: str
    graph_digest: str
    parameters: int
    gflop: float
    """Of one image, 2 x multiply-adds."""
    device: str
    device_title: str
    device_reason: str
    size: tuple[int, int, int]
    objective: Objective
    efficiency: str
    """Where the shares of the roof come from."""
    ladder: tuple[LadderStep, ...]
    heavy: tuple[HeavyKernel, ...]
    bounds: tuple[tuple[str, float], ...]
    """Share of the network's expected time by what bounds it."""
    limits: NodeLimits | None
    decision: Decision
    notes: tuple[str, ...] = ()
    fleet: FleetAnswer | None = None
    """None: nobody asked for the rate of a fleet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionCheck:
    """A prediction beside its measurement."""

    step: StepKey
    candidate: str
    trial: str
    metric: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative to the measured one; positive: predicted too slow."""
        return self.predicted / self.measured - 1


PLAN_SCHEMA = 1
