"""The end-to-end graph, run by ONNX Runtime, against the host path on the same network: the same detections.

Tolerances: a uint8 resize without antialias is OpenCV's level for level, so scores agree to float rounding. A float resize
differs by float32 coordinates (0.02 of a level), an antialiased uint8 one by at most one level in under 1 % of the pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redline import vision
from redline.errors import TrialError
from redline.predict import GraphPredictor, Predictor
from redline.records import Detections, Head, OnnxModel, Postprocess, Preprocess, TensorFact

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from redline.export.end2end import export_end_to_end  # noqa: E402

SHARED = Path(__file__).parents[3].parent / "shared"
YOLOX_FILE = SHARED / "models" / "yolox_nano_coco" / "yolox_nano.onnx"
COCO = SHARED / "data" / "coco_val61" / "images"
CLASSES = 3
STRIDES = (8, 16, 32)
YOLOX = Head(kind="yolox", strides=STRIDES, activation="sigmoid")
RETINANET = Head(
    kind="retinanet",
    strides=STRIDES,
    activation="sigmoid",
    anchor_sizes=((16.0, 20.0), (32.0, 40.0), (64.0, 81.0)),
    aspect_ratios=(0.5, 1.0, 2.0),
)
POST = Postprocess(score=0.05, iou=0.5, max_detections=60)
PLAIN = Preprocess(size=(128, 128))


def session(path: str) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OrtRunner:
    name = "onnxruntime"

    def __init__(self, path: str) -> None:
        self.session = session(path)

    def run(self, batch: Any) -> tuple[Any, ...]:
        name = self.session.get_inputs()[0].name
        parts = [self.session.run(None, {name: batch[i : i + 1]}) for i in range(len(batch))]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def close(self) -> None: ...


def levels_network(folder: Path, widths: Sequence[int], rows: int, opset: int = 18, gain: float = 0.001) -> OnnxModel:
    """One strided convolution a level with random weights: outputs (N, anchors, width), dynamic N, H and W."""
    rng = np.random.default_rng(7)
    nodes, constants, outputs = [], [], []
    for k, width in enumerate(widths):
        parts = []
        for stride in STRIDES:
            name = f"boxes_{k}_{stride}"  # names of its own that could collide with the end-to-end graph's
            weight = rng.normal(0, gain / stride, (rows * width, 3, stride, stride)).astype(np.float32)
            bias = np.tile(rng.normal(-1, 0.5, width), rows).astype(np.float32)
            shape = f"shape_{width}" if stride == STRIDES[0] else f"shape_{width}_{stride}"
            constants += [onnx.numpy_helper.from_array(weight, name + "_w"), onnx.numpy_helper.from_array(bias, name + "_b")]
            constants.append(onnx.numpy_helper.from_array(np.array([0, -1, width], np.int64), f"{shape}_{k}"))
            nodes += [
                onnx.helper.make_node("Conv", ["image", name + "_w", name + "_b"], [name], strides=[stride, stride]),
                onnx.helper.make_node("Transpose", [name], [name + "_t"], perm=[0, 2, 3, 1]),
                onnx.helper.make_node("Reshape", [name + "_t", f"{shape}_{k}"], [name + "_r"]),
            ]
            parts.append(name + "_r")
        outputs.append(f"scores_{k}")
        nodes.append(onnx.helper.make_node("Concat", parts, [outputs[-1]], axis=1))
    return saved(folder, nodes, constants, outputs, widths, opset)


def saved(folder: Path, nodes: Any, constants: Any, outputs: Any, widths: Sequence[int], opset: int) -> OnnxModel:
    fact = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [fact("image", 1, ["N", 3, "H", "W"])],
        [fact(name, 1, ["N", "A", width]) for name, width in zip(outputs, widths, strict=True)],
        initializer=constants,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    path = folder / "network.onnx"
    onnx.save(model, path)
    return OnnxModel(
        path=str(path),
        digest="0",
        exporter="given",
        opset=opset,
        input=TensorFact(name="image", dtype="float32", shape=("N", 3, "H", "W")),
        outputs=tuple(
            TensorFact(name=name, dtype="float32", shape=("N", "A", width)) for name, width in zip(outputs, widths, strict=True)
        ),
        dynamic=True,
        checks=(),
    )


def network(folder: Path, head: Head, opset: int = 18, gain: float = 0.001) -> OnnxModel:
    if head.kind == "yolox":
        return levels_network(folder, (5 + CLASSES,), 1, opset, gain)
    return levels_network(folder, (CLASSES, 4), 6, opset, gain)


def smooth(height: int, width: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 6), -(-width // 6), 3), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((6, 6, 1), np.uint8))[:height, :width])


IMAGES = [smooth(90, 120, 1), smooth(131, 67, 2), smooth(40, 300, 3), smooth(1, 1, 4), smooth(128, 128, 5), smooth(64, 64, 6)]


def agree(host: Detections, graph: Detections, *, box: float, score: float) -> None:
    """The same detections in the same order (ties apart, which these inputs have not)."""
    assert graph.labels.dtype == np.int64
    assert graph.labels.tolist() == host.labels.tolist()
    assert np.abs(graph.scores - host.scores).max(initial=0) <= score
    assert np.abs(graph.boxes - host.boxes).max(initial=0) <= box


def both(folder: Path, model: OnnxModel, preprocess: Preprocess, head: Head, post: Postprocess, shapes: Any) -> Any:
    host = Predictor(OrtRunner(model.path), preprocess, head, post, shapes)
    exported = export_end_to_end(model, folder / "out", preprocess, head, post, shapes)
    graph = session(exported.path)
    return host, GraphPredictor(lambda image: graph.run(["boxes", "scores", "labels"], {"image": image}))


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


def matched(wanted: Detections, among: Detections) -> int:
    """Every detection of `wanted` with a score of at least 0.05 has its like in `among`; returns how many there are."""
    strong = np.flatnonzero(wanted.scores >= 0.05)
    for index in strong:
        box, label = wanted.boxes[index], wanted.labels[index]
        inner = np.minimum(box[2:], among.boxes[:, 2:]) - np.maximum(box[:2], among.boxes[:, :2])
        common = np.clip(inner, 0, None).prod(axis=1)
        union = (box[2:] - box[:2]).prod() + (among.boxes[:, 2:] - among.boxes[:, :2]).prod(axis=1) - common
        like = (common >= 0.99 * union) & (among.labels == label) & (np.abs(among.scores - wanted.scores[index]) <= 1e-3)
        assert like.any()
    return len(strong)
