"""The end-to-end graph, run by ONNX Runtime, against the host path on the same network: the same detections.

Tolerances: a uint8 resize without antialias is OpenCV's level for level, so scores agree to float rounding. A float resize
differs by float32 coordinates (0.02 of a level), an antialiased uint8 one by at most one level in under 1 % of the pixels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redline import vision
from redline.errors import TrialError
from redline.records import Head, OnnxModel, Postprocess, Preprocess, TensorFact

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from end2end_cases import (  # noqa: E402
    COCO,
    IMAGES,
    PLAIN,
    POST,
    RETINANET,
    YOLOX,
    YOLOX_FILE,
    agree,
    both,
    matched,
    network,
)  # fmt: skip

from redline.export.end2end import export_end_to_end  # noqa: E402


def prepared_by_graph(preprocess: Preprocess) -> Any:
    """The preparing half of the graph alone, as a callable."""
    from redline.export.graph_builder import GraphBuilder
    from redline.export.graph_prepare import place, prepare

    g = GraphBuilder("g/")
    tensor = prepare(g, "image", preprocess, place(g, "image", preprocess, "fixed"))
    fact = onnx.helper.make_tensor_value_info
    inputs, outputs = [fact("image", 2, ["H", "W", 3])], [fact(tensor, 1, None)]
    graph = onnx.helper.make_graph(g.nodes, "g", inputs, outputs, initializer=g.initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    runner = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda image: runner.run(None, {"image": image})[0][0]


@pytest.mark.parametrize("head", [YOLOX, RETINANET], ids=["yolox", "retinanet"])
@pytest.mark.parametrize("shapes", ["fixed", "minimal"])
@pytest.mark.parametrize(
    "preprocess",
    [
        PLAIN,
        dataclasses.replace(PLAIN, channels="bgr", anchor="center", fill=(114.0, 0.0, 255.0)),
        Preprocess(resize="stretch", size=(96, 160), scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        Preprocess(resize="shortest-side", size=(96, 160), anchor="center"),
        Preprocess(resize="none"),
        dataclasses.replace(PLAIN, interpolation="nearest"),
    ],
    ids=["letterbox", "letterbox-bgr-center", "stretch-normalised", "shortest-side", "none", "nearest"],
)
def test_same_detections_exactly_resized(tmp_path: Path, preprocess: Preprocess, shapes: str, head: Head) -> None:
    model = network(tmp_path, head, gain=0.08 if preprocess.scale < 1 else 0.001)
    host, graph = both(tmp_path, model, preprocess, head, POST, shapes)
    found = host(IMAGES)
    assert sum(len(detections.scores) for detections in found) > 100
    for expected, image in zip(found, IMAGES, strict=True):
        agree(expected, graph([image])[0], box=2e-3, score=1e-5)


@pytest.mark.parametrize(
    ("preprocess", "levels", "share"),
    [
        (dataclasses.replace(PLAIN, round_to_uint8=False), 0.02, 1.0),
        (dataclasses.replace(PLAIN, round_to_uint8=False, antialias=True), 0.02, 1.0),
        (dataclasses.replace(PLAIN, antialias=True), 1.0, 0.01),
    ],
    ids=["float", "float-antialias", "uint8-antialias"],
)
def test_other_resizes_differ_by_little(preprocess: Preprocess, levels: float, share: float) -> None:
    run = prepared_by_graph(preprocess)
    noise = np.random.default_rng(0).integers(0, 256, (211, 333, 3), dtype=np.uint8)
    for image in (noise, noise[:50, :40].copy(), *IMAGES):
        difference = np.abs(run(image) - vision.prepare(image, preprocess, "fixed")[0])
        assert difference.max() <= levels
        assert (difference > 0.5).mean() <= share


def test_uint8_resize_is_opencv_level_for_level() -> None:
    rng = np.random.default_rng(3)
    for size in ((97, 61), (200, 300), (53, 37)):
        preprocess = Preprocess(resize="stretch", size=size)
        run = prepared_by_graph(preprocess)
        for height, width in ((480, 640), (53, 37), (106, 74), (1, 9), (9, 1), (1, 1)):
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            assert np.array_equal(run(image), vision.prepare(image, preprocess, "fixed")[0])


@pytest.mark.parametrize("head", [YOLOX, RETINANET], ids=["yolox", "retinanet"])
@pytest.mark.parametrize(
    "post",
    [
        dataclasses.replace(POST, class_aware=False),
        dataclasses.replace(POST, candidates_per_level=15),
        dataclasses.replace(POST, score=0.001, iou=0.65, max_detections=300),
        dataclasses.replace(POST, score=0.9999),
        dataclasses.replace(POST, max_detections=1),
    ],
    ids=["class-agnostic", "candidates-per-level", "evaluation", "nothing-found", "one"],
)
def test_same_detections_for_every_postprocess(tmp_path: Path, post: Postprocess, head: Head) -> None:
    host, graph = both(tmp_path, network(tmp_path, head), PLAIN, head, post, "minimal")
    for image in IMAGES:
        agree(host([image])[0], graph([image])[0], box=2e-3, score=1e-5)


def test_an_old_operator_set_is_raised(tmp_path: Path) -> None:
    model = network(tmp_path, YOLOX, opset=11)
    host, graph = both(tmp_path, model, PLAIN, YOLOX, POST, "fixed")
    agree(host(IMAGES[:1])[0], graph(IMAGES[:1])[0], box=2e-3, score=1e-5)
    exported = export_end_to_end(model, tmp_path / "again", PLAIN, YOLOX, POST, "fixed")
    assert exported.opset == 18
    assert exported.input == TensorFact(name="image", dtype="uint8", shape=("height", "width", 3))
    assert [fact.name for fact in exported.outputs] == ["boxes", "scores", "labels"]
    assert exported.digest == export_end_to_end(model, tmp_path / "third", PLAIN, YOLOX, POST, "fixed").digest


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("box_format", ["xyxy", "cxcywh"])
def test_detections_heads_are_mapped_back(tmp_path: Path, normalized: bool, box_format: str) -> None:
    """Constant outputs of a network that is a Reshape of its input's mean times zero plus those constants."""
    rng = np.random.default_rng(2)
    values = [rng.random((1, 40, 4)), rng.random((1, 40)), rng.integers(0, 9, (1, 40)).astype(float)]
    if not normalized:
        values[0] *= 128
    values[0][0, 0, 0] = np.nan
    names = ["boxes", "scores", "labels"]
    nodes = [
        onnx.helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        onnx.helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ] + [onnx.helper.make_node("Add", [f"{name}_value", "nothing"], [name]) for name in names]
    constants = [onnx.numpy_helper.from_array(v.astype(np.float32), f"{n}_value") for n, v in zip(names, values, strict=True)]
    constants.append(onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    fact = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "network", [fact("image", 1, ["N", 3, "H", "W"])], [fact(n, 1, None) for n in names], initializer=constants
    )
    path = tmp_path / "network.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    model = OnnxModel(
        path=str(path), digest="0", exporter="given", opset=18, dynamic=True, checks=(),
        input=TensorFact(name="image", dtype="float32", shape=("N", 3, "H", "W")),
        outputs=tuple(TensorFact(name=n, dtype="float32", shape=("N",)) for n in names),
    )  # fmt: skip
    head = Head(kind="detections", box_format=box_format, normalized=normalized)  # type: ignore[arg-type]
    post = Postprocess(score=0.2, max_detections=20)
    host, graph_predict = both(tmp_path, model, PLAIN, head, post, "fixed")
    found = host(IMAGES[:2])
    assert all(len(detections.scores) == 20 for detections in found)
    for expected, image in zip(found, IMAGES, strict=False):
        agree(expected, graph_predict([image])[0], box=1e-3, score=1e-6)


