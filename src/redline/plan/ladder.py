"""The ladder: what each step from FP32 eager to several GPUs is expected to give, on what evidence, and how to confirm it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources

from redline.errors import BadInput
from redline.plan.efficiency import shipped_table
from redline.plan.experiments import experiment
from redline.plan.roofline import roofline
from redline.records import (
    Arithmetic,
    Confidence,
    DeviceAnswer,
    DeviceFacts,
    EfficiencyTable,
    LadderStep,
    ModelCosts,
    Objective,
    Roofline,
    StepKey,
)

HELD = "none: the reference"
SAFE = "none seen: TF32 keeps 10 bits of the mantissa; parity decides"
HALF = "small: 0.0 to 0.2 % in measurements of this project; parity decides"
QUANTIZED = "real: 0.02 to 0.8 % for RetinaNet, up to 15 % for SiLU networks in public PTQ results; calibrate and measure"
SAME = "none: the same numbers"
SLOWER = 0.97
"""A step whose P50 is not below this share of the one before does not pay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """What the steps outside the network's kernels rest on; each number's source is beside it in ladder.json."""

    eager_layer_us: float
    eager_layer_source: str
    eager_share: Mapping[str, float]
    eager_share_source: str
    tail: Mapping[str, float]
    tail_source: str
    kernel_share: float
    kernel_share_source: str
    kernels_of_prepost: int


