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
    """Of the roof, by arithmetic."""
    eager_share_source: Mapping[str, str]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    """What a step is, whatever its figures."""

    key: StepKey
    title: str
    why: str
    map_risk: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """What is expected of a step, as in `LadderStep`; the default is a step of which nothing is."""

    p50_ms: float | None = None
    p95_ms: float | None = None
    images_per_s: float | None = None
    batch: int = 1
    gpus: int = 1
    network_ms: float | None = None
    roof_ms: float | None = None
    gain: float | None = None


def _step(about: _About, figures: _Figures, confidence: Confidence, evidence: str) -> LadderStep:
    """The one place where a step is made. Its experiment is held to the P50, to the rate where there is none."""
    loaded = figures.p50_ms is None and figures.images_per_s is not None
    expected = figures.images_per_s if loaded else figures.p50_ms
    return LadderStep(
        key=about.key,
        title=about.title,
        why=about.why,
        p50_ms=figures.p50_ms,
        p95_ms=figures.p95_ms,
        images_per_s=figures.images_per_s,
        batch=figures.batch,
        gpus=figures.gpus,
        network_ms=figures.network_ms,
        roof_ms=figures.roof_ms,
        gain=figures.gain,
        map_risk=about.map_risk,
        confidence=confidence,
        evidence=evidence,
        experiment=experiment(about.key, expected, "images/s" if loaded else "ms"),
    )


EAGER: tuple[tuple[Arithmetic, _About], ...] = (
    (
        "fp32",
        _About(
            key="fp32-eager",
            title="FP32 eager",
            why="the accuracy reference and where most detectors start",
            map_risk=HELD,
        ),
    ),
    ("tf32", _About(key="tf32-eager", title="TF32 eager", why="tensor cores for FP32 weights, one flag", map_risk=SAFE)),
    ("fp16", _About(key="fp16-eager", title="FP16 eager", why="half the bytes and the FP16 tensor cores", map_risk=HALF)),
)
ENGINES: tuple[tuple[Arithmetic, bool, _About], ...] = (
    (
        "fp16",
        False,
        _About(
            key="engine",
            title="TensorRT FP16",
            why="fused kernels chosen by timing; the host launches one a group",
            map_risk=HALF,
        ),
    ),
    ("fp16", True, _About(key="cuda-graph", title="CUDA graph", why="one launch for all kernels", map_risk=SAME)),
    ("int8", True, _About(key="int8", title="INT8 Q/DQ", why="half the bytes of FP16 and twice its peak", map_risk=QUANTIZED)),
)
"""With the CUDA graph or without."""
PREPOST = _About(
    key="gpu-prepost",
    title="Pre- and post-processing on the GPU",
    why="no host core decodes, resizes or suppresses for the request",
    map_risk="up to 0.3 % where the decoder's chroma upsampling differs",
)
BATCHING = _About(
    key="batching",
    title="Dynamic batching",
    why="larger batches fill the device; what waits and computes together stays within the P95",
    map_risk=SAME,
)
NODE = _About(
    key="more-gpus",
    title="More GPUs behind one queue",
    why="rates add up, and a shared queue evens out what each would wait",
    map_risk=SAME,
)


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
    steps = [_eager(at, len(costs.layers), image, arithmetic, about) for arithmetic, about in EAGER]
    steps += [_engine(at, image, arithmetic, graph, about) for arithmetic, graph, about in ENGINES]
    best = _best_engine(steps)
    return (*_gained(steps), _against_host(_gpu_prepost(best, device, image, table), best, image))


def loaded_steps(steps: Sequence[LadderStep], answer: DeviceAnswer, objective: Objective) -> tuple[LadderStep, ...]:
    """Batching on one GPU and the GPUs of the objective, both under Poisson load; from what the queueing model found."""
    one = next((step.images_per_s for step in steps if step.key == "cuda-graph"), None)
    one_gpu = _Figures(
        p95_ms=objective.p95_ms if answer.rate_per_gpu else None,
        images_per_s=answer.rate_per_gpu,
        batch=answer.batch,
        gain=_ratio(answer.rate_per_gpu, one),
    )
    alone = f"one GPU by simulation: batch up to {answer.batch}, P95 at most {objective.p95_ms:g} ms"
    rate = objective.throughput if answer.gpus else None
    node = _Figures(
        p95_ms=answer.p95_ms if answer.gpus else None,
        images_per_s=rate,
        batch=answer.batch,
        gpus=answer.gpus or 1,
        gain=_ratio(rate, answer.rate_per_gpu) if (answer.gpus or 1) > 1 else None,
    )
    pooled = f"{answer.gpus or 'no number of'} GPUs behind one queue, by simulation"
    return _loaded(BATCHING, one_gpu, alone, answer), _loaded(NODE, node, pooled, answer)


