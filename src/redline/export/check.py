"""Does ONNX Runtime compute what the source computes? Compared at several shapes, on pictures made from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import TrialError
from redline.records import Preprocess, ShapeCheck
from redline.records.spec import HeadKind

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    Arrays = list[NDArray[Any]]

TOLERANCE = 2e-3
"""Bound of |difference| / max(1, largest |reference|) of an output. FP32 kernels that only add in another order stay under 1e-3
on detectors (YOLOX-Nano: 9e-4 absolute); a wrong graph is off by far more."""
SEED = 20


def pictures(preprocess: Preprocess, shape: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """A batch of blocky colour noise as the preprocessing would hand it over; deterministic."""
    count, _, height, width = shape
    random = np.random.default_rng([SEED, count, height, width])
    coarse = random.uniform(0, 255, (count, 3, -(-height // 16), -(-width // 16)))
    blocks = coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
    pixels = np.clip(blocks + random.normal(0, 8, shape), 0, 255).round() * preprocess.scale
    mean, std = np.array(preprocess.mean).reshape(3, 1, 1), np.array(preprocess.std).reshape(3, 1, 1)
    return np.ascontiguousarray((pixels - mean) / std, dtype=np.float32)


def shapes(input_hw: tuple[int, int], stride: int) -> list[list[tuple[int, int, int, int]]]:
    """Groups of shapes; of each the first that works is compared: smallest, largest, two non-square, a batch."""
    height, width = input_hw
    half_height, half_width = (max(stride, round_up(size // 2, stride)) for size in input_hw)
    smallest = [(1, 3, size * stride, size * stride) for size in (1, 2, 4)]
    batch = (3, 3, 2 * stride, 4 * stride)
    rest = [(1, 3, height, width), (1, 3, half_height, width), (1, 3, height, half_width), batch]
    return [smallest, *([shape] for shape in dict.fromkeys(rest))]


def round_up(size: int, stride: int) -> int:
    return -(-size // stride) * stride


def torch_outputs(module: nn.Module, batch: NDArray[np.float32]) -> Arrays | None:
    """Reference outputs, or None if the network does not take this shape."""
    import torch

    try:
        with torch.no_grad():
            return [tensor.numpy() for tensor in module(torch.from_numpy(batch))]
    except Exception:  # the network is the user's code; a shape it does not take is not an error here
        return None


def open_session(path: Path) -> Any:
    """Raises TrialError: export-check if ONNX Runtime is absent or refuses the graph."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise TrialError(
            "export-check", "ONNX Runtime is not installed", got=error, fix='pip install "redline[ort]"'
        ) from error
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no other base class
        raise TrialError("export-check", "ONNX Runtime refuses the exported graph", got=_line(error)) from error


def onnx_outputs(session: Any, batch: NDArray[np.float32]) -> Arrays:
    """Raises TrialError: export-check if ONNX Runtime cannot run this shape."""
    try:
        return list(session.run(None, {session.get_inputs()[0].name: batch}))
    except Exception as error:  # as above
        raise TrialError("export-check", f"The exported graph does not run at {batch.shape}", got=_line(error)) from error


def compare(shape: tuple[int, int, int, int], reference: Arrays, got: Arrays, head: HeadKind) -> ShapeCheck:
    """Raises TrialError: export-check if shapes differ or a difference exceeds `TOLERANCE`. NaN equals NaN."""
    if [a.shape for a in reference] != [b.shape for b in got]:
        raise TrialError(
            "export-check",
            f"The exported graph gives other shapes at {shape}",
            got=[b.shape for b in got],
            allowed=[a.shape for a in reference],
        )
    differences = (
        _rows(reference, got) if head == "detections" else [_difference(a, b) for a, b in zip(reference, got, strict=True)]
    )
    largest = max((absolute for absolute, _ in differences), default=0.0)
    if any(relative > TOLERANCE for _, relative in differences):
        raise TrialError(
            "export-check",
            f"The exported graph computes something else at {shape}",
            got=f"largest absolute difference {largest:.3g}",
            allowed=f"{TOLERANCE:g} of the largest reference value",
        )
    return ShapeCheck(shape=shape, max_abs=largest)


def _difference(reference: NDArray[Any], got: NDArray[Any]) -> tuple[float, float]:
    a, b = reference.astype(np.float64), got.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b))
    absolute = float(np.where(np.isnan(gap), np.inf, gap).max(initial=0.0))
    finite = np.abs(a[np.isfinite(a)])
    return absolute, absolute / max(1.0, float(finite.max(initial=0.0)))


def _rows(reference: Arrays, got: Arrays) -> list[tuple[float, float]]:
    """Final detections: rows of nearly equal score may change places, so each is compared with its nearest of the same label.

    Rows within `TOLERANCE` of the lowest score may be cut off differently and are left out.
    """
    worst = (0.0, 0.0)
    for boxes, scores, labels, other, others, names in zip(*reference, *got, strict=True):
        keep = scores > scores.min(initial=np.inf) + TOLERANCE
        if not keep.any():
            continue
        scale = max(1.0, float(np.abs(boxes).max(initial=0.0)))
        gap = np.abs(boxes[keep, None] - other[None]).max(axis=2)
        score = np.abs(scores[keep, None] - others[None])
        wrong = labels[keep, None] != names[None]
        relative = np.where(wrong, np.inf, np.maximum(gap / scale, score))
        nearest = relative.argmin(axis=1)
        rows = np.arange(len(nearest))
        absolute = np.where(wrong, np.inf, np.maximum(gap, score))[rows, nearest]
        worst = (max(worst[0], float(absolute.max())), max(worst[1], float(relative[rows, nearest].max())))
    return [worst]


def check_all(path: Path, references: Sequence[tuple[NDArray[np.float32], Arrays]], head: HeadKind) -> tuple[ShapeCheck, ...]:
    """Compare the graph with every (batch, reference outputs). Raises TrialError: export-check."""
    session = open_session(path)
    checks = []
    for batch, reference in references:
        shape = (batch.shape[0], 3, batch.shape[2], batch.shape[3])
        checks.append(compare(shape, reference, onnx_outputs(session, batch), head))
    return tuple(checks)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
