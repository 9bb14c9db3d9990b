"""INT8 or FP8 of a network from images: ranges, places and scales as a table. Joins the rooms quantize, engine and vision."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redline import vision
from redline.engine.cuts import cut_graph, wire
from redline.engine.graph_facts import read_graph
from redline.engine.onnxruntime_runner import open_session
from redline.errors import BadInput, TrialError
from redline.export.adjusted import adjust
from redline.export.quantized import LARGEST, matched, structure_of, unknown_node
from redline.quantize.placement import place, roundable, rounded_nodes
from redline.quantize.ranges import Inner, measure_ranges
from redline.records import Detector, OnnxModel
from redline.records.quantize import CalibrationSet, Calibrator, ChannelFactors, Number, QuantTable, Ranges
from redline.store import digest_of

if TYPE_CHECKING:
    import onnx

    from redline.records.detect import ShapePolicy, Tensor


def calibrate(
    network: OnnxModel,
    detector: Detector,
    images: Sequence[Path],
    *,
    shapes: ShapePolicy = "fixed",
    selector: str = "all",
    seed: int = 0,
    threads: int = 0,
    factors: Sequence[ChannelFactors] = (),
) -> Ranges:
    """Ranges of every tensor that `table_of` may need, on `images` as the network sees them, channels in units of `factors`.

    Raises BadInput: quantize.no-images, quantize.range, and what decoding an image raises.
    """
    if not images:
        fix = "give [data] calibrate images"
        raise BadInput("quantize.no-images", "There is nothing to calibrate with", got="no images", fix=fix)
    model = adjust(read_graph(network.path), factors)
    names = roundable(model)
    sizes: set[tuple[int, int]] = set()

    def batches() -> Iterator[Tensor]:
        for batch in batches_of(detector, images, shapes):
            sizes.add((batch.shape[2], batch.shape[3]))
            yield batch

    ranges = measure_ranges(tensors_of(network, model, names, threads), batches, names)
    calibration = CalibrationSet(
        images=tuple(digest_of(path.read_bytes()) for path in images),
        preprocess=digest_of(detector.preprocess),
        selector=selector,
        seed=seed,
        input_shapes=tuple(sorted(sizes)),
    )
    return Ranges(network=network.digest, calibration=calibration, tensors=ranges)


def tensors_of(network: OnnxModel, model: onnx.ModelProto, names: Sequence[str], threads: int = 0) -> Inner:
    """Gives any of `names`, tensors of `model`, for a batch; `model` has the input of `network`."""
    wiring = wire(model)
    # Graph inputs need no further output: they are what is fed.
    made = [name for name in names if name in wiring.maker]
    session = open_session(cut_graph(model, wiring, made).SerializeToString(), threads=threads, concurrent=True)

    def inner(batch: Tensor, wanted: Sequence[str]) -> dict[str, Any]:
        found = dict(zip(made, session.run(made, {network.input.name: batch}), strict=True))
        return {name: found.get(name, batch) for name in wanted}

    return inner


def batches_of(detector: Detector, images: Sequence[Path], shapes: ShapePolicy = "fixed") -> Iterator[Tensor]:
    """(1, 3, H, W) float32 of each image, as the network sees it."""
    for path in images:
        tensor, _ = vision.prepare(vision.decode(path.read_bytes(), name=path.name), detector.preprocess, shapes)
        yield tensor[None]


def table_of(
    network: OnnxModel,
    ranges: Ranges,
    method: Calibrator,
    *,
    keep_wide: Collection[str] = (),
    share: bool = True,
    number: Number = "int8",
    factors: Sequence[ChannelFactors] = (),
) -> QuantTable:
    """Scales by `method` for every layer of the network that is rounded to `number` but those named in `keep_wide`.

    `factors`: those of the calibration.

    Raises BadInput: quantize.node if one of them is no such layer; TrialError: quantize-none if the network has none.
    """
    model = read_graph(network.path)
    layers = rounded_nodes(model, number)
    if not layers:
        raise TrialError("quantize-none", f"No layer of this network can be computed in {number.upper()}", got=network.path)
    amax = {found.tensor: found.amax(method) for found in ranges.tensors}
    placement = place(adjust(model, factors), layers, share=share, copies=number == "int8")
    for group in placement.shared:
        amax |= dict.fromkeys(group, max(amax[name] for name in group))
    table = QuantTable(
        structure=structure_of(model),
        method=method,
        calibration=ranges.calibration,
        scales=tuple((name, amax[name] / LARGEST[number]) for name in amax),
        points=placement.points,
        weights=placement.weights,
        order=tuple(node.name for node in model.graph.node),
        number=number,
        factors=tuple(factors),
    )
    return narrowed(model, table, keep_wide, share=share) if keep_wide else table


def narrowed(model: onnx.ModelProto, table: QuantTable, keep_wide: Collection[str], *, share: bool = True) -> QuantTable:
    """The table without the layers `keep_wide`, placed anew: what only they read rounded is rounded no more.

    Raises BadInput: quantize.node naming one that is no layer of the table and the nearest that is.
    """
    table = matched(model, table)
    for name in keep_wide:
        if name not in table.weights:
            what = f"No layer that is rounded to {table.number.upper()} has this name"
            raise unknown_node(name, table.weights, "quantize.node", what)
    factors = tuple(entry for one in table.factors if (entry := _unless_wide(one, keep_wide)) is not None)
    layers = [name for name in table.weights if name not in keep_wide]
    placement = place(adjust(model, factors), layers, share=share, copies=table.number == "int8")
    biases = tuple(entry for entry in table.biases if entry.node not in keep_wide)
    # A residual branch or a copy that was not rounded before may be now, and a table that was made elsewhere knows the ranges
    # of such tensors by names that this graph has not. Layers' own inputs were rounded before: theirs are known.
    known = dict(table.scales)
    points = tuple(point for point in placement.points if point.tensor in known)
    return replace(table, points=points, weights=placement.weights, factors=factors, biases=biases)


def _unless_wide(entry: ChannelFactors, wide: Collection[str]) -> ChannelFactors | None:
    """An input that is not rounded need not be scaled; what two layers share stays, as it is of use to the other one."""
    if entry.node not in wide or not entry.divide:
        return entry
    return replace(entry, read=(), divide=False) if entry.made else None