def test_custom_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="custom heads have no graph form"):
        export_end_to_end(network(tmp_path, YOLOX), tmp_path, PLAIN, Head(kind="custom", function="a:b"), POST, "fixed")


@pytest.mark.parametrize(
    ("shape", "preprocess", "shapes"),
    [
        ((1, 3, 416, 416), PLAIN, "fixed"),
        ((1, 3, 128, 128), PLAIN, "minimal"),
        ((1, 3, 128, 128), Preprocess(resize="none"), "fixed"),
        ((2, 3, 128, 128), PLAIN, "fixed"),
        ((1, 3, "H", 64), PLAIN, "fixed"),
    ],
)
def test_a_fixed_input_that_does_not_fit_is_refused(tmp_path: Path, shape: Any, preprocess: Preprocess, shapes: Any) -> None:
    model = network(tmp_path, YOLOX)
    fixed = dataclasses.replace(model, input=dataclasses.replace(model.input, shape=shape))
    with pytest.raises(TrialError) as caught:
        export_end_to_end(fixed, tmp_path, preprocess, YOLOX, POST, shapes)
    assert caught.value.code == "fixed-input"


@pytest.mark.skipif(not YOLOX_FILE.exists(), reason="the shared YOLOX-Nano is not beside the checkout")
@pytest.mark.parametrize("rounded", [True, False])
def test_yolox_nano_on_real_images(tmp_path: Path, rounded: bool) -> None:
    """Scores of at least 0.05: the same set, IoU >= 0.99, score within 1e-3."""
    preprocess = Preprocess(size=(416, 416), channels="bgr", round_to_uint8=rounded)
    model = OnnxModel(
        path=str(YOLOX_FILE), digest="0", exporter="given", opset=11, dynamic=False, checks=(),
        input=TensorFact(name="images", dtype="float32", shape=(1, 3, 416, 416)),
        outputs=(TensorFact(name="output", dtype="float32", shape=(1, 3549, 85)),),
    )  # fmt: skip
    host, graph = both(tmp_path, model, preprocess, Head(kind="yolox"), Postprocess(), "fixed")
    compared = 0
    for path in sorted(COCO.iterdir())[:12]:
        image = vision.decode(path.read_bytes(), name=path.name)
        expected, found = host([image])[0], graph([image])[0]
        compared += matched(expected, found)
        matched(found, expected)
    assert compared > 150


@pytest.mark.skipif(not YOLOX_FILE.exists(), reason="the shared YOLOX-Nano is not beside the checkout")
def test_yolox_nano_exported_here_with_dynamic_shapes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from redline.export import export_onnx
    from redline.model.load import load_detector
    from redline.records import ModelSpec

    spec = ModelSpec(
        factory="redline.zoo:yolox_nano",
        weights=str(YOLOX_FILE.parent / "yolox_nano_fused_state_dict.pt"),
        head=Head(kind="yolox"),
        preprocess=Preprocess(size=(256, 256), channels="bgr"),
    )
    model = export_onnx(load_detector(spec), tmp_path, input_hw=(256, 256))
    assert model.dynamic
    host, graph = both(tmp_path, model, spec.preprocess, spec.head, spec.postprocess, "minimal")
    compared = 0
    for path in sorted(COCO.iterdir())[:6]:
        image = vision.decode(path.read_bytes(), name=path.name)
        compared += matched(host([image])[0], graph([image])[0])
    assert compared > 40
