"""Costs of hand-made graphs: sizes against ONNX's own shape inference, kernels by hand, and what is not known."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from roof_cases import saved

from redline.errors import BadInput
from redline.records import LayerCost, ModelCosts
from redline.store import dump, load

onnx = pytest.importorskip("onnx", reason="graphs are made with it")

from onnx import helper  # noqa: E402

from redline.plan.costs import read_costs  # noqa: E402


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), outputs.split(), name=outputs.split()[0], **attributes)


def kernel(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def residual(folder: Path, stride: int = 2) -> Path:
    """A stem and a residual block whose shortcut is a convolution, with a SiLU behind it."""
    nodes = [
        node("Conv", "image w0 b0", "stem", kernel_shape=[7, 7], strides=[stride, stride], pads=[3, 3, 3, 3]),
        node("Relu", "stem", "act"),
        node("MaxPool", "act", "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
        node("Conv", "pool w1", "side"),
        node("Conv", "pool w2", "deep", group=16, pads=[1, 1, 1, 1]),
        node("Conv", "deep w3", "up"),
        node("Add", "up side", "sum"),
        node("Sigmoid", "sum", "gate"),
        node("Mul", "sum gate", "out"),
    ]
    weights = {"w0": kernel(16, 3, 7, 7), "b0": kernel(16), "w1": kernel(40, 16, 1, 1), "w2": kernel(16, 1, 3, 3)}
    return saved(folder, nodes, weights | {"w3": kernel(40, 16, 1, 1)})


def layer(costs: ModelCosts, name: str) -> LayerCost:
    return next(one for one in costs.layers if one.name == name)


def members(costs: ModelCosts) -> list[tuple[str, ...]]:
    return [group.layers for group in costs.groups]


def inferred(path: Path, n: int, h: int, w: int) -> dict[str, int]:
    """Elements of each tensor by ONNX's shape inference of the graph at this size."""
    model = onnx.load(path)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (n, 3, h, w), strict=True):
        dim.dim_value = size
    known = onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True).graph
    tensors = (*known.value_info, *known.output)
    return {value.name: int(np.prod([d.dim_value for d in value.type.tensor_type.shape.dim])) for value in tensors}


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_sizes_are_those_of_shape_inference_at_any_size(tmp_path: Path, stride: int) -> None:
    path, draw = residual(tmp_path, stride), random.Random(stride)
    costs = read_costs(path)
    for _ in range(5):
        at = (draw.randint(1, 9), draw.randint(40, 999), draw.randint(40, 999))
        truth = inferred(path, *at)
        assert {one.output: one.output_elements.at(*at) for one in costs.layers} == truth


def test_a_residual_block_is_four_kernels_and_a_pool(tmp_path: Path) -> None:
    costs = read_costs(residual(tmp_path))
    assert members(costs) == [("stem", "act"), ("pool",), ("side",), ("deep",), ("up", "sum", "gate", "out")]
    assert [group.kind for group in costs.groups] == ["conv", "pool", "conv", "depthwise", "conv"]
    last, places = costs.groups[-1], 2 * 17 * 17
    assert last.input_elements.at(2, 64, 64) == places * (16 + 40), "the deep branch and the shortcut"
    assert last.output_elements.at(2, 64, 64) == places * 40
    assert last.unfused_elements.at(2, 64, 64) == places * ((16 + 40) + 120 + 80 + 120)
    assert last.weight_elements == 40 * 16


def test_multiply_adds_parameters_and_what_tensor_cores_take(tmp_path: Path) -> None:
    costs = read_costs(residual(tmp_path))
    assert layer(costs, "stem").macs.at(1, 64, 64) == 32 * 32 * 16 * 3 * 49
    assert layer(costs, "deep").macs.at(1, 64, 64) == 17 * 17 * 16 * 9
    assert costs.macs(1, 64, 64) == 32 * 32 * 16 * 147 + 17 * 17 * (16 * 9 + 2 * 40 * 16)
    assert costs.parameters == 16 * 147 + 16 + 2 * 40 * 16 + 16 * 9
    assert layer(costs, "stem").no_tensor_core("fp16") == "3 input channels, not a multiple of 8"
    assert layer(costs, "side").no_tensor_core("fp16") == ""
    assert layer(costs, "side").no_tensor_core("int8") == "40 output channels, not a multiple of 16"
    assert "ordinary cores" in layer(costs, "side").no_tensor_core("fp32")
    assert "depthwise" in layer(costs, "deep").no_tensor_core("fp16")


