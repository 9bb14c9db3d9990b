"""Graphs that are refused before a build, and what FP16 conversion leaves alone on the zoo's detectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from detector_graphs import LARGEST, Graphs
from onnx import TensorProto, helper, numpy_helper
from small_engine import small_graph

from redline.engine.graph_facts import node_facts, wide_nodes
from redline.engine.tensorrt_lint import MAX_OPSET, UNTAKEN, lint, require_clean
from redline.errors import TrialError
from redline.export.half import SENSITIVE, export_half

Get = Callable[[str], Graphs]


def library(version: str) -> Any:
    return SimpleNamespace(name="tensorrt", version=version)


def refused(model: onnx.ModelProto, version: str | None = None) -> TrialError:
    with pytest.raises(TrialError) as caught:
        require_clean(lint(model, None if version is None else library(version)))
    assert caught.value.code == "engine-lint"
    return caught.value


@pytest.mark.parametrize("operator", UNTAKEN)
def test_operators_without_a_layer_are_named_with_node_and_way_out(operator: str) -> None:
    error = refused(small_graph(operator))
    assert error.got == f"node act: operator {operator}"
    assert error.fix == UNTAKEN[operator]


def test_foreign_operators_types_and_weights_are_named() -> None:
    model = small_graph()
    model.graph.node[1].domain = "com.example"
    assert "node act: operator Relu of domain com.example" in str(refused(model).got)
    model = small_graph()
    model.graph.node.append(helper.make_node("Cast", ["y"], ["z"], name="widen", to=TensorProto.DOUBLE))
    error = refused(model)
    assert (error.got, error.fix) == ("node widen: casts to float64", "export in float32")
    model = small_graph()
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones((2, 4, 1, 1)), "last.weight"))
    assert refused(model).got == "node last: weight last.weight has type float64"
    model = small_graph()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((4, 3, 3, 3), np.nan, np.float32), "stem.weight"))
    assert refused(model).got == "node stem: weight stem.weight holds NaN or infinity"


def test_inputs_and_outputs_of_types_that_no_engine_has_are_named() -> None:
    model = small_graph()
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    assert refused(model).got == "node last: has type float64"
    model = small_graph()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert refused(model).got == "node images: input of unknown rank"


@pytest.mark.parametrize("major", MAX_OPSET)
def test_the_highest_opset_of_each_version_is_held(major: int) -> None:
    model = small_graph()
    model.opset_import[0].version = MAX_OPSET[major]
    assert lint(model, library(f"{major}.1.0")) == ()
    model.opset_import[0].version += 1
    assert f"reads up to {MAX_OPSET[major]}" in str(refused(model, f"{major}.1.0").got)


def test_fp8_numbers_are_refused_where_no_parser_reads_them() -> None:
    model = small_graph()
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True))
    reads = SimpleNamespace(name="tensorrt", version="10.13.0", no_fp8=lambda: None)
    assert lint(model, reads) == ()  # type: ignore[arg-type]
    old = SimpleNamespace(name="tensorrt", version="8.6.1", no_fp8=lambda: "tensorrt 8.6.1 reads no FP8")
    assert [(p.node, p.what) for p in lint(model, old)] == [("graph", "tensorrt 8.6.1 reads no FP8")]  # type: ignore[arg-type]


def test_all_problems_are_told_at_once() -> None:
    model = small_graph("Det")
    model.graph.node.append(helper.make_node("Cast", ["y"], ["z"], name="widen", to=TensorProto.DOUBLE))
    assert refused(model).got == "node act: operator Det; node widen: casts to float64"


def outputs(path: str, batch: Any) -> list[Any]:
    return list(ort.InferenceSession(path).run(None, {"images": batch}))


@pytest.mark.parametrize("name", LARGEST)
def test_half_graphs_compute_nearly_the_same_with_weights_in_float16(graphs: Get, name: str) -> None:
    subject = graphs(name)
    model = onnx.load(subject.half.path)
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    kinds = {weight.name: weight.data_type for weight in model.graph.initializer}
    assert {kinds[node.input[1]] for node in layers} == {TensorProto.FLOAT16}
    for full, half in zip(outputs(subject.full.path, subject.batch), outputs(subject.half.path, subject.batch), strict=True):
        assert half.dtype == np.float32
        error = np.sqrt(((half - full) ** 2).mean() / (full**2).mean())
        # Unit roundoff 5e-4; a hundred layers add up to ten times that, and random ones amplify it (0.036 seen).
        assert 0 < error < (0.02 if name == "demo" else 0.1)
    for number, size in ((2, (64, 96)), (1, (96, 64))):
        batch = np.repeat(subject.batch[:, :, : size[0], : size[1]], number, 0)
        assert outputs(subject.half.path, batch)[0].shape == outputs(subject.full.path, batch)[0].shape


@pytest.mark.parametrize("operator", ["Exp", "Softmax", "ReduceMean"])
def test_sensitive_operators_stay_in_float32(operator: str, tmp_path: Path, small: Any) -> None:
    assert operator in SENSITIVE
    half = export_half(small(operator), tmp_path)
    facts = {fact.name: fact.type for fact in node_facts(onnx.load(half.path), (1, 3, 8, 8))}
    assert (facts["stem"], facts["act"], facts["last"]) == ("fp16", "fp32", "fp16")
    assert "act" in wide_nodes(node_facts(onnx.load(half.path), (1, 3, 8, 8)))


def test_a_weight_beyond_float16_is_refused_with_its_node_unless_that_is_held(tmp_path: Path, small: Any) -> None:
    full = small()
    model = onnx.load(full.path)
    large = numpy_helper.from_array(np.full((4, 3, 3, 3), 7e4, np.float32), "stem.weight")
    model.graph.initializer[0].CopyFrom(large)
    onnx.save(model, full.path)
    with pytest.raises(TrialError, match=r"stem.weight does not fit float16") as caught:
        export_half(full, tmp_path)
    assert "--wide stem" in str(caught.value.fix)
    held = onnx.load(export_half(full, tmp_path, wide_nodes=("stem",)).path)
    kinds = {weight.name: weight.data_type for weight in held.graph.initializer}
    assert kinds == {"stem.weight": TensorProto.FLOAT, "last.weight": TensorProto.FLOAT16}


def test_nodes_can_be_held_and_outputs_left_narrow(tmp_path: Path, small: Any) -> None:
    full = small()
    held = export_half(full, tmp_path, wide_nodes=("stem",))
    facts = {fact.name: fact.type for fact in node_facts(onnx.load(held.path), (1, 3, 8, 8))}
    assert (facts["stem"], facts["last"]) == ("fp32", "fp16")
    assert "1 nodes held in float32" in held.notes[-1]
    narrow = export_half(full, tmp_path, keep_outputs=False)
    assert [fact.dtype for fact in narrow.outputs] == ["float16"]
    assert replace(narrow, outputs=full.outputs).input == full.input
