"""Small networks, images and comparisons of the end-to-end graph's tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from redline.export.end2end import export_end_to_end
from redline.predict import GraphPredictor, Predictor
from redline.records import Detections, Head, OnnxModel, Postprocess, Preprocess, TensorFact

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
