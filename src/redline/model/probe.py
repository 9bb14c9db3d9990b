"""Run a detector once on a small grey picture and check that what comes out fits its head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import BadInput
from redline.model.factory import describe, working_folder_on_path
from redline.records import Detector, Head, Preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.records import TensorFact

GREY = 114.0
COUNTS = {"yolox": 1, "retinanet": 2, "detections": 3}
EXPECTED = {
    "yolox": "one output (N, A, 5 + classes), A = sum over strides of H/stride x W/stride",
    "retinanet": "two outputs (N, A, classes) and (N, A, 4), A = cells of every stride x anchor sizes x aspect ratios",
    "detections": "three outputs: boxes (N, K, 4), scores (N, K), labels (N, K)",
    "custom": "what its function takes",
}
"""What each kind of head reads; the sizes follow from the head's strides and anchors."""


def sizes(preprocess: Preprocess, fixed: tuple[int | str, ...] = ()) -> list[tuple[int, int]]:
    """Input sizes (H, W) to probe: two small ones, then the full one for networks that take no other."""
    stride = preprocess.stride
    full = (-(-preprocess.size[0] // stride) * stride, -(-preprocess.size[1] // stride) * stride)
    wanted = [(4 * stride, 6 * stride), (6 * stride, 5 * stride), full]
    if not fixed:
        return wanted
    held = [size if isinstance(size, int) else None for size in fixed]
    return list(dict.fromkeys((held[0] or height, held[1] or width) for height, width in wanted))


def run(detector: Detector, hw: tuple[int, int]) -> list[NDArray[Any]]:
    """Raw outputs for one grey picture of `hw`; whatever the network raises passes through."""
    batch = _grey(detector.preprocess, hw)
    if detector.module is None:
        from redline.model import onnx_file

        return onnx_file.run(Path(detector.onnx_path or ""), batch)
    import torch

    with torch.no_grad():
        return [tensor.numpy() for tensor in detector.module(torch.from_numpy(batch))]


def probe_outputs(detector: Detector, candidates: list[tuple[int, int]]) -> dict[tuple[int, int], list[NDArray[Any]]]:
    """Outputs at up to two of the sizes the network takes. Raises BadInput: model-run if it takes none of them."""
    found: dict[tuple[int, int], list[NDArray[Any]]] = {}
    first: Exception | None = None
    for hw in candidates:
        if len(found) == 2 or (found and hw == candidates[-1] and len(candidates) > 2):
            break
        try:
            found[hw] = run(detector, hw)
        except BadInput:
            raise
        except Exception as error:  # the network is the user's code
            first = first or error
    if not found:
        tried = ", ".join(f"1 x 3 x {height} x {width}" for height, width in candidates)
        got = f"{describe(first)}; inputs tried: {tried}" if first else f"inputs tried: {tried}"
        raise BadInput(
            "model-run", "The network cannot run on an image", got=got, fix="check stride and size of [model.preprocess]"
        )
    return found


def fit(outputs: list[NDArray[Any]], head: Head, hw: tuple[int, int]) -> int | None:
    """Number of classes, None if the head does not say. Raises BadInput: head-outputs, head-function."""
    from redline.vision.heads import checked

    reason = None
    if len(outputs) != COUNTS.get(head.kind, len(outputs)):
        reason = f"{len(outputs)} outputs"
    elif any(output.ndim == 0 or len(output) != 1 for output in outputs):
        reason = "the leading axis is not the batch"
    else:
        try:
            with working_folder_on_path():
                arrays = checked(outputs, head, hw)
        except BadInput as error:
            if error.code != "head-outputs":
                raise
            reason = f"expected here: {error.allowed}"
        else:
            return _classes(arrays, head)
    shapes = ", ".join(str(tuple(output.shape)) for output in outputs) or "none"
    raise BadInput(
        "head-outputs",
        f"The network's outputs fit no head as given: head {head.kind!r}, input 1 x 3 x {hw[0]} x {hw[1]}",
        got=f"shapes {shapes}; {reason}",
        allowed="\n           ".join(f"{kind}: {text}" for kind, text in EXPECTED.items()),
        fix='choose the head of this network, check its strides and anchors, or give head.function = "module:callable"',
    )


def _classes(arrays: list[NDArray[Any]], head: Head) -> int | None:
    if head.kind == "detections":
        return None
    if head.kind == "yolox":
        return int(arrays[0].shape[2]) - 5
    return int(arrays[0 if head.kind == "retinanet" else 1].shape[2])


def symbolic(
    tensors: list[TensorFact], outputs: list[list[NDArray[Any]]], batch: int | str, axis: str
) -> list[tuple[int | str, ...]]:
    """Shapes with `batch` in front and a name (`axis` where it is alone) for every axis that follows the input size."""
    shapes = []
    for i, fact in enumerate(tensors):
        seen = [output[i].shape for output in outputs]
        varying = [len({shape[k] for shape in seen}) > 1 for k in range(1, len(seen[0]))]
        names = [f"{fact.name}_{k + 1}" if sum(varying) > 1 else axis for k in range(len(varying))]
        shapes.append((batch, *(names[k] if varying[k] else int(seen[0][k + 1]) for k in range(len(varying)))))
    return shapes


def _grey(preprocess: Preprocess, hw: tuple[int, int]) -> NDArray[np.float32]:
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    pixel = ((GREY * preprocess.scale - mean) / std).astype(np.float32)
    return np.ascontiguousarray(np.broadcast_to(pixel.reshape(1, 3, 1, 1), (1, 3, *hw)))
