"""Export a detector's network: the torch.export-based exporter, then the legacy one, then with fewer free axes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from redline.errors import TrialError
from redline.records import Detector, OnnxModel, ShapeCheck, TensorFact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Reference = tuple[NDArray[np.float32], list[NDArray[Any]]]

Shape = tuple[int, int, int, int]


def export_onnx(detector: Detector, folder: Path, *, input_hw: tuple[int, int]) -> OnnxModel:
    """Write network.onnx to `folder`: input "images", outputs named by the head, opset 18, no external data.

    `input_hw` is the largest input (height, width); it is rounded up to the stride. Compared with torch at the smallest, the
    largest and non-square shapes and a batch of 3. A network that takes one size only gives a graph with fixed H and W
    (`dynamic` false). A given ONNX file is passed on. Raises TrialError: export-failed (every way failed, and
    why), export-check (ONNX Runtime absent), export-too-large.
    """
    from redline.export import check
    from redline.export.given import export_given

    stride = detector.preprocess.stride
    hw = (check.round_up(input_hw[0], stride), check.round_up(input_hw[1], stride))
    if detector.module is None:
        return export_given(detector, folder, hw)
    references = _references(detector, hw)
    full: Shape = (1, 3, *hw)
    moving = any(batch.shape[2:] != hw for batch, _ in references)
    failures: list[str] = []
    path = folder / "network.onnx"
    for label, exporter, free, build in _ways(detector, full, moving, path):
        known = [pair for pair in references if free == "NHW" or (pair[0].shape[2:] == hw and (free or len(pair[0]) == 1))]
        try:
            path.write_bytes(_tidy(build(), detector, full, free))
            checks = check.check_all(path, known, detector.head.kind)
        except TrialError as error:
            if error.code == "export-too-large" or "not installed" in error.what:
                raise
            failures.append(f"{label}: {' '.join(error.text().split())}")
        except Exception as error:  # the exporters run the network's own code and have no common exception
            failures.append(f"{label}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        else:
            return _model(detector, path, exporter, free, full, checks, failures)
    raise TrialError("export-failed", "The network cannot be exported to ONNX", got="\n           ".join(failures))


def _references(detector: Detector, hw: tuple[int, int]) -> list[Reference]:
    """Torch's outputs at the first shape of each group that the network takes."""
    from redline.export import check

    found: list[Reference] = []
    for group in check.shapes(hw, detector.preprocess.stride):
        for shape in group:
            batch = check.pictures(detector.preprocess, shape)
            outputs = check.torch_outputs(detector.module, batch)
            if outputs is not None:
                found.append((batch, outputs))
                break
    if not any(batch.shape[2:] == hw for batch, _ in found):
        raise TrialError("export-failed", "The network does not run at its largest input", got=f"1 x 3 x {hw[0]} x {hw[1]}")
    return found


def _ways(
    detector: Detector, full: Shape, moving: bool, path: Path
) -> list[tuple[str, Literal["torch.export", "torchscript"], str, Callable[[], Any]]]:
    """(label, exporter, free axes, call) in the order to try."""
    from redline.export import exporters

    stride, names = detector.preprocess.stride, [fact.name for fact in detector.facts.outputs]
    module = exporters.fold_zoo(detector.module)
    traced: Shape = (2, 3, full[2], full[3] + stride if full[2] == full[3] and moving else full[3])
    small: Shape = (2, 3, min(4 * stride, full[2]), min(6 * stride, full[3]))
    new = exporters.torch_export
    ways: list[tuple[str, Literal["torch.export", "torchscript"], str, Callable[[], Any]]] = []
    if moving:
        ways = [
            ("torch.export", "torch.export", "NHW", lambda: new(module, traced, names, "NHW", stride)),
            ("torchscript", "torchscript", "NHW", lambda: exporters.torchscript(module, small, names, path)),
        ]
    fixed: Shape = (2, 3, full[2], full[3])
    return [
        *ways,
        ("torch.export, fixed size", "torch.export", "N", lambda: new(module, fixed, names, "N", stride)),
        ("torch.export, fixed size and batch", "torch.export", "", lambda: new(module, full, names, "", stride)),
    ]


def _tidy(model: Any, detector: Detector, full: Shape, free: str) -> bytes:
    from redline.export.exporters import tidy

    return tidy(model, _outputs(detector, free), _input(full, free))


def _input(full: Shape, free: str) -> tuple[int | str, ...]:
    return ("N" if "N" in free else 1, 3, *(("H", "W") if "H" in free else full[2:]))


def _outputs(detector: Detector, free: str) -> list[TensorFact]:
    batch: int | str = "N" if "N" in free else 1
    return [TensorFact(name=f.name, dtype=f.dtype, shape=(batch, *f.shape[1:])) for f in detector.facts.outputs]


def _model(
    detector: Detector,
    path: Path,
    exporter: Literal["torch.export", "torchscript"],
    free: str,
    full: Shape,
    checks: tuple[ShapeCheck, ...],
    failures: list[str],
) -> OnnxModel:
    from redline.export.exporters import OPSET

    return OnnxModel(
        path=str(path),
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        exporter=exporter,
        opset=OPSET,
        input=TensorFact(name="images", dtype="float32", shape=_input(full, free)),
        outputs=tuple(_outputs(detector, free)),
        dynamic=free == "NHW",
        checks=checks,
        fallback_reason="; ".join(failures) or None,
    )
