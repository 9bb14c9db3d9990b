"""The INT8 graphs that ONNX Runtime's CPU may try: images, calibrator and layers to keep, by what the detections lose.

Joins the rooms data, export and the store, as `calibrating` does for TensorRT; what was made is kept there.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from redline import vision
from redline.calibrating import NO_SET, NONE, WEIGHED, Int8Graphs, Once, choices, chosen_images
from redline.errors import TrialError
from redline.records import OnnxModel
from redline.records.quantize import CalibrationChoice, CalibrationSet, Calibrator, CalibratorLoss, Int8Record, Sensitivity
from redline.store import digest_of
from redline.store.tools import tool_versions

if TYPE_CHECKING:
    from redline.prepare import Subject
    from redline.progress import Progress
    from redline.records import ImageRef
    from redline.records.detect import Tensor
    from redline.sensitivity import Scales
    from redline.store import Store

CALIBRATORS_WEIGHED = 32
"""Images that calibrators are weighed on: with 8 the order of two close ones was chance (the demo detector)."""
CHOOSE_MINUTES = 2.0
"""Least budget in which groups of layers are weighed too: one more calibration and eight images for each of up to twenty."""


def cpu_int8_graphs(subject: Subject, network: OnnxModel, store: Store, once: Once, progress: Progress) -> Int8Graphs:
    """Raises BadInput for a calibration set that cannot be used."""
    given = subject.spec.data.calibrate
    if given is None:
        return replace(NONE, failure=NO_SET)
    choice = chosen_images(given, subject, progress)
    maker = _Maker(subject, network, choice, once)
    try:
        losses, sensitive = _weighed(subject, network, choice, maker, store, progress)
    except TrialError as error:
        return replace(NONE, failure=error.text())
    record = Int8Record(choice=choice, calibration=maker.calibration(), losses=losses, sensitivities=sensitive)
    make = functools.partial(maker.graph, losses[0].method)
    return Int8Graphs(make=make, failure=None, kept=choices(sensitive), record=record)


@dataclass(frozen=True, slots=True, eq=False)
class _Maker:
    subject: Subject
    network: OnnxModel
    choice: CalibrationChoice
    once: Once

    def graph(self, method: Calibrator, kept: tuple[str, ...]) -> OnnxModel:
        """With the layers `kept`, and the activations that follow them, in FP32. Raises TrialError: export-int8."""
        from redline.engine.graph_facts import read_graph
        from redline.export.quantized_cpu import export_cpu_int8, saturates
        from redline.quantize.placement import with_activations

        wide = with_activations(read_graph(self.network.path), kept) if kept else ()
        key: dict[str, object] = {"network": self.network.digest, "images": [image.sha256 for image in self.choice.images]}
        key |= {"preprocess": self.subject.detector.preprocess, "method": method, "wide": kept}
        key |= {"saturates": saturates(), "tools": tool_versions()}

        def export(folder: Path) -> OnnxModel:
            inputs = _inputs(self.choice.images, self.subject)
            return export_cpu_int8(self.network, folder, inputs, method, keep_wide=wide)

        return self.once("export-int8-cpu", key, export, (self.network.digest,))

    def calibration(self) -> CalibrationSet:
        preprocess = self.subject.detector.preprocess
        sizes = {vision.input_size((image.height, image.width), preprocess, "fixed") for image in self.choice.images}
        return CalibrationSet(
            images=tuple(image.sha256 for image in self.choice.images),
            preprocess=digest_of(preprocess),
            selector="cover",
            seed=self.choice.seed,
            input_shapes=tuple(sorted(sizes)),
        )


def _inputs(images: Sequence[ImageRef], subject: Subject) -> Iterator[Tensor]:
    from redline.data import read_bytes

    for image in images:
        yield vision.prepare(vision.decode(read_bytes(image), name=image.path), subject.detector.preprocess, "fixed")[0]


def _weighed(
    subject: Subject, network: OnnxModel, choice: CalibrationChoice, maker: _Maker, store: Store, progress: Progress
) -> tuple[tuple[CalibratorLoss, ...], tuple[Sensitivity, ...]]:
    """Calibrators, least loss first; and groups of layers, if the budget allows for it."""
    from redline.data import read_bytes
    from redline.export.quantized_cpu import CPU_CALIBRATORS
    from redline.sensitivity import Scales

    images = [vision.decode(read_bytes(image), name=image.path) for image in choice.images[:CALIBRATORS_WEIGHED]]
    with tempfile.TemporaryDirectory(prefix="redline-") as folder:
        scales = Scales(network, subject.detector, images, Path(folder), store=store)
        with progress.stage(f"INT8 on {len(choice.images)} images"):
            losses = [
                CalibratorLoss(method=method, divergence=scales.divergence_of(maker.graph(method, ())))
                for method in CPU_CALIBRATORS
            ]
        losses.sort(key=lambda loss: loss.divergence)
        if subject.spec.budget.minutes < CHOOSE_MINUTES:
            return tuple(losses), ()
        with progress.stage("layers by what they lose in INT8"):
            few = Scales(network, subject.detector, images[:WEIGHED], Path(folder), store=store)
            make = functools.partial(maker.graph, losses[0].method)
            return tuple(losses), _sensitivities(few, few.divergence_of(make(())), make)


def _sensitivities(scales: Scales, whole: float, make: Callable[[tuple[str, ...]], OnnxModel]) -> tuple[Sensitivity, ...]:
    """What is regained where one group stays out: layers share kernels with what lies between them, so none is INT8 alone."""
    from redline.quantize.groups import layer_groups

    return tuple(
        Sensitivity(group=group, divergence=max(0.0, whole - scales.divergence_of(make(group.nodes))))
        for group in layer_groups(scales.model)
    )
