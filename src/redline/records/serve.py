"""What is served and how it got there: a release, its engine, its checks, who gets which request, and what was observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redline.records.detect import TensorFact
from redline.records.engine import EngineProfile, PlanOrigin
from redline.records.parity import Accuracy
from redline.records.run import Candidate, Library, Load, Verdict
from redline.records.spec import Head, LabelMap, Objective, Postprocess, Precision, Preprocess

Role = Literal["entry", "tensor", "network", "prepare", "finish"]
"""entry: image bytes to detections; tensor: preprocessed tensor to detections; network: tensor to raw outputs;
prepare: bytes to tensor; finish: raw outputs to detections."""
Target = Literal["embedded", "container"]
"""embedded: the wheel's tritonserver with its python backend alone; container: NVIDIA's Triton image with all backends."""
Cause = Literal["promote", "rollback", "automatic", "restart"]
Decision = Literal["hold", "promote", "rollback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """The compiled network that a release serves, as far as a server configuration depends on it."""

    format: Literal["onnx", "tensorrt"]
    digest: str
    """sha256 of the file."""
    input: TensorFact
    """(N, 3, H, W) float32; dynamic axes by name."""
    outputs: tuple[TensorFact, ...]
    profiles: tuple[EngineProfile, ...] = ()
    """Empty for ONNX."""
    precision: Precision = "fp32"
    origin: PlanOrigin | None = None
    """None for ONNX."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """An image and what the release's pipeline made of it in-process: what the server must answer too."""

    file: str
    """Name in the release's golden folder."""
    sha256: str
    boxes: tuple[tuple[float, float, float, float], ...]
    scores: tuple[float, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """All that a server needs to know of one release; embedded and container configurations are rendered from it.

    Its Triton models are `<service>_r<number>` (entry), `..._tensor`, and where the pipeline has them `..._network`,
    `..._prepare`, `..._finish`, each with the one version `number`: a Triton configuration belongs to a model,
    not to a version.
    """

    service: str
    number: int
    created: str
    """ISO 8601, UTC."""
    run: str
    """Id of the run that chose it."""
    trial: str
    """Digest of the trial it rests on."""
    candidate: Candidate
    """Has `serving`: batch is the largest batch, concurrency the processes (fused) or network instances, over all GPUs."""
    engine: EngineFacts
    preprocess: Preprocess
    postprocess: Postprocess
    head: Head
    labels: LabelMap
    classes: tuple[str, ...]
    """Name of each label the network can give, by index (with `labels` = "category-id": by category id, "" where none)."""
    objective: Objective
    accuracy: Accuracy | None
    """In-process, on the evaluation set; None if there was none."""
    golden: tuple[Golden, ...]
    redline: str
    tools: tuple[Library, ...]
    data: str = ""
    """Digest of the evaluation set that `accuracy` was measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One step of verifying a release through the server."""

    name: str
    verdict: Verdict
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    release: int
    checks: tuple[Check, ...]
    served_ap: float | None = None
    in_process_ap: float | None = None
    load: Load | None = None
    """Open loop at the objective's rate through the gateway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Who gets which request. All numbers are releases; the gateway swaps the whole record at once."""

    active: int | None = None
    previous: int | None = None
    """Stays loaded as the way back."""
    canary: int | None = None
    canary_share: float = 0.0
    """Fraction of the requests that the canary answers."""
    shadow: bool = False
    """Send every request that the active release answers to the canary too, and compare."""
    shadow_share: float = 1.0
    """Fraction of those requests: copies cost as much as requests."""
    hold_until: str | None = None
    """ISO 8601, UTC: until then the active release is on probation and rolled back by itself if it breaches the objective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One change of the active release."""

    at: str
    """ISO 8601, UTC."""
    seconds: float
    """From the decision until requests go to `to`."""
    source: int | None
    to: int | None
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """The index of a service: everything that must survive a restart."""

    service: str
    routes: Routes
    releases: tuple[int, ...]
    """Every release ever rendered, ascending."""
    failed: tuple[int, ...] = ()
    """Releases that were refused or rolled back."""
    switches: tuple[Switch, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was seen of one release over a window; counts can be added over replicas and windows."""

    release: int
    seconds: float
    requests: int
    """Answered, well or with a server's error; a client's errors (4xx) do not count."""
    errors: int
    slow: int
    """Answered later than the objective's P95."""
    compared: int = 0
    """Boxes of shadowed requests, both releases'."""
    differing: int = 0
    """Of them without a partner in the other release's answer."""
    p95_ms: float | None = None
    """For people, from the histogram; decisions rest on the counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What to do with the release under observation, and why."""

    decision: Decision
    reason: str
    burn_latency: float
    """Share of slow requests over the 5 % that a P95 allows; above 1 the objective is being missed."""
    burn_errors: float
    """Share of errors over the allowed share."""
