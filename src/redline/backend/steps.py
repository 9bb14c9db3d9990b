"""The steps of a request as plain functions of arrays, one class a role. Knows nothing of Triton's objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline import vision
from redline.backend.answer import placement_numbers, placement_of
from redline.backend.material import Material
from redline.backend.network import finite
from redline.errors import BadInput, RedlineError
from redline.predict import Predictor
from redline.records import Detections, Placement, Runner

CLIENT_FAULTS = ("shape-bucket",)
"""What may be wrong with a decoded image. Anything else that fails from there on is the release's failure, and counts as one:
a head that raises BadInput would otherwise pass for a client's mistake, and never be rolled back."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one image has no detections: `client` if the request was wrong, otherwise the service failed."""

    client: bool
    text: str


class Entry:
    """Encoded images of any sizes to detections; images of one network shape share an inference, a bad one fails alone."""

    def __init__(self, material: Material, network: Runner) -> None:
        self._predict = Predictor(network, material.preprocess, material.head, material.postprocess, material.shapes)

    def __call__(self, encoded: Sequence[bytes]) -> list[Detections | Fault]:
        found: list[Detections | Fault] = []
        images, rows = [], []
        for row, data in enumerate(encoded):
            found.append(Fault(client=False, text="not reached"))
            try:
                images.append(vision.decode(data, name="of the request"))
                rows.append(row)
            except BadInput as error:
                found[row] = Fault(client=True, text=error.text())
        for row, one in zip(rows, self._detect(images), strict=True):
            found[row] = one
        return found

    def _detect(self, images: Sequence[Any]) -> list[Detections | Fault]:
        if not images:
            return []
        try:
            return list(self._predict(images))
        except RedlineError as error:
            if len(images) == 1:
                return [Fault(client=error.code in CLIENT_FAULTS, text=error.text())]
        return [one for image in images for one in self._detect([image])]


class Tensors:
    """Preprocessed tensors and where each image lies in its tensor, to detections."""

    def __init__(self, material: Material, network: Runner) -> None:
        self._material, self._network = material, network

    def __call__(self, tensors: Sequence[NDArray[np.float32]], placements: Sequence[NDArray[Any]]) -> list[Detections | Fault]:
        """(3, H, W) and (8,) of each image."""
        found: list[Detections | Fault] = [Fault(client=False, text="not reached")] * len(tensors)
        groups: dict[tuple[int, int], list[tuple[int, Placement]]] = {}
        for row, (tensor, numbers) in enumerate(zip(tensors, placements, strict=True)):
            placement = self._placed(tensor, numbers)
            if isinstance(placement, Fault):
                found[row] = placement
            else:
                groups.setdefault(placement.input_hw, []).append((row, placement))
        for members in groups.values():
            detected = self._detect([tensors[row] for row, _ in members], [placement for _, placement in members])
            for (row, _), one in zip(members, detected, strict=True):
                found[row] = one
        return found

    def _placed(self, tensor: NDArray[np.float32], numbers: NDArray[Any]) -> Placement | Fault:
        try:
            return placement_of(numbers, self._lawful(tensor))
        except BadInput as error:
            return Fault(client=True, text=error.text())

    def _lawful(self, tensor: NDArray[np.float32]) -> tuple[int, int]:
        """(H, W), if the network may see this tensor."""
        height, width = tensor.shape[1:]
        shapes, preprocess = self._material.shapes, self._material.preprocess
        if isinstance(shapes, tuple):
            sound, allowed = (height, width) in shapes, ", ".join(f"{h} x {w}" for h, w in shapes)
        elif shapes == "fixed" and preprocess.resize in ("letterbox", "stretch"):
            sound, allowed = (height, width) == preprocess.size, f"{preprocess.size[0]} x {preprocess.size[1]}"
        else:
            sound = height % preprocess.stride == 0 and width % preprocess.stride == 0
            allowed = f"multiples of {preprocess.stride}"
        if not sound:
            raise BadInput("tensor-shape", "a tensor of this size does not fit", got=f"{height} x {width}", allowed=allowed)
        if not finite(tensor):
            raise BadInput("tensor-not-finite", "a tensor has NaN or infinite values", allowed="finite values")
        return height, width

    def _detect(self, tensors: Sequence[Any], placements: Sequence[Placement]) -> list[Detections | Fault]:
        batch = tensors[0][None] if len(tensors) == 1 else np.stack(tensors)
        try:
            outputs = self._network.run(np.ascontiguousarray(batch))
            return list(vision.postprocess(outputs, self._material.head, self._material.postprocess, placements))
        except RedlineError as error:
            if len(tensors) == 1:
                return [Fault(client=False, text=error.text())]
        pairs = zip(tensors, placements, strict=True)
        return [one for tensor, placement in pairs for one in self._detect([tensor], [placement])]


def prepare(material: Material, encoded: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Images of one request -> (N, 3, H, W) and (N, 8). Raises BadInput if one is bad or their network shapes differ."""
    images = [vision.decode(data, name="of the request") for data in encoded]
    prepared = [vision.prepare(image, material.preprocess, material.shapes) for image in images]
    shapes = {tensor.shape for tensor, _ in prepared}
    if len(shapes) > 1:
        raise BadInput(
            "request-shapes",
            "the images of one request come to different network shapes",
            got=", ".join(f"{shape[1]} x {shape[2]}" for shape in sorted(shapes)),
            fix="send them as requests of their own: the server joins what can be joined",
        )
    return np.stack([tensor for tensor, _ in prepared]), np.stack([placement_numbers(place) for _, place in prepared])
