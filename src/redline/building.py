"""`redline build`: the TensorRT engine of a spec, proved and kept; and the same engine built again and compared."""

from __future__ import annotations

import difflib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redline.boundary import boundary_failure
from redline.calibrating import NO_SET
from redline.errors import BadInput, TrialError
from redline.inspecting import Inspector, first_bad_layer
from redline.live import engine_options
from redline.plan.candidates import MAX_BATCH, MOST_BUCKETS, no_minimal
from redline.plan.gpu import asked_precisions
from redline.prepare import export_graphs, load_subject, run_id
from redline.records import BoundaryCheck, Candidate, EngineBuild, LayerParity, ProfileKind, Spec, Verdict
from redline.records.spec import Precision
from redline.store import Journal, Store

if TYPE_CHECKING:
    from redline.engine.foundry import Foundry
    from redline.engine.tensorrt_store import Replay
    from redline.prepare import Graphs, Subject
    from redline.progress import Progress
    from redline.records.detect import Tensor

LEVELS = range(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to build; see `api.build`."""

    precision: Precision | None = None
    profiles: ProfileKind = "exact"
    minimal: bool = False
    batched: bool = False
    level: int | None = None
    capabilities: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    """ONNX nodes to hold in FP32."""
    layers: bool = False
    """Compare it layer by layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    build: EngineBuild
    verdict: Verdict
    """pass; fail: the precision fell back, a boundary shape or a layer is wrong; inconclusive: the inspector does not tell."""
    boundaries: tuple[BoundaryCheck, ...] = ()
    """Every boundary shape of its profiles; empty: it cannot run here, or its precision is not proved."""
    layers: LayerParity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    build: EngineBuild
    """The engine that was built again."""
    found: Replay
    """What is equal."""
    verdict: Verdict


def build(spec: Spec, wanted: Wanted, *, runs: Path, progress: Progress) -> Built:
    """See `api.build`."""
    candidate = _candidate(spec, wanted)
    store, journal = Store(runs / "store", on_wait=progress.note), Journal(runs / run_id(spec) / "journal.jsonl")
    foundry = _foundry(spec, wanted, store, journal, progress)
    if candidate.precision == "fp8" and (reason := foundry.no_fp8(wanted.capabilities)) is not None:
        raise BadInput("build.precision", "no engine in FP8 can be built", got=reason, fix="--precision int8 or fp16")
    # The graph in FP16 is made where the spec names that precision, and what is wanted here comes before.
    asked = replace(spec, target=replace(spec.target, precisions=(candidate.precision,)))
    with ThreadPoolExecutor(1) as aside:  # torch's OpenMP pool ends with the thread
        subject = aside.submit(load_subject, asked, progress).result()
        _require_shapes(subject, wanted)
        export = partial(export_graphs, for_gpu=True, typed=foundry.library.strongly_typed)
        graphs = aside.submit(export, subject, store, journal, progress).result()
    _require_nodes(graphs, wanted)
    onnx = graphs.of(candidate)
    if onnx is None:
        why = graphs.network_failure or graphs.half_failure or graphs.int8.failure or graphs.fp8.failure
        raise TrialError("engine-no-graph", "TensorRT needs an exported graph", got=why, fix="see why the export failed")
    candidate = _with_shapes(subject, candidate)
    options = engine_options(subject, graphs, candidate, foundry)
    if wanted.level is not None:
        options = replace(options, optimization_level=wanted.level)
    made = foundry.build(onnx, replace(options, capabilities=wanted.capabilities), candidate.name)
    verdict = judge(made)
    if wanted.capabilities or verdict.answer != "pass":
        return Built(build=made, verdict=verdict)
    inspector = Inspector(
        subject=subject,
        graphs=graphs,
        foundry=foundry,
        reference=_reference(subject, foundry),
        store=store,
        journal=journal,
        progress=progress,
    )
    return _inspected(inspector, candidate, made, verdict, layers=wanted.layers)


def _inspected(inspector: Inspector, candidate: Candidate, made: EngineBuild, verdict: Verdict, *, layers: bool) -> Built:
    checks = inspector.boundaries(candidate, made)
    failure = boundary_failure(checks, made.options.profiles)
    reasons = [f"{failure.what}: {failure.got}"] if failure is not None else []
    found = None
    if layers:
        found = inspector.layers(candidate, made, lambda: _first_image(inspector.subject, candidate), "first image").parity
        reasons += [first_bad_layer(found)] if found.faults else []
    if reasons:
        verdict = Verdict(answer="fail", reason="; ".join(reasons))
    return Built(build=made, verdict=verdict, boundaries=checks, layers=found)


def _first_image(subject: Subject, candidate: Candidate) -> Tensor:
    from redline import vision
    from redline.data import read_bytes

    image = subject.dataset.images[0]
    decoded = vision.decode(read_bytes(image), name=image.path)
    return vision.prepare(decoded, subject.detector.preprocess, candidate.shapes)[0][None]


def _reference(subject: Subject, foundry: Foundry) -> Candidate:
    """FP32, as a run has it."""
    if subject.detector.module is None:
        return Candidate(runner="onnxruntime", threads=os.cpu_count() or 1)
    return Candidate(runner="torch-eager", device=f"cuda:{foundry.device}")


def replay(store: Store, prefix: str, *, progress: Progress) -> Replayed:
    """See `api.replay`."""
    from redline.engine import tensorrt_store
    from redline.engine.tensorrt_versions import find

    record = find_build(store, prefix)
    library = find("tensorrt-rtx" if record.library == "tensorrt-rtx" else "tensorrt")
    with progress.build(f"engine {record.digest[:12]} again") as on_phase:
        found = tensorrt_store.replay(record, library, store, on_phase=on_phase)
    return Replayed(build=record, found=found, verdict=_compared(record, found))


def judge(build: EngineBuild) -> Verdict:
    """Did the engine obtain the precision it was asked for?"""
    from redline.engine.foundry import require_proved

    proof = build.proof
    try:
        require_proved(build)
    except TrialError as error:
        answer: Any = "inconclusive" if proof.note else "fail"
        return Verdict(answer=answer, reason=f"{error.what}: {error.got}")
    if build.options.capabilities:
        return Verdict(answer="pass", reason=f"not proved: {proof.note}")
    found = ", ".join(f"{share:.1%} {kind.upper()}" for kind, share in proof.shares)
    return Verdict(answer="pass", reason=f"the inspector shows {found or 'no types'} of the operations")


def find_build(store: Store, prefix: str) -> EngineBuild:
    """The record of an engine, by its digest or its record's. Raises BadInput if there is none or several."""
    digest = store.resolve(prefix)
    kind = store.meta(digest).kind
    if kind == "plan":
        records = (other for other in store.digests() if store.meta(other).kind == "engine")
        digest = next((other for other in records if digest in store.meta(other).names), "")
    elif kind != "engine":
        fix = "redline build prints the digest of its engine, and run.json has them in `engines`"
        raise BadInput("build.not-an-engine", f"{digest[:12]} is not an engine", got=kind, fix=fix)
    if not digest:
        raise BadInput("build.no-record", f"no record says how {prefix} was built", fix="redline build makes it anew")
    return store.get_record(EngineBuild, digest)


def _compared(record: EngineBuild, found: Replay) -> Verdict:
    if found.same_bytes:
        return Verdict(answer="pass", reason="the same bytes")
    if not record.proof.layers:
        return Verdict(
            answer="inconclusive", reason="other bytes, and the layers of a plan built ahead of time cannot be read here"
        )
    if found.same_tactics:
        return Verdict(answer="pass", reason="the same layers, tactics and types; other bytes")
    few = ", ".join(found.changed[:3])
    return Verdict(answer="fail", reason=f"{len(found.changed)} layers have another tactic, type or fusion: {few}")


def _candidate(spec: Spec, wanted: Wanted) -> Candidate:
    """Without its shapes where they come from the traffic. Raises BadInput for what cannot be asked."""
    asked = asked_precisions(spec)
    precision = wanted.precision or (asked[-1] if asked else "fp32")
    if precision in ("int8", "fp8") and spec.data.calibrate is None:
        raise BadInput("build.precision", f"{precision.upper()} {NO_SET}", fix="name images in the spec, or --precision fp16")
    if wanted.minimal and wanted.profiles != "exact":
        what = f"--minimal goes with exact profiles: {wanted.profiles} ones have shapes of their own"
        raise BadInput("build.shapes", what, fix="leave it out")
    if wanted.level is not None and wanted.level not in LEVELS:
        raise BadInput("build.level", "no such optimisation level", got=wanted.level, allowed="0 (fastest build) to 5")
    if wanted.wide and precision not in ("fp16", "int8", "fp8"):
        what = f"nodes are held wide in a graph in FP16, INT8 or FP8, not in {precision}"
        raise BadInput("build.wide", what, fix="--precision fp16")
    if wanted.layers and wanted.capabilities:
        what = "layers are compared by running the engine, and one built ahead of time does not run here"
        raise BadInput("build.layers", what, fix="leave out --layers or --capability")
    shapes: Any = "minimal" if wanted.minimal or wanted.profiles == "dynamic" else "fixed"
    return Candidate(
        runner="tensorrt",
        precision=precision,
        device="cuda:0",
        batch=MAX_BATCH if wanted.batched else 1,
        shapes=shapes,
        profiles=wanted.profiles,
        cuda_graphs=True,
        wide=wanted.wide,
    )


def _require_nodes(graphs: Graphs, wanted: Wanted) -> None:
    from redline.engine.graph_facts import read_graph

    if not wanted.wide or graphs.network is None:
        return
    names = [node.name for node in read_graph(graphs.network.path).graph.node]
    for name in wanted.wide:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            fix = f"did you mean {near[0]}?" if near else "redline build --layers names nodes"
            raise BadInput("build.wide", "the graph has no such node", got=name, allowed=f"one of its {len(names)}", fix=fix)


def _require_shapes(subject: Subject, wanted: Wanted) -> None:
    reason = no_minimal(subject.detector.preprocess, None)
    if reason is not None and (wanted.minimal or wanted.profiles != "exact"):
        raise BadInput("build.shapes", f"every input has one shape here: {reason}", fix="--profiles exact without --minimal")


def _with_shapes(subject: Subject, candidate: Candidate) -> Candidate:
    from redline.plan.buckets import choose_buckets

    if candidate.profiles != "bucketed":
        return candidate
    return replace(candidate, shapes=choose_buckets(subject.traffic, subject.detector.preprocess, most=MOST_BUCKETS).policy)


def _foundry(spec: Spec, wanted: Wanted, store: Store, journal: Journal, progress: Progress) -> Foundry:
    """For the GPU here, or ahead of time. Raises BadInput if there is nothing to build with or for."""
    from redline.engine.foundry import Foundry
    from redline.engine.tensorrt_store import AHEAD_OF_TIME
    from redline.engine.tensorrt_versions import find

    if wanted.capabilities:
        library = find("tensorrt-rtx")
        problem = library.refuses(spec.target.tensorrt)
        if problem is not None:
            raise BadInput("build.option", "TensorRT-RTX cannot build as the spec asks", got=problem, fix="leave it out")
        return Foundry(library, store, journal, progress.build, place=AHEAD_OF_TIME)
    from redline.doctor import inspect_machine
    from redline.gpus import open_foundry

    if not inspect_machine().gpus:
        fix = "--capability 8.9 builds ahead of time for GPUs of that kind, with tensorrt-rtx"
        raise BadInput("build.no-gpu", "an engine is built on the GPU that will run it, and there is none here", fix=fix)
    foundry, facts = open_foundry(spec, store, journal, progress)
    if foundry is None:
        raise BadInput("build.no-tensorrt", "TensorRT cannot be used here", got=facts.problem, fix="see `redline doctor`")
    return foundry
