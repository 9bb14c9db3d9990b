"""Channels of unlike ranges: what is equalised and what is not, that no result changes, and what INT8 gains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detector_graphs import Graphs
from fixable_graphs import PADDED, SET, activate, chain, draw_weight, graph_of, loss, pictures, run, saved, table_by_max
from onnx import helper, numpy_helper

from redline.engine.graph_facts import read_graph
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.errors import BadInput
from redline.export.adjusted import adjust
from redline.export.quantized import export_int8, matched, structure_of
from redline.quantize.equalise import LIMIT, Pair, equalise, equalised, find_pairs, joined, scalable, scaled_inputs
from redline.quantize.placement import heavy_nodes, place, roundable
from redline.quantize.ranges import channel_peaks
from redline.quantizing import narrowed, tensors_of
from redline.records.quantize import ChannelFactors, LayerBias, QuantTable
from redline.store import dump, load

Get = Callable[[str], Graphs]
TABLES = Path(__file__).parents[3] / "benchmarks" / "int8"


def weight(model: onnx.ModelProto, name: str) -> Any:
    return next(numpy_helper.to_array(w) for w in model.graph.initializer if w.name == name)


def peaks_of(network: Any, model: onnx.ModelProto, names: list[str]) -> dict[str, Any]:
    return channel_peaks(tensors_of(network, model, names, 1), lambda: pictures(), names)


def divided(network: Any) -> tuple[ChannelFactors, ...]:
    model = read_graph(network.path)
    edges, _ = scalable(model, ())
    return scaled_inputs(edges, peaks_of(network, model, [edge.tensor for edge in edges]))


def evenly(model: onnx.ModelProto, factors: tuple[ChannelFactors, ...]) -> QuantTable:
    """Everything in INT8 with a scale of 0.05."""
    graph = adjust(model, factors)
    placement, scales = place(graph, heavy_nodes(graph)), dict.fromkeys(roundable(graph), 0.05)
    return QuantTable(
        structure=structure_of(model), method="max", calibration=SET, scales=tuple(scales.items()),
        points=placement.points, weights=placement.weights, factors=factors,
    )  # fmt: skip


def test_a_pair_meets_in_the_geometric_mean_of_its_ranges() -> None:
    weights = {"a.w": np.full((2, 3, 1, 1), 0.5, np.float32), "c.w": np.full((1, 2, 1, 1), 0.25, np.float32)}
    weights["a.w"][0] = 100 * 0.25
    nodes = [helper.make_node("Conv", ["images", "a.w"], ["a"], name="A"), *activate("Relu", "a", "x")]
    model = graph_of([*nodes, helper.make_node("Conv", ["x", "c.w"], ["c"], name="C")], weights, "c")
    one, two = equalise(model, find_pairs(model)[0])
    assert (one.node, two.node) == ("A", "C")
    assert one.made == two.read == pytest.approx((np.sqrt(25 / 0.25), np.sqrt(0.5 / 0.25)))
    changed = adjust(model, (one, two))
    assert np.abs(weight(changed, "a.w")).max(axis=(1, 2, 3)) == pytest.approx([2.5, np.sqrt(0.125)])
    assert np.abs(weight(changed, "c.w")).max(axis=(0, 2, 3)) == pytest.approx([2.5, np.sqrt(0.125)])
    assert weight(model, "a.w")[0, 0, 0, 0] == 25, "the graph given is not changed"


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Identity"])
def test_a_chain_with_a_depthwise_layer_is_equalised_and_computes_the_same(activation: str, tmp_path: Path) -> None:
    model = chain(activation)
    network, found = saved(model, tmp_path), equalised(model)
    assert found.taken == 2
    assert dict(found.passed) == {"an output of the network": 1}
    changed = adjust(model, found.factors)
    for batch in pictures(seed=3):
        np.testing.assert_allclose(run(changed, batch), run(model, batch), rtol=1e-4, atol=1e-5)
    peaks = [peaks_of(network, graph, ["x"])["x"] for graph in (model, changed)]
    spread = [peak.max() / np.median(peak) for peak in peaks]
    assert spread[0] > 50
    assert spread[1] < 10
    calibration, other = pictures(), pictures(seed=9)
    before = loss(network, table_by_max(network, calibration), other)
    after = loss(network, table_by_max(network, calibration, found.factors), other)
    assert before > 0.02
    assert after < before / 50


def test_silu_is_passed_over_and_its_depthwise_reader_has_its_input_scaled(tmp_path: Path) -> None:
    model = chain("SiLU")
    network, found = saved(model, tmp_path), equalised(model)
    assert (found.factors, found.taken) == ((), 0)
    assert dict(found.passed) == {"SiLU": 2, "an output of the network": 1}
    factors = divided(network)
    assert [(entry.node, entry.divide) for entry in factors] == [("D", True)]
    changed = adjust(model, factors)
    onnx.checker.check_model(changed, full_check=True)
    for batch in pictures(seed=3):
        np.testing.assert_allclose(run(changed, batch), run(model, batch), rtol=1e-4, atol=1e-5)
    peak = peaks_of(network, changed, ["D_divided"])["D_divided"]
    assert peak.max() < 1.01 * peak.min(), "on the images that the peaks are of"
    table = table_by_max(network, pictures(), factors)
    assert ("D", 0, "D_divided") in {(p.node, p.input, p.tensor) for p in table.points}
    other = pictures(seed=9)
    before, after = loss(network, table_by_max(network, pictures()), other), loss(network, table, other)
    assert before > 0.02
    assert after < before / 50


def test_what_stays_wide_is_divided_by_nothing_and_loses_its_bias(tmp_path: Path) -> None:
    network = saved(chain("SiLU"), tmp_path)
    table = table_by_max(network, pictures(), divided(network))
    table = dataclasses.replace(table, biases=(LayerBias(node="D", added=(0.5,) * 8), LayerBias(node="C", added=(0.5,) * 4)))
    kept = narrowed(read_graph(network.path), table, ["D"])
    assert kept.factors == ()
    assert [bias.node for bias in kept.biases] == ["C"]
    names = [node.name for node in read_graph(export_int8(network, tmp_path, kept).path).graph.node]
    assert "D_divide" not in names
    pair = (ChannelFactors(node="D", made=(2.0,) * 8, read=(3.0,) * 8, divide=True), ChannelFactors(node="C", read=(2.0,) * 8))
    both = narrowed(read_graph(network.path), dataclasses.replace(table, factors=pair), ["D"])
    assert both.factors == (ChannelFactors(node="D", made=(2.0,) * 8), pair[1]), "what D and C share is for C"


def test_pooling_resizing_slopes_and_concatenation_are_passed_where_exact() -> None:
    draw = np.random.default_rng(1)
    weights = {
        "a.w": draw_weight(draw, 4, 3, 3, 3),
        "b.w": draw_weight(draw, 6, 3, 3, 3),
        "c.w": draw_weight(draw, 5, 10, 3, 3),
    }
    weights |= {"slope": np.linspace(0.1, 0.4, 6, dtype=np.float32).reshape(6, 1, 1)}
    weights |= {"roi": np.zeros(0, np.float32), "twice": np.asarray([1, 1, 2, 2], np.float32)}
    weights["b.w"][2] *= 30
    nodes = [
        helper.make_node("Conv", ["images", "a.w"], ["a"], name="A", **PADDED),
        helper.make_node("MaxPool", ["a"], ["p"], name="P", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["p", "roi", "twice"], ["r"], name="R", mode="nearest"),
        helper.make_node("Conv", ["images", "b.w"], ["b"], name="B", **PADDED),
        helper.make_node("PRelu", ["b", "slope"], ["s"], name="S"),
        helper.make_node("Concat", ["r", "s"], ["both"], name="T", axis=1),
        helper.make_node("Conv", ["both", "c.w"], ["c"], name="C", **PADDED),
    ]
    model = graph_of(nodes, weights, "c")
    pairs, passed = find_pairs(model)
    assert pairs == (Pair(first="A", second="C", offset=0), Pair(first="B", second="C", offset=4))
    assert passed == (("an output of the network", 1),)
    changed = adjust(model, equalise(model, pairs))
    assert np.abs(weight(changed, "b.w") - weight(model, "b.w")).max() > 0.5
    for batch in pictures():
        np.testing.assert_allclose(run(changed, batch), run(model, batch), rtol=1e-4, atol=1e-4)
    for index, (attribute, value) in enumerate((("mode", "linear"), ("axis", 2))):
        spoilt = onnx.ModelProto.FromString(model.SerializeToString())
        node = next(node for node in spoilt.graph.node if node.name == "RT"[index])
        del node.attribute[:]
        node.attribute.append(helper.make_attribute(attribute, value))
        assert len(find_pairs(spoilt)[0]) == (1, 0)[index]


def test_shared_weights_outputs_and_second_readers_are_passed_over() -> None:
    draw = np.random.default_rng(2)
    weights = {"a.w": draw_weight(draw, 3, 3, 3, 3), "c.w": draw_weight(draw, 3, 3, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["images", "a.w"], ["a"], name="A", **PADDED),
        helper.make_node("Relu", ["a"], ["x"], name="X"),
        helper.make_node("Conv", ["x", "a.w"], ["b"], name="B", **PADDED),
        helper.make_node("HardSwish", ["b"], ["h"], name="H"),
        helper.make_node("Conv", ["h", "c.w"], ["c"], name="C"),
        helper.make_node("Add", ["c", "h"], ["sum"], name="S"),
    ]
    pairs, passed = find_pairs(graph_of(nodes, weights, "sum"))
    assert pairs == ()
    assert dict(passed) == {"shared or computed weights": 2, "Add": 1}
    weights["b.w"] = weights["a.w"]
    nodes[2].input[1] = "b.w"
    pairs, passed = find_pairs(graph_of(nodes, weights, "sum"))
    assert pairs == (Pair(first="A", second="B", offset=0),)
    assert dict(passed) == {"HardSwish": 1, "Add": 1}
    nodes[5].input[1] = "x"
    pairs, passed = find_pairs(graph_of(nodes, weights, "sum"))
    assert dict(passed) == {"several readers": 1, "HardSwish": 1, "Add": 1}


def test_empty_channels_stay_and_no_factor_exceeds_the_limit() -> None:
    model = chain(unlike=1e6)
    for held in model.graph.initializer:
        if held.name == "a.w":
            array = numpy_helper.to_array(held).copy()
            array[3] = 0
            held.CopyFrom(numpy_helper.from_array(array, held.name))
    factors = {entry.node: entry for entry in equalised(model).factors}
    assert factors["A"].made[3] == 1
    assert factors["A"].made[0] == pytest.approx(LIMIT)
    assert max(max(e.made, default=1) for e in factors.values()) <= LIMIT * 1.0001


def test_joined_factors_divide_an_input_of_a_layer_whose_results_are_equalised() -> None:
    cross = (ChannelFactors(node="A", made=(2.0,)), ChannelFactors(node="B", read=(2.0,)))
    more = (ChannelFactors(node="A", read=(3.0,), divide=True), ChannelFactors(node="C", read=(4.0,), divide=True))
    assert joined(cross, more) == (ChannelFactors(node="A", made=(2.0,), read=(3.0,), divide=True), cross[1], more[1])


def test_channels_that_are_alike_already_are_left(tmp_path: Path) -> None:
    model = chain("SiLU")
    edges, _ = scalable(model, ())
    assert [(edge.node, edge.tensor) for edge in edges] == [("D", "x")]
    assert scaled_inputs(edges, {"x": np.asarray([1.0, 1.9, 1.4, 0.0])}) == ()
    (found,) = scaled_inputs(edges, {"x": np.asarray([8.0, 0.5, 0.0])})
    assert found.read == pytest.approx((4.0, 0.25, 1.0))


def test_yolox_reads_the_same_in_full_and_half_precision(graphs: Get, tmp_path: Path) -> None:
    held = graphs("yolox")
    model = read_graph(held.full.path)
    pairs, passed = find_pairs(model)
    assert pairs == ()
    assert dict(passed)["SiLU"] > 50
    edges, others = scalable(model, ())
    deep = sum(any(a.name == "group" and a.i > 1 for a in node.attribute) for node in model.graph.node)
    assert len(edges) + sum(count for _, count in others) == deep
    assert edges[0].node == [node.name for node in model.graph.node if node.op_type == "Conv"][1], "what the stem makes"
    draw = np.random.default_rng(0)
    sizes = {w.name: w.dims[0] for w in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    names = [edge.tensor for edge in edges]
    found = scaled_inputs(edges, {e.tensor: draw.uniform(0.1, 4, sizes[nodes[e.node].input[1]]) for e in edges})
    assert len(found) == len(names)
    for source, tolerance in ((held.full, 2e-3), (held.half, 5e-2)):
        path = tmp_path / "adjusted.onnx"
        onnx.save(adjust(read_graph(source.path), found), str(path))
        one, other = (OnnxRuntimeRunner(p, threads=1, concurrent=False).run(held.batch)[0] for p in (source.path, str(path)))
        assert np.abs(one - other).max() < tolerance * np.abs(one).max()
    table = evenly(model, found)
    for source in (held.full, held.half):
        written = read_graph(export_int8(source, tmp_path, table).path)
        onnx.checker.check_model(written, full_check=True)
        read = {node.input[0] for node in written.graph.node if node.op_type == "QuantizeLinear"}
        assert {f"{edge.node}_divided" for edge in edges} <= read
        assert read.isdisjoint(names), "nobody else reads them"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_a_factor_that_is_none_names_its_node(bad: float, tmp_path: Path) -> None:
    network = saved(chain(), tmp_path)
    table = table_by_max(network, pictures())
    broken = dataclasses.replace(table, factors=(ChannelFactors(node="D", read=(*(1.0,) * 7, bad), divide=True),))
    with pytest.raises(BadInput) as caught:
        export_int8(network, tmp_path, broken)
    assert caught.value.code == "quantize.factors"
    assert "node D" in str(caught.value.got)
    assert str(bad) in str(caught.value.got)


def test_a_table_of_another_graph_is_refused(tmp_path: Path) -> None:
    network = saved(chain(), tmp_path)
    table = table_by_max(network, pictures())

    def refused(**changed: Any) -> BadInput:
        with pytest.raises(BadInput) as caught:
            export_int8(network, tmp_path, dataclasses.replace(table, **changed))
        return caught.value

    error = refused(factors=(ChannelFactors(node="A", made=(1.0,) * 9),))
    assert (error.code, error.got) == ("quantize.factors", "9 values for the 8 channels of node A")
    error = refused(biases=(LayerBias(node="C", added=(0.0, np.nan, 0.0, 0.0)),))
    assert (error.code, error.got) == ("quantize.factors", "nan for a channel of node C")
    error = refused(factors=(ChannelFactors(node="Relu_x", made=(1.0,)),))
    assert (error.code, error.got) == ("quantize.factors", "Relu_x, Relu")
    error = refused(factors=(ChannelFactors(node="Conv_A", made=(1.0,) * 8),))
    assert (error.code, error.got) == ("quantize.graph", "Conv_A")


def test_factors_and_biases_follow_renamed_nodes_and_travel_as_json(tmp_path: Path) -> None:
    model = chain("SiLU")
    network = saved(model, tmp_path)
    table = table_by_max(network, pictures(), divided(network))
    table = dataclasses.replace(table, biases=(LayerBias(node="C", added=(0.1,) * 4),))
    assert load(QuantTable, dump(table)) == table
    for node in model.graph.node:
        node.name = f"other_{node.name}"
    found = matched(model, table)
    assert [entry.node for entry in found.factors] == ["other_D"]
    assert [entry.node for entry in found.biases] == ["other_C"]
    other = tmp_path / "other"
    other.mkdir()
    batch = pictures()[0]
    made = [onnx.load(export_int8(saved(m, f), f, table).path) for m, f in ((model, other), (chain("SiLU"), tmp_path))]
    np.testing.assert_array_equal(run(made[0], batch), run(made[1], batch))


@pytest.mark.parametrize("name", ["retina4", "retina91"])
def test_tables_written_before_there_were_factors_are_still_read(name: str) -> None:
    table = load(QuantTable, (TABLES / f"{name}.json").read_bytes())
    assert (table.factors, table.biases) == ((), ())
    assert len(table.weights) > 50


def test_the_factors_of_a_published_table_are_read_back_whole() -> None:
    written = (TABLES / "yolox640.json").read_bytes()
    table = load(QuantTable, written)
    assert len(table.weights) > 50
    assert {factors.divide for factors in table.factors} == {True}, "scaled inputs of depthwise layers"
    assert load(QuantTable, dump(table)) == table