def test_a_gate_that_waits_for_the_kernel_does_not_join_it(tmp_path: Path) -> None:
    """Squeeze and excite: the product needs the pooled output of the convolution that it scales."""
    nodes = [
        node("Conv", "image w0", "x"),
        node("GlobalAveragePool", "x", "mean"),
        node("Conv", "mean w1", "squeezed"),
        node("Sigmoid", "squeezed", "gate"),
        node("Mul", "x gate", "out"),
    ]
    costs = read_costs(saved(tmp_path, nodes, {"w0": kernel(8, 3, 1, 1), "w1": kernel(8, 8, 1, 1)}))
    assert members(costs) == [("x",), ("mean",), ("squeezed", "gate"), ("out",)]


def test_shapes_computed_inside_the_graph_are_followed(tmp_path: Path) -> None:
    """Rows of two levels as exporters write them: sizes read from tensors, multiplied, and put together again."""
    nodes = [
        node("Conv", "image w0", "a", strides=[8, 8]),
        node("Conv", "image w0", "b", strides=[16, 16]),
        node("Shape", "b", "n", start=0, end=1),
        node("Shape", "b", "hw", start=2, end=4),
        node("Concat", "n twelve hw", "split", axis=0),
        node("Reshape", "b split", "viewed"),
        node("Transpose", "viewed", "turned", perm=[0, 2, 3, 1]),
        node("Concat", "n minus four", "rows", axis=0),
        node("Reshape", "turned rows", "low"),
        node("Transpose", "a", "flat", perm=[0, 2, 3, 1]),
        node("Reshape", "flat rows", "high"),
        node("Concat", "high low", "out", axis=1),
    ]
    weights = {"w0": kernel(12, 3, 1, 1)} | {
        name: np.array([value], np.int64) for name, value in (("twelve", 12), ("minus", -1), ("four", 4))
    }
    costs = read_costs(saved(tmp_path, nodes, weights))
    assert [one.name for one in costs.layers] == ["a", "b", "turned", "flat", "out"], "shapes on their way are no work"
    high, low = 25 * 38, 13 * 19
    assert layer(costs, "out").output_elements.at(3, 200, 300) == 3 * 12 * (high + low)
    assert not costs.unsized
    assert members(costs) == [("a",), ("b",), ("turned",), ("flat",), ("out",)]


def test_an_operator_without_a_rule_has_the_size_that_shape_inference_gives_it(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "image w0", "x", strides=[4, 4]),
        node("DepthToSpace", "x", "wide", blocksize=2),
        node("Relu", "wide", "out"),
    ]
    path = saved(tmp_path, nodes, {"w0": kernel(8, 3, 1, 1)})
    costs = read_costs(path)
    for at in ((1, 64, 96), (7, 803, 517)):
        assert layer(costs, "out").output_elements.at(*at) == inferred(path, *at)["out"]


def test_unknown_operators_are_counted_with_a_bound(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "image w0", "x"),
        helper.make_node("Warp", ["x"], ["y"], name="y", domain="there"),
        helper.make_node("Warp", ["y"], ["out"], name="out", domain="there"),
        node("NonZero", "x", "places"),
    ]
    costs = read_costs(saved(tmp_path, nodes, {"w0": kernel(8, 3, 1, 1)}))
    zero, warp = sorted(costs.unknown, key=lambda row: row.count)
    assert (warp.operator, warp.count) == ("there.Warp", 2)
    assert warp.elements.at(2, 10, 10) == 2 * 2 * 8 * 100, "the first reads and writes x at most once"
    assert "no bound for inputs of unknown size" in warp.assumed
    assert (zero.operator, zero.count) == ("NonZero", 1)
    assert zero.fixed_bytes.at(1, 10, 10) == 8 * 100 * 8, "its output is int64"
    assert set(costs.unsized) == {"y", "out", "places"}


def test_constants_that_a_compiler_folds_are_weights(tmp_path: Path) -> None:
    nodes = [
        node("DequantizeLinear", "q scale zero", "w"),
        node("Conv", "image w", "x"),
        node("QuantizeLinear", "x scale zero", "narrow"),
        node("DequantizeLinear", "narrow scale zero", "out"),
    ]
    weights = {"q": np.zeros((8, 3, 1, 1), np.int8), "scale": np.float32(0.1), "zero": np.int8(0)}
    costs = read_costs(saved(tmp_path, nodes, {name: np.asarray(value) for name, value in weights.items()}))
    assert members(costs) == [("x", "narrow", "out")]
    assert layer(costs, "x").weight_elements == 24
    assert layer(costs, "narrow").fixed_bytes.at(1, 10, 10) == 800, "one byte each"


def test_a_picture_with_its_channels_last_and_one_of_fixed_size(tmp_path: Path) -> None:
    nodes = [node("Transpose", "image", "turned", perm=[0, 3, 1, 2]), node("Conv", "turned w0", "out", strides=[2, 2])]
    costs = read_costs(saved(tmp_path, nodes, {"w0": kernel(8, 3, 1, 1)}, dims=(1, "h", 64, 3)))
    assert costs.size == (1, None, 64)
    assert costs.macs(1, 33, 64) == 17 * 32 * 24
    one = read_costs(saved(tmp_path, [node("Relu", "image", "out")], {}, dims=(3, "h", "w")))
    assert layer(one, "out").output_elements.text == "3*H*W"


