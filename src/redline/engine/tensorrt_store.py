"""Engines and timings kept: an engine is built once for all processes, and the next build reuses what was timed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redline.engine.tensorrt_builder import Plan, build_plan, prove_precision
from redline.engine.tensorrt_proof import untyped
from redline.errors import StoreError, TrialError
from redline.records import BuildOptions, EngineBuild, OnnxModel
from redline.store import Journal, Store, digest_of
from redline.store.disk import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from redline.engine.tensorrt_builder import OnPhase
    from redline.engine.tensorrt_versions import Library


@dataclass(frozen=True, slots=True)
class Place:
    """What a plan and its timings are good for."""

    gpu: str
    """Name and compute capability; "" where plans are built ahead of time."""
    driver: str


AHEAD_OF_TIME = Place("", "")


def place_of(options: BuildOptions, device: int) -> Place:
    """Raises TrialError: engine-cuda without a GPU, unless the options name compute capabilities."""
    return AHEAD_OF_TIME if options.capabilities else place_on(device)


def place_on(device: int) -> Place:
    """Raises TrialError: engine-cuda without such a GPU."""
    from redline.engine import cuda

    name, capability, driver = cuda.describe(device)
    return Place(f"{name} {capability}", driver)


def build_engine(
    onnx: OnnxModel,
    options: BuildOptions,
    library: Library,
    store: Store,
    *,
    device: int = 0,
    journal: Journal | None = None,
    on_phase: OnPhase | None = None,
) -> EngineBuild:
    """The engine for `onnx`, built unless the store has it; of several processes one builds and the others wait.

    Raises TrialError as `build_plan` does. A failed build leaves nothing behind.
    """
    place = place_of(options, device)
    key = engine_key(onnx.digest, options, library, place)

    def compute() -> EngineBuild:
        return _build(onnx, options, library, store, place, device, on_phase)

    return store.once(
        stage="engine", key=key, kind="engine", type=EngineBuild, compute=compute, parents=(onnx.digest,), journal=journal
    )


def engine_key(graph: str, options: BuildOptions, library: Library, place: Place) -> dict[str, Any]:
    """All that makes two engines differ."""
    return {
        "graph": graph,
        "options": options,
        "library": library.name,
        "version": library.version,
        "gpu": place.gpu,
        "driver": place.driver,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """An engine built again from its record: what is equal."""

    seconds: float
    first_seconds: float
    same_bytes: bool
    same_tactics: bool
    changed: tuple[str, ...]
    """Layers whose tactic, type or fused nodes differ."""


def replay(record: EngineBuild, library: Library, store: Store, *, device: int = 0, on_phase: OnPhase | None = None) -> Replay:
    """Build again what `record` says, with today's timing cache. Raises TrialError: engine-replay on another machine."""
    place = place_of(record.options, device)
    here = (library.name, library.version, place.gpu, place.driver)
    there = (record.library, record.version, record.gpu, record.driver)
    if here != there:
        got, allowed = (", ".join(part for part in parts if part) for parts in (here, there))
        raise TrialError(
            "engine-replay", "This is not where the engine was built", got=got, allowed=allowed, fix="build a new one here"
        )
    onnx = store.path(record.onnx)
    known = _read(_timings(store, library, place)) if record.options.timing_cache else b""
    plan = build_plan(str(onnx), record.options, library, timing_cache=known, on_phase=on_phase)
    layers = _proof(library, plan, record.options, device)[0].layers
    old = {layer.name: (layer.tactic, layer.precision, layer.nodes) for layer in record.proof.layers}
    new = {layer.name: (layer.tactic, layer.precision, layer.nodes) for layer in layers}
    changed = tuple(sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)))
    same = digest_of(plan.data) == record.digest
    return Replay(
        seconds=plan.seconds, first_seconds=record.seconds, same_bytes=same, same_tactics=not changed, changed=changed
    )


def _build(
    onnx: OnnxModel, options: BuildOptions, library: Library, store: Store, place: Place, device: int, on_phase: OnPhase | None
) -> EngineBuild:
    plan, warm = timed_plan(onnx.path, options, library, store, place, on_phase)
    proof, memory = _proof(library, plan, options, device)
    return EngineBuild(
        digest=store.put_bytes(plan.data, kind="plan", suffix=".plan", parents=(onnx.digest,), stage="engine"),
        plan_bytes=len(plan.data),
        onnx=onnx.digest,
        library=library.name,
        version=library.version,
        gpu=place.gpu,
        driver=place.driver,
        options=options,
        seconds=plan.seconds,
        timing_cache="none" if not plan.timing_cache or not _timed(options) else "warm" if warm else "cold",
        device_memory_bytes=memory,
        inputs=plan.inputs,
        outputs=plan.outputs,
        proof=proof,
        warnings=plan.log.distinct_warnings(),
    )


def timed_plan(
    path: str,
    options: BuildOptions,
    library: Library,
    store: Store,
    place: Place,
    on_phase: OnPhase | None = None,
    watched: Sequence[str] = (),
) -> tuple[Plan, bool]:
    """`build_plan` with the timings that the store has for this place, to which it adds; and whether there were any."""
    timings = _timings(store, library, place)
    with store.lock(f"timing-{timings.name}", what="another engine's build on this GPU"):
        # One build a GPU at a time: two would disturb each other's timings.
        known = _read(timings) if _timed(options) else b""
        plan = build_plan(path, options, library, timing_cache=known, on_phase=on_phase, watched=watched)
        if plan.timing_cache and _timed(options):
            write_file(timings, plan.timing_cache, store.scratch)
    return plan, bool(known)


def _timed(options: BuildOptions) -> bool:
    """Whether timings are taken from the store and kept there. Nothing is timed where no GPU is."""
    return options.timing_cache and not options.capabilities


def _proof(library: Library, plan: Plan, options: BuildOptions, device: int) -> tuple[Any, int | None]:
    if options.capabilities:  # no GPU of that kind need be here: what the typed network says is all there is
        return untyped(options.precision, plan.nodes, "built ahead of time: the inspector opens a plan only on its GPU"), None
    from redline.engine import cuda
    from redline.engine.tensorrt_runner import open_engine

    cuda.select(device)
    engine, _, alive = open_engine(plan.data, library, host_code=options.version_compatible)
    try:
        return prove_precision(library, engine, options, plan.nodes), library.context_bytes(engine)
    finally:
        del engine, alive


def _timings(store: Store, library: Library, place: Place) -> Path:
    """One file for each GPU, TensorRT version and driver: timings of one say nothing of another."""
    name = digest_of([library.name, library.version, place.gpu, place.driver])[:16]
    return store.root / "timing" / f"{name}.cache"


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError, StoreError):
        return path.read_bytes()
    return b""
