"""From a `ModelSpec` to a `Detector` that has run once and fits its head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redline.errors import BadInput
from redline.records import Detector, Head, ModelFacts, ModelSpec, TensorFact

if TYPE_CHECKING:
    from torch import nn

NAMES = {"yolox": ("predictions",), "retinanet": ("class_logits", "box_deltas"), "detections": ("boxes", "scores", "labels")}
"""Output names of a torch detector by head; a custom head's are output_0, output_1, ..."""


def load_detector(spec: ModelSpec) -> Detector:
    """Load, describe and check the detector.

    A factory's module comes back in eval mode, float32, on the CPU, returning a tuple of float32 tensors; weights that hold NaN
    are loaded and noted in `facts.notes`. Raises BadInput: model-factory, model-onnx, model-onnx-input, model-onnx-size,
    model-run, weights-file, weights-unsafe, weights-mismatch, head-outputs, head-function.
    """
    return _from_factory(spec) if spec.factory is not None else _from_onnx(spec)


def check_head(detector: Detector) -> None:
    """Run the detector once and check its outputs against its head. Raises BadInput: head-outputs, head-function, model-run."""
    from redline.model import probe

    fixed = detector.facts.inputs[0].shape[2:] if detector.module is None else ()
    found = probe.probe_outputs(detector, probe.sizes(detector.preprocess, fixed))
    for hw, outputs in found.items():
        probe.fit(outputs, detector.head, hw)


def _from_factory(spec: ModelSpec) -> Detector:
    from redline.model import weights
    from redline.model.factory import build
    from redline.model.outputs import TupleOutputs

    factory = spec.factory or ""
    net = build(factory, dict(spec.arguments))
    if spec.weights is not None:
        path = Path(spec.weights)
        weights.load_state(net, weights.read_state(path), path.name)
    bad = weights.not_finite(net)
    image = TensorFact(name="images", dtype="float32", shape=("N", 3, "H", "W"))
    facts = ModelFacts(
        name=factory.partition(":")[2],
        digest=weights.digest(net),
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        weight_bytes=_bytes(net),
        inputs=(image,),
        outputs=(),
        classes=None,
        origin="torch",
        notes=(f"{len(bad)} weight tensors hold NaN or infinity ({bad[0]}, ...)",) if bad else (),
    )
    detector = Detector(
        module=TupleOutputs(net, spec.head.kind).eval(),
        onnx_path=None,
        facts=facts,
        head=spec.head,
        preprocess=spec.preprocess,
        postprocess=spec.postprocess,
    )
    return _described(detector, None)


def _bytes(net: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())


def _from_onnx(spec: ModelSpec) -> Detector:
    from redline.model import onnx_file

    if spec.onnx is None:
        raise BadInput("model-factory", "No model given", allowed='model.factory = "package.module:callable" or model.onnx')
    if spec.weights is not None:
        raise BadInput("weights-file", "An ONNX model brings its weights", got=spec.weights, fix="remove model.weights")
    path = Path(spec.onnx)
    model = onnx_file.read(path)
    image = onnx_file.image_input(model)
    onnx_file.check_size(image, spec.preprocess)
    count, size = onnx_file.parameters(model)
    facts = ModelFacts(
        name=path.stem,
        digest=onnx_file.digest(path, model),
        parameters=count,
        weight_bytes=size,
        inputs=(image,),
        outputs=(),
        classes=None,
        origin="onnx",
    )
    detector = Detector(
        module=None, onnx_path=str(path), facts=facts, head=spec.head, preprocess=spec.preprocess, postprocess=spec.postprocess
    )
    return _described(detector, tuple(value.name for value in model.graph.output))


def _described(detector: Detector, names: tuple[str, ...] | None) -> Detector:
    """Run the detector, check it against its head and add classes and outputs to its facts."""
    from redline.model import probe

    fixed = detector.facts.inputs[0].shape[2:] if detector.module is None else ()
    found = probe.probe_outputs(detector, probe.sizes(detector.preprocess, fixed))
    classes = [probe.fit(outputs, detector.head, hw) for hw, outputs in found.items()]
    outputs: list[list[Any]] = list(found.values())
    names = names or _names(detector.head, len(outputs[0]))
    plain = [TensorFact(name=name, dtype=str(output.dtype), shape=()) for name, output in zip(names, outputs[0], strict=True)]
    shapes = probe.symbolic(
        plain, outputs, detector.facts.inputs[0].shape[0], "K" if detector.head.kind == "detections" else "A"
    )
    facts = tuple(replace(fact, shape=shape) for fact, shape in zip(plain, shapes, strict=True))
    return replace(detector, facts=replace(detector.facts, outputs=facts, classes=classes[0]))


def _names(head: Head, count: int) -> tuple[str, ...]:
    return NAMES.get(head.kind) or tuple(f"output_{i}" for i in range(count))