@functools.cache
def step_facts() -> StepFacts:
    return StepFacts(**json.loads(resources.files("redline.plan").joinpath("ladder.json").read_text("utf-8")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image on its way: what pre- and post-processing cost besides the network."""

    height: int
    width: int
    """Of the network's input, pixels."""
    host_ms: float | None = None
    """Decoding and preprocessing on one host core; None: nobody measured it, and the ladder leaves it out."""
    source_bytes: int = 0
    """Of the decoded uint8 image; 0: as large as the network's input."""
    output_bytes: int = 0
    """Raw outputs of the network in FP32."""


def ladder(
    costs: ModelCosts,
    device: DeviceFacts,
    image: Image,
    table: EfficiencyTable | None = None,
) -> tuple[LadderStep, ...]:
    """Steps of one image at a time, from FP32 eager to pre- and post-processing on the GPU.

    A step that the device cannot take, or of which a peak is unknown, stays in the ladder without figures and says why.
    Raises BadInput (plan.size) for a size that the graph does not take.
    """
    table = table or shipped_table()
    at = functools.partial(_network, costs, device, image, table)
    steps = [
        _eager(
            at, costs, image, "fp32", "fp32-eager", "FP32 eager", "the accuracy reference and where most detectors start", HELD
        ),
        _eager(at, costs, image, "tf32", "tf32-eager", "TF32 eager", "tensor cores for FP32 weights, one flag", SAFE),
        _eager(at, costs, image, "fp16", "fp16-eager", "FP16 eager", "half the bytes and the FP16 tensor cores", HALF),
        _engine(
            at, image, "fp16", "engine", "TensorRT FP16", "fused kernels chosen by timing; the host launches one a group", False
        ),
        _engine(at, image, "fp16", "cuda-graph", "CUDA graph", "one launch for all kernels", True),
        _engine(at, image, "int8", "int8", "INT8 Q/DQ", "half the bytes of FP16 and twice its peak", True),
    ]
    best = _best_engine(steps)
    return (*_gained(steps), _against_host(_gpu_prepost(best, device, image, table), best, image))


def loaded_steps(steps: Sequence[LadderStep], answer: DeviceAnswer, objective: Objective) -> tuple[LadderStep, ...]:
    """Batching on one GPU and the GPUs of the objective, both under Poisson load; from what the queueing model found."""
    one = next((step.images_per_s for step in steps if step.key == "cuda-graph"), None)
    alone = f"one GPU by simulation: batch up to {answer.batch}, P95 at most {objective.p95_ms:g} ms"
    batching = _loaded(
        "batching",
        "Dynamic batching",
        "larger batches fill the device; what waits and computes together stays within the P95",
        1,
        answer,
        answer.rate_per_gpu,
        objective.p95_ms if answer.rate_per_gpu else None,
        one,
        alone,
    )
    pooled = f"{answer.gpus or 'no number of'} GPUs behind one queue, by simulation"
    node = _loaded(
        "more-gpus",
        "More GPUs behind one queue",
        "rates add up, and a shared queue evens out what each would wait",
        answer.gpus or 1,
        answer,
        objective.throughput if answer.gpus else None,
        answer.p95_ms if answer.gpus else None,
        answer.rate_per_gpu,
        pooled,
    )
    return batching, node


def _loaded(
    key: StepKey,
    title: str,
    why: str,
    gpus: int,
    answer: DeviceAnswer,
    rate: float | None,
    p95_ms: float | None,
    before: float | None,
    evidence: str,
) -> LadderStep:
    return LadderStep(
        key=key,
        title=title,
        why=why,
        p50_ms=None,
        p95_ms=p95_ms,
        images_per_s=rate,
        batch=answer.batch,
        gpus=gpus,
        network_ms=None,
        roof_ms=None,
        gain=rate / before if rate and before and (key == "batching" or gpus > 1) else None,
        map_risk=SAME,
        confidence="roof share" if rate else "none",
        evidence=f"{evidence}; {answer.reason}",
        experiment=experiment(key, rate, "images/s"),
    )


def _network(
    costs: ModelCosts, device: DeviceFacts, image: Image, table: EfficiencyTable, arithmetic: Arithmetic, graph: bool
) -> Roofline:
    return roofline(costs, device, arithmetic, 1, image.height, image.width, cuda_graph=graph, table=table)


def _eager(
    at: Callable[[Arithmetic, bool], Roofline],
    costs: ModelCosts,
    image: Image,
    arithmetic: Arithmetic,
    key: StepKey,
    title: str,
    why: str,
    risk: str,
) -> LadderStep:
    """The slower of the host, which launches every layer, and of the device at what library kernels reach of the roof."""
    try:
        found = at(arithmetic, False)
    except BadInput as error:
        if error.code == "plan.size":
            raise
        return _without(key, title, why, risk, error)
    facts = step_facts()
    host_us = facts.eager_layer_us * len(costs.layers)
    device_us = sum(group.work_us for group in found.groups) / facts.eager_share[arithmetic]
    side = "the host's launches" if host_us > device_us else "the device's kernels"
    shares, source = facts.eager_share[arithmetic], facts.eager_share_source
    evidence = (
        f"{side} bound it: {len(costs.layers)} layers x {facts.eager_layer_us:g} us against the roof over {shares:g} ({source})"
    )
    network = max(host_us, device_us) / 1000
    return _step(key, title, why, risk, network, found, "eager", image.host_ms, "assumed", evidence)


def _engine(
    at: Callable[[Arithmetic, bool], Roofline],
    image: Image,
    arithmetic: Arithmetic,
    key: StepKey,
    title: str,
    why: str,
    graph: bool,
) -> LadderStep:
    risk = QUANTIZED if arithmetic == "int8" else HALF if key == "engine" else SAME
    try:
        found = at(arithmetic, graph)
    except BadInput as error:
        if error.code == "plan.size":
            raise
        return _without(key, title, why, risk, error)
    bound = sum(group.expected_us for group in found.groups if group.bound == "launch") / (found.expected_us or 1)
    evidence = f"{len(found.groups)} kernels; {bound:.0%} of the time in kernels that their launch bounds"
    confidence: Confidence = "calibrated" if arithmetic == "fp16" else "roof share"
    network = found.expected_us / 1000
    return _step(key, title, why, risk, network, found, "graph" if graph else "stream", image.host_ms, confidence, evidence)


def _gpu_prepost(best: LadderStep | None, device: DeviceFacts, image: Image, table: EfficiencyTable) -> LadderStep:
    """Kernels that read the image once, write the input once and read the outputs once, and a handful of launches."""
    key: StepKey = "gpu-prepost"
    title, why = "Pre- and post-processing on the GPU", "no host core decodes, resizes or suppresses for the request"
    bandwidth = device.bandwidth_gb_s.value
    if best is None or best.network_ms is None or bandwidth is None:
        reason = BadInput("plan.no-bandwidth", "the engine step has no figures")
        return _without(key, title, why, SAME, reason)
    facts = step_facts()
    pixels = image.height * image.width * 3
    moved = (image.source_bytes or pixels) + 2 * pixels + image.output_bytes / 2
    kernels_ms = (
        moved / (bandwidth * 1e9) / facts.kernel_share * 1e6 + facts.kernels_of_prepost * table.launch_floor_us
    ) / 1000
    p50 = best.network_ms + kernels_ms
    evidence = (
        f"{moved / 1e6:.1f} MB at {facts.kernel_share:.0%} of {bandwidth:g} GB/s and {facts.kernels_of_prepost} launches; "
    )
    evidence += "JPEG decode apart"
    return LadderStep(
        key=key,
        title=title,
        why=why,
        p50_ms=p50,
        p95_ms=p50 * facts.tail["graph"],
        images_per_s=1000 / p50,
        batch=1,
        gpus=1,
        network_ms=best.network_ms,
        roof_ms=best.roof_ms,
        gain=None,
        map_risk="up to 0.3 % where the decoder's chroma upsampling differs",
        confidence="assumed",
        evidence=evidence,
        experiment=experiment(key, p50),
    )


def _against_host(step: LadderStep, best: LadderStep | None, image: Image) -> LadderStep:
    """Its gain is over the host's stages, where they were timed."""
    if image.host_ms is None or best is None or best.p50_ms is None or step.p50_ms is None:
        return step
    return replace(step, gain=best.p50_ms / step.p50_ms)


def _best_engine(steps: list[LadderStep]) -> LadderStep | None:
    """INT8 only where it pays."""
    known = {step.key: step for step in steps if step.network_ms is not None}
    graph, int8 = known.get("cuda-graph"), known.get("int8")
    if graph is None or int8 is None:
        return graph or int8
    return int8 if int8.network_ms < SLOWER * graph.network_ms else graph  # type: ignore[operator]


def _step(
    key: StepKey,
    title: str,
    why: str,
    risk: str,
    network_ms: float,
    found: Roofline,
    tail: str,
    host_ms: float | None,
    confidence: Confidence,
    evidence: str,
) -> LadderStep:
    p50 = network_ms + (host_ms or 0.0)
    p95 = network_ms * step_facts().tail[tail] + (host_ms or 0.0)
    return LadderStep(
        key=key,
        title=title,
        why=why,
        p50_ms=p50,
        p95_ms=p95,
        images_per_s=1000 / p50,
        batch=1,
        gpus=1,
        network_ms=network_ms,
        roof_ms=found.roof_us / 1000,
        gain=None,
        map_risk=risk,
        confidence=confidence,
        evidence=evidence if host_ms is not None else f"{evidence}; pre- and post-processing on the host not counted",
        experiment=experiment(key, p50),
    )


def _without(key: StepKey, title: str, why: str, risk: str, error: BadInput) -> LadderStep:
    return LadderStep(
        key=key,
        title=title,
        why=why,
        p50_ms=None,
        p95_ms=None,
        images_per_s=None,
        batch=1,
        gpus=1,
        network_ms=None,
        roof_ms=None,
        gain=None,
        map_risk=risk,
        confidence="none",
        evidence=error.what,
        experiment=experiment(key, None),
    )


def _gained(steps: Sequence[LadderStep]) -> tuple[LadderStep, ...]:
    """Each step's gain over the last one with figures; a step that does not pay says so."""
    found: list[LadderStep] = []
    before: float | None = None
    for step in steps:
        if step.p50_ms is None or before is None:
            found.append(step)
            before = step.p50_ms if before is None else before
            continue
        gain = before / step.p50_ms
        note = "" if gain > 1 / SLOWER else "; not expected to pay at batch 1"
        found.append(replace(step, gain=gain, evidence=step.evidence + note))
        if gain > 1:
            before = step.p50_ms
    return tuple(found)
