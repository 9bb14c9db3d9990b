"""Real detectors on real images through `Predictor`, against figures that were measured without this project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redline import vision
from redline.predict import Predictor
from redline.records import Head, Postprocess, Preprocess

SHARED = Path(__file__).parents[3].parent / "shared"
YOLOX_FILE = SHARED / "models" / "yolox_nano_coco" / "yolox_nano.onnx"
COCO = SHARED / "data" / "coco_val61"
RETINANET = SHARED / "models" / "retinanet_r50_bccd"
BCCD = SHARED / "data" / "bccd"


class Session:
    name = "onnxruntime"

    def __init__(self, path: Path) -> None:
        ort = pytest.importorskip("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, batch: Any) -> tuple[Any, ...]:
        return tuple(self.session.run(None, {"images": batch}))

    def close(self) -> None: ...


@pytest.mark.skipif(not (YOLOX_FILE.exists() and COCO.exists()), reason="no YOLOX-Nano or COCO images beside the checkout")
def test_yolox_nano_has_its_published_ap() -> None:
    """AP 0.321 +- 0.003 and AP50 0.505 +- 0.005 at 416 on the 61 images."""
    evaluation = pytest.importorskip("faster_coco_eval")
    preprocess = Preprocess(size=(416, 416), channels="bgr")
    predict = Predictor(Session(YOLOX_FILE), preprocess, Head(kind="yolox"), Postprocess(), "fixed")
    truth = json.loads((COCO / "instances.json").read_text())
    categories = sorted(category["id"] for category in truth["categories"])
    results = []
    for entry in truth["images"]:
        path = COCO / "images" / entry["file_name"]
        assert vision.image_size(path) == (entry["height"], entry["width"])
        (found,) = predict.from_bytes([path.read_bytes()])
        sizes = found.boxes[:, 2:] - found.boxes[:, :2]
        for box, size, score, label in zip(found.boxes, sizes, found.scores, found.labels, strict=True):
            bbox = [*map(float, box[:2]), *map(float, size)]
            results.append({"image_id": entry["id"], "category_id": categories[label], "bbox": bbox, "score": float(score)})
    reference = evaluation.COCO(truth)
    scores = evaluation.COCOeval_faster(reference, reference.loadRes(results), "bbox")
    scores.run()
    assert scores.stats[0] == pytest.approx(0.321, abs=0.003)
    assert scores.stats[1] == pytest.approx(0.505, abs=0.005)


@pytest.mark.skipif(not (RETINANET.exists() and BCCD.exists()), reason="no RetinaNet or BCCD images beside the checkout")
def test_retinanet_gives_torchvisions_detections() -> None:
    """One image: the detections that torchvision gave for the same weights (scores within 1e-4, boxes within 0.02 pixel)."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    from redline.zoo.retinanet import ANCHOR_SIZES, ASPECT_RATIOS, STRIDES, retinanet

    module = retinanet(50, 4)
    state = safetensors.load_file(RETINANET / "model.safetensors")
    module.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in state.items()})
    module.eval()

    class Eager:
        name = "torch"

        def run(self, batch: Any) -> tuple[Any, ...]:
            with torch.inference_mode():
                return tuple(output.numpy() for output in module(torch.from_numpy(batch)))

        def close(self) -> None: ...

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    preprocess = Preprocess(
        resize="shortest-side", size=(640, 853), round_to_uint8=False, scale=1 / 255, mean=mean, std=std,
        fill=tuple(255 * level for level in mean),  # type: ignore[arg-type]
    )  # fmt: skip
    head = Head(
        kind="retinanet", strides=STRIDES, activation="sigmoid", aspect_ratios=ASPECT_RATIOS,
        anchor_sizes=tuple(tuple(map(float, sizes)) for sizes in ANCHOR_SIZES),
    )  # fmt: skip
    post = Postprocess(score=0.05, iou=0.5, max_detections=300, candidates_per_level=1000)
    detections = json.loads((RETINANET / "test_detections_fp32.json").read_text())
    chosen = detections[0]["image_id"]
    expected = sorted((entry for entry in detections if entry["image_id"] == chosen), key=lambda entry: -entry["score"])
    images = json.loads((BCCD / "instances_test.json").read_text())["images"]
    name = next(entry["file_name"] for entry in images if entry["id"] == chosen)
    path = next(BCCD.rglob(Path(name).name))
    (found,) = Predictor(Eager(), preprocess, head, post, "minimal").from_bytes([path.read_bytes()])
    assert len(expected) > 10
    assert found.labels.tolist() == [entry["category_id"] for entry in expected]
    assert np.abs(found.scores - [entry["score"] for entry in expected]).max() <= 1e-4
    boxes = np.array([entry["bbox"] for entry in expected])
    boxes[:, 2:] += boxes[:, :2]
    assert np.abs(found.boxes - boxes).max() <= 0.02
