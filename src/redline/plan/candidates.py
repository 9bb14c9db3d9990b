"""The search space: families of candidates that share one accuracy, and the knobs within a family."""

from __future__ import annotations

from dataclasses import dataclass, replace

from redline.plan.buckets import choose_buckets
from redline.records import Buckets, Candidate, Environment, OnnxModel, Preprocess, Refusal, Spec, Traffic
from redline.records.run import RunnerKind
from redline.vision import input_size

MAX_BATCH = 8
MOST_BUCKETS = 5
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

    def lawful(self, candidate: Candidate) -> bool:
        """The one statement of what may be combined."""
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
        moves = [
            replace(candidate, threads=max(1, candidate.threads // 2), concurrency=candidate.concurrency * 2),
            replace(candidate, threads=candidate.threads * 2, concurrency=max(1, candidate.concurrency // 2)),
            replace(candidate, concurrency=candidate.concurrency // 2),
            replace(candidate, concurrency=candidate.concurrency * 2),
            *(replace(candidate, batch=batches[i]) for i in (at - 1, at + 1) if 0 <= i < len(batches)),
        ]
        return tuple(dict.fromkeys(move for move in moves if move != candidate and self.lawful(move)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What this machine can do, as far as candidates depend on it."""

    torch_compile: bool
    torch_compile_reason: str
    onnxruntime: bool


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
) -> Space:
    """Lawful families for `spec` under `traffic` on `environment`; what is refused carries its reason.

    `network_failure`, `graph_failure`: why there is no exported network, and none with pre- and post-processing inside.
    """
    cores = environment.cores
    start: RunnerKind = "torch-eager" if is_torch else "onnxruntime"
    baseline = Candidate(runner=start, threads=cores)
    refusals = [*_precisions(spec), *_devices(spec, environment)]
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
    batches = tuple(2**power for power in range(MAX_BATCH.bit_length()))
    if onnx is not None and isinstance(onnx.input.shape[0], int):
        batches = (1,)
        refusals.append(Refusal(what="batch > 1", reason="the ONNX file fixes its batch size"))
    return Space(
        baseline=baseline,
        families=tuple(families),
        refusals=tuple(refusals),
        cores=cores,
        batches=batches,
        buckets=buckets,
    )


def _precisions(spec: Spec) -> list[Refusal]:
    reasons = {
        "tf32": "a mode of NVIDIA GPUs' tensor cores, and this version runs on the CPU only",
        "fp16": "CPU runners compute FP16 in FP32 after conversion, so it can only be slower; it needs a GPU engine",
        "int8": "needs calibrated Q/DQ in the graph, which this version does not make yet",
    }
    return [Refusal(what=wanted, reason=reasons[wanted]) for wanted in spec.target.precisions if wanted in reasons]


def _devices(spec: Spec, environment: Environment) -> list[Refusal]:
    if environment.gpus:
        return [Refusal(what="GPU runners", reason=f"{len(environment.gpus)} GPU found, but this version runs on the CPU only")]
    return [Refusal(what="GPU runners", reason="no NVIDIA GPU on this machine")]


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


def _minimal_shapes(families: list[Candidate], preprocess: Preprocess, onnx: OnnxModel | None) -> list[Refusal]:
    reason = None
    if preprocess.resize != "letterbox":
        reason = f"resize = {preprocess.resize!r} has no letterbox padding to save"
    elif preprocess.anchor != "top-left":
        reason = "a centred letterbox moves the image on the stride grid"
    elif onnx is not None and not onnx.dynamic:
        reason = "the ONNX file fixes its input shape"
    if reason is not None:
        return [Refusal(what="minimal padding and shape buckets", reason=reason)]
    families += [
        replace(family, shapes="minimal")
        for family in tuple(families)
        if family.runner != "torch-compile" and family.prepost == "host"
    ]
    if any(family.runner == "torch-compile" for family in families):
        return [
            Refusal(
                what="torch-compile with minimal padding or shape buckets",
                reason="every new shape compiles again, for most of a minute",
            )
        ]
    return []


def _buckets(families: list[Candidate], traffic: Traffic, preprocess: Preprocess) -> tuple[Buckets | None, str | None]:
    """What the one bucketed family pads to, or why there is none.

    One family, of ONNX Runtime: every family costs a pass over the evaluation set and a share of the budget. How many buckets
    are best follows from the traffic, without a measurement; and what buckets are for, batches that fill, pays least in eager
    torch.
    """
    if not any(family.runner == "onnxruntime" and family.shapes == "minimal" for family in families):
        return None, None  # refused with the runner or with minimal padding
    chosen = choose_buckets(traffic, preprocess, most=MOST_BUCKETS)
    if len(chosen.buckets) == 1:
        return None, "for this traffic no bucket saves more padding than it costs: the same as fixed shapes"
    sizes = [(shape.height, shape.width) for shape in traffic.shapes]
    if all(input_size(hw, preprocess, chosen.policy) == input_size(hw, preprocess, "minimal") for hw in sizes):
        return None, "this traffic has so few input shapes that each gets its own: the same as minimal padding"
    return chosen, None
