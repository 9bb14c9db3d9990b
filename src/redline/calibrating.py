"""The INT8 and FP8 graphs that a run may try: images chosen, ranges measured, calibrator and layers to keep by what they lose.

Joins the rooms data, quantize, export and the store; everything is kept there, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from redline.errors import TrialError
from redline.mixing import Mix, picked
from redline.records import OnnxModel
from redline.records.quantize import (
    CalibrationChoice,
    CalibratorLoss,
    FixOutcome,
    Int8Graph,
    Int8Record,
    Number,
    QuantTable,
    Ranges,
    Sensitivity,
)
from redline.store.tools import tool_versions

if TYPE_CHECKING:
    from redline.prepare import Subject
    from redline.progress import Progress
    from redline.records import DataRef, Trial
    from redline.store import Journal, Store

MOST_IMAGES = 64
"""Images that ranges are measured on."""
WEIGHED = 8
"""Of them, those that calibrators and groups of layers are weighed on."""
KEPT_SHARE = 0.8
"""The second INT8 graph keeps, out of INT8, the groups that carry this share of what all groups lose by themselves."""
NO_SET = "needs images to calibrate on: give [data] calibrate"

Once = Callable[..., OnnxModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Graphs:
    """Why there are none, or the graph for layers that stay out of INT8 (FP8), and which such choices are worth a trial."""

    make: Callable[[tuple[str, ...]], OnnxModel] | None
    failure: str | None
    kept: tuple[tuple[str, ...], ...] = ()
    """Names of layers; the first is the empty choice: all that can be are rounded."""
    record: Int8Record | None = None
    """What they rest on, without the graphs."""

    def recorded(self, trials: Sequence[Trial]) -> Int8Record | None:
        """With the graphs of the trials' candidates."""
        wide = dict.fromkeys(trial.candidate.wide for trial in trials if trial.candidate.precision == "int8")
        if self.record is None or self.make is None:
            return None
        return replace(self.record, graphs=tuple(Int8Graph(wide=names, onnx=self.make(names)) for names in wide))


NONE = Int8Graphs(make=None, failure=None)


def int8_graphs(
    subject: Subject,
    network: OnnxModel,
    source: OnnxModel,
    store: Store,
    journal: Journal,
    once: Once,
    progress: Progress,
    *,
    choose: bool = True,
    number: Number = "int8",
    choice: CalibrationChoice | None = None,
    mix: Mix | None = None,
) -> Int8Graphs:
    """`source`: the graph that is rounded, of FP32 for TensorRT 8.6, of FP16 for what takes types from the graph.

    `choose`: weigh groups of layers too. `choice`: of images, if it was made before. `mix`: the frontier of groups, a few
    points of which are tried; None: those that lose most stay out. Raises BadInput for a calibration set that cannot be used.
    """
    given = subject.spec.data.calibrate
    if given is None:
        return replace(NONE, failure=NO_SET)
    choice = choice or chosen_images(given, subject, progress)
    try:
        table, record = _weighed(subject, network, choice, store, journal, progress, choose=choose, number=number)
    except TrialError as error:
        return replace(NONE, failure=error.text())
    front = mix(network, record.sensitivities, number) if mix is not None and record.sensitivities else ()
    kept = picked(front, record.sensitivities) if front else choices(record.sensitivities)
    record = replace(record, frontier=front)
    return Int8Graphs(make=_maker(network, source, table, once), failure=None, kept=kept, record=record)


def chosen_images(given: DataRef, subject: Subject, progress: Progress) -> CalibrationChoice:
    """Raises BadInput for a calibration set that cannot be used."""
    from redline.data import load_dataset
    from redline.data.calibration import choose_calibration

    with progress.stage("calibration images"):
        dataset = load_dataset(given, role="calibrate")
        choice = choose_calibration(dataset, MOST_IMAGES, evaluate=subject.judged, force=subject.spec.data.overlap == "allow")
    for warning in choice.warnings:
        progress.note(warning)
    return choice


def _weighed(
    subject: Subject,
    network: OnnxModel,
    choice: CalibrationChoice,
    store: Store,
    journal: Journal,
    progress: Progress,
    *,
    choose: bool,
    number: Number,
) -> tuple[QuantTable, Int8Record]:
    """The table of the calibrator and the remedies that lose least, and what it rests on."""
    from redline.data import read_bytes
    from redline.fixing import Fixing
    from redline.quantizing import calibrate, table_of
    from redline.sensitivity import Scales, choose_calibrator, sensitivities
    from redline.vision import decode

    key: dict[str, object] = {"network": network.digest, "images": [image.sha256 for image in choice.images]}
    key |= {"preprocess": subject.detector.preprocess, "tools": tool_versions()}
    paths = [Path(image.path) for image in choice.images]
    with progress.stage(f"ranges on {len(paths)} images"):
        ranges = store.once(
            stage="calibrate", key=key, kind="ranges", type=Ranges, parents=(network.digest,), journal=journal,
            compute=lambda: calibrate(network, subject.detector, paths, selector="cover", seed=choice.seed),
        )  # fmt: skip
    images = [decode(read_bytes(image), name=image.path) for image in choice.images[:WEIGHED]]
    what = f"calibrators and layers in {number.upper()} by their loss"
    with tempfile.TemporaryDirectory(prefix="redline-") as folder, progress.stage(what):
        scales = Scales(network, subject.detector, images, Path(folder), store=store)
        losses: tuple[CalibratorLoss, ...] = choose_calibrator(scales, ranges, number)
        table = table_of(network, ranges, losses[0].method, number=number)
        fixes: tuple[FixOutcome, ...] = ()
        if number == "int8":
            fixing = Fixing(scales, subject.detector, paths, store=store, journal=journal, selector="cover", seed=choice.seed)
            table, fixes = fixing.best(table, subject.spec.objective.map_drop_pct)
        for fix in fixes:
            progress.note(_told(fix))
        found = sensitivities(scales, table) if choose else ()
    calibration = ranges.calibration
    return table, Int8Record(choice=choice, calibration=calibration, losses=losses, fixes=fixes, sensitivities=found)


def _told(fix: FixOutcome) -> str:
    if fix.after is None:
        return f"{fix.fix}: {fix.note}"
    return f"{fix.fix}: divergence {fix.before:.4f} to {fix.after:.4f}, {'kept' if fix.kept else 'not kept'}"


def choices(sensitive: tuple[Sensitivity, ...]) -> tuple[tuple[str, ...], ...]:
    """Everything in INT8; and without the groups that lose most."""
    whole, held = sum(found.divergence for found in sensitive), 0.0
    kept: list[str] = []
    for found in sorted(sensitive, key=lambda one: -one.divergence):
        if held >= KEPT_SHARE * whole:
            break
        held += found.divergence
        kept += found.group.nodes
    every = {name for found in sensitive for name in found.group.nodes}
    return ((), tuple(sorted(kept))) if 0 < len(kept) < len(every) else ((),)


def _maker(network: OnnxModel, source: OnnxModel, table: QuantTable, once: Once) -> Callable[[tuple[str, ...]], OnnxModel]:
    from redline.engine.graph_facts import read_graph
    from redline.export.quantized import export_int8
    from redline.quantizing import narrowed

    @functools.cache
    def make(kept: tuple[str, ...]) -> OnnxModel:
        held = narrowed(read_graph(network.path), table, kept) if kept else table
        key = {"network": source.digest, "table": held, "tools": tool_versions()}
        return once(f"export-{table.number}", key, lambda folder: export_int8(source, folder, held), (source.digest,))

    return make
