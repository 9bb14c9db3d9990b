"""Where a run's TensorRT engines come from: one library, one GPU, one store; an engine without its precision is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from redline.engine.tensorrt_store import Place, build_engine, engine_key, place_on, timed_plan
from redline.errors import TrialError
from redline.store import digest_of

if TYPE_CHECKING:
    from redline.engine.segments import Look
    from redline.engine.tensorrt_builder import OnPhase, Plan
    from redline.engine.tensorrt_versions import Library
    from redline.records import BuildOptions, EngineBuild, OnnxModel, Runner
    from redline.records.detect import Tensor
    from redline.store import Journal, Store

NAMED = 5
"""Layers that a failed proof names; the rest is counted."""
WIDE = ("fp32", "tf32")


class Foundry:
    """Builds and remembers. `watch(name)` shows a build while it runs and yields what is told its phases."""

    def __init__(
        self,
        library: Library,
        store: Store,
        journal: Journal | None,
        watch: Callable[[str], AbstractContextManager[OnPhase]],
        *,
        device: int = 0,
        place: Place | None = None,
    ) -> None:
        """`place`: where the plans are good for; None asks the GPU `device`. Raises TrialError (engine-cuda) without one."""
        self.library, self.store, self.device = library, store, device
        self._journal, self._watch = journal, watch
        self._place = place if place is not None else place_on(device)
        self.builds: dict[str, EngineBuild] = {}
        """Every engine asked for, by the plan's digest, those that failed their proof too."""

    def engine(self, onnx: OnnxModel, options: BuildOptions, name: str) -> EngineBuild:
        """As `build`. Raises TrialError (engine-precision) too, as `require_proved` does."""
        build = self.build(onnx, options, name)
        require_proved(build)
        return build

    def build(self, onnx: OnnxModel, options: BuildOptions, name: str) -> EngineBuild:
        """Built unless the store has it, proved or not. Raises TrialError as `build_engine` does."""
        with self._watch(f"engine of {name}") as on_phase:
            build = build_engine(
                onnx, options, self.library, self.store, device=self.device, journal=self._journal, on_phase=on_phase
            )
        self.builds[build.digest] = build
        return build

    def identity(self, onnx: OnnxModel, options: BuildOptions) -> str:
        """Of the engine that `engine` would give, without building it."""
        return digest_of(engine_key(onnx.digest, options, self.library, self._place))

    def no_fp8(self, capabilities: Sequence[str] = ()) -> str | None:
        """Why no engine in FP8 can be built for these compute capabilities, or for the GPU here; None if it can."""
        here = self._place.gpu.rsplit(" ", 1)[-1:] if self._place.gpu else []
        return self.library.no_fp8(capabilities or here)

    def plan(self, build: EngineBuild) -> bytes:
        return self.store.path(build.digest).read_bytes()

    def open(self, build: EngineBuild) -> Runner:
        """The engine by itself on its GPU, one inference at a time. Raises TrialError as `TensorRTRunner` does."""
        return self._open(self.plan(build), [fact.name for fact in build.outputs], graphs=True)

    def open_cut(self, cut: OnnxModel, options: BuildOptions, name: str) -> Runner:
        """An engine of a graph with further outputs, which is not kept; what was timed for it is."""
        return self._open(self._glance(cut, options, name).data, [fact.name for fact in cut.outputs], graphs=False)

    def look(self, onnx: OnnxModel, options: BuildOptions, batch: Tensor, name: str) -> Look | None:
        """Into engines of the graph by debug tensors; None where the version has none."""
        if not self.library.debug_tensors:
            return None
        from redline.engine.tensorrt_debug import look_by_debug_tensors

        def build(watched: Sequence[str]) -> Plan:
            return self._glance(onnx, options, name, watched)

        return look_by_debug_tensors(onnx.path, options, self.library, batch, device=self.device, build=build)

    def _glance(self, onnx: OnnxModel, options: BuildOptions, name: str, watched: Sequence[str] = ()) -> Plan:
        with self._watch(f"look into {name}") as on_phase:
            return timed_plan(onnx.path, options, self.library, self.store, self._place, on_phase, watched)[0]

    def _open(self, plan: bytes, outputs: Sequence[str], *, graphs: bool) -> Runner:
        from redline.engine.tensorrt_runner import TensorRTRunner

        return TensorRTRunner(plan, self.library, device=self.device, graphs=graphs, outputs=outputs)


def convolution_sources(library: Library) -> tuple[str, ...] | None:
    """Explicit tactic sources: all but the libraries that newer versions dropped; None where there are no such to leave out."""
    from redline.engine.tensorrt_versions import DEAD_SOURCES

    known = library.tactic_sources
    kept = tuple(source for source in known if source not in DEAD_SOURCES)
    return kept if len(kept) < len(known) else None


def require_proved(build: EngineBuild) -> None:
    """Raises TrialError (engine-precision) naming the layers, if the engine did not obtain the narrow type it was asked for.

    FP32 and TF32 have nothing wider to fall back to, so only what is narrower needs the proof.
    """
    proof = build.proof
    if proof.proved or proof.asked in WIDE or build.options.capabilities:
        return
    asked = proof.asked.upper()
    if proof.note:
        raise TrialError("engine-precision", f"nothing proves that the engine computes in {asked}", got=proof.note)
    named = ", ".join(proof.fallen[:NAMED])
    more = f" and {len(proof.fallen) - NAMED} more" if len(proof.fallen) > NAMED else ""
    raise TrialError(
        "engine-precision",
        f"the engine does not compute in {asked} as its graph asks",
        got=f"{proof.fallen_share:.1%} of the operations fell back: {named}{more}",
        allowed=f"{proof.allowed_share:.0%}",
        fix="a higher optimisation level, other tactic sources, or FP32 asked for in these layers",
    )
