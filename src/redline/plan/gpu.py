"""Candidates on NVIDIA GPUs: which of them there are, what is refused, and the optimisation profiles of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from redline.errors import BadInput
from redline.plan.profiles import Profiles, choose_profiles
from redline.records import (
    Buckets,
    Candidate,
    OnnxModel,
    Preprocess,
    ProfileKind,
    Refusal,
    ShapePolicy,
    ShapeShare,
    Spec,
    TensorRTFacts,
    Traffic,
    gpu_indices,
)
from redline.records.spec import Precision

COMPILE_MINUTES = 1.0
"""Least budget in which torch.compile is tried on a GPU: RetinaNet-R50 took 26 s on an H100 the first time
(benchmarks/results/2026-11-25-h100-tensorrt-retinanet.json, first_s); torch keeps what it compiled for the next opening."""
MEMORY_SHARE = 0.5
"""Of a GPU's memory that one lane's input and output buffers may take."""
KERNEL_HEADS = ("yolox", "retinanet")
ONE_SIZE = ("letterbox", "stretch")
NARROWEST: tuple[Precision, ...] = ("fp16", "tf32", "fp32")
IN_GRAPH = "its float64, NonZero and NonMaxSuppression are nothing for TensorRT; on a GPU they run on the host or in kernels"
NO_CPU_FP8 = "for GPUs of compute capability 8.9 and newer: a CPU would round to it and compute in FP32"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuAbilities:
    """What this machine's GPUs can run, as far as candidates depend on it."""

    names: tuple[str, ...]
    """By CUDA's index."""
    memory_bytes: int
    """Of the first GPU used."""
    tensorrt: TensorRTFacts
    no_compile: str | None = None
    """Why torch.compile cannot make GPU code."""
    no_kernels: str | None = None
    """Why pre- and post-processing cannot run in kernels there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Choices:
    """Why there is no INT8 (FP8) graph; else the choices of layers kept out of it that are tried."""

    failure: str | None = None
    kept: tuple[tuple[str, ...], ...] = ((),)


ALL_INT8 = Int8Choices()


def pick_gpus(wanted: str, names: Sequence[str]) -> tuple[tuple[int, ...], tuple[Refusal, ...]]:
    """Indices of the GPUs to use for `[target] devices`, and which are left out: one queue wants GPUs of one kind.

    "auto": all of the first GPU's kind. Raises BadInput (plan.no-gpu) for a GPU that is not there.
    """
    if wanted == "auto":
        alike = tuple(index for index, name in enumerate(names) if name == names[0])
        others = (index for index in range(len(names)) if index not in alike)
        reason = f"another kind than GPU 0 ({names[0]}): one queue over unlike GPUs has the tail of the slowest"
        return alike, tuple(Refusal(what=f"GPU {index} ({names[index]})", reason=reason) for index in others)
    chosen = gpu_indices(wanted)
    absent = [index for index in chosen if index >= len(names)]
    if absent:
        there = ", ".join(f"cuda:{index} {name}" for index, name in enumerate(names))
        fix = 'devices = "auto" takes what is there'
        raise BadInput(
            "plan.no-gpu", f"[target] devices names a GPU that is not here: {absent[0]}", got=wanted, allowed=there, fix=fix
        )
    return chosen, ()


def first_gpu(wanted: str) -> int:
    """Index of the GPU on which engines for `[target] devices` are built; the first one where none is named."""
    return gpu_indices(wanted)[0] if wanted.startswith("cuda:") else 0


def device_names(indices: Sequence[int]) -> tuple[str, ...]:
    """As `Candidate.device` has them: the first GPU, and all of them behind one queue."""
    first, every = f"cuda:{indices[0]}", f"cuda:{','.join(map(str, indices))}"
    return tuple(dict.fromkeys((first, every)))


def lawful_on_gpu(candidate: Candidate) -> bool:
    """What may be combined on a GPU, apart from what `Space` allows of devices, batches and precisions."""
    if candidate.threads != 1 or candidate.prepost == "graph":
        return False
    if candidate.prepost == "kernel" and not _resident(candidate):
        return False
    if candidate.precision in ("int8", "fp8") and candidate.runner != "tensorrt":
        return False
    if candidate.runner == "torch-eager":
        return candidate.profiles is None and not candidate.cuda_graphs and candidate.precision in ("fp32", "tf32")
    if candidate.runner == "torch-compile":
        # Every shape and batch compiles again; reduce-overhead replays CUDA graphs always, all from one thread.
        single = candidate.shapes == "fixed" and candidate.batch == 1 and len(candidate.gpus) == 1
        return candidate.profiles is None and candidate.cuda_graphs and single
    return candidate.runner == "tensorrt" and candidate.profiles in KINDS[_policy(candidate.shapes)]


def _resident(candidate: Candidate) -> bool:
    """One network input size, an engine, and all of it one CUDA graph."""
    return candidate.runner == "tensorrt" and candidate.shapes == "fixed" and candidate.cuda_graphs


KINDS: dict[str, tuple[ProfileKind, ...]] = {"fixed": ("exact",), "minimal": ("exact", "dynamic"), "buckets": ("bucketed",)}
"""Kinds of profiles that suit a shape policy."""


def _policy(shapes: ShapePolicy) -> Literal["fixed", "minimal", "buckets"]:
    return shapes if isinstance(shapes, str) else "buckets"


def seen_traffic(traffic: Traffic, images: Sequence[tuple[int, int]]) -> Traffic:
    """The traffic with the sizes, (height, width), of the evaluation images that it lacks, at a share of 0: they run too."""
    known = {(shape.height, shape.width) for shape in traffic.shapes}
    more = sorted({size for size in images if size not in known})
    extra = tuple(ShapeShare(height=height, width=width, share=0.0) for height, width in more)
    return replace(traffic, shapes=(*traffic.shapes, *extra))


def engine_profiles(
    candidate: Candidate, traffic: Traffic, preprocess: Preprocess, most: int, memory_bytes: int | None = None
) -> Profiles:
    """Profiles of a TensorRT candidate's engine. Raises BadInput as `choose_profiles` does.

    An engine takes one image at a time or up to `most`: a build for every batch size would cost more than it gives.
    """
    assert candidate.profiles is not None
    limit = None if memory_bytes is None else int(MEMORY_SHARE * memory_bytes)
    batch = 1 if candidate.batch == 1 else most
    kind, shapes = candidate.profiles, candidate.shapes
    return choose_profiles(traffic, preprocess, kind, batch=batch, memory_bytes=limit, shapes=shapes)


def asked_precisions(spec: Spec) -> tuple[Precision, ...]:
    """Those of the spec that a GPU can try, widest first."""
    return tuple(p for p in reversed(NARROWEST) if p in spec.target.precisions)


def precision_refusals(spec: Spec, no_fp8: str | None = None) -> list[Refusal]:
    """`no_fp8`: why there is none, which is said if the spec asks for it."""
    asked = spec.target.precisions
    offered = ("int8", "fp16", "tf32") if no_fp8 is not None else ("fp8", "int8", "fp16", "tf32")
    left = [precision for precision in offered if precision not in asked]
    return [Refusal(what=p, reason=f'[target] precisions does not name it: add "{p}" to try it') for p in left]


def torch_families(spec: Spec, baseline: Candidate, gpu: GpuAbilities) -> tuple[list[Candidate], list[Refusal]]:
    """Eager TF32, and torch.compile in the narrowest precision asked for: what engines have to beat."""
    asked = asked_precisions(spec)
    families = [replace(baseline, precision="tf32")] if "tf32" in asked else []
    reason = gpu.no_compile
    if reason is None and spec.budget.minutes < COMPILE_MINUTES:
        reason = f"the budget is {spec.budget.minutes:g} minutes: give [budget] minutes >= {COMPILE_MINUTES:g} to try it"
    if reason is not None:
        return families, [Refusal(what="torch-compile", reason=reason)]
    narrow: Precision = asked[-1] if asked else "fp32"
    families.append(replace(baseline, runner="torch-compile", precision=narrow, cuda_graphs=True))
    refusal = Refusal(
        what="torch-compile with a batch, minimal padding, shape buckets or several GPUs",
        reason="every new shape compiles again, for most of a minute; and its CUDA graphs are launched by one thread",
    )
    return families, [refusal]


def tensorrt_families(
    spec: Spec,
    traffic: Traffic,
    start: Candidate,
    gpu: GpuAbilities,
    onnx: OnnxModel | None,
    failures: tuple[str | None, str | None],
    buckets: tuple[Buckets | None, str | None],
    minimal: str | None,
    most: int,
    rounded: tuple[Int8Choices, Int8Choices],
) -> tuple[list[Candidate], list[Refusal]]:
    """Engines: every precision asked for at fixed shapes; the narrowest of 16 bits also with each other kind of profiles.

    `failures`: why there is no graph, and none in FP16. `minimal`: why there is no minimal padding. `rounded`: INT8 and FP8.
    """
    if onnx is None:
        return [], [Refusal(what="TensorRT", reason=f"no ONNX graph: {failures[0]}")]
    if gpu.tensorrt.problem is not None:
        return [], [Refusal(what="TensorRT", reason=gpu.tensorrt.problem)]
    refusals = []
    asked = asked_precisions(spec)
    if "fp16" in asked and failures[1] is not None:
        refusals.append(Refusal(what="TensorRT fp16", reason=failures[1]))
        asked = tuple(p for p in asked if p != "fp16")
    engine = replace(start, runner="tensorrt", profiles="exact", cuda_graphs=True)
    wanted = [replace(engine, precision=precision) for precision in asked]
    if wanted and minimal is None:
        narrow = wanted[-1]
        wanted += [replace(narrow, shapes="minimal", profiles=kind) for kind in KINDS["minimal"]]
        chosen, why = buckets
        if chosen is not None:
            wanted.append(replace(narrow, shapes=chosen.policy, profiles="bucketed"))
        elif why is not None:
            refusals.append(Refusal(what="TensorRT with bucketed profiles", reason=why))
    numbers: tuple[Precision, ...] = ("int8", "fp8")
    for number, choices in zip(numbers, rounded, strict=True):
        if number in spec.target.precisions and choices.failure is not None:
            refusals.append(Refusal(what=f"TensorRT {number}", reason=choices.failure))
        elif number in spec.target.precisions:
            wanted += [replace(engine, precision=number, wide=kept) for kept in choices.kept]
    more, refused = _in_kernels(spec, gpu, wanted)
    wanted, refusals = [*wanted, *more], [*refusals, *refused]
    reasons = {c: _no_profiles(c, traffic, spec.model.preprocess, most, gpu.memory_bytes) for c in wanted}
    for candidate, reason in reasons.items():
        if reason is not None:
            what = f"TensorRT {candidate.precision} {candidate.shape_name} with {candidate.profiles} profiles"
            refusals.append(Refusal(what=what, reason=reason))
    return [candidate for candidate, reason in reasons.items() if reason is None], refusals


def _in_kernels(spec: Spec, gpu: GpuAbilities, engines: Sequence[Candidate]) -> tuple[list[Candidate], list[Refusal]]:
    """Engines of 16 bits and fewer again, with decoding, pre- and post-processing on the GPU."""
    narrow = [c for c in engines if c.precision in ("fp16", "int8", "fp8") and _resident(c)]
    if not narrow:
        return [], []
    reason = gpu.no_kernels
    if reason is None and spec.model.head.kind not in KERNEL_HEADS:
        reason = f'there is no post-processing kernel for head = "{spec.model.head.kind}"'
    if reason is None and spec.model.preprocess.resize not in ONE_SIZE:
        reason = f'resize = "{spec.model.preprocess.resize}" gives inputs of several sizes, and a CUDA graph has one'
    if reason is not None:
        return [], [Refusal(what="decoding, pre- and post-processing on the GPU", reason=reason)]
    return [replace(candidate, prepost="kernel") for candidate in narrow], []


def _no_profiles(candidate: Candidate, traffic: Traffic, preprocess: Preprocess, most: int, memory_bytes: int) -> str | None:
    try:
        engine_profiles(candidate, traffic, preprocess, most, memory_bytes)
    except BadInput as error:
        return error.line()
    return None
