"""Seams, segments and cuts on graphs where they can be told by hand, and as properties on the zoo's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from detector_graphs import LARGEST, Graphs
from onnx import TensorProto, helper, numpy_helper

from redline.engine.cuts import ELEMENTWISE, choose_cuts, cut_graph, split_graph, wire
from redline.engine.rounding import rounded_graph
from redline.engine.segments import run_segments

Get = Callable[[str], Graphs]


def residual() -> onnx.ModelProto:
    """x -> c1 -> relu r1 -> c2 -> add(r1) s -> relu r2 -> c3 -> sigmoid g, mul(c3, g) m -> concat(m, r2) -> out."""
    nodes = [
        ("Conv", ["x", "w1"], "c1"), ("Relu", ["c1"], "r1"), ("Conv", ["r1", "w2"], "c2"), ("Add", ["c2", "r1"], "s"),
        ("Relu", ["s"], "r2"), ("Conv", ["r2", "w3"], "c3"), ("Sigmoid", ["c3"], "g"), ("Mul", ["c3", "g"], "m"),
        ("Concat", ["m", "r2"], "out"),
    ]  # fmt: skip
    made = [
        helper.make_node(kind, read, [out], name=f"n_{out}", **({"axis": 1} if kind == "Concat" else {}))
        for kind, read, out in nodes
    ]
    draw = np.random.default_rng(0)
    weights = [numpy_helper.from_array(draw.normal(0, 0.5, (4, 4, 1, 1)).astype(np.float32), f"w{i}") for i in (1, 2, 3)]
    shape: list[int | str] = ["N", 4, 6, 6]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 8, 6, 6])
    graph = helper.make_graph(made, "residual", [x], [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_seams_are_what_no_kernel_can_keep_to_itself() -> None:
    wiring = wire(residual())
    assert wiring.seams == ("r1", "r2", "m", "out")
    assert [wiring.nodes[index].name for index in wiring.layers] == ["n_c1", "n_c2", "n_c3"]
    assert set(wiring.layers.values()) == {4}  # 4 channels, 1 x 1


def test_segments_begin_at_the_nearest_cuts() -> None:
    wiring = wire(residual())
    names = lambda tensor, cuts: sorted(wiring.nodes[i].name for i in wiring.segment(tensor, cuts))  # noqa: E731
    assert names("r2", ("r1",)) == ["n_c2", "n_r2", "n_s"]
    assert names("r2", ()) == ["n_c1", "n_c2", "n_r1", "n_r2", "n_s"]
    assert names("out", ("r2", "m")) == ["n_out"]
    assert wiring.sources("out", ("r1", "r2", "m")) == ("r2", "m")
    assert wiring.sources("r1", ("r1", "r2")) == ()


def test_cuts_balance_the_layers() -> None:
    wiring = wire(residual())
    assert choose_cuts(wiring, ("out",), (), wiring.seams, 0) == ()
    assert choose_cuts(wiring, ("out",), (), wiring.seams, 2) == ("r1", "r2")
    assert choose_cuts(wiring, ("out",), ("r2",), ("c3", "g", "m"), 9) == ("c3", "g", "m")
    assert choose_cuts(wiring, ("c1",), (), wiring.floats, 9) == ()


@pytest.mark.parametrize("name", LARGEST)
def test_properties_on_real_graphs(graphs: Get, name: str) -> None:
    wiring = wire(onnx.load(graphs(name).full.path))
    assert len(wiring.layers) > 80
    for seam in wiring.seams:
        readers = {wiring.nodes[i].op_type for i in wiring.readers.get(seam, ())}
        assert seam in wiring.outputs or readers - ELEMENTWISE
    for most in (1, 5, 12):
        cuts = choose_cuts(wiring, wiring.outputs, (), wiring.seams, most)
        assert len(cuts) == most
        ends = (*cuts, *wiring.outputs)
        covered = frozenset[int]().union(*(wiring.segment(end, ends) for end in ends))
        assert set(wiring.layers) <= covered  # no layer escapes
        assert cuts == choose_cuts(wiring, wiring.outputs, (), wiring.seams, most)
    heaviest = max(wiring.weight(wiring.segment(end, ends))[0] for end in ends)
    assert heaviest <= 3 * len(wiring.layers) / len(ends)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_a_cut_graph_computes_the_same_and_gives_the_tensors_out() -> None:
    model, x = residual(), np.random.default_rng(1).normal(0, 1, (2, 4, 6, 6)).astype(np.float32)
    wiring = wire(model)
    found = run(cut_graph(model, wiring, ("r1", "out", "m")), {"x": x})
    assert list(found) == ["out", "r1", "m"]
    close(found["out"], run(model, {"x": x})["out"])
    np.testing.assert_array_equal(found["out"][:, :4], found["m"])


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    """Other fusions, other order of four products."""
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_split_graph_believes_what_it_is_given() -> None:
    model, x = residual(), np.random.default_rng(1).normal(0, 1, (2, 4, 6, 6)).astype(np.float32)
    wiring = wire(model)
    full = run(cut_graph(model, wiring, ("r1", "r2", "m")), {"x": x})
    given = {"r1": full["r1"], "r2": full["r2"] * 2}
    found = run_segments(model, wiring, ("r1", "r2", "out"), given, x)
    close(found["r1"], full["r1"])  # from x
    close(found["r2"], full["r2"])  # from r1
    np.testing.assert_array_equal(found["out"][:, 4:], given["r2"])  # from what was given for r2
    split = split_graph(model, wiring, ("out",), ("r2",))
    assert [value.name for value in split.graph.input] == ["r2__given"]
    assert {node.name for node in split.graph.node} == {"n_c3", "n_g", "n_m", "n_out"}


def test_a_rounded_graph_has_every_tensor_as_the_narrow_graph_would(graphs: Get) -> None:
    subject = graphs("demo")
    full, half = onnx.load(subject.full.path), onnx.load(subject.half.path)
    wiring, narrow = wire(full), wire(half)
    rounded = rounded_graph(full, wiring, half, narrow)
    names = [name for name in wiring.seams if narrow.kinds.get(name) == TensorProto.FLOAT16][:6]
    found = run_segments(rounded, wire(rounded), names, {}, subject.batch)
    exact = run_segments(full, wiring, names, {}, subject.batch)
    for name in names:
        np.testing.assert_array_equal(found[name], found[name].astype(np.float16).astype(np.float32))
        error = np.sqrt(((found[name] - exact[name]) ** 2).mean() / (exact[name] ** 2).mean())
        assert 2.0**-13 < error < 2.0**-7
