"""The end-to-end form of an exported detector: one uint8 image in, detections in its own pixels out, all as ONNX operators."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from redline.errors import TrialError
from redline.records import GraphForm, Head, OnnxModel, Postprocess, Preprocess, ShapePolicy, TensorFact

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""Lowest operator set of the result: Resize has `antialias` from here on."""

_NETWORK = "network/"
_OUTPUTS = (
    TensorFact(name="boxes", dtype="float32", shape=("detections", 4)),
    TensorFact(name="scores", dtype="float32", shape=("detections",)),
    TensorFact(name="labels", dtype="int64", shape=("detections",)),
)


def export_end_to_end(
    model: OnnxModel,
    folder: Path,
    preprocess: Preprocess,
    head: Head,
    postprocess: Postprocess,
    shapes: ShapePolicy,
    form: GraphForm | None = None,
) -> OnnxModel:
    """Write folder/end2end.onnx: the graph of `model` between its pre- and post-processing.

    Input "image" (height, width, 3) uint8 RGB of any size; outputs "boxes" (K, 4) float32 xyxy in pixels of the image,
    "scores" (K,) float32 and "labels" (K,) int64, by descending score. One image an inference. Same detections as `vision`
    on the host but for the resize to uint8, where the two round differently by at most one pixel level. A fixed `form` has K =
    `max_detections`, unused places 0, 0 and label -1, and an output "count" (1,) int64 behind; without NMS ("topk") detections
    are those of `vision` at an IoU threshold of 1.
    Raises TrialError: no-graph-form (custom head; EfficientNMS without a fixed form), fixed-input (the network's size is not
    the one that `shapes` asks for), graph-surgery (the operator set cannot be raised or the result is not valid ONNX).
    """
    import onnx

    if head.kind == "custom":
        raise TrialError(
            "no-graph-form",
            "custom heads have no graph form",
            got=head.function,
            fix="keep pre- and post-processing on the host",
        )
    form = form or GraphForm()
    if form.nms == "efficient" and not form.fixed:
        raise TrialError(
            "no-graph-form", "EfficientNMS has outputs of fixed size", got=form, fix="ask for a fixed form, or for another NMS"
        )
    _check_input(model.input, preprocess, shapes)
    network = onnx.compose.add_prefix(_raised(onnx.load(model.path), model.path), _NETWORK)
    joined = _joined(network, model, preprocess, head, postprocess, shapes, form)
    try:
        onnx.checker.check_model(joined)
    except onnx.checker.ValidationError as exc:
        raise TrialError("graph-surgery", "The end-to-end graph is not valid ONNX", got=str(exc)) from exc
    data = joined.SerializeToString(deterministic=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "end2end.onnx"
    path.write_bytes(data)
    return OnnxModel(
        path=str(path),
        digest=hashlib.sha256(data).hexdigest(),
        exporter=model.exporter,
        opset=_opset(joined),
        input=TensorFact(name="image", dtype="uint8", shape=("height", "width", 3)),
        outputs=_outputs(postprocess, form),
        dynamic=True,
        checks=(),
        fallback_reason=model.fallback_reason,
    )


def _joined(
    network: onnx.ModelProto,
    model: OnnxModel,
    preprocess: Preprocess,
    head: Head,
    postprocess: Postprocess,
    shapes: ShapePolicy,
    form: GraphForm,
) -> onnx.ModelProto:
    from onnx import TensorProto, helper

    from redline.export.graph_builder import GraphBuilder
    from redline.export.graph_detect import PLUGINS, detect
    from redline.export.graph_prepare import place, prepare

    before, after = GraphBuilder("prepare/"), GraphBuilder("detect/")
    placement = place(before, "image", preprocess, shapes)
    image = before.cast("image", np.float32) if form.fixed else "image"  # engines take uint8 into a Cast only
    tensor = prepare(before, image, preprocess, placement)
    before.nodes.append(helper.make_node("Identity", [tensor], [_NETWORK + model.input.name], name="prepare/input"))
    results = detect(after, [_NETWORK + output.name for output in model.outputs], head, postprocess, placement, form)
    facts = _outputs(postprocess, form)
    for result, fact in zip(results, facts, strict=True):
        after.nodes.append(helper.make_node("Identity", [result], [fact.name], name=f"detect/{fact.name}"))
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    graph = helper.make_graph(
        [*before.nodes, *network.graph.node, *after.nodes],
        "end2end",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])],
        [helper.make_tensor_value_info(fact.name, types[fact.dtype], fact.shape) for fact in facts],
        initializer=[*before.initializers, *network.graph.initializer, *after.initializers],
    )
    return helper.make_model(
        graph,
        opset_imports=[*network.opset_import, *([helper.make_opsetid(PLUGINS, 1)] if form.nms == "efficient" else [])],
        functions=list(network.functions),
        ir_version=max(network.ir_version, 8),
        producer_name="redline",
    )


def _outputs(post: Postprocess, form: GraphForm) -> tuple[TensorFact, ...]:
    if not form.fixed:
        return _OUTPUTS
    count = TensorFact(name="count", dtype="int64", shape=(1,))
    return (*(replace(fact, shape=(post.max_detections, *fact.shape[1:])) for fact in _OUTPUTS), count)


def _raised(model: onnx.ModelProto, path: str) -> onnx.ModelProto:
    """The model at operator set `OPSET` or its own, whichever is higher."""
    from onnx import version_converter

    if _opset(model) >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError) as exc:
        raise TrialError(
            "graph-surgery",
            f"The operator set of {path} cannot be raised",
            got=str(exc),
            allowed=f"operator set {OPSET} or higher",
            fix="export the network again with a newer operator set",
        ) from exc


def _opset(model: onnx.ModelProto) -> int:
    return max(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _check_input(fact: TensorFact, preprocess: Preprocess, shapes: ShapePolicy) -> None:
    """A network of fixed size takes only a preprocessing that always gives this size."""
    batch, _, *extent = fact.shape
    always = preprocess.resize == "stretch" or (preprocess.resize == "letterbox" and shapes == "fixed")
    given = preprocess.size if always else ("any", "any")
    fits = all(isinstance(side, str) or side == wanted for side, wanted in zip(extent, given, strict=True))
    if not fits or (isinstance(batch, int) and batch != 1):
        raise TrialError(
            "fixed-input",
            "The network's input is fixed to a size that its preprocessing does not give",
            got=f"network {fact.shape}, preprocessing {preprocess.resize} {given}",
            allowed="dynamic height and width, or letterbox or stretch to exactly the network's size, batch 1",
            fix="export the network with dynamic height and width",
        )
