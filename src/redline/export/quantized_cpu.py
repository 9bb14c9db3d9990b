"""INT8 for ONNX Runtime's CPU, by ONNX Runtime's own quantiser.

Its kernels fuse another form than TensorRT's: activations asymmetric, and every operator it knows rounded at its output, so
that a layer with its activation is one integer kernel (docs/int8.md).
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from redline.errors import TrialError
from redline.export.quantized import require_unquantised, unknown_node
from redline.export.quiet import quiet
from redline.records import OnnxModel
from redline.records.quantize import Calibrator

if TYPE_CHECKING:
    from redline.records.detect import Tensor

CPU_CALIBRATORS: tuple[Calibrator, ...] = ("max", "percentile")
"""Entropy is left out: over its 128 bins it made the same detections as max of both networks tried (the demo detector and
YOLOX-Nano), and it takes several times as long."""
PERCENTILE = 99.99
_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")


def export_cpu_int8(
    network: OnnxModel,
    folder: Path,
    inputs: Iterable[Tensor],
    method: Calibrator,
    *,
    keep_wide: Collection[str] = (),
    name: str = "network_int8_cpu",
) -> OnnxModel:
    """Write NAME.onnx to `folder`: `network`, in FP32, with all that ONNX Runtime can compute in INT8 in INT8.

    `inputs`: (3, H, W) float32 tensors as the network sees them, whose ranges count. `keep_wide`: names of nodes that stay in
    FP32. Weights have a scale for each output channel. Raises BadInput: quantize.already, quantize.node; TrialError:
    export-int8 if ONNX Runtime refuses the graph.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(network.path)
    require_unquantised(model, network.path)
    names = [node.name for node in model.graph.node]
    for node in keep_wide:
        if node not in names:
            raise unknown_node(node, names, "quantize.node", "No node of the graph has this name")
    path = folder / f"{name}.onnx"
    methods = {"max": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    reader = _Reader(network.input.name, inputs)
    try:
        with quiet():
            quantize_static(
                model,
                path,
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=saturates(),
                activation_type=QuantType.QInt8 if _is_arm() else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=methods[method],
                nodes_to_exclude=sorted(keep_wide),
                extra_options={"CalibPercentile": PERCENTILE},
            )
    except Exception as error:  # the quantiser raises whatever its parts raise
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise TrialError("export-int8", "ONNX Runtime's quantiser refuses the graph", got=got) from error
    note = f"int8 by ONNX Runtime, {method} ranges of {reader.given} images"
    note += f", {len(keep_wide)} nodes in fp32" if keep_wide else ""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(network, path=str(path), digest=digest, notes=(*network.notes, note))


@functools.cache
def saturates() -> bool:
    """Whether this CPU sums pairs of 8-bit products in 16 bits: weights then get 7 bits, as ONNX Runtime advises.

    x86 without VNNI does; where the flags cannot be read, it is assumed.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    return not any(flag in known for flag in _FLAGS)


def _is_arm() -> bool:
    return platform.machine().lower() in ("arm64", "aarch64")


class _Reader:
    """What the quantiser asks for one input after another."""

    def __init__(self, name: str, inputs: Iterable[Tensor]) -> None:
        self.given = 0
        self._feeds: Iterator[dict[str, Any]] = iter({name: tensor[None]} for tensor in inputs)

    def get_next(self) -> dict[str, Any] | None:
        found = next(self._feeds, None)
        self.given += found is not None
        return found
