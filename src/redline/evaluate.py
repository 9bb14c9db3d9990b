"""What each family of candidates makes of the evaluation set, against the FP32 reference; every set of detections is kept."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from redline import vision
from redline.data import read_bytes
from redline.parity import GroundTruth, Observed, compare, compare_tensors, determinism, ground_truth, observe
from redline.predict import Predictor
from redline.records import Candidate, Detections, ImageRef, ParityReport, Picture, PictureBox

if TYPE_CHECKING:
    from redline.live import Live
    from redline.prepare import Subject
    from redline.progress import Progress
    from redline.records.detect import Image, Tensor

PARITY_IMAGES = 4
"""Images whose raw outputs are compared tensor by tensor."""
REPEATS = 3
PICTURES = 6
PICTURE_FLOOR = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Detections of all images as a compressed npz: boxes (K, 4), scores (K,), labels (K,), counts (images,)."""

    npz_base64: str


class Once(Protocol):
    """Runs `compute` unless its result for this candidate is known."""

    def __call__(self, stage: str, candidate: Candidate, kind: str, type: Any, compute: Callable[[], Any]) -> Any: ...


class Observer:
    """`live` opens a candidate; `baseline` is the FP32 reference that all others are compared with."""

    def __init__(
        self, subject: Subject, baseline: Candidate, once: Once, live: Callable[[Candidate], Live], progress: Progress
    ) -> None:
        self._subject, self._baseline, self._once, self._live, self._progress = subject, baseline, once, live, progress
        self._truth: GroundTruth | None = None
        self._reference: Observed | None = None
        self._raw: dict[Candidate, tuple[tuple[np.ndarray[Any, Any], ...], ...]] = {}

    def parity(self, candidate: Candidate) -> ParityReport:
        """Raises TrialError if the candidate does not run, BadInput if an evaluation image cannot be read."""
        report: ParityReport = self._once("parity", candidate, "parity", ParityReport, lambda: self._compare(candidate))
        return report

    def detections(self, candidate: Candidate) -> tuple[Detections, ...]:
        """One an evaluation image, in order; measured once and kept."""
        # Threads, batch, concurrency and GPUs of one kind change rounding at most: one candidate stands for all of its family.
        head = replace(candidate, batch=1, concurrency=1)
        if candidate.gpus:
            head = replace(head, device=f"cuda:{candidate.gpus[0]}", cuda_graphs=candidate.runner != "torch-eager")
        else:
            head = replace(head, threads=self._baseline.threads)
        packed = self._once("detections", head, "detections", Packed, lambda: self._detect(head))
        return unpack(packed)

    def pictures(self, candidate: Candidate) -> tuple[Picture, ...]:
        """The first labelled images with the most boxes, for the eye: ground truth beside what was found."""
        dataset, labels = self._subject.dataset, self._subject.spec.model.labels
        names = {category.id: category.name for category in dataset.categories}
        by_index = [category.name for category in dataset.categories]
        found = self.detections(candidate)

        def name(label: int) -> str:
            known = names.get(label) if labels == "category-id" else by_index[label] if label < len(by_index) else None
            return known or f"class {label}"

        truths = dataset.truths or ()
        order = range(len(dataset.images))
        chosen = sorted(sorted(order, key=lambda i: -len(truths[i].boxes) if truths else 0)[:PICTURES])
        return tuple(
            Picture(
                path=dataset.images[i].path,
                height=dataset.images[i].height,
                width=dataset.images[i].width,
                truth=_truth_boxes(truths[i].boxes, [names[c] for c in truths[i].category_ids]) if truths else (),
                found=_found_boxes(found[i], name),
            )
            for i in chosen
        )

    def hardest(self, candidate: Candidate) -> Tensor:
        """(1, 3, H, W): of the images whose raw outputs are compared, the one on which the candidate is furthest off."""
        reference = self._outputs(replace(self._baseline, shapes=candidate.shapes))
        names = [output.name for output in self._subject.detector.facts.outputs]
        off = []
        for one, other in zip(reference, self._outputs(candidate), strict=True):
            deltas = compare_tensors(names, [one], [other], candidate.precision)
            off.append((not all(delta.finite for delta in deltas), max(delta.max_rel for delta in deltas)))
        image = self._images(PARITY_IMAGES)[max(range(len(off)), key=lambda index: off[index])]
        tensor: Tensor = vision.prepare(image, self._subject.detector.preprocess, candidate.shapes)[0][None]
        return tensor

    def _compare(self, candidate: Candidate) -> ParityReport:
        # All of the reference's part first: only one runner is open at a time, and some take a minute to build.
        subject, reference = self._subject, self.reference()
        if candidate.prepost == "host":
            reference = replace(reference, outputs=self._outputs(replace(self._baseline, shapes=candidate.shapes)))
        names = [output.name for output in subject.detector.facts.outputs]
        seen = observe(self._ground_truth(), self.detections(candidate), self._outputs(candidate))
        images = self._images(1)
        predict = self._live(candidate).predict
        return compare(
            reference,
            seen,
            names=names,
            precision=candidate.precision,
            determinism=determinism(lambda: _arrays(predict, images), REPEATS),
            budget_pct=subject.spec.objective.map_drop_pct,
            evidence=subject.spec.objective.map_evidence,
        )

    def _ground_truth(self) -> GroundTruth:
        if self._truth is None:
            found = self.detections(self._baseline)
            self._truth = ground_truth(self._subject.dataset, found, self._subject.spec.model.labels)
        return self._truth

    def reference(self) -> Observed:
        """What the FP32 baseline makes of all images."""
        if self._reference is None:
            self._reference = observe(self._ground_truth(), self.detections(self._baseline))
        return self._reference

    def _detect(self, candidate: Candidate) -> Packed:
        live, images = self._live(candidate), self._subject.dataset.images
        with self._progress.stage(f"detections of {candidate.name}", len(images)) as advance:
            found = []
            for image in images:
                # What decodes elsewhere too may see other pixels: its accuracy is that of the file.
                decodes = candidate.prepost == "kernel"
                found += live.predict.from_bytes([read_bytes(image)]) if decodes else live.predict([_decoded(image)])
                advance()
        return pack(found)

    def _outputs(self, candidate: Candidate) -> tuple[tuple[np.ndarray[Any, Any], ...], ...]:
        if candidate not in self._raw:
            predict = self._live(candidate).predict
            # One at a time: an engine may take no batch, and torch.compile would compile this one.
            images = self._images(PARITY_IMAGES) if isinstance(predict, Predictor) else []
            raw = [predict.raw([image])[0][0] for image in images if isinstance(predict, Predictor)]
            self._raw[candidate] = tuple(raw)
        return self._raw[candidate]

    def _images(self, count: int) -> list[Image]:
        return [_decoded(image) for image in self._subject.dataset.images[:count]]


