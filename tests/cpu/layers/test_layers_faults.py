"""A compiler that spoils one layer is found out, and one that only rounds is not accused. ONNX Runtime is the engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detector_graphs import Graphs, compiled, narrow_sums, planted

from redline.engine.cuts import wire
from redline.engine.segments import run_segments
from redline.layers import compare_layers
from redline.nodes import module_of
from redline.records import LayerParity, OnnxModel

Get = Callable[[str], Graphs]
FAULTS = {"demo": 8, "yolox": 8, "retinanet": 2}
"""Layers tried, drawn at random; benchmarks/layer_parity.py tries them all."""


def look(graphs: Graphs, build: Any, folder: Path) -> LayerParity:
    return compare_layers(graphs.full, graphs.half, build, graphs.batch, "fp16", folder=folder, threads=2)


def layers(model: OnnxModel) -> list[Any]:
    wiring = wire(onnx.load(model.path))
    return [wiring.nodes[index] for index in sorted(wiring.layers)]


@pytest.mark.parametrize("name", FAULTS)
def test_nobody_is_accused_where_an_engine_only_rounds(graphs: Get, name: str, tmp_path: Path) -> None:
    found = look(graphs(name), compiled, tmp_path)
    assert (found.faults, found.unconfirmed, found.looks) == ((), (), 1)
    assert all(point.excess < 1 for point in found.points)
    assert {output.name for output in graphs(name).full.outputs} <= {point.tensor for point in found.points}
    assert len(found.points) <= found.most_cuts + len(graphs(name).full.outputs)
    assert all(0 < point.total < 0.1 for point in found.points)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_layer_with_scaled_weights_is_named_wherever_it_is(graphs: Get, name: str, tmp_path: Path) -> None:
    nodes = layers(graphs(name).full)
    for node in random.Random(7).sample(nodes, FAULTS[name]):
        found = look(graphs(name), planted(node.name), tmp_path)
        assert [fault.nodes for fault in found.faults] == [(node.name,)]
        fault = found.faults[0]
        assert fault.operators == ("Conv",)
        weight = next(entry for entry in node.input if entry.endswith(".weight"))
        assert weight == f"net.{fault.module}.weight"
        assert fault.local > fault.explained
        assert found.looks <= 4


@pytest.mark.parametrize("factor", [1.05, 0.95, 1.5, 0.0])
def test_the_size_of_the_fault_is_seen_where_it_is_made(graphs: Get, factor: float, tmp_path: Path) -> None:
    node = layers(graphs("demo").full)[20]
    (fault,) = look(graphs("demo"), planted(node.name, factor), tmp_path).faults
    assert fault.nodes == (node.name,)
    # The worst channel: the bias is not scaled, and where it cancels the products the result changes by more.
    assert fault.local > 0.6 * abs(factor - 1)


def test_two_faults_are_told_apart(graphs: Get, tmp_path: Path) -> None:
    nodes = layers(graphs("yolox").full)
    pair = [nodes[10].name, nodes[70].name]

    def build(model: OnnxModel) -> Any:
        planted(pair[0])(model).close()
        return planted(pair[1])(model)

    assert [fault.nodes for fault in look(graphs("yolox"), build, tmp_path).faults] == [(pair[0],), (pair[1],)]


def test_an_infinity_is_named_where_it_arises_and_not_behind(graphs: Get, tmp_path: Path) -> None:
    node = layers(graphs("demo").full)[30]
    found = look(graphs("demo"), planted(node.name, 1e30), tmp_path)
    assert [fault.nodes for fault in found.faults] == [(node.name,)]
    assert not found.faults[0].finite


def test_sums_in_float16_are_no_fault_and_hide_none(graphs: Get, tmp_path: Path) -> None:
    subject = graphs("yolox")
    model = onnx.load(subject.full.path)
    outputs = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    values = run_segments(model, wire(model), outputs, {}, subject.batch, threads=2)
    sizes = {name: np.sqrt((array.astype(np.float64) ** 2).mean((0, 2, 3))) for name, array in values.items()}
    assert look(subject, lambda m: narrow_sums(m, sizes), tmp_path).faults == ()
    for node in random.Random(1).sample(layers(subject.full), 3):
        found = look(subject, lambda m, name=node.name: narrow_sums(m, sizes, name), tmp_path)
        assert [fault.nodes for fault in found.faults] == [(node.name,)]


def test_modules_are_the_source_networks(graphs: Get) -> None:
    model = onnx.load(graphs("demo").full.path)
    modules = {node.output[0]: module_of(node) for node in model.graph.node}
    assert modules["silu"] == "backbone.backbone.stem.conv.act"
    assert {module_of(node) for node in model.graph.node if node.op_type == "Resize"} == {"backbone"}
    assert not any(module.startswith("net") for module in modules.values())
