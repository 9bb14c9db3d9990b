"""Where graphs are rounded to INT8, what is written there, and that it computes what rounding by hand gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detector_graphs import LARGEST, Graphs
from onnx import TensorProto, helper, numpy_helper

from redline.engine.graph_facts import node_facts, read_graph, total_flop
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.errors import BadInput
from redline.export.quantized import export_int8, matched, structure_of
from redline.quantize.groups import layer_groups
from redline.quantize.placement import heavy_nodes, place, roundable
from redline.quantizing import narrowed
from redline.records import OnnxModel, TensorFact
from redline.records.quantize import CalibrationSet, QuantPoint, QuantTable

Get = Callable[[str], Graphs]
SET = CalibrationSet(images=("a", "b"), preprocess="p", selector="all", seed=0, input_shapes=((8, 8),))
ZOO = ("demo", "yolox", "retinanet")


def table(model: onnx.ModelProto, scales: dict[str, float] | None = None, keep_wide: tuple[str, ...] = ()) -> QuantTable:
    placement = place(model, heavy_nodes(model))
    held = scales or dict.fromkeys(roundable(model), 0.05)
    whole = QuantTable(
        structure=structure_of(model), method="max", calibration=SET, scales=tuple(held.items()), points=placement.points,
        weights=placement.weights, order=tuple(node.name for node in model.graph.node),
    )  # fmt: skip
    return narrowed(model, whole, keep_wide) if keep_wide else whole


def residual_graph(tmp_path: Path) -> OnnxModel:
    """conv, relu, conv, + skip, relu, pool, conv."""
    draw = np.random.default_rng(0)
    weights = {name: draw.normal(0, 0.4, (4, c, 3, 3)).astype(np.float32) for name, c in (("a", 3), ("b", 4), ("c", 4))}
    nodes = [
        helper.make_node("Conv", ["images", "a.w"], ["a"], name="A", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["ar"], name="AR"),
        helper.make_node("Conv", ["ar", "b.w"], ["b"], name="B", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "ar"], ["sum"], name="S"),
        helper.make_node("Relu", ["sum"], ["sr"], name="SR"),
        helper.make_node("MaxPool", ["sr"], ["p"], name="P", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "c.w"], ["c"], name="C", pads=[1, 1, 1, 1]),
    ]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, "H", "W"])
    result = helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 4, "h", "w"])
    held = [numpy_helper.from_array(value, f"{name}.w") for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [image], [result], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "residual.onnx"
    onnx.save(model, str(path))
    fact = TensorFact(name="images", dtype="float32", shape=("N", 3, "H", "W"))
    return OnnxModel(path=str(path), digest="d", exporter="t", opset=18, input=fact, outputs=(fact,), dynamic=True, checks=())


def test_layers_the_skip_branch_and_pooling_are_rounded(tmp_path: Path) -> None:
    model = read_graph(residual_graph(tmp_path).path)
    placement = place(model, heavy_nodes(model))
    assert {(p.node, p.input, p.tensor) for p in placement.points} == {
        ("A", 0, "images"), ("B", 0, "ar"), ("S", 1, "ar"), ("P", 0, "sr"), ("C", 0, "p"),
    }  # fmt: skip
    assert placement.weights == ("A", "B", "C")
    assert placement.shared == (("sr", "p"),), "pooling hands on what it reads"


def test_a_layer_kept_wide_takes_its_neighbours_rounding_along(tmp_path: Path) -> None:
    model = read_graph(residual_graph(tmp_path).path)
    points = {(p.node, p.input) for p in table(model, keep_wide=("C",)).points}
    assert points == {("A", 0), ("B", 0), ("S", 1)}, "pooling's reader is wide, so it is too"
    points = {(p.node, p.input) for p in table(model, keep_wide=("B",)).points}
    assert points == {("A", 0), ("P", 0), ("C", 0)}, "the addition is no part of an INT8 layer"


def fake(values: Any, scale: Any) -> Any:
    return np.clip(np.rint(values / scale), -128, 127) * scale


def test_the_graph_computes_what_rounding_by_hand_gives(tmp_path: Path) -> None:
    network = residual_graph(tmp_path)
    model = read_graph(network.path)
    scales = {"images": 0.011, "ar": 0.023, "sr": 0.03, "p": 0.03}
    written = export_int8(network, tmp_path, table(model, scales))
    onnx.checker.check_model(onnx.load(written.path), full_check=True)
    batch = np.random.default_rng(1).normal(0, 0.4, (2, 3, 8, 8)).astype(np.float32)
    found = OnnxRuntimeRunner(written.path, threads=1, concurrent=False).run(batch)[0]
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}

    def conv(values: Any, name: str) -> Any:
        import torch

        kernel = weights[name]
        steps = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True) / 127
        return torch.conv2d(
            torch.from_numpy(values), torch.from_numpy(fake(kernel, steps).astype(np.float32)), padding=1
        ).numpy()

    first = fake(np.maximum(conv(fake(batch, 0.011).astype(np.float32), "a.w"), 0), 0.023).astype(np.float32)
    second = fake(np.maximum(conv(first, "b.w") + first, 0), 0.03)
    pooled = second.reshape(2, 4, 4, 2, 4, 2).max(axis=(3, 5)).astype(np.float32)
    expected = conv(pooled, "c.w")
    # A value on the border of two steps may round either way.
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()
    assert np.mean(np.abs(found - expected) > 1e-4) < 0.05
    plain = OnnxRuntimeRunner(network.path, threads=1, concurrent=False).run(batch)[0]
    assert np.abs(found - plain).mean() > 20 * np.abs(found - expected).mean()


def test_a_tensor_read_twice_has_one_pair_and_a_weight_read_twice_one_each(tmp_path: Path) -> None:
    network = residual_graph(tmp_path)
    model = onnx.load(network.path)
    again = helper.make_node("Conv", ["p", "c.w"], ["c2"], name="C2", pads=[1, 1, 1, 1])
    model.graph.node.append(again)
    model.graph.output.append(helper.make_tensor_value_info("c2", TensorProto.FLOAT, ["N", 4, "h", "w"]))
    onnx.save(model, network.path)
    graph = onnx.load(export_int8(network, tmp_path, table(model)).path).graph
    quantised = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert sorted(quantised) == sorted(["images", "ar", "sr", "p", "a.w", "b.w", "c.w", "c.w"])
    assert sum(w.name == "c.w" for w in graph.initializer) == 1
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0].endswith(".w"):
            assert [a.i for a in node.attribute if a.name == "axis"] == [0]


@pytest.mark.parametrize("name", ZOO)
def test_the_zoos_detectors_are_int8_in_every_layer_with_dynamic_shapes(name: str, graphs: Get, tmp_path: Path) -> None:
    network = graphs(name).full
    written = export_int8(network, tmp_path, table(read_graph(network.path)))
    model = read_graph(written.path)
    onnx.checker.check_model(model, full_check=True)
    shape = (1, 3, *LARGEST[name])
    facts = node_facts(model, shape)
    narrow = sum(fact.flop for fact in facts if fact.type == "int8")
    assert narrow == pytest.approx(total_flop(node_facts(read_graph(network.path), shape)), rel=1e-6)
    runner = OnnxRuntimeRunner(written.path, threads=1, concurrent=False)
    for hw in ((64, 96), LARGEST[name]):
        batch = np.random.default_rng(0).uniform(0, 1, (2, 3, *hw)).astype(np.float32)
        assert all(np.isfinite(array).all() and len(array) == 2 for array in runner.run(batch))


def test_a_half_graph_takes_the_same_table_at_opset_19(graphs: Get, tmp_path: Path) -> None:
    held = graphs("retinanet")
    written = read_graph(export_int8(held.half, tmp_path, table(read_graph(held.full.path))).path)
    assert max(entry.version for entry in written.opset_import if not entry.domain) == 19
    onnx.checker.check_model(written, full_check=True)
    facts = node_facts(written, (1, 3, *LARGEST["retinanet"]))
    assert sum(fact.flop for fact in facts if fact.type == "int8") == pytest.approx(total_flop(facts))
    scales = [w for w in written.graph.initializer if w.name.endswith("_scale")]
    assert {w.data_type for w in scales} == {TensorProto.FLOAT16}


def test_a_table_follows_renamed_nodes_and_refuses_another_network(tmp_path: Path) -> None:
    network = residual_graph(tmp_path)
    model = onnx.load(network.path)
    held = table(model)
    for node in model.graph.node:
        node.name = f"other_{node.name}"
    assert {point.node for point in matched(model, held).points} == {"other_A", "other_B", "other_S", "other_P", "other_C"}
    with pytest.raises(BadInput) as caught:
        matched(model, replace(held, structure="another"))
    assert caught.value.code == "quantize.graph"
    assert caught.value.got == "A"


def test_a_table_follows_renamed_tensors_when_layers_are_left_out(tmp_path: Path) -> None:
    network = residual_graph(tmp_path)
    model = onnx.load(network.path)
    whole = table(model)
    held = replace(whole, scales=tuple((point.tensor, 0.01 * place) for place, point in enumerate(whole.points, 1)))
    here = read_graph(export_int8(network, tmp_path, narrowed(model, held, ["C"]), name="here").path)
    made = {name for node in model.graph.node for name in node.output} - {"c"}
    for node in model.graph.node:
        node.name = f"other_{node.name}"
        for names in (node.input, node.output):
            names[:] = [f"other_{name}" if name in made else name for name in names]
    onnx.save(model, network.path)
    there = read_graph(export_int8(network, tmp_path, narrowed(model, held, ["other_C"]), name="there").path)
    values = [
        sorted(float(numpy_helper.to_array(w)) for w in one.graph.initializer if w.name.endswith("_scale") and not w.dims)
        for one in (here, there)
    ]
    assert values[0] == values[1]
    assert values[0] == pytest.approx([0.01, 0.03])


def test_bad_tables_and_graphs_are_refused_with_the_node(tmp_path: Path) -> None:
    network = residual_graph(tmp_path)
    model = read_graph(network.path)
    good = table(model)

    def refused(bad: QuantTable, of: OnnxModel = network) -> BadInput:
        with pytest.raises(BadInput) as caught:
            export_int8(of, tmp_path, bad, name="bad")
        return caught.value

    for scale in (0.0, -1.0, np.nan, np.inf):
        error = refused(replace(good, scales=(*good.scales, ("ar", scale))))
        assert error.code == "quantize.scale"
        assert "input 0 of node B" in str(error.got)
    assert refused(good, export_int8(network, tmp_path, good)).code == "quantize.already"
    error = refused(replace(good, points=(QuantPoint(node="CC", input=0, tensor="p"),)))
    assert (error.code, error.got, error.fix) == ("quantize.graph", "CC", "did you mean C?")
    with pytest.raises(BadInput) as caught:
        narrowed(model, good, ["BB"])
    assert (caught.value.code, caught.value.got, caught.value.fix) == ("quantize.node", "BB", "did you mean B?")


def test_groups_hold_every_layer_once_and_depthwise_ones_apart(graphs: Get) -> None:
    for name in ZOO:
        model = read_graph(graphs(name).full.path)
        groups = layer_groups(model)
        held = [node for group in groups for node in group.nodes]
        assert sorted(held) == sorted(heavy_nodes(model))
        assert len({group.name for group in groups}) == len(groups) <= 24
        grouped = {n.name for n in model.graph.node if any(a.name == "group" and a.i > 1 for a in n.attribute)}
        assert {node for group in groups if group.name.endswith(", depthwise") for node in group.nodes} == grouped
        assert groups[0].nodes == (heavy_nodes(model)[0],), "the first layer is by itself"