def test_a_picture_in_bytes_and_an_input_beside_it(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "image", "wide", to=1),
        node("Conv", "wide w0", "x"),
        node("Add", "x bias", "out"),
    ]
    path = saved(tmp_path, nodes, {"w0": kernel(8, 3, 1, 1)}, dims=("n", 3, "h", "w"))
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    model.graph.input.append(helper.make_tensor_value_info("bias", 1, ["n", 8, 1, 1]))
    onnx.save(model, path)
    costs = read_costs(path)
    assert layer(costs, "wide").fixed_bytes.at(2, 10, 10) == 600
    assert layer(costs, "wide").input_elements.at(2, 10, 10) == 0
    assert layer(costs, "out").input_elements.at(2, 10, 10) == 2 * 8 * 100 + 16


def test_costs_survive_the_store_and_are_the_same_each_time(tmp_path: Path) -> None:
    path = residual(tmp_path)
    costs = read_costs(path)
    assert load(ModelCosts, dump(costs)) == costs
    assert dump(read_costs(path)) == dump(costs)


def test_what_is_no_graph_and_a_graph_without_a_picture_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(BadInput, match="cannot be read"):
        read_costs(tmp_path / "text.onnx")
    with pytest.raises(BadInput, match="cannot be read"):
        read_costs(tmp_path / "absent.onnx")
    broken = saved(tmp_path, [node("Conv", "image", "out"), node("Concat", "out", "more")], {})
    with pytest.raises(BadInput, match="not as their operators' should be"):
        read_costs(broken)
    rows = saved(tmp_path, [node("Relu", "image", "out")], {}, dims=("N", 80))
    with pytest.raises(BadInput, match="no input that is a picture"):
        read_costs(rows)


def test_attention_grows_with_the_square_of_the_picture_and_the_best_rows_do_not(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "image w0", "x", strides=[16, 16]),
        node("Shape", "x", "n", start=0, end=1),
        node("Concat", "n eight minus", "flat", axis=0),
        node("Reshape", "x flat", "keys"),
        node("Transpose", "keys", "queries", perm=[0, 2, 1]),
        node("MatMul", "queries keys", "scores"),
        node("Softmax", "scores", "weights"),
        node("MatMul", "weights queries", "mixed"),
        node("ReduceMean", "mixed last", "mean", keepdims=0),
        node("TopK", "mean five", "best where", axis=1),
        node("Unsqueeze", "where last", "column"),
        node("Tile", "column times", "rows"),
        node("GatherElements", "mixed rows", "out", axis=1),
    ]
    given = {"eight": [8], "minus": [-1], "last": [-1], "five": [5], "times": [1, 1, 8]}
    path = saved(tmp_path, nodes, {"w0": kernel(8, 3, 16, 16)} | {name: np.array(one) for name, one in given.items()})
    costs, tokens = read_costs(path), 20 * 13
    assert layer(costs, "scores").macs.at(3, 320, 208) == 3 * tokens**2 * 8
    assert layer(costs, "mixed").macs.at(3, 320, 208) == 3 * tokens**2 * 8
    assert layer(costs, "weights").kind == "reduce"
    assert layer(costs, "out").output_elements.at(3, 320, 208) == 3 * 5 * 8
    assert layer(costs, "best").fixed_bytes.at(3, 320, 208) == 3 * 5 * 8, "the places are int64"
    assert not costs.unsized


def test_transposed_convolutions_resizes_and_splits(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "image w0", "x", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("ConvTranspose", "x w1", "bigger", strides=[2, 2], output_padding=[1, 1]),
        node("Split", "bigger", "left right", axis=1, num_outputs=2),
        node("Resize", "left  scales", "double", mode="nearest"),
        node("Slice", "double starts ends axes steps", "out"),
    ]
    nodes[3].input[:] = ["left", "", "scales"]
    weights = {
        "w0": kernel(8, 3, 3, 3),
        "w1": kernel(8, 6, 2, 2),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "starts": np.array([1], np.int64),
        "ends": np.array([2**63 - 1], np.int64),
        "axes": np.array([2], np.int64),
        "steps": np.array([2], np.int64),
    }
    path = saved(tmp_path, nodes, weights)
    costs = read_costs(path)
    for at in ((2, 64, 48), (3, 77, 131)):
        truth = inferred(path, *at)
        assert layer(costs, "out").output_elements.at(*at) == truth["out"]
        assert layer(costs, "left").output_elements.at(*at) == truth["left"] + truth["right"]
        assert layer(costs, "bigger").macs.at(*at) == truth["x"] * 6 * 4
