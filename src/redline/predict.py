"""Preprocess, runner and post-process as one callable: the only place that joins them. Knows nothing of how a runner runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from redline import vision
from redline.records import Detections, Head, Placement, Postprocess, Preprocess, Runner, ShapePolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.records import detect

Stage = Literal["decode", "preprocess", "network", "postprocess"]
Stages = Callable[[Stage, float], None]
"""Told each stage's wall time in seconds, from the thread that ran it; once a group of images of equal input shape."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """A `records.Predict` over a runner of the bare network. Thread-safe if the runner is."""

    runner: Runner
    preprocess: Preprocess
    head: Head
    postprocess: Postprocess
    shapes: ShapePolicy
    stages: Stages | None = None

    def __call__(self, images: Sequence[detect.Image]) -> list[Detections]:
        """(H, W, 3) uint8 RGB images of any sizes -> their detections, in order; images of equal input shape share a batch."""
        found: dict[int, Detections] = {}
        for members in self._groups(images):
            outputs, placements = self._run([images[index] for index in members])
            start = perf_counter() if self.stages else 0.0
            detections = vision.postprocess(outputs, self.head, self.postprocess, placements)
            if self.stages:
                self.stages("postprocess", perf_counter() - start)
            found.update(zip(members, detections, strict=True))
        return [found[index] for index in range(len(images))]

    def from_bytes(self, encoded: Sequence[bytes]) -> list[Detections]:
        """Encoded images (see `vision.decode`) -> their detections, in order."""
        return self(decode_all(encoded, self.stages))

    def raw(self, images: Sequence[detect.Image]) -> tuple[list[tuple[NDArray[Any], ...]], list[Placement]]:
        """Raw network outputs of each image, without the batch axis, and where each image lay in the input."""
        found: dict[int, tuple[tuple[NDArray[Any], ...], Placement]] = {}
        for members in self._groups(images):
            outputs, placements = self._run([images[index] for index in members])
            for row, index in enumerate(members):
                found[index] = (tuple(output[row] for output in outputs), placements[row])
        ordered = [found[index] for index in range(len(images))]
        return [outputs for outputs, _ in ordered], [placement for _, placement in ordered]

    def _groups(self, images: Sequence[detect.Image]) -> list[list[int]]:
        if len(images) == 1:
            return [[0]]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            size = vision.input_size((image.shape[0], image.shape[1]), self.preprocess, self.shapes)
            groups.setdefault(size, []).append(index)
        return list(groups.values())

    def _run(self, images: Sequence[detect.Image]) -> tuple[tuple[detect.Tensor, ...], list[Placement]]:
        start = perf_counter() if self.stages else 0.0
        tensor, placement = vision.prepare(images[0], self.preprocess, self.shapes)
        batch, placements = tensor[None], [placement]
        if len(images) > 1:
            batch = np.empty((len(images), *tensor.shape), np.float32)
            batch[0] = tensor
            for row, image in enumerate(images[1:], 1):
                placements.append(vision.prepare(image, self.preprocess, self.shapes, out=batch[row])[1])
        if not self.stages:
            return self.runner.run(batch), placements
        prepared = perf_counter()
        outputs = self.runner.run(batch)
        self.stages("preprocess", prepared - start)
        self.stages("network", perf_counter() - prepared)
        return outputs, placements


@dataclass(frozen=True, slots=True)
class GraphPredictor:
    """A `records.Predict` over an end-to-end graph: `graph` maps one (H, W, 3) uint8 image to boxes, scores and labels.

    The graph's outputs are final: (K, 4) boxes in pixels of the image, (K,) scores, (K,) labels, by descending score.
    """

    graph: Callable[[detect.Image], Sequence[NDArray[Any]]]
    stages: Stages | None = None

    def __call__(self, images: Sequence[detect.Image]) -> list[Detections]:
        """(H, W, 3) uint8 RGB images of any sizes -> their detections, in order, one inference an image."""
        return [self._one(image) for image in images]

    def from_bytes(self, encoded: Sequence[bytes]) -> list[Detections]:
        """Encoded images (see `vision.decode`) -> their detections, in order."""
        return self(decode_all(encoded, self.stages))

    def _one(self, image: detect.Image) -> Detections:
        start = perf_counter() if self.stages else 0.0
        boxes, scores, labels = self.graph(np.ascontiguousarray(image))
        if self.stages:
            self.stages("network", perf_counter() - start)
        return Detections(
            boxes=np.asarray(boxes, np.float32), scores=np.asarray(scores, np.float32), labels=np.asarray(labels, np.int64)
        )


def decode_all(encoded: Sequence[bytes], stages: Stages | None) -> list[detect.Image]:
    """Decode every image; the time of all goes to the stage "decode". Raises BadInput (see `vision.decode`)."""
    start = perf_counter() if stages else 0.0
    images = [vision.decode(data, name=f"image {index}") for index, data in enumerate(encoded)]
    if stages:
        stages("decode", perf_counter() - start)
    return images
