"""A run's TensorRT engines looked at closely: which trials count, which layer is to blame, what stays in FP32, the record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from redline.boundary import boundary_failure, boundary_picture
from redline.errors import TrialError
from redline.gpus import dissect
from redline.inspecting import Inspector, Looked, first_bad_layer
from redline.records import BoundaryCheck, Candidate, EngineRecord, Failure, HeldNode, ParityReport, Trial

if TYPE_CHECKING:
    from redline.evaluate import Observer
    from redline.live import Live
    from redline.records import EngineBuild
    from redline.records.detect import Tensor

ROUNDS = 3
"""Mixed graphs at most that a run tries after FP16 has failed; each costs a build of a minute or more."""
BOXES_SHARE = 0.1
"""Part of the boxes that may be unpaired before layers are compared."""
BOUNDARY_MARGIN = 4.0
"""At a boundary shape outputs may differ by this much more than on the images that parity was measured on."""
BOUNDARY, LAYERS = "engine-boundary", "parity-layers"
"""Codes of the failures that layers explain."""


class Examiner:
    """`built` gives a candidate's engine, None for every other runner; `close` closes what is open."""

    def __init__(
        self,
        inspector: Inspector,
        observer: Observer,
        built: Callable[[Candidate], EngineBuild | None],
        anatomy: Callable[[Candidate, Callable[[Live], EngineRecord]], EngineRecord],
        close: Callable[[], None],
    ) -> None:
        self._inspector, self._observer, self._built, self._anatomy, self._close = inspector, observer, built, anatomy, close
        self._checks: dict[str, tuple[BoundaryCheck, ...]] = {}
        """By the plan's digest."""
        self._looked: dict[str, tuple[str, Looked]] = {}
        """By `_graph`: the plan that was looked into, and what was found."""
        self._allowed: dict[tuple[str, tuple[str, ...]], float] = {}
        """By precision and nodes in FP32."""
        self._reasons: dict[str, HeldNode] = {}
        self._tried: set[tuple[str, ...]] = set()
        self._good: tuple[str, ...] | None = None
        """Nodes in FP32 with which an engine kept the accuracy."""

    def held(self, candidate: Candidate) -> tuple[HeldNode, ...]:
        """The candidate's nodes in FP32, and why."""
        return tuple(self._reasons.get(name, HeldNode(node=name, module="", why="asked for")) for name in candidate.wide)

    def require_boundaries(self, candidate: Candidate) -> None:
        """Raises TrialError: engine-boundary if the candidate's engine is wrong at a boundary shape of its profiles."""
        build = self._built(candidate)
        if build is not None:
            failure = boundary_failure(self._boundaries(candidate, build), build.options.profiles)
            if failure is not None:
                raise failure

    def examined(self, trial: Trial) -> Trial:
        """The trial with its engine; failed, with the first bad layer, if its parity is or if a boundary shape is wrong.

        Layers are compared once for each graph, where its first engine is off.
        """
        build, report = self._built(trial.candidate), trial.parity
        if build is None or report is None:
            return trial
        trial = replace(trial, engine=build.digest)
        if trial.candidate.prepost != "host":
            return trial  # the engine is that of another trial; what differs is around it
        self._learn(trial.candidate, report)
        finite = all(delta.finite for delta in report.tensors)
        if report.verdict.answer == "fail" and finite and trial.candidate.precision in ("int8", "fp8"):
            return trial  # rounding loses, and what each group of layers loses of it was measured before the build
        if report.verdict.answer == "fail":
            told = self._blame(trial.candidate, build, lambda: self._observer.hardest(trial.candidate), "parity images")
            return _failed(trial, LAYERS, f"{report.verdict.reason}; {told}" if told else report.verdict.reason)
        checks = self._boundaries(trial.candidate, build)
        failure = boundary_failure(checks, build.options.profiles)
        if failure is not None:
            told = self._blame_at(trial.candidate, build, [check.shape for check in checks if check.taken and not check.passed])
            return _failed(trial, BOUNDARY, f"{failure.text()}\n{told}" if told else failure.text())
        reason = off(report)
        if reason:
            told = self._blame(trial.candidate, build, lambda: self._observer.hardest(trial.candidate), "parity images")
            self._inspector.progress.note(f"{trial.candidate.name}: {reason}; {told}")
        return trial

    def wider(self, trial: Trial) -> Candidate | None:
        """After an FP16 engine failed: the same with more nodes in FP32; what kept the accuracy in another engine first.

        None if it did not fail, if nothing more can be held, or after `ROUNDS` sets of nodes.
        """
        candidate, failure = trial.candidate, trial.failure
        if candidate.prepost != "host":
            lost = trial.parity is not None and trial.parity.verdict.answer == "fail"
            return replace(candidate, wide=self._good) if lost and self._good and self._good != candidate.wide else None
        if candidate.runner != "tensorrt" or candidate.precision != "fp16":
            return None
        if failure is None:
            self._good = candidate.wide or self._good
            return None
        if failure.code not in (BOUNDARY, LAYERS):
            return None
        if self._good is not None:
            return replace(candidate, wide=self._good) if self._good != candidate.wide else None
        graph = self._graph(candidate)
        more = self._looked[graph][1].hold if graph in self._looked else ()
        wide = (*candidate.wide, *(held.node for held in more))
        if not more or wide in self._tried or len(self._tried) >= ROUNDS:
            return None
        self._tried.add(wide)
        self._reasons |= {held.node: held for held in more}
        wider = replace(candidate, wide=wide)
        try:
            self._inspector.graphs.of(wider)
        except TrialError as error:
            self._inspector.progress.note(error.text())
            return None
        return wider

    def engines(self, trials: tuple[Trial, ...]) -> tuple[EngineRecord, ...]:
        """Every engine of the run; of those that a trial measured, where an inference's time goes in them."""
        alone = [trial for trial in reversed(trials) if trial.screen is not None and trial.candidate.prepost == "host"]
        first = {trial.engine: trial.candidate for trial in alone}
        looked = {plan: found.parity for plan, found in self._looked.values()}
        records = []
        for digest, build in self._inspector.foundry.builds.items():
            record = self._dissected(build, first[digest]) if digest in first else EngineRecord(build=build)
            checks = self._checks.get(digest, ())
            records.append(replace(record, boundaries=checks, layer_parity=looked.get(digest)))
        return tuple(records)

    def _dissected(self, build: EngineBuild, candidate: Candidate) -> EngineRecord:
        try:
            return self._anatomy(candidate, lambda live: dissect(live, build))
        except TrialError as error:  # what was measured before stands
            self._inspector.progress.note(error.text())
            return EngineRecord(build=build)

    def _learn(self, candidate: Candidate, report: ParityReport) -> None:
        key = (candidate.precision, candidate.wide)
        worst = max((delta.max_rel for delta in report.tensors if delta.finite), default=0.0)
        self._allowed[key] = max(self._allowed.get(key, 0.0), BOUNDARY_MARGIN * worst)

    def _boundaries(self, candidate: Candidate, build: EngineBuild) -> tuple[BoundaryCheck, ...]:
        if build.digest not in self._checks:
            self._close()  # the engine is opened alone, and the reference beside it
            allowed = self._allowed.get((candidate.precision, candidate.wide), 0.0)
            self._checks[build.digest] = self._inspector.boundaries(candidate, build, allowed=allowed)
        return self._checks[build.digest]

    def _graph(self, candidate: Candidate) -> str:
        """What engines of the same arithmetic share: FP32 and TF32 are built from one graph."""
        graph = self._inspector.graphs.of(candidate)
        assert graph is not None
        return f"{candidate.precision} {graph.digest}"

    def _blame_at(self, candidate: Candidate, build: EngineBuild, shapes: list[tuple[int, ...]]) -> str:
        """`_blame` by the picture of the first of these boundary shapes, "" if there is none."""
        preprocess = self._inspector.subject.detector.preprocess
        return self._blame(candidate, build, lambda: boundary_picture(shapes[0], preprocess), str(shapes[0])) if shapes else ""

    def _blame(self, candidate: Candidate, build: EngineBuild, batch: Callable[[], Tensor], what: str) -> str:
        """The first bad layer of the candidate's graph, "" if nobody could look."""
        graph = self._graph(candidate)
        if graph not in self._looked:

            def alone() -> Tensor:
                found = batch()
                self._close()
                return found

            try:
                self._looked[graph] = (build.digest, self._inspector.layers(candidate, build, alone, what))
            except TrialError as error:
                self._inspector.progress.note(error.text())
                return ""
        plan, found = self._looked[graph]
        elsewhere = "" if plan == build.digest else f" (as engine {plan[:12]} of the same graph shows)"
        return first_bad_layer(found.parity) + elsewhere


def off(report: ParityReport) -> str:
    """Why the layers of an engine that did not fail are worth comparing; "" if they are not.

    Boxes count where the accuracy is in doubt: equal scores and other padding pair them otherwise, and blame no layer.
    """
    for delta in report.tensors:
        if not delta.finite:
            return f"NaN or infinity in output {delta.name}"
        if delta.max_rel > delta.tolerance:
            return f"output {delta.name} differs by {delta.max_rel:.2g} (tolerance {delta.tolerance:g})"
    boxes, doubt = report.boxes, report.verdict.answer != "pass"
    unpaired, total = boxes.missing + boxes.extra, boxes.matched + boxes.missing
    return f"{unpaired} boxes unpaired of {total}" if doubt and unpaired > BOXES_SHARE * total else ""


def _failed(trial: Trial, code: str, message: str) -> Trial:
    return replace(trial, failure=Failure(stage="parity", code=code, message=message))
