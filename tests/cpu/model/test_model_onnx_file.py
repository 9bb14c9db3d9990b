"""ONNX files as detectors: which are taken, and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from redline.errors import BadInput
from redline.model.load import check_head, load_detector
from redline.records import Head, ModelSpec, Preprocess

SHARED = Path(__file__).parents[3].parent / "shared"


def graph(path: Path, image: list[Any] | None = None, *, dtype: int = TensorProto.FLOAT, inputs: int = 1) -> Path:
    """A yolox head of stride 16 with 2 classes: one convolution, flattened."""
    random = np.random.default_rng(0)
    weight = numpy_helper.from_array(random.normal(size=(7, 3, 16, 16)).astype(np.float32), "weight")
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["pixels", "weight"], ["map"], strides=[16, 16]),
        helper.make_node("Shape", ["map"], ["size"], end=2),
        helper.make_node("Concat", ["size", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["map", "wanted"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["output"], perm=[0, 2, 1]),
    ]
    image = ["N", 3, "H", "W"] if image is None else image
    values = [helper.make_tensor_value_info("images", dtype, image)]
    values += [helper.make_tensor_value_info(f"extra{i}", dtype, [1]) for i in range(inputs - 1)]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [image[0], None, 7])
    rest = numpy_helper.from_array(np.array([-1], np.int64), "rest")
    made = helper.make_graph(nodes, "net", values, [output], [weight, rest])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def spec(path: Path, size: tuple[int, int] = (64, 96), **more: Any) -> ModelSpec:
    return ModelSpec(
        onnx=str(path), head=Head(kind="yolox", strides=(16,)), preprocess=Preprocess(size=size, stride=16), **more
    )


def refused(path: Path, **more: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        load_detector(spec(path, **more))
    return caught.value


def test_a_dynamic_file(tmp_path: Path) -> None:
    detector = load_detector(spec(graph(tmp_path / "net.onnx")))
    facts = detector.facts
    assert detector.module is None
    assert facts.inputs[0].shape == ("N", 3, "H", "W")
    assert (facts.outputs[0].name, facts.outputs[0].shape) == ("output", ("N", "A", 7))
    assert (facts.name, facts.origin, facts.classes) == ("net", "onnx", 2)
    assert (facts.parameters, facts.weight_bytes) == (7 * 3 * 256, 4 * 7 * 3 * 256)
    assert len(facts.digest) == 64
    check_head(detector)


def test_a_fixed_file_must_fit_the_preprocessing(tmp_path: Path) -> None:
    path = graph(tmp_path / "net.onnx", [1, 3, 64, 96])
    facts = load_detector(spec(path)).facts
    assert facts.inputs[0].shape == (1, 3, 64, 96)
    assert facts.outputs[0].shape == (1, 24, 7)
    error = refused(path, size=(96, 96))
    assert error.code == "model-onnx-size"
    assert "model.preprocess.size = [64, 96]" in str(error.fix)


@pytest.mark.parametrize(
    ("image", "dtype", "inputs", "said"),
    [
        (["N", 1, "H", "W"], TensorProto.FLOAT, 1, "('N', 1, 'H', 'W')"),
        (["N", 3, "H"], TensorProto.FLOAT, 1, "('N', 3, 'H')"),
        ([8, 3, 64, 96], TensorProto.FLOAT, 1, "(8, 3, 64, 96)"),
        (["N", 3, "H", "W"], TensorProto.UINT8, 1, "uint8"),
        (["N", 3, "H", "W"], TensorProto.FLOAT, 2, "extra0"),
    ],
)
def test_other_inputs_are_refused(tmp_path: Path, image: list[Any], dtype: int, inputs: int, said: str) -> None:
    error = refused(graph(tmp_path / "net.onnx", image, dtype=dtype, inputs=inputs))
    assert error.code in ("model-onnx-input", "model-onnx")
    if error.code == "model-onnx-input":
        assert said in str(error.got)


def test_damaged_absent_and_foreign_files(tmp_path: Path) -> None:
    path = graph(tmp_path / "net.onnx")
    data = path.read_bytes()
    for kept in (0, 40, len(data) // 2, len(data) - 9):
        path.write_bytes(data[:kept])
        assert refused(path).code == "model-onnx"
    (tmp_path / "text.onnx").write_text("not a model")
    assert refused(tmp_path / "text.onnx").code == "model-onnx"
    assert "no such file" in str(refused(tmp_path / "none.onnx").got)


def test_unknown_operators_are_refused(tmp_path: Path) -> None:
    path = graph(tmp_path / "net.onnx")
    model = onnx.load(str(path))
    model.graph.node[-1].domain = "made.up"
    model.opset_import.append(helper.make_opsetid("made.up", 1))
    onnx.save(model, str(path))
    error = refused(path)
    assert error.code == "model-onnx"
    assert "ONNX Runtime refuses" in error.what


def test_external_weights_count_in_the_digest(tmp_path: Path) -> None:
    path = graph(tmp_path / "net.onnx")
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="net.data", size_threshold=0)
    first = load_detector(spec(path)).facts
    assert first.parameters == 7 * 3 * 256
    data = bytearray((tmp_path / "net.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "net.data").write_bytes(data)
    assert load_detector(spec(path)).facts.digest != first.digest


def test_weights_beside_an_onnx_file_and_no_model_at_all(tmp_path: Path) -> None:
    assert refused(graph(tmp_path / "net.onnx"), weights="w.pt").code == "weights-file"
    with pytest.raises(BadInput, match="No model given"):
        load_detector(ModelSpec(head=Head(kind="yolox")))


def test_head_that_does_not_fit(tmp_path: Path) -> None:
    model = ModelSpec(onnx=str(graph(tmp_path / "net.onnx")), head=Head(kind="yolox"), preprocess=Preprocess(size=(64, 96)))
    with pytest.raises(BadInput) as caught:
        load_detector(model)
    assert caught.value.code == "head-outputs"


def test_the_published_file() -> None:
    path = SHARED / "models" / "yolox_nano_coco" / "yolox_nano.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    facts = load_detector(ModelSpec(onnx=str(path), head=Head(kind="yolox"), preprocess=Preprocess(size=(416, 416)))).facts
    assert facts.digest == "d39bee73564e338080378b0ad567fbb40e818b55bbfaf971de82a0267ed16b8a"
    assert facts.parameters == 904_463
    assert facts.outputs[0].shape == (1, 3549, 85)
