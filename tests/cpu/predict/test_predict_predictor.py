"""The predictor with invented runners: grouping, order, stages, raw outputs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from redline.errors import BadInput
from redline.predict import GraphPredictor, Predictor
from redline.records import Head, Postprocess, Preprocess

STRIDES = (8, 16, 32)


class MeanRunner:
    """YOLOX-shaped output: one certain box a image whose class tells the image's mean level; records the batches it saw."""

    name = "mean"

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def run(self, batch: Any) -> tuple[Any, ...]:
        self.batches.append(batch.shape)
        height, width = batch.shape[2:]
        raw = np.zeros((len(batch), sum((height // s) * (width // s) for s in STRIDES), 5 + 256), np.float32)
        raw[:, 0, 4] = 1
        for row, tensor in enumerate(batch):
            raw[row, 0, 5 + round(float(tensor[0, 0, 0]))] = 0.9
        return (raw,)

    def close(self) -> None: ...


def level(value: int, height: int, width: int) -> Any:
    return np.full((height, width, 3), value, np.uint8)


IMAGES = [level(10, 64, 64), level(20, 32, 64), level(30, 64, 64), level(40, 64, 32), level(50, 33, 64), level(60, 128, 128)]


@pytest.mark.parametrize("shapes", ["fixed", "minimal"])
def test_images_are_grouped_by_input_shape_and_come_back_in_order(shapes: Any) -> None:
    runner = MeanRunner()
    predict = Predictor(runner, Preprocess(size=(64, 64)), Head(kind="yolox"), Postprocess(), shapes)
    found = predict(IMAGES)
    assert [detections.labels.tolist() for detections in found] == [[10], [20], [30], [40], [50], [60]]
    if shapes == "fixed":
        assert runner.batches == [(6, 3, 64, 64)]
    else:
        assert sorted(runner.batches) == [(1, 3, 32, 64), (1, 3, 64, 32), (4, 3, 64, 64)]


def test_no_images() -> None:
    predict = Predictor(MeanRunner(), Preprocess(size=(64, 64)), Head(kind="yolox"), Postprocess(), "minimal")
    assert predict([]) == []
    assert predict.raw([]) == ([], [])


def test_raw_outputs_have_no_batch_axis_and_keep_the_order() -> None:
    predict = Predictor(MeanRunner(), Preprocess(size=(64, 64)), Head(kind="yolox"), Postprocess(), "minimal")
    outputs, placements = predict.raw(IMAGES)
    assert [int(arrays[0][0, 5:].argmax()) for arrays in outputs] == [10, 20, 30, 40, 50, 60]
    assert [placement.source_hw for placement in placements] == [image.shape[:2] for image in IMAGES]
    assert outputs[1][0].shape == (32 + 8 + 2, 261)


def test_stages_are_told_once_a_group() -> None:
    told: list[tuple[str, float]] = []
    predict = Predictor(
        MeanRunner(),
        Preprocess(size=(64, 64)),
        Head(kind="yolox"),
        Postprocess(),
        "fixed",
        lambda name, s: told.append((name, s)),
    )
    stream = io.BytesIO()
    Image.fromarray(level(70, 20, 30)).save(stream, "PNG")
    (found,) = predict.from_bytes([stream.getvalue()])
    assert found.labels.tolist() == [70]
    assert [name for name, _ in told] == ["decode", "preprocess", "network", "postprocess"]
    assert all(seconds >= 0 for _, seconds in told)


def test_bad_bytes_name_the_image() -> None:
    predict = Predictor(MeanRunner(), Preprocess(size=(64, 64)), Head(kind="yolox"), Postprocess(), "fixed")
    with pytest.raises(BadInput, match="image 0"):
        predict.from_bytes([b"\xff\xd8\xff"])


def test_graph_predictor_hands_over_one_image_at_a_time() -> None:
    seen: list[Any] = []

    def graph(image: Any) -> tuple[Any, Any, Any]:
        seen.append(image)
        return np.ones((1, 4), np.float32), np.ones(1, np.float32), np.array([int(image[0, 0, 0])])

    found = GraphPredictor(graph)([IMAGES[0][::2], IMAGES[1]])
    assert [detections.labels.tolist() for detections in found] == [[10], [20]]
    assert [image.shape for image in seen] == [(32, 64, 3), (32, 64, 3)]
    assert all(image.flags.c_contiguous for image in seen)
