"""End-to-end graphs for engines: fixed outputs, other ways to suppress. Run by ONNX Runtime, and built by TensorRT-RTX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redline import vision
from redline.errors import TrialError
from redline.records import Detections, GraphForm, Head, OnnxModel, Postprocess, Preprocess, TensorFact

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
    OrtRunner,
    agree,
    matched,
    network,
    session,
)  # fmt: skip

from redline.export.end2end import export_end_to_end  # noqa: E402
from redline.predict import Predictor  # noqa: E402

HEADS = pytest.mark.parametrize("head", [YOLOX, RETINANET], ids=["yolox", "retinanet"])
LIMITED = dataclasses.replace(POST, candidates_per_level=15)
FIXED = GraphForm(fixed=True)


def cropped(outputs: list[Any], post: Postprocess) -> Detections:
    """Fixed outputs up to their count; what lies behind must be empty."""
    boxes, scores, labels, count = outputs
    assert boxes.shape == (post.max_detections, 4)
    assert count.shape == (1,)
    real = int(count[0])
    assert not boxes[real:].any()
    assert not scores[real:].any()
    assert (labels[real:] == -1).all()
    return Detections(boxes=boxes[:real], scores=scores[:real], labels=labels[:real])


def graph(
    folder: Path, head: Head, post: Postprocess, form: GraphForm, preprocess: Preprocess = PLAIN
) -> Callable[..., Detections]:
    model = export_end_to_end(network(folder, head), folder / "out", preprocess, head, post, "fixed", form)
    run = session(model.path)

    def predict(image: Any) -> Detections:
        found = run.run(None, {"image": image})
        return cropped(found, post) if form.fixed else Detections(boxes=found[0], scores=found[1], labels=found[2])

    return predict


def host(folder: Path, head: Head, post: Postprocess, preprocess: Preprocess = PLAIN) -> Predictor:
    return Predictor(OrtRunner(network(folder, head).path), preprocess, head, post, "fixed")


@HEADS
@pytest.mark.parametrize(
    "post",
    [
        POST,
        LIMITED,
        dataclasses.replace(POST, class_aware=False),
        dataclasses.replace(POST, score=0.001, iou=0.65, max_detections=300),
        dataclasses.replace(POST, score=0.9999),
        dataclasses.replace(POST, max_detections=1),
    ],
    ids=["all", "levels", "class-agnostic", "evaluation", "nothing-found", "one"],
)
def test_fixed_outputs_hold_the_same_detections(tmp_path: Path, head: Head, post: Postprocess) -> None:
    expected, predict = host(tmp_path, head, post)(IMAGES), graph(tmp_path, head, post, FIXED)
    for image, wanted in zip(IMAGES, expected, strict=True):
        agree(wanted, predict(image), box=2e-3, score=1e-5)


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(resize="stretch", size=(96, 160)),
        dataclasses.replace(PLAIN, interpolation="nearest"),
        dataclasses.replace(PLAIN, anchor="center", channels="bgr"),
    ],
    ids=["stretch", "nearest", "center-bgr"],
)
def test_an_image_that_is_cast_first_is_resized_alike(tmp_path: Path, preprocess: Preprocess) -> None:
    expected = host(tmp_path, RETINANET, LIMITED, preprocess)(IMAGES)
    predict = graph(tmp_path, RETINANET, LIMITED, FIXED, preprocess)
    for image, wanted in zip(IMAGES, expected, strict=True):
        agree(wanted, predict(image), box=2e-3, score=1e-5)


def test_an_antialiased_resize_still_rounds(tmp_path: Path) -> None:
    """Resize rounds to the type that it is given: both forms give it uint8."""
    smooth = dataclasses.replace(PLAIN, antialias=True)
    fixed = graph(tmp_path, YOLOX, LIMITED, FIXED, smooth)
    free = graph(tmp_path, YOLOX, LIMITED, GraphForm(), smooth)
    for image in IMAGES:
        agree(free(image), fixed(image), box=1e-6, score=1e-7)


@HEADS
@pytest.mark.parametrize("post", [POST, LIMITED, dataclasses.replace(POST, score=0.1)], ids=["all", "levels", "few"])
@pytest.mark.parametrize("fixed", [True, False])
def test_without_suppression_the_highest_scores_stay(tmp_path: Path, head: Head, post: Postprocess, fixed: bool) -> None:
    expected = host(tmp_path, head, dataclasses.replace(post, iou=1.0))(IMAGES)
    predict = graph(tmp_path, head, post, GraphForm(nms="topk", fixed=fixed))
    assert sum(len(one.scores) for one in expected) > 5
    for image, wanted in zip(IMAGES, expected, strict=True):
        agree(wanted, predict(image), box=2e-3, score=1e-5)


@HEADS
@pytest.mark.parametrize("post", [POST, LIMITED, dataclasses.replace(LIMITED, class_aware=False)], ids=["all", "levels", "any"])
def test_the_plugin_gets_what_the_reference_suppresses(tmp_path: Path, head: Head, post: Postprocess) -> None:
    """No runtime here has EfficientNMS: the graph up to it runs, and the reference's NMS does what its documentation says."""
    model = export_end_to_end(
        network(tmp_path, head), tmp_path / "out", PLAIN, head, post, "fixed", GraphForm(nms="efficient", fixed=True)
    )
    proto = onnx.load(model.path)
    (node,) = [node for node in proto.graph.node if node.op_type == "EfficientNMS_TRT"]
    assert node.domain == "trt.plugins"
    assert [fact.name for fact in proto.graph.output] == ["boxes", "scores", "labels", "count"]
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert given["max_output_boxes"] == post.max_detections
    assert given["class_agnostic"] == (not post.class_aware)
    assert given["iou_threshold"] == pytest.approx(post.iou)
    assert given["score_threshold"] == pytest.approx(post.score)
    assert (given["background_class"], given["box_coding"], given["score_activation"]) == (-1, 0, 0)
    onnx.utils.extract_model(model.path, tmp_path / "part.onnx", ["image"], list(node.input), check_model=False)
    run, expected = session(str(tmp_path / "part.onnx")), host(tmp_path, head, post)(IMAGES)
    for image, wanted in zip(IMAGES, expected, strict=True):
        (boxes,), (scores,) = run.run(None, {"image": image})
        anchors, labels = np.nonzero(scores > vision.at_most(post.score))
        pairs, values = boxes[anchors], scores[anchors, labels]
        limits = {"iou": post.iou, "max_detections": post.max_detections, "class_aware": post.class_aware}
        kept = vision.nms(pairs, values, labels, anchors, **limits)
        place = vision.place(image.shape[:2], PLAIN, "fixed")
        found = Detections(boxes=vision.to_source(pairs[kept], place), scores=values[kept], labels=labels[kept])
        agree(wanted, found, box=2e-3, score=1e-5)


