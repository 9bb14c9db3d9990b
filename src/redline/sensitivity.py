"""Which calibrator and which layers cost accuracy: each in INT8 by itself, against FP32, on images without labels.

Joins the rooms quantize, export, engine and parity. Runs on ONNX Runtime on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from redline.engine.graph_facts import read_graph
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.errors import BadInput
from redline.export.quantized import export_int8, matched
from redline.parity import divergence
from redline.predict import Predictor
from redline.quantize.groups import layer_groups
from redline.quantizing import narrowed, table_of
from redline.records import Detections, Detector, OnnxModel
from redline.records.quantize import (
    CALIBRATORS,
    CalibratorLoss,
    ChannelFactors,
    LayerGroup,
    Number,
    QuantTable,
    Ranges,
    Sensitivity,
)
from redline.store import digest_of

if TYPE_CHECKING:
    from redline.records.detect import Image, ShapePolicy
    from redline.store import Store


class Scales:
    """Weighs INT8 and FP8 graphs of one network by their detections; those of FP32 are made once."""

    def __init__(
        self,
        network: OnnxModel,
        detector: Detector,
        images: Sequence[Image],
        folder: Path,
        *,
        shapes: ShapePolicy = "fixed",
        threads: int = 0,
        store: Store | None = None,
    ) -> None:
        """`store`: what was weighed is kept there, so that an interrupted search goes on where it was."""
        if not images:
            fix = "give [data] calibrate images"
            raise BadInput("quantize.no-images", "There is nothing to weigh INT8 by", got="no images", fix=fix)
        self.network, self.model = network, read_graph(network.path)
        self._detector, self._images, self._folder = detector, images, folder
        self._shapes, self._threads, self._store = shapes, threads, store
        self._reference: list[Detections] | None = None

    @property
    def count(self) -> int:
        """Images."""
        return len(self._images)

    def part(self, images: slice) -> Scales:
        """Weighs on some of the images, from the same store."""
        return Scales(
            self.network, self._detector, self._images[images], self._folder,
            shapes=self._shapes, threads=self._threads, store=self._store,
        )  # fmt: skip

    def divergence(self, table: QuantTable) -> float:
        """Of the network with `table` from FP32; see `parity.divergence`."""
        if self._store is None:
            return self._weigh(table)
        key = {"graph": self.network.digest, "table": digest_of(table), "shapes": self._shapes, "images": self._digests()}
        return self._store.once(
            stage="sensitivity", key=key, kind="divergence", type=float, compute=lambda: self._weigh(table), parents=()
        )

    def detections(self, table: QuantTable | None) -> list[Detections]:
        """Of every image; None: FP32."""
        if table is None:
            return self.seen_by(self.network)
        return self.seen_by(export_int8(self.network, self._folder, table, name="weighed"), exact=table.number == "fp8")

    def seen_by(self, graph: OnnxModel, *, exact: bool = False) -> list[Detections]:
        """Detections of every image by a graph that is made already. `exact`: as `open_session`, for FP8."""
        runner = OnnxRuntimeRunner(graph.path, threads=self._threads, concurrent=False, exact=exact)
        try:
            predict = Predictor(
                runner, self._detector.preprocess, self._detector.head, self._detector.postprocess, self._shapes
            )
            return [predict([image])[0] for image in self._images]
        finally:
            runner.close()

    def divergence_of(self, graph: OnnxModel) -> float:
        """Of a graph that is made already, from FP32."""
        if self._store is None:
            return self._apart(self.seen_by(graph))
        key = {"graph": self.network.digest, "other": graph.digest, "shapes": self._shapes, "images": self._digests()}
        return self._store.once(
            stage="sensitivity", key=key, kind="divergence", type=float,
            compute=lambda: self._apart(self.seen_by(graph)), parents=(),
        )  # fmt: skip

    def _weigh(self, table: QuantTable) -> float:
        return self._apart(self.detections(table))

    def _apart(self, found: list[Detections]) -> float:
        if self._reference is None:
            self._reference = self.detections(None)
        return divergence(self._reference, found)

    def _digests(self) -> str:
        return digest_of([digest_of(image.tobytes()) for image in self._images])


def choose_calibrator(
    scales: Scales, ranges: Ranges, number: Number = "int8", *, factors: Sequence[ChannelFactors] = ()
) -> tuple[CalibratorLoss, ...]:
    """Every calibrator by the divergence of the whole network, least first. `factors`: those of the ranges."""
    tables = {method: table_of(scales.network, ranges, method, number=number, factors=factors) for method in CALIBRATORS}
    losses = [CalibratorLoss(method=method, divergence=scales.divergence(table)) for method, table in tables.items()]
    return tuple(sorted(losses, key=lambda loss: loss.divergence))


def sensitivities(
    scales: Scales,
    table: QuantTable,
    groups: Sequence[LayerGroup] | None = None,
    told: Callable[[Sensitivity], None] = lambda found: None,
) -> tuple[Sensitivity, ...]:
    """Each group of the table's layers rounded while all others stay in FP32; in graph order. `told` hears of each as it is
    measured."""
    every = matched(scales.model, table).weights
    found = []
    for group in layer_groups(scales.model) if groups is None else groups:
        nodes = tuple(name for name in group.nodes if name in every)
        if not nodes:
            continue
        alone = narrowed(scales.model, table, [name for name in every if name not in nodes])
        found.append(Sensitivity(group=replace(group, nodes=nodes), divergence=scales.divergence(alone)))
        told(found[-1])
    return tuple(found)


def kept_nodes(groups: Sequence[LayerGroup], names: Sequence[str]) -> tuple[str, ...]:
    """Layers of the groups called `names`. Raises BadInput: quantize.keep naming one that there is not and the nearest."""
    known = {group.name: group for group in groups}
    for name in names:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"
            raise BadInput("quantize.keep", "No group of layers has this name", got=name, fix=fix)
    return tuple(node for name in names for node in known[name].nodes)
