"""Shape buckets from the real sizes of 61 COCO photographs, with YOLOX-Nano at 416: five tensor shapes, the same detections."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redline import vision
from redline.data import load_dataset, load_traffic, read_bytes
from redline.live import Mix
from redline.parity import ground_truth, observe
from redline.plan.buckets import choose_buckets
from redline.predict import Predictor
from redline.records import Buckets, DataRef, Dataset, Detections, Head, ModelSpec, Postprocess, Preprocess, ShapePolicy

SHARED = Path(__file__).parents[3].parent / "shared"
YOLOX = SHARED / "models" / "yolox_nano_coco" / "yolox_nano_fused_state_dict.pt"
COCO = SHARED / "data" / "coco_val61"
PREPROCESS = Preprocess(size=(416, 416), channels="bgr")

HEAD = Head(kind="yolox")
BOX_TOLERANCE_PX, SCORE_TOLERANCE = 0.02, 1e-4
"""ONNX Runtime may sum in another order for another batch size; both are pixels of the photograph and plain score."""
AP_TOLERANCE = 0.01
"""Absolute, between buckets and fixed: padding reaches the boxes near it through the receptive field."""
Alone = tuple[list[Detections], list[tuple[int, ...]]]


class Session:
    """ONNX Runtime, and every batch that it was given."""

    name = "onnxruntime"

    def __init__(self, graph: Path) -> None:
        ort = pytest.importorskip("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.batches: list[tuple[int, ...]] = []

    def run(self, batch: Any) -> tuple[Any, ...]:
        self.batches.append(batch.shape)
        return tuple(self.session.run(None, {"images": batch}))

    def close(self) -> None: ...


@cache
def photographs() -> Dataset:
    return load_dataset(DataRef(images=str(COCO / "images"), annotations=str(COCO / "instances.json")))


@cache
def images() -> list[Any]:
    return [vision.decode(read_bytes(image), name=image.path) for image in photographs().images]


def buckets() -> Buckets:
    return choose_buckets(load_traffic(None, photographs()), PREPROCESS, most=5, switch_cost=0.0)


def predictor(graph: Path, shapes: ShapePolicy) -> tuple[Predictor, Session]:
    session = Session(graph)
    return Predictor(session, PREPROCESS, HEAD, Postprocess(), shapes), session


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YOLOX-Nano exported with dynamic N, H and W: the file that comes with it has one shape."""
    if not (YOLOX.exists() and COCO.exists()):
        pytest.skip("no YOLOX-Nano or COCO images beside the checkout")
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from redline.export import export_onnx
    from redline.model.load import load_detector

    spec = ModelSpec(factory="redline.zoo:yolox_nano", weights=str(YOLOX), head=HEAD, preprocess=PREPROCESS)
    model = export_onnx(load_detector(spec), tmp_path_factory.mktemp("graph"), input_hw=PREPROCESS.size)
    assert model.dynamic
    return Path(model.path)


@pytest.fixture(scope="module")
def alone(graph: Path) -> Alone:
    """Detections of each photograph by itself under the buckets, and the shapes of its tensors."""
    predict, session = predictor(graph, buckets().policy)
    return [predict([image])[0] for image in images()], session.batches


def test_five_tensor_shapes_reach_the_network_and_the_padding_is_what_was_expected(alone: Alone) -> None:
    found, (_, batches) = buckets(), alone
    assert {shape[2:] for shape in batches} == set(found.policy)
    assert len(set(found.policy)) == 5
    network = sum(shape[0] * shape[2] * shape[3] for shape in batches)
    sources = [image.shape[:2] for image in images()]
    image_pixels = sum(vision.pixels(source, PREPROCESS, "fixed")[0] for source in sources)
    measured = 100 * (1 - image_pixels / network)
    mix = Mix(encoded=(b"",) * len(sources), source_hw=tuple(sources))
    assert mix.padding_pct(PREPROCESS, found.policy) == pytest.approx(measured)
    assert 100 * found.waste / (1 + found.waste) == pytest.approx(measured)  # every photograph once: its traffic exactly


def test_a_mixed_batch_finds_what_each_image_alone_finds(graph: Path, alone: Alone) -> None:
    """Of scores above 0.05: the same labels in the same order, boxes within 0.02 pixel, scores within 1e-4."""
    expected, _ = alone
    predict, session = predictor(graph, buckets().policy)
    found = [detections for at in range(0, len(images()), 8) for detections in predict(images()[at : at + 8])]
    assert max(shape[0] for shape in session.batches) > 1
    assert len(session.batches) < len(images())
    worst = [0.0, 0.0]
    for one, other in zip(expected, found, strict=True):
        count = int((one.scores > 0.05).sum())
        assert int((other.scores > 0.05).sum()) == count
        assert other.labels[:count].tolist() == one.labels[:count].tolist()
        if count:
            worst[0] = max(worst[0], float(np.abs(other.boxes[:count] - one.boxes[:count]).max()))
            worst[1] = max(worst[1], float(np.abs(other.scores[:count] - one.scores[:count]).max()))
    told = f"largest difference: {worst[0]:.2g} px, score {worst[1]:.2g}"
    print(told)
    assert worst[0] <= BOX_TOLERANCE_PX, told
    assert worst[1] <= SCORE_TOLERANCE, told


def test_a_bucket_gives_what_the_array_padded_by_hand_gives(graph: Path) -> None:
    """Bit for bit: the network is given the same tensor."""
    policy = buckets().policy
    predict, _ = predictor(graph, policy)
    image = images()[0]
    minimal, placement = vision.prepare(image, PREPROCESS, "minimal")
    height, width = vision.input_size(image.shape[:2], PREPROCESS, policy)
    canvas = np.full((1, 3, height, width), 114, np.float32)
    canvas[0, :, : placement.input_hw[0], : placement.input_hw[1]] = minimal
    (found,), _ = predict.raw([image])
    (expected,) = Session(graph).run(canvas)
    assert np.array_equal(found[0], expected[0])


def test_ap_with_buckets_is_that_of_the_fixed_letterbox(graph: Path, alone: Alone) -> None:
    truth, (predict, _) = ground_truth(photographs(), (), "index"), predictor(graph, "fixed")
    fixed = observe(truth, [predict([image])[0] for image in images()]).evaluation.accuracy.ap
    bucketed = observe(truth, alone[0]).evaluation.accuracy.ap
    told = f"AP fixed {fixed:.4f}, five buckets {bucketed:.4f}, difference {bucketed - fixed:+.4f}"
    print(told)
    assert fixed == pytest.approx(0.321, abs=0.003), told
    assert abs(bucketed - fixed) <= AP_TOLERANCE, told
