"""A sensitive layer in an FP16 graph is found by its engine's layers and held in FP32, alone. ONNX Runtime is the engine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detector_graphs import compiled
from onnx import TensorProto, helper, numpy_helper

from redline.engine.cuts import wire
from redline.engine.rounding import rounded_graph
from redline.export.half import export_half
from redline.layers import compare_layers
from redline.mixed import nodes_to_hold
from redline.parity import compare_tensors
from redline.records import LayerParity, OnnxModel, TensorFact

Middle = list[tuple[str, list[str], str]]
SQUARE: Middle = [("Mul", ["x", "x"], "square"), ("Sqrt", ["square"], "root")]
"""x reaches 1,000, its square a million: more than float16 holds, and the root less again."""
OFFSET: Middle = [("Add", ["x", "many"], "offset"), ("Sub", ["offset", "many"], "root")]
"""Within float16's range, but its steps are 4 at 4,096."""
EVERY = ("stem", "square", "root", "act", "one", "two", "three")


def network(folder: Path, middle: Middle) -> OnnxModel:
    """images (N, 3, H, W) -> 1 x 1 convolution: x -> middle: root -> Relu -> three convolutions: out (N, 2, H, W)."""
    draw = np.random.default_rng(3)
    weights = {
        "stem.weight": draw.uniform(0.5, 1.3, (4, 3, 1, 1)), "one.weight": draw.normal(0, 1e-3, (8, 4, 3, 3)),
        "two.weight": draw.normal(0, 0.1, (8, 8, 3, 3)), "three.weight": draw.normal(0, 0.3, (2, 8, 1, 1)),
        "many": np.full((1, 1, 1, 1), 4096.0),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["images", "stem.weight"], ["x"], name="stem"),
        *(helper.make_node(kind, given, [made], name=made) for kind, given, made in middle),
        helper.make_node("Relu", ["root"], ["act"], name="act"),
        helper.make_node("Conv", ["act", "one.weight"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "two.weight"], ["b"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "three.weight"], ["out"], name="three"),
    ]
    values = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, "H", "W"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 2, "H", "W"])
    graph = helper.make_graph(nodes, "planted", [images], [out], values)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    path = folder / "planted.onnx"
    path.write_bytes(data)
    fact = TensorFact(name="images", dtype="float32", shape=("N", 3, "H", "W"))
    outputs = (TensorFact(name="out", dtype="float32", shape=("N", 2, "H", "W")),)
    digest = hashlib.sha256(data).hexdigest()
    return OnnxModel(
        path=str(path), digest=digest, exporter="given", opset=18, input=fact, outputs=outputs, dynamic=True, checks=()
    )


class Case:
    def __init__(self, folder: Path, middle: Middle) -> None:
        self.folder, self.full = folder, network(folder, middle)
        self.batch = np.random.default_rng(0).uniform(50, 250, (1, 3, 24, 24)).astype(np.float32)

    def engine(self, model: OnnxModel) -> Any:
        """What a GPU does and ONNX Runtime by itself does not: every tensor that is float16 in the graph is rounded to it."""
        given, asked = onnx.load(self.full.path), onnx.load(model.path)
        names = [value.name for value in asked.graph.output]
        wired, wiring = wire(asked), wire(given)
        rounded = rounded_graph(given, wiring, asked, wired)
        del rounded.graph.output[:]
        rounded.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
        path = self.folder / "rounded.onnx"
        onnx.save(rounded, path)
        return compiled(OnnxModel(**{**_fields(model), "path": str(path)}), 1)

    def half(self, wide: tuple[str, ...] = ()) -> OnnxModel:
        return export_half(self.full, self.folder, wide_nodes=wide)

    def layers(self, half: OnnxModel) -> LayerParity:
        return compare_layers(self.full, half, self.engine, self.batch, "fp16", folder=self.folder, threads=1)

    def worst(self, half: OnnxModel) -> Any:
        one, other = compiled(self.full, 1), self.engine(half)
        (delta,) = compare_tensors(["out"], [one.run(self.batch)], [other.run(self.batch)], "fp16")
        return delta


def _fields(model: OnnxModel) -> dict[str, Any]:
    return {name: getattr(model, name) for name in OnnxModel.__dataclass_fields__}


def test_an_overflow_keeps_the_planted_nodes_in_fp32_and_no_other(tmp_path: Path) -> None:
    case = Case(tmp_path, SQUARE)
    half = case.half()
    assert not case.worst(half).finite
    found = case.layers(half)
    assert [(fault.nodes, fault.finite) for fault in found.faults] == [(("square",), False)]
    held = nodes_to_hold(found, case.full, case.batch, ())
    assert [node.node for node in held] == ["square", "root"]  # the root reads what float16 cannot hold
    assert held[0].why == "makes infinity or NaN of finite values"
    assert held[1].why.startswith("reads square, which reaches ")
    mixed = case.half(("square", "root"))
    delta = case.worst(mixed)
    assert delta.finite
    assert 0 < delta.max_rel < delta.tolerance
    after = case.layers(mixed)
    assert after.faults == ()
    kinds = wire(onnx.load(mixed.path)).kinds
    assert kinds["square"] == TensorProto.FLOAT
    assert kinds["a"] == TensorProto.FLOAT16
    assert "2 nodes held in float32" in mixed.notes[-1]


def test_holding_the_node_at_fault_alone_would_overflow_in_the_cast_behind_it(tmp_path: Path) -> None:
    case = Case(tmp_path, SQUARE)
    assert not case.worst(case.half(("square",))).finite


def test_where_no_node_is_wrong_the_stretch_that_adds_most_is_held(tmp_path: Path) -> None:
    case = Case(tmp_path, OFFSET)
    half = case.half()
    found = case.layers(half)
    assert found.faults == ()  # float16 explains it all
    held = nodes_to_hold(found, case.full, case.batch, ())
    assert {"offset", "root"} <= {node.node for node in held}
    assert not {"one", "two", "three"} & {node.node for node in held}
    assert "among the largest" in held[0].why
    before, after = case.worst(half), case.worst(case.half(tuple(node.node for node in held)))
    assert after.mean_abs < before.mean_abs / 5


def test_what_is_held_is_not_offered_again(tmp_path: Path) -> None:
    case = Case(tmp_path, SQUARE)
    found = case.layers(case.half())
    assert [node.node for node in nodes_to_hold(found, case.full, case.batch, ("square",))] == ["root"]
    assert nodes_to_hold(found, case.full, case.batch, ("square", "root")) == ()


@pytest.mark.parametrize("wide", [EVERY[:1], EVERY[-1:], ("one", "two"), EVERY])
def test_between_held_nodes_inputs_and_outputs_nothing_passes_through_float16(tmp_path: Path, wide: tuple[str, ...]) -> None:
    case = Case(tmp_path, SQUARE)
    graph = onnx.load(case.half(wide).path)
    onnx.checker.check_model(graph, full_check=True)
    wiring = wire(graph)
    casts = {node.output[0]: node.input[0] for node in graph.graph.node if node.op_type == "Cast"}
    assert not [name for name in casts.values() if name in casts]  # no cast of a cast
    for node in graph.graph.node:
        if node.op_type != "Cast":
            wanted = TensorProto.FLOAT if node.name in wide else TensorProto.FLOAT16
            assert wiring.kinds[node.output[0]] == wanted, node.name
    if wide == EVERY:
        assert not casts
        plain, held = compiled(case.full, 1), compiled(OnnxModel(**{**_fields(case.full), "path": case.half(wide).path}), 1)
        np.testing.assert_array_equal(plain.run(case.batch)[0], held.run(case.batch)[0])