def pack(found: Sequence[Detections]) -> Packed:
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        boxes=np.concatenate([one.boxes for one in found]),
        scores=np.concatenate([one.scores for one in found]),
        labels=np.concatenate([one.labels for one in found]),
        counts=np.array([len(one.scores) for one in found], np.int64),
    )
    return Packed(npz_base64=base64.b64encode(stream.getvalue()).decode())


def unpack(packed: Packed) -> tuple[Detections, ...]:
    with np.load(io.BytesIO(base64.b64decode(packed.npz_base64))) as arrays:
        ends = np.cumsum(arrays["counts"])[:-1]
        columns = [np.split(arrays[name], ends) for name in ("boxes", "scores", "labels")]
    return tuple(Detections(boxes=b, scores=s, labels=label) for b, s, label in zip(*columns, strict=True))


def _decoded(image: ImageRef) -> Image:
    return vision.decode(read_bytes(image), name=image.path)


def _arrays(predict: Any, images: list[Image]) -> list[np.ndarray[Any, Any]]:
    """Raw outputs where there are any, detections otherwise."""
    if isinstance(predict, Predictor):
        return [array for outputs in predict.raw(images)[0] for array in outputs]
    return [array for one in predict(images) for array in (one.boxes, one.scores, one.labels)]


def _truth_boxes(boxes: Sequence[tuple[float, float, float, float]], names: Sequence[str]) -> tuple[PictureBox, ...]:
    corners = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    return tuple(PictureBox(xyxy=xyxy, label=name, score=None) for xyxy, name in zip(corners, names, strict=True))


def _found_boxes(found: Detections, name: Callable[[int], str]) -> tuple[PictureBox, ...]:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return tuple(
        PictureBox(xyxy=(box[0], box[1], box[2], box[3]), label=name(label), score=score)
        for box, score, label in rows
        if score >= PICTURE_FLOOR
    )