def _loaded(about: _About, figures: _Figures, evidence: str, answer: DeviceAnswer) -> LadderStep:
    return _step(about, figures, "roof share" if figures.images_per_s else "none", f"{evidence}; {answer.reason}")


def _ratio(rate: float | None, before: float | None) -> float | None:
    return rate / before if rate and before else None


def _network(
    costs: ModelCosts, device: DeviceFacts, image: Image, table: EfficiencyTable, arithmetic: Arithmetic, graph: bool
) -> Roofline:
    return roofline(costs, device, arithmetic, 1, image.height, image.width, cuda_graph=graph, table=table)


def _eager(
    at: Callable[[Arithmetic, bool], Roofline], layers: int, image: Image, arithmetic: Arithmetic, about: _About
) -> LadderStep:
    """The slower of the host, which launches every layer, and of the device at what library kernels reach of the roof."""
    found = _tried(at, arithmetic, False)
    if isinstance(found, str):
        return _step(about, _Figures(), "none", found)
    facts = step_facts()
    host_us = facts.eager_layer_us * layers
    device_us = sum(group.work_us for group in found.groups) / facts.eager_share[arithmetic]
    side = "the host's launches" if host_us > device_us else "the device's kernels"
    shares, source = facts.eager_share[arithmetic], facts.eager_share_source[arithmetic]
    evidence = f"{side} bound it: {layers} layers x {facts.eager_layer_us:g} us against the roof over {shares:g} ({source})"
    figures = _alone(max(host_us, device_us) / 1000, found, "eager", image.host_ms)
    return _step(about, figures, "assumed", evidence + _uncounted(image))


def _engine(
    at: Callable[[Arithmetic, bool], Roofline], image: Image, arithmetic: Arithmetic, graph: bool, about: _About
) -> LadderStep:
    found = _tried(at, arithmetic, graph)
    if isinstance(found, str):
        return _step(about, _Figures(), "none", found)
    bound = sum(group.expected_us for group in found.groups if group.bound == "launch") / (found.expected_us or 1)
    evidence = f"{len(found.groups)} kernels; {bound:.0%} of the time in kernels that their launch bounds"
    confidence: Confidence = "calibrated" if arithmetic == "fp16" else "roof share"
    figures = _alone(found.expected_us / 1000, found, "graph" if graph else "stream", image.host_ms)
    return _step(about, figures, confidence, evidence + _uncounted(image))


def _tried(at: Callable[[Arithmetic, bool], Roofline], arithmetic: Arithmetic, graph: bool) -> Roofline | str:
    """Or why there is none. Raises BadInput (plan.size)."""
    try:
        return at(arithmetic, graph)
    except BadInput as error:
        if error.code == "plan.size":
            raise
        return error.what


def _uncounted(image: Image) -> str:
    return "" if image.host_ms is not None else "; pre- and post-processing on the host not counted"


def _alone(network_ms: float, found: Roofline, tail: str, host_ms: float | None) -> _Figures:
    """Of one image at a time."""
    p50 = network_ms + (host_ms or 0.0)
    p95 = network_ms * step_facts().tail[tail] + (host_ms or 0.0)
    return _Figures(p50_ms=p50, p95_ms=p95, images_per_s=1000 / p50, network_ms=network_ms, roof_ms=found.roof_us / 1000)


def _gpu_prepost(best: LadderStep | None, device: DeviceFacts, image: Image, table: EfficiencyTable) -> LadderStep:
    """Kernels that read the image once, write the input once and read the outputs once, and a handful of launches."""
    bandwidth = device.bandwidth_gb_s.value
    if best is None or best.network_ms is None or bandwidth is None:
        return _step(PREPOST, _Figures(), "none", "the engine step has no figures")
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
    figures = _Figures(
        p50_ms=p50,
        p95_ms=p50 * facts.tail["graph"],
        images_per_s=1000 / p50,
        network_ms=best.network_ms,
        roof_ms=best.roof_ms,
    )
    return _step(PREPOST, figures, "assumed", evidence + "JPEG decode apart")


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
