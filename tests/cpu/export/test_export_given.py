"""ONNX files the user gives: passed on; the batch axis freed only where that is shown to be safe."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from redline.export.network import export_onnx
from redline.model.load import load_detector
from redline.records import Detector, Head, ModelSpec, Preprocess

SHARED = Path(__file__).parents[3].parent / "shared"


def given(path: Path, image: list[Any], wanted: list[int]) -> Detector:
    """A convolution of stride 16 reshaped to `wanted`, then transposed to (N, A, 7)."""
    random = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(random.normal(size=(7, 3, 16, 16)).astype(np.float32), "weight"),
        numpy_helper.from_array(np.array(wanted, np.int64), "wanted"),
    ]
    nodes = [
        helper.make_node("Conv", ["pixels", "weight"], ["map"], strides=[16, 16]),
        helper.make_node("Reshape", ["map", "wanted"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["rows"], perm=[0, 2, 1]),
    ]
    values = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, image)]
    outputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [image[0], None, 7])]
    graph = helper.make_graph(nodes, "net", values, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    head, steps = Head(kind="yolox", strides=(16,)), Preprocess(size=(64, 96), stride=16)
    return load_detector(ModelSpec(onnx=str(path), head=head, preprocess=steps))


def test_a_dynamic_file_is_passed_on(tmp_path: Path) -> None:
    detector = given(tmp_path / "net.onnx", ["N", 3, "H", "W"], [0, 0, -1])
    model = export_onnx(detector, tmp_path, input_hw=(64, 96))
    assert model.path == str(tmp_path / "net.onnx")
    assert (model.exporter, model.opset, model.dynamic, model.notes) == ("given", 17, True, ())
    assert model.digest == hashlib.sha256(Path(model.path).read_bytes()).hexdigest() == detector.facts.digest
    assert (model.input.name, model.outputs[0].shape) == ("pixels", ("N", "A", 7))


def test_a_fixed_batch_is_freed_where_each_image_stays_itself(tmp_path: Path) -> None:
    detector = given(tmp_path / "net.onnx", [1, 3, 64, 96], [0, 0, -1])
    before = (tmp_path / "net.onnx").read_bytes()
    model = export_onnx(detector, tmp_path, input_hw=(64, 96))
    assert not model.dynamic
    assert model.input.shape == ("N", 3, 64, 96)
    assert model.outputs[0].shape == ("N", 24, 7)
    assert model.checks[0].shape == (3, 3, 64, 96)
    assert "batch axis was made dynamic" in model.notes[0]
    assert (tmp_path / "net.onnx").read_bytes() == before
    session = ort.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"pixels": np.zeros((4, 3, 64, 96), np.float32)})[0].shape == (4, 24, 7)


def test_a_batch_written_into_the_graph_stays(tmp_path: Path) -> None:
    model = export_onnx(given(tmp_path / "net.onnx", [1, 3, 64, 96], [1, 7, -1]), tmp_path, input_hw=(64, 96))
    assert model.path == str(tmp_path / "net.onnx")
    assert model.input.shape == (1, 3, 64, 96)
    assert model.outputs[0].shape == (1, 24, 7)
    assert model.notes[0].startswith("the batch stays 1: ")


def test_external_weights_are_taken_into_one_file(tmp_path: Path) -> None:
    detector = given(tmp_path / "net.onnx", ["N", 3, "H", "W"], [0, 0, -1])
    path = str(tmp_path / "net.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=1000)
    (tmp_path / "out").mkdir()
    model = export_onnx(detector, tmp_path / "out", input_hw=(64, 96))
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["network.onnx"]
    batch = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    first, second = (
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"pixels": batch})[0]
        for path in (model.path, path)
    )
    np.testing.assert_array_equal(first, second)


def test_the_published_file_keeps_its_size_and_frees_its_batch(tmp_path: Path) -> None:
    path = SHARED / "models" / "yolox_nano_coco" / "yolox_nano.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    spec = ModelSpec(onnx=str(path), head=Head(kind="yolox"), preprocess=Preprocess(size=(416, 416), channels="bgr"))
    model = export_onnx(load_detector(spec), tmp_path, input_hw=(416, 416))
    assert (model.opset, model.dynamic, model.input.shape) == (11, False, ("N", 3, 416, 416))
    assert model.checks[0].max_abs < 1e-3
