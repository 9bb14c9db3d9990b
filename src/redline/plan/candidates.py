"""The search space: families of candidates that share one accuracy, and the knobs within a family."""

from __future__ import annotations

from dataclasses import dataclass, replace

from redline.records import Candidate, Environment, OnnxModel, Preprocess, Refusal, Spec
from redline.records.run import RunnerKind

MAX_BATCH = 8
COMPILE_MINUTES = 4.0
"""Least budget in which torch.compile is tried: YOLOX-Nano took 31 to 48 s for a thread count on 2 cores, with the compiler's
own cache partly filled (benchmarks/results/2026-11-23-cpu-yolox-nano-416.json, build_seconds)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """`families`: one starting candidate each (all cores, batch 1, one in flight). `batches`: what the batch knob may be."""

    baseline: Candidate
    families: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]
    cores: int
    batches: tuple[int, ...]

    def lawful(self, candidate: Candidate) -> bool:
        """The one statement of what may be combined."""
        fits = candidate.threads * candidate.concurrency <= self.cores
        # A graph with pre-processing inside takes one image; torch.compile would compile every batch size again.
        single = candidate.prepost == "graph" or candidate.runner == "torch-compile"
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
    environment: Environment,
    abilities: Abilities,
    *,
    onnx: OnnxModel | None,
    network_failure: str | None,
    graph_failure: str | None,
    is_torch: bool,
) -> Space:
    """Lawful families for `spec` on `environment`; what is refused carries its reason.

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
    batches = tuple(2**power for power in range(MAX_BATCH.bit_length()))
    if onnx is not None and isinstance(onnx.input.shape[0], int):
        batches = (1,)
        refusals.append(Refusal(what="batch > 1", reason="the ONNX file fixes its batch size"))
    return Space(baseline=baseline, families=tuple(families), refusals=tuple(refusals), cores=cores, batches=batches)


def _precisions(spec: Spec) -> list[Refusal]:
    reasons = {
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
    if preprocess.resize != "letterbox":
        return [Refusal(what="minimal padding", reason=f"resize = {preprocess.resize!r} has no letterbox padding to save")]
    if preprocess.anchor != "top-left":
        return [Refusal(what="minimal padding", reason="a centred letterbox moves the image on the stride grid")]
    if onnx is not None and not onnx.dynamic:
        return [Refusal(what="minimal padding", reason="the ONNX file fixes its input shape")]
    families += [
        replace(family, shapes="minimal")
        for family in tuple(families)
        if family.runner != "torch-compile" and family.prepost == "host"
    ]
    if any(family.runner == "torch-compile" for family in families):
        return [
            Refusal(what="torch-compile with minimal padding", reason="every new shape compiles again, for most of a minute")
        ]
    return []
