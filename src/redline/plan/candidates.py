"""The search space: families of candidates that share one accuracy, and the knobs within a family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from redline.plan import gpu as on_gpu
from redline.plan.buckets import choose_buckets
from redline.plan.gpu import ALL_INT8, GpuAbilities, Int8Choices
from redline.records import Buckets, Candidate, Environment, OnnxModel, Preprocess, Refusal, Spec, Traffic
from redline.records.run import RunnerKind
from redline.records.spec import Precision
from redline.vision import input_size

MAX_BATCH = 8
MOST_BUCKETS = 5
MAX_LANES = 8
"""Inferences in flight on one GPU: each has contexts and buffers of its own, and a GPU is full before."""
COMPILE_MINUTES = 4.0
"""Least budget in which torch.compile is tried: YOLOX-Nano took 31 to 48 s for a thread count on 2 cores, with the compiler's
own cache partly filled (benchmarks/results/2026-11-23-cpu-yolox-nano-416.json, build_seconds)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """`families`: one starting candidate each (all cores, batch 1, one in flight). `batches`: what the batch knob may be.

    `buckets`: what the bucketed family pads to; None: there is no such family.
    """

    baseline: Candidate
    families: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]
    cores: int
    batches: tuple[int, ...]
    buckets: Buckets | None = None
    devices: tuple[str, ...] = ("cpu",)
    """What `Candidate.device` may be."""
    precisions: tuple[Precision, ...] = ("fp32",)
    """On a GPU; the CPU has FP32."""

    def lawful(self, candidate: Candidate) -> bool:
        """The one statement of what may be combined."""
        if candidate.wide and not _has_wide(candidate):
            return False
        if candidate.device not in self.devices:
            return False
        if candidate.gpus:
            lanes = len(candidate.gpus) <= candidate.concurrency <= MAX_LANES * len(candidate.gpus)
            known = candidate.precision in ("fp32", *self.precisions) and candidate.batch in self.batches
            return lanes and known and on_gpu.lawful_on_gpu(candidate)
        if candidate.runner == "tensorrt" or candidate.cuda_graphs or candidate.profiles:
            return False
        if candidate.precision != "fp32" and not _is_cpu_int8(candidate):
            return False
        fits = candidate.threads * candidate.concurrency <= self.cores
        # A graph with pre-processing inside takes one image; torch.compile would compile every batch size again.
        single = candidate.prepost == "graph" or candidate.runner == "torch-compile"
        if single and candidate.shapes != "fixed":
            return False
        batch = candidate.batch in self.batches and (candidate.batch == 1 or not single)
        return fits and batch and candidate.threads >= 1 and candidate.concurrency >= 1

    def neighbours(self, candidate: Candidate) -> tuple[Candidate, ...]:
        """One knob moved one step."""
        batches = sorted(self.batches)
        at = batches.index(candidate.batch)
        if candidate.gpus:
            return self._neighbours_on_gpu(candidate, [batches[i] for i in (at - 1, at + 1) if 0 <= i < len(batches)])
        moves = [
            replace(candidate, threads=max(1, candidate.threads // 2), concurrency=candidate.concurrency * 2),
            replace(candidate, threads=candidate.threads * 2, concurrency=max(1, candidate.concurrency // 2)),
            replace(candidate, concurrency=candidate.concurrency // 2),
            replace(candidate, concurrency=candidate.concurrency * 2),
            *(replace(candidate, batch=batches[i]) for i in (at - 1, at + 1) if 0 <= i < len(batches)),
        ]
        return tuple(dict.fromkeys(move for move in moves if move != candidate and self.lawful(move)))

    def _neighbours_on_gpu(self, candidate: Candidate, batches: list[int]) -> tuple[Candidate, ...]:
        per_gpu = candidate.concurrency // len(candidate.gpus)
        elsewhere = (replace(candidate, device=device) for device in self.devices if device not in ("cpu", candidate.device))
        moves = [
            replace(candidate, concurrency=candidate.concurrency * 2),
            replace(candidate, concurrency=candidate.concurrency // 2),
            *(replace(candidate, batch=batch) for batch in batches),
            replace(candidate, cuda_graphs=not candidate.cuda_graphs),
            *(replace(there, concurrency=per_gpu * len(there.gpus)) for there in elsewhere),
        ]
        return tuple(dict.fromkeys(move for move in moves if self.lawful(move)))


def _is_cpu_int8(candidate: Candidate) -> bool:
    return candidate.precision == "int8" and candidate.runner == "onnxruntime" and candidate.prepost == "host"


def _has_wide(candidate: Candidate) -> bool:
    """Whether its graph has nodes that may stay wider than the rest."""
    on_gpu = candidate.runner == "tensorrt" and candidate.precision in ("fp16", "int8", "fp8")
    return on_gpu or _is_cpu_int8(candidate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What this machine can do, as far as candidates depend on it."""

    torch_compile: bool
    torch_compile_reason: str
    onnxruntime: bool
    gpu: GpuAbilities | None = None
    """None: nothing runs on a GPU, see `no_gpu`."""
    no_gpu: str = "no NVIDIA GPU on this machine"


def space(
    spec: Spec,
    traffic: Traffic,
    environment: Environment,
    abilities: Abilities,
    *,
    onnx: OnnxModel | None,
    network_failure: str | None,
    graph_failure: str | None,
    is_torch: bool,
    half_failure: str | None = None,
    int8: Int8Choices = ALL_INT8,
    fp8: Int8Choices = ALL_INT8,
    images: Sequence[tuple[int, int]] = (),
) -> Space:
    """Lawful families for `spec` under `traffic` on `environment`; what is refused carries its reason.

    `network_failure`, `graph_failure`, `half_failure`: why there is no exported network, none with pre- and post-processing
    inside, none in FP16. `int8`, `fp8`: graphs in them to try. `images`: (height, width) of the evaluation images. Where there
    is a GPU, it is what is measured, and the CPU only for the reference of an ONNX file. Raises BadInput (plan.no-gpu) if
    `spec` names a GPU that is not there.
    """
    if abilities.gpu is not None:
        failures, rounded = (network_failure, half_failure), (int8, fp8)
        return _gpu_space(spec, traffic, environment.cores, abilities, abilities.gpu, onnx, failures, is_torch, images, rounded)
    cores = environment.cores
    start: RunnerKind = "torch-eager" if is_torch else "onnxruntime"
    baseline = Candidate(runner=start, threads=cores)
    refusals = [*_precisions(spec), Refusal(what="GPU runners", reason=abilities.no_gpu)]
    families = [baseline]
    reason = _no_compile(spec, abilities)
    if is_torch and reason is None:
        families.append(replace(baseline, runner="torch-compile"))
    elif is_torch:
        refusals.append(Refusal(what="torch-compile", reason=str(reason)))
    refusals += _graph_families(baseline, families, abilities, onnx, network_failure, graph_failure)
    refusals += _minimal_shapes(families, spec.model.preprocess, onnx)
    buckets, reason = _buckets(families, traffic, spec.model.preprocess)
    if buckets is not None:
        families.append(replace(baseline, runner="onnxruntime", shapes=buckets.policy))
    elif reason is not None:
        refusals.append(Refusal(what="shape buckets", reason=reason))
    refusals += _int8_families(spec, families, int8)
    batches, fixed = _batches(onnx)
    return Space(
        baseline=baseline,
        families=tuple(families),
        refusals=(*refusals, *fixed),
        cores=cores,
        batches=batches,
        buckets=buckets,
    )


def _gpu_space(
    spec: Spec,
    traffic: Traffic,
    cores: int,
    abilities: Abilities,
    gpu: GpuAbilities,
    onnx: OnnxModel | None,
    failures: tuple[str | None, str | None],
    is_torch: bool,
    images: Sequence[tuple[int, int]],
    rounded: tuple[Int8Choices, Int8Choices],
) -> Space:
    indices, left_out = on_gpu.pick_gpus(spec.target.devices, gpu.names)
    devices = on_gpu.device_names(indices)
    start = Candidate(runner="torch-eager", device=devices[0])
    baseline = start if is_torch else Candidate(runner="onnxruntime", threads=cores)
    batches, fixed = _batches(onnx)
    refusals = [*on_gpu.precision_refusals(spec, rounded[1].failure), *left_out, *fixed]
    families = [baseline]
    if is_torch:
        refusals.append(Refusal(what="CPU runners", reason='a GPU is here: [target] devices = "cpu" measures the CPU instead'))
        more, refused = on_gpu.torch_families(spec, baseline, gpu)
        families, refusals = [*families, *more], [*refusals, *refused]
    refusals.append(Refusal(what="pre- and post-processing in the graph", reason=on_gpu.IN_GRAPH))
    minimal = no_minimal(spec.model.preprocess, onnx)
    buckets, why = (None, minimal) if minimal is not None else useful_buckets(traffic, spec.model.preprocess)
    seen = on_gpu.seen_traffic(traffic, images)
    engines, refused = on_gpu.tensorrt_families(
        spec, seen, start, gpu, onnx, failures, (buckets, why), minimal, batches[-1], rounded
    )
    if minimal is not None:
        refusals.append(Refusal(what="minimal padding and shape buckets", reason=minimal))
    used = buckets if any(family.profiles == "bucketed" for family in engines) else None
    return Space(
        baseline=baseline,
        families=(*families, *engines),
        refusals=(*refusals, *refused),
        cores=cores,
        batches=batches,
        buckets=used,
        devices=devices if is_torch else ("cpu", *devices),
        precisions=spec.target.precisions,
    )


def _batches(onnx: OnnxModel | None) -> tuple[tuple[int, ...], list[Refusal]]:
    if onnx is not None and isinstance(onnx.input.shape[0], int):
        return (1,), [Refusal(what="batch > 1", reason="the ONNX file fixes its batch size")]
    return tuple(2**power for power in range(MAX_BATCH.bit_length())), []


def _precisions(spec: Spec) -> list[Refusal]:
    reasons = {
        "tf32": "a mode of NVIDIA GPUs' tensor cores, and what is measured here is the CPU",
        "fp16": "CPU runners compute FP16 in FP32 after conversion, so it can only be slower; it needs a GPU engine",
        "fp8": on_gpu.NO_CPU_FP8,
    }
    return [Refusal(what=wanted, reason=reasons[wanted]) for wanted in spec.target.precisions if wanted in reasons]


def _no_compile(spec: Spec, abilities: Abilities) -> str | None:
    if not abilities.torch_compile:
        return abilities.torch_compile_reason
    if spec.budget.minutes < COMPILE_MINUTES:
        least = (
            f"compiling takes most of a minute for each thread count: give [budget] minutes >= {COMPILE_MINUTES:g} to try it"
        )
        return f"the budget is {spec.budget.minutes:g} minutes; {least}"
    return None


def _graph_families(
    baseline: Candidate,
    families: list[Candidate],
    abilities: Abilities,
    onnx: OnnxModel | None,
    network_failure: str | None,
    graph_failure: str | None,
) -> list[Refusal]:
    if onnx is None:
        return [Refusal(what="onnxruntime", reason=f"no ONNX graph: {network_failure}")]
    if not abilities.onnxruntime:
        return [Refusal(what="onnxruntime", reason="not installed: pip install redline[ort]")]
    engine = replace(baseline, runner="onnxruntime")
    if engine not in families:
        families.append(engine)
    if graph_failure is not None:
        return [Refusal(what="pre- and post-processing in the graph", reason=graph_failure)]
    families.append(replace(engine, prepost="graph"))
    return []


def _int8_families(spec: Spec, families: list[Candidate], int8: Int8Choices) -> list[Refusal]:
    """ONNX Runtime's INT8 with the least padding there is: what shapes are worth is told by FP32."""
    engines = [family for family in families if family.runner == "onnxruntime" and family.prepost == "host"]
    if "int8" not in spec.target.precisions:
        return []
    if not engines or int8.failure is not None:
        return [Refusal(what="int8", reason=int8.failure or "there is no ONNX Runtime to run it")]
    best = next((family for family in engines if family.shapes == "minimal"), engines[0])
    families += [replace(best, precision="int8", wide=kept) for kept in int8.kept]
    return []


def no_minimal(preprocess: Preprocess, onnx: OnnxModel | None) -> str | None:
    """Why inputs cannot be padded to the stride alone."""
    if preprocess.resize != "letterbox":
        return f"resize = {preprocess.resize!r} has no letterbox padding to save"
    if preprocess.anchor != "top-left":
        return "a centred letterbox moves the image on the stride grid"
    return "the ONNX file fixes its input shape" if onnx is not None and not onnx.dynamic else None


def _minimal_shapes(families: list[Candidate], preprocess: Preprocess, onnx: OnnxModel | None) -> list[Refusal]:
    reason = no_minimal(preprocess, onnx)
    if reason is not None:
        return [Refusal(what="minimal padding and shape buckets", reason=reason)]
    hosts = [family for family in families if family.prepost == "host"]
    engines = [family for family in hosts if family.runner == "onnxruntime"]
    able = engines or [family for family in hosts if family.runner == "torch-eager"]
    families += [replace(family, shapes="minimal") for family in able]
    refusals = []
    if engines and len(engines) < len(hosts):
        reason = "ONNX Runtime tells what padding costs, and eager torch is the reference"
        refusals.append(Refusal(what="torch-eager with minimal padding", reason=reason))
    if any(family.runner == "torch-compile" for family in families):
        what, reason = (
            "torch-compile with minimal padding or shape buckets",
            "every new shape compiles again, for most of a minute",
        )
        refusals.append(Refusal(what=what, reason=reason))
    return refusals


def _buckets(families: list[Candidate], traffic: Traffic, preprocess: Preprocess) -> tuple[Buckets | None, str | None]:
    """What the one bucketed family pads to, or why there is none.

    One family, of ONNX Runtime: every family costs a pass over the evaluation set and a share of the budget. How many buckets
    are best follows from the traffic, without a measurement; and what buckets are for, batches that fill, pays least in eager
    torch.
    """
    if not any(family.runner == "onnxruntime" and family.shapes == "minimal" for family in families):
        return None, None  # refused with the runner or with minimal padding
    return useful_buckets(traffic, preprocess)


def useful_buckets(traffic: Traffic, preprocess: Preprocess) -> tuple[Buckets | None, str | None]:
    """Buckets for a traffic, or why they would be another policy under another name."""
    chosen = choose_buckets(traffic, preprocess, most=MOST_BUCKETS)
    if len(chosen.buckets) == 1:
        return None, "for this traffic no bucket saves more padding than it costs: the same as fixed shapes"
    sizes = [(shape.height, shape.width) for shape in traffic.shapes]
    if all(input_size(hw, preprocess, chosen.policy) == input_size(hw, preprocess, "minimal") for hw in sizes):
        return None, "this traffic has so few input shapes that each gets its own: the same as minimal padding"
    return chosen, None
