"""What was tried and what was found: candidates, measurements, verdicts and the run that holds them. All JSON-serialisable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from redline.records.detect import Buckets, ModelFacts, OnnxModel, ShapePolicy, Traffic
from redline.records.engine import EngineRecord, Telemetry
from redline.records.layers import HeldNode
from redline.records.parity import Accuracy, BoxMatch, Determinism, ImageHarm, MapDrop, TensorDelta
from redline.records.picture import Picture
from redline.records.quantize import Int8Record
from redline.records.spec import Precision, Spec

RunnerKind = Literal["torch-eager", "torch-compile", "onnxruntime", "tensorrt"]
PrePost = Literal["host", "graph", "kernel"]
"""Where pre- and post-processing run. host: numpy and OpenCV; graph: as operators inside the graph; kernel: on the GPU,
decoding too, by kernels that are one CUDA graph with the engine."""
Answer = Literal["pass", "fail", "inconclusive"]
LoadMode = Literal["poisson", "constant", "closed"]
ProfileKind = Literal["exact", "bucketed", "dynamic"]
"""Optimisation profiles of an engine. exact: one for each input shape; bucketed: one for each of a few shapes that the others
are padded to; dynamic: one over all shapes, tuned for the commonest."""
Pipeline = Literal["fused", "bls", "ensemble"]
"""How a server joins the steps of a request. fused: all in one process; bls: the entry calls the network's model through the
server; ensemble: prepare, network and finish are models of their own that the server's scheduler joins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The knobs that only a server has."""

    pipeline: Pipeline = "fused"
    queue_delay_us: int = 0
    """Longest wait of a request for others to share its batch, microseconds."""
    workers: int = 1
    """Processes of each step beside the network (bls, ensemble); fused has none."""
    queue_size: int = 128
    """Requests that may wait; more are refused at once."""


