"""What a run is about: the data, the detector and its graphs, loaded and checked before anything is measured."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from redline.calibrating import NONE, Int8Graphs, chosen_images, int8_graphs
from redline.calibrating_cpu import cpu_int8_graphs
from redline.errors import BadInput, TrialError
from redline.records import Candidate, Dataset, Detector, OnnxModel, ServeSpec, Spec, Traffic
from redline.records.quantize import Number
from redline.store import Journal, Store, digest_of
from redline.store.tools import tool_versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from redline.mixing import Mix
    from redline.progress import Progress

NUMBERS: tuple[Number, ...] = ("int8", "fp8")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    spec: Spec
    dataset: Dataset
    traffic: Traffic
    detector: Detector
    confirm: Dataset | None = None
    """Images that nothing is chosen on."""

    @property
    def judged(self) -> Dataset:
        """Every image that an accuracy is measured on, none of which may be calibrated on; without labels."""
        more = self.confirm.images if self.confirm is not None else ()
        return replace(self.dataset, images=(*self.dataset.images, *more), truths=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graphs:
    """The exported network and the same with pre- and post-processing inside; where there is none, why."""

    network: OnnxModel | None
    network_failure: str | None
    end_to_end: OnnxModel | None
    end_to_end_failure: str | None
    half: OnnxModel | None = None
    """The network in FP16, for engines on a GPU."""
    half_failure: str | None = None
    held: Callable[[tuple[str, ...]], OnnxModel] | None = None
    """The network in FP16 with these nodes in FP32. Raises TrialError: export-half. None: as `half`."""
    int8: Int8Graphs = NONE
    """The network in INT8, with layers kept out of it."""
    fp8: Int8Graphs = NONE
    """The network in FP8, with layers kept out of it."""

    def of(self, candidate: Candidate) -> OnnxModel | None:
        """The graph that a candidate's engine is made from."""
        if candidate.prepost == "graph":
            return self.end_to_end
        if candidate.precision in ("int8", "fp8"):
            rounded = self.int8 if candidate.precision == "int8" else self.fp8
            return rounded.make(candidate.wide) if rounded.make is not None else None
        if candidate.wide and self.held is not None:
            return self.held(candidate.wide)
        return self.half if candidate.runner == "tensorrt" and candidate.precision == "fp16" else self.network


def load_subject(spec: Spec, progress: Progress) -> Subject:
    """Raises BadInput if the data or the model cannot be used as given."""
    from redline.data import load_dataset, load_traffic
    from redline.model.load import load_detector

    with progress.stage("data"):
        dataset = load_dataset(spec.data.evaluate)
        confirm = _further(load_dataset(spec.data.confirm, role="confirm"), dataset) if spec.data.confirm is not None else None
        traffic = load_traffic(spec.data.traffic, dataset)
    with progress.stage("model"):
        detector = load_detector(spec.model)
    return Subject(spec=spec, dataset=dataset, traffic=traffic, detector=detector, confirm=confirm)


def _further(confirm: Dataset, dataset: Dataset) -> Dataset:
    """Raises BadInput if `confirm` cannot stand beside the evaluation set, or is not apart from it."""
    known = {image.sha256 for image in dataset.images}
    both = [image.path for image in confirm.images if image.sha256 in known]
    if both:
        what = f"data.confirm: {len(both)} of {len(confirm.images)} images are in data.evaluate too"
        raise BadInput("data-confirm-overlap", what, got=", ".join(both[:3]), fix="take images that nothing is chosen on")
    if (confirm.truths is None) != (dataset.truths is None):
        got = "no annotations" if confirm.truths is None else "annotations"
        raise BadInput(
            "data-confirm-labels", "data.confirm must be labelled as data.evaluate is", got=got, fix="label both, or none"
        )
    if confirm.truths is not None and confirm.categories != dataset.categories:
        names = [", ".join(one.name for one in side.categories[:8]) for side in (confirm, dataset)]
        what = "data.confirm has other categories than data.evaluate"
        raise BadInput(
            "data-confirm-categories", what, got=names[0], allowed=names[1], fix="the same ids and names in one order"
        )
    return confirm