def test_efficient_nms_needs_fixed_outputs(tmp_path: Path) -> None:
    with pytest.raises(TrialError) as caught:
        export_end_to_end(network(tmp_path, YOLOX), tmp_path, PLAIN, YOLOX, POST, "fixed", GraphForm(nms="efficient"))
    assert caught.value.code == "no-graph-form"


def test_a_final_head_has_fixed_outputs_too(tmp_path: Path) -> None:
    """A network of constants: 9 detections, of which 4 pass."""
    rng = np.random.default_rng(3)
    values = [
        rng.random((1, 9, 4)).astype(np.float32) * 100,
        np.linspace(0, 0.8, 9, dtype=np.float32)[None],
        np.arange(9, dtype=np.float32)[None],
    ]
    names = ["b", "s", "l"]
    nodes = [
        onnx.helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        onnx.helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        *(onnx.helper.make_node("Add", [f"{name}_value", "nothing"], [name]) for name in names),
    ]
    constants = [onnx.numpy_helper.from_array(value, f"{name}_value") for name, value in zip(names, values, strict=True)]
    constants.append(onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    fact = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        nodes, "network", [fact("image", 1, ["N", 3, "H", "W"])], [fact(name, 1, None) for name in names], initializer=constants
    )
    path = tmp_path / "network.onnx"
    onnx.save(onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    model = OnnxModel(
        path=str(path), digest="0", exporter="given", opset=18, dynamic=True, checks=(),
        input=TensorFact(name="image", dtype="float32", shape=("N", 3, "H", "W")),
        outputs=tuple(TensorFact(name=name, dtype="float32", shape=("N",)) for name in names),
    )  # fmt: skip
    head, post = Head(kind="detections"), Postprocess(score=0.45, max_detections=6)
    exported = export_end_to_end(model, tmp_path / "out", PLAIN, head, post, "fixed", FIXED)
    assert exported.outputs[-1] == TensorFact(name="count", dtype="int64", shape=(1,))
    found = cropped(session(exported.path).run(None, {"image": IMAGES[4]}), post)
    assert found.labels.tolist() == [8, 7, 6, 5]
    assert np.allclose(found.boxes, values[0][0, [8, 7, 6, 5]])


@pytest.mark.skipif(not YOLOX_FILE.exists(), reason="the shared YOLOX-Nano is not beside the checkout")
@pytest.mark.parametrize("form", [FIXED, GraphForm()], ids=["fixed", "free"])
def test_real_images_equal(tmp_path: Path, form: GraphForm) -> None:
    preprocess = Preprocess(size=(416, 416), channels="bgr")
    model = OnnxModel(
        path=str(YOLOX_FILE), digest="0", exporter="given", opset=11, dynamic=False, checks=(),
        input=TensorFact(name="images", dtype="float32", shape=(1, 3, 416, 416)),
        outputs=(TensorFact(name="output", dtype="float32", shape=(1, 3549, 85)),),
    )  # fmt: skip
    head, post = Head(kind="yolox"), Postprocess()
    reference = Predictor(OrtRunner(model.path), preprocess, head, post, "fixed")
    run = session(export_end_to_end(model, tmp_path, preprocess, head, post, "fixed", form).path)
    compared = 0
    for path in sorted(COCO.iterdir())[:12]:
        image = vision.decode(path.read_bytes(), name=path.name)
        found = run.run(None, {"image": image})
        ours = cropped(found, post) if form.fixed else Detections(boxes=found[0], scores=found[1], labels=found[2])
        (expected,) = reference([image])
        assert len(ours.scores) == len(expected.scores)
        compared += matched(expected, ours)
        matched(ours, expected)
    assert compared > 150


@HEADS
def test_tensorrt_takes_the_whole_service(tmp_path: Path, head: Head) -> None:
    """Built ahead of time for 8.9: uint8 images of any size in, fixed outputs out. TensorRT-RTX has no NMS: the topk form."""
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    from redline.engine.tensorrt_builder import build_plan
    from redline.engine.tensorrt_versions import find
    from redline.records import BuildOptions, EngineProfile

    form = GraphForm(nms="topk", fixed=True)
    model = export_end_to_end(network(tmp_path, head), tmp_path / "out", PLAIN, head, LIMITED, "fixed", form)
    profile = EngineProfile(index=0, minimum=(16, 16, 3), optimum=(480, 640, 3), maximum=(2160, 3840, 3))  # type: ignore[arg-type]
    options = BuildOptions(precision="fp32", profiles=(profile,), capabilities=("8.9",))
    plan = build_plan(model.path, options, find("tensorrt-rtx"))
    assert len(plan.data) > 10_000
    assert [(fact.name, fact.shape) for fact in plan.outputs] == [
        ("boxes", (60, 4)), ("scores", (60,)), ("labels", (60,)), ("count", (1,)),
    ]  # fmt: skip
