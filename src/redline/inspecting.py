"""What a TensorRT engine is asked beside its answers: right at every boundary shape, and, where it is off, in which layer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from redline.boundary import check_boundaries
from redline.engine.build import build_runner, engine_digest
from redline.plan.boundaries import profile_at
from redline.records import BoundaryCheck, Candidate, HeldNode, LayerParity

if TYPE_CHECKING:
    from redline.engine.foundry import Foundry
    from redline.prepare import Graphs, Subject
    from redline.progress import Progress
    from redline.records import BuildOptions, EngineBuild, OnnxModel
    from redline.records.detect import Tensor
    from redline.store import Journal, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    checks: tuple[BoundaryCheck, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    parity: LayerParity
    hold: tuple[HeldNode, ...]
    """Nodes to keep in FP32 next, if the engine is FP16."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspector:
    """`reference`: the FP32 candidate that engines are compared with. What was found is kept in the store, for each engine."""

    subject: Subject
    graphs: Graphs
    foundry: Foundry
    reference: Candidate
    store: Store
    journal: Journal
    progress: Progress
    salt: str = ""
    """Another one measures anew."""

    def boundaries(self, candidate: Candidate, build: EngineBuild, *, allowed: float = 0.0) -> tuple[BoundaryCheck, ...]:
        """Engine and reference are both open meanwhile. `allowed` and errors: as `check_boundaries` has them."""
        detector = self.subject.detector
        key = {
            "engine": build.digest,
            "reference": engine_digest(detector, self.graphs.network, self.reference),
            "preprocess": detector.preprocess,
            "allowed": allowed,
            "salt": self.salt,
        }

        def compute() -> Checked:
            with self.progress.stage(f"boundary shapes of {candidate.name}"):
                engine = self.foundry.open(build)
                try:
                    reference = build_runner(detector, self.graphs.network, self.reference)
                    try:
                        return Checked(
                            checks=check_boundaries(
                                engine,
                                reference,
                                build.options.profiles,
                                detector.preprocess,
                                build.options.precision,
                                [output.name for output in detector.facts.outputs],
                                refuses=True,
                                allowed=allowed,
                            )
                        )
                    finally:
                        reference.close()
                finally:
                    engine.close()

        found = self.store.once(
            stage="boundaries", key=key, kind="boundaries", type=Checked, compute=compute, parents=(build.digest,),
            journal=self.journal,
        )  # fmt: skip
        return found.checks

    def layers(self, candidate: Candidate, build: EngineBuild, batch: Callable[[], Tensor], what: str) -> Looked:
        """`what` names the batch. Raises TrialError as `compare_layers` does."""
        network, asked = self.graphs.network, self.graphs.of(candidate)
        assert network is not None
        assert asked is not None

        def compute() -> Looked:
            from redline.mixed import nodes_to_hold

            given = batch()
            found = find_layers(self.foundry, network, asked, build.options, given, candidate.name)
            hold = nodes_to_hold(found, network, given, candidate.wide) if candidate.precision == "fp16" else ()
            return Looked(parity=found, hold=hold)

        key = {"engine": build.digest, "data": self.subject.dataset.digest, "what": what, "salt": self.salt}
        return self.store.once(
            stage="layers", key=key, kind="layers", type=Looked, compute=compute, parents=(build.digest,), journal=self.journal
        )


def find_layers(
    foundry: Foundry, network: OnnxModel, asked: OnnxModel, options: BuildOptions, batch: Tensor, name: str
) -> LayerParity:
    """`compare_layers` with engines as `options` has them but with one profile, that of the batch's shape."""
    from redline.layers import compare_layers

    profile = replace(profile_at(options.profiles, tuple(batch.shape)), index=0)
    one = replace(options, profiles=(profile,))
    with tempfile.TemporaryDirectory(prefix="redline-") as folder:
        found = compare_layers(
            network,
            asked,
            lambda cut: foundry.open_cut(cut, one, name),
            batch,
            options.precision,
            folder=Path(folder),
            look=foundry.look(asked, one, batch, name),
        )
    return replace(found, engine=f"{foundry.library.name} {foundry.library.version}")


def first_bad_layer(found: LayerParity) -> str:
    """Where the error begins, in a sentence; or that no layer is to blame, and which adds most."""
    precision = found.precision.upper()
    if found.faults:
        fault = found.faults[0]
        nodes = " + ".join(f"{node} ({operator})" for node, operator in zip(fault.nodes, fault.operators, strict=True))
        what = "makes infinity or NaN of finite values"
        if fault.finite:
            what = f"adds an error of {fault.local:.2g} where {precision} explains {fault.explained:.2g}"
        more = f"; {len(found.faults) - 1} more" if len(found.faults) > 1 else ""
        return f"the first bad layer is {nodes}{_module(fault.module)}: it {what}{more}"
    worst = max(found.points, key=lambda point: point.local)
    return (
        f"no layer is wrong beyond what {precision} explains; the stretch up to {worst.node} ({worst.operator})"
        f"{_module(worst.module)} adds most: {worst.local:.2g}"
    )


def _module(module: str) -> str:
    return f" of module {module}" if module else ""