def export_graphs(
    subject: Subject,
    store: Store,
    journal: Journal,
    progress: Progress,
    *,
    for_gpu: bool = False,
    typed: bool = True,
    int8: bool = True,
    no_fp8: str | None = None,
    mix: Mix | None = None,
) -> Graphs:
    """Export once; a model that cannot be exported still has its torch runners.

    `for_gpu`: what the spec asks for of FP16 and of TensorRT's INT8 and FP8, and none with pre- and post-processing inside;
    else ONNX Runtime's INT8, unless `int8` is False. `typed`: what is not INT8 of the INT8 graph is FP16; False,
    for TensorRT 8.6: it is FP32, and FP16 by a flag. `no_fp8`: why no engine in FP8 can be built. `mix`: which groups
    of layers stay in FP16, by time as well as by loss; None: by loss alone.
    """
    from redline.export import export_end_to_end, export_onnx

    detector = subject.detector
    key = {"model": detector.facts.digest, "preprocess": detector.preprocess, "head": detector.head, "tools": tool_versions()}

    def once(stage: str, key: dict[str, object], export: Callable[[Path], OnnxModel], parents: tuple[str, ...]) -> OnnxModel:
        return _exported(store, journal, stage, key, export, parents)

    with progress.stage("export"):
        try:
            network = once("export", key, lambda f: export_onnx(detector, f, input_hw=detector.preprocess.size), ())
        except TrialError as error:
            text = error.text()
            return Graphs(
                network=None, network_failure=text, end_to_end=None, end_to_end_failure="no network", half_failure=text
            )
    if for_gpu:
        half, why = _half(subject, network, once, progress)
        eight = _rounded(subject, network, store, journal, once, progress, typed=typed, no_fp8=no_fp8, mix=mix)
        held = _held(network, once) if (half, why) != (None, None) else None
        plain = Graphs(network=network, network_failure=None, end_to_end=None, end_to_end_failure="not made for a GPU")
        return replace(plain, half=half, half_failure=why, held=held, int8=eight[0], fp8=eight[1])
    rounded = _int8_on_cpu(subject, network, store, once, progress) if int8 else NONE
    with progress.stage("export with pre- and post-processing"):
        whole = {"network": network.digest, "postprocess": detector.postprocess, **key}

        def end_to_end(folder: Path) -> OnnxModel:
            return export_end_to_end(network, folder, detector.preprocess, detector.head, detector.postprocess, "fixed")

        graph, failure = None, None
        try:
            graph = once("export-end-to-end", whole, end_to_end, (network.digest,))
        except TrialError as error:
            graph, failure = None, error.text()
    return Graphs(network=network, network_failure=None, end_to_end=graph, end_to_end_failure=failure, int8=rounded)


def _half(
    subject: Subject, network: OnnxModel, once: Callable[..., OnnxModel], progress: Progress
) -> tuple[OnnxModel | None, str | None]:
    """The graph in FP16, or why there is none; neither where the spec does not ask for it."""
    from redline.export.half import export_half

    if "fp16" not in subject.spec.target.precisions:
        return None, None
    key = {"network": network.digest, "tools": tool_versions()}
    with progress.stage("export in FP16"):
        try:
            return once("export-half", key, lambda folder: export_half(network, folder), (network.digest,)), None
        except TrialError as error:
            return None, error.text()


def _rounded(
    subject: Subject,
    network: OnnxModel,
    store: Store,
    journal: Journal,
    once: Callable[..., OnnxModel],
    progress: Progress,
    *,
    typed: bool,
    no_fp8: str | None,
    mix: Mix | None,
) -> tuple[Int8Graphs, Int8Graphs]:
    """In INT8 and in FP8, as far as the spec asks for them."""
    from redline.export.half import export_half

    asked = subject.spec.target.precisions
    none: dict[Number, Int8Graphs] = {"int8": NONE, "fp8": replace(NONE, failure=no_fp8)}
    wanted: list[Number] = [number for number in NUMBERS if number in asked and none[number].failure is None]
    if not wanted:
        return none["int8"], none["fp8"]
    source = network
    if typed:
        key = {"network": network.digest, "tools": tool_versions()}
        try:
            source = once("export-half", key, lambda folder: export_half(network, folder), (network.digest,))
        except TrialError as error:
            failed = none | dict.fromkeys(wanted, replace(NONE, failure=error.text()))
            return failed["int8"], failed["fp8"]
    given = subject.spec.data.calibrate
    choice = chosen_images(given, subject, progress) if given is not None else None
    choose = len(asked) > 1  # what else is asked for is what a run tries; alone it is a build of all layers
    found = none.copy()
    for number in wanted:
        found[number] = int8_graphs(
            subject, network, source, store, journal, once, progress, choose=choose, number=number, choice=choice, mix=mix
        )
    return found["int8"], found["fp8"]


def _int8_on_cpu(
    subject: Subject, network: OnnxModel, store: Store, once: Callable[..., OnnxModel], progress: Progress
) -> Int8Graphs:
    if "int8" not in subject.spec.target.precisions:
        return NONE
    if importlib.util.find_spec("onnxruntime") is None:
        return replace(NONE, failure="ONNX Runtime is not installed: pip install redline[ort]")
    return cpu_int8_graphs(subject, network, store, once, progress)


def _held(network: OnnxModel, once: Callable[..., OnnxModel]) -> Callable[[tuple[str, ...]], OnnxModel]:
    from redline.export.half import export_half

    @functools.cache
    def held(wide: tuple[str, ...]) -> OnnxModel:
        key = {"network": network.digest, "tools": tool_versions(), "wide": wide}
        return once("export-half", key, lambda folder: export_half(network, folder, wide_nodes=wide), (network.digest,))

    return held


def _exported(
    store: Store,
    journal: Journal,
    stage: str,
    key: dict[str, object],
    export: Callable[[Path], OnnxModel],
    parents: tuple[str, ...],
) -> OnnxModel:
    def compute() -> OnnxModel:
        with tempfile.TemporaryDirectory(prefix="redline-") as folder:
            model = export(Path(folder))
            digest = store.put_file(Path(model.path), kind="onnx", parents=parents, stage=stage)
        return replace(model, digest=digest, path="")

    model = store.once(
        stage=stage, key=key, kind="onnx-model", type=OnnxModel, compute=compute, parents=parents, journal=journal
    )
    return replace(model, path=str(store.path(model.digest)))


def run_id(spec: Spec) -> str:
    """The spec file's name and a digest of what it says: the same spec resumes the same run. Serving changes no measurement."""
    return f"{Path(spec.path).stem}-{digest_of(replace(spec, path='', serve=ServeSpec()))[:8]}"