def gpu_indices(device: str) -> tuple[int, ...]:
    """GPUs of "cuda:0" or "cuda:0,1", as CUDA counts them; none of "cpu"."""
    return tuple(int(index) for index in device.removeprefix("cuda:").split(",")) if device != "cpu" else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Every knob of a deployment, one record."""

    runner: RunnerKind
    precision: Precision = "fp32"
    device: str = "cpu"
    """cpu, cuda:0, or several GPUs behind one queue: cuda:0,1."""
    threads: int = 1
    """Intra-op threads of one inference; 1 on a GPU."""
    batch: int = 1
    """Most requests joined into one inference."""
    concurrency: int = 1
    """Inferences in flight; on GPUs the lanes of all devices together."""
    shapes: ShapePolicy = "fixed"
    prepost: PrePost = "host"
    serving: Serving | None = None
    """None: measured in-process."""
    profiles: ProfileKind | None = None
    """Of a TensorRT engine; None for every other runner."""
    cuda_graphs: bool = False
    """Inferences are replayed as CUDA graphs, one for each shape (TensorRT and torch.compile)."""
    wide: tuple[str, ...] = ()
    """ONNX nodes that stay in FP32 although the graph is FP16 otherwise; in INT8 and FP8: layers that stay out of it."""

    @property
    def gpus(self) -> tuple[int, ...]:
        """Indices of its GPUs, as CUDA counts them; empty on the CPU."""
        return gpu_indices(self.device)

    @property
    def shape_name(self) -> str:
        return self.shapes if isinstance(self.shapes, str) else f"{len(self.shapes)} buckets"

    @property
    def name(self) -> str:
        parts = [self.runner, self.precision, self.shape_name, f"t{self.threads}", f"b{self.batch}", f"c{self.concurrency}"]
        if self.gpus:
            parts[3:4] = [self.profiles] if self.profiles is not None else []
            parts += [self.device] if self.runner != "tensorrt" or self.cuda_graphs else [self.device, "no graphs"]
        if self.wide:
            parts.append(f"{len(self.wide)} {f'not in {self.precision}' if self.precision in ('int8', 'fp8') else 'in fp32'}")
        if self.prepost != "host":
            parts.append("in-graph" if self.prepost == "graph" else "in-kernels")
        if self.serving is not None:
            parts += [self.serving.pipeline, f"d{self.serving.queue_delay_us}us"]
            parts += [f"w{self.serving.workers}"] if self.serving.pipeline != "fused" else []
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A candidate (or a family of them) that was not tried, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed trial is data: the search goes on."""

    stage: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    answer: Answer
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    tensors: tuple[TensorDelta, ...]
    boxes: BoxMatch
    accuracy: Accuracy
    drop: MapDrop
    determinism: Determinism
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load measurement. Latency runs from the intended send time to completion (closed loop: from the actual send)."""

    mode: LoadMode
    offered_per_s: float | None
    """None for a closed loop."""
    achieved_per_s: float
    seconds: float
    requests: int
    errors: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    slip_p99_ms: float
    """99th percentile of (actual dispatch - intended dispatch): the generator's own lateness."""
    mean_batch: float
    histogram: str
    """HdrHistogram, microseconds, encoded (mergeable)."""
    first_error: str | None = None
    unfinished: int = 0
    """Still waiting when the generator gave up on an overloaded target; counted with their age then. Hung ones are errors."""
    gpus: tuple[Telemetry, ...] = ()
    """State of each GPU meanwhile; empty on the CPU, and where NVML is not there."""

    @property
    def throttled(self) -> tuple[str, ...]:
        """Why a GPU was slowed, which leaves no verdict; empty if none was."""
        return tuple(dict.fromkeys(reason for gpu in self.gpus if gpu.throttled for reason in gpu.throttle))


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A/A pilot: the same load repeated on the same target. `relative` is the half-range of P95 over its mean."""

    p95_ms: tuple[float, ...]
    relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """Highest offered rate found whose P95 met the objective, and every step of the search."""

    rate_per_s: float
    steps: tuple[Load, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate, as far as it got. `latency` is the verdict on P95 at the objective's rate."""

    candidate: Candidate
    digest: str
    seconds: float
    failure: Failure | None = None
    engine: str | None = None
    """Digest of the compiled artefact; for TensorRT the plan, an object of the store."""
    build_seconds: float | None = None
    parity: ParityReport | None = None
    screen: Load | None = None
    """Short closed loop at the candidate's concurrency: capacity."""
    objective_load: Load | None = None
    """Open-loop Poisson at the objective's throughput."""
    knee: Knee | None = None
    latency: Verdict | None = None
    confirmation: Load | None = None
    """The winner's objective load again, on a freshly built runner with new arrivals."""
    padding_pct: float | None = None
    """Percent of the pixels of the network inputs that were padding, over the request mix of its loads."""
    expected_padding_pct: float | None = None
    """What the traffic alone let expect of it when the profiles of a TensorRT engine were chosen."""
    held: tuple[HeldNode, ...] = ()
    """The nodes of `Candidate.wide`, and why each stays in FP32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The deployment to take, or the best that was found if the objective was not met."""

    candidate: Candidate | None
    trial: str | None
    """Digest of the trial."""
    verdict: Verdict
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was not measured (screen), or not up to its knee, since the simulated path expects no more of it than of another."""

    candidate: Candidate
    what: Literal["screen", "knee"]
    rate_per_s: float
    """Expected within the P95, or the bound that was enough."""
    against: str
    """Name of the candidate that it was held against; what the same simulation expects of that one follows."""
    against_per_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The search through the server: its trials (their candidates have `serving`) beside the in-process choice."""

    server: str
    trials: tuple[Trial, ...]
    choice: Choice
    in_process: Load | None
    """The in-process winner's load at the objective's rate, for the comparison."""
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    pruned: tuple[Pruned, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    name: str
    version: str | None
    """None: not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    platform: str
    python: str
    cpu: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]
    libraries: tuple[Library, ...]
    redline: str
    commit: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How far a candidate is from FP32 on a whole set of images, once the search is over: nothing was chosen by it."""

    candidate: Candidate
    further: bool
    """The images are those of `[data] confirm`; else those that candidates were chosen on."""
    data: str
    """Digest of their data set."""
    drop: MapDrop
    reference: Accuracy
    accuracy: Accuracy
    boxes: BoxMatch
    score_shift: tuple[float, float, float] | None
    """5th, 50th and 95th percentile of the scores of paired boxes, candidate less FP32; None without a pair."""
    worst: tuple[ImageHarm, ...]
    """The images on which the detections are furthest apart, the furthest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    name: str
    images: int
    boxes: int | None
    """None: unlabelled."""
    digest: str
    traffic: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Everything a run found: run.json. Change a field, raise `SCHEMA_VERSION`."""

    schema_version: int
    id: str
    started: str
    """ISO 8601, UTC."""
    seconds: float
    spec: Spec
    environment: Environment
    model: ModelFacts
    data: DataFacts
    onnx: OnnxModel | None
    noise: Noise | None
    baseline: Trial
    """FP32 eager torch (TF32 off), batch 1, on the first GPU or all cores; ONNX Runtime FP32 if the model is an ONNX file."""
    trials: tuple[Trial, ...]
    refusals: tuple[Refusal, ...]
    choice: Choice
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = field(default=())
    served: Served | None = None
    """None: the spec or the machine has no server."""
    buckets: Buckets | None = None
    """The shape buckets that were tried; None: none are lawful or worth it, see `refusals`."""
    engines: tuple[EngineRecord, ...] = ()
    """TensorRT engines that were built, those that failed their proof too; `Trial.engine` names one by its digest."""
    pruned: tuple[Pruned, ...] = ()
    """Of the search in-process, where the plan knew the network's curve; `served` has its own."""
    int8: Int8Record | None = None
    """None: no INT8 graph was made."""
    bounds: tuple[Bound, ...] = ()
    """Of the fastest INT8 or FP8 candidate, and of the choices, in-process and served, that are not in FP32."""


SCHEMA_VERSION = 2
