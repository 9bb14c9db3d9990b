"""What surrounds a TensorRT build, and ahead-of-time builds by TensorRT-RTX where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from redline.engine.graph_facts import node_facts, total_flop, wide_nodes
from redline.engine.tensorrt_graph import portable
from redline.engine.tensorrt_lint import lint, require_clean
from redline.engine.tensorrt_proof import layer_facts, prove
from redline.errors import TrialError
from redline.export.half import export_half
from redline.records import BuildOptions, EngineProfile, OnnxModel, TensorFact


def network(operator: str = "Relu", weight: float = 0.1) -> onnx.ModelProto:
    """images (N, 3, H, W) -> conv (4 x 3 x 3 x 3) -> `operator` -> reshape to (N, 4, -1) by a Shape with start and end."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, "H", "W"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4, "A"])
    nodes = [
        helper.make_node("Conv", ["images", "stem.weight"], ["x"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["x"], ["y"], name="act"),
        helper.make_node("Shape", ["images"], ["n"], name="count", start=0, end=1),
        helper.make_node("Concat", ["n", "rest"], ["size"], name="size", axis=0),
        helper.make_node("Reshape", ["y", "size"], ["out"], name="rows"),
    ]
    weights = [
        numpy_helper.from_array(np.full((4, 3, 3, 3), weight, np.float32), "stem.weight"),
        numpy_helper.from_array(np.array([4, -1], np.int64), "rest"),
    ]
    graph = helper.make_graph(nodes, "network", [images], [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def record(model: onnx.ModelProto, folder: Path) -> OnnxModel:
    path = folder / "network.onnx"
    path.write_bytes(model.SerializeToString())
    return OnnxModel(
        path=str(path),
        digest="0" * 64,
        exporter="given",
        opset=18,
        input=TensorFact(name="images", dtype="float32", shape=("N", 3, "H", "W")),
        outputs=(TensorFact(name="out", dtype="float32", shape=("N", 4, "A")),),
        dynamic=True,
        checks=(),
    )


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    result: np.ndarray = ort.InferenceSession(model.SerializeToString()).run(None, {"images": images})[0]
    return result


def test_flop_types_and_modules_are_read_from_the_graph_in_both_precisions(tmp_path: Path) -> None:
    full = record(network("Exp"), tmp_path)
    facts = node_facts(onnx.load(full.path), (1, 3, 8, 6))
    assert total_flop(facts) == 2 * 8 * 6 * 4 * 3 * 9
    assert (facts[0].type, facts[0].module) == ("fp32", "stem")
    half = node_facts(onnx.load(export_half(full, tmp_path).path), (1, 3, 8, 6))
    assert total_flop(half) == total_flop(facts)
    assert next(fact.type for fact in half if fact.operator == "Conv") == "fp16"
    assert wide_nodes(half) == {"act"}  # Exp leaves float16's range
    assert wide_nodes(facts) == frozenset()


def test_half_graph_keeps_input_and_output_types_and_nearly_the_values(tmp_path: Path) -> None:
    full = record(network(), tmp_path)
    images = np.random.default_rng(0).uniform(0, 1, (2, 3, 8, 6)).astype(np.float32)
    half = run(onnx.load(export_half(full, tmp_path).path), images)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, run(network(), images), rtol=2e-3, atol=2e-3)
    narrow = export_half(full, tmp_path, keep_outputs=False)
    assert run(onnx.load(narrow.path), images).dtype == np.float16


def test_a_weight_outside_float16_is_refused_with_its_node(tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="hold node stem in float32"):
        export_half(record(network(weight=1e6), tmp_path), tmp_path)


def test_shape_with_bounds_is_rewritten_and_computes_the_same() -> None:
    images = np.random.default_rng(0).uniform(0, 1, (2, 3, 8, 6)).astype(np.float32)
    changed = portable(network())
    assert not any(a.name in ("start", "end") for n in changed.graph.node if n.op_type == "Shape" for a in n.attribute)
    assert next(node.op_type for node in changed.graph.node if node.name == "count") == "Slice"
    np.testing.assert_array_equal(run(changed, images), run(network(), images))


def test_lint_names_node_and_fix() -> None:
    assert lint(network()) == ()
    with pytest.raises(TrialError, match="node act: operator Det") as caught:
        require_clean(lint(network("Det")))
    assert caught.value.code == "engine-lint"
    with pytest.raises(TrialError, match=r"node stem: weight stem\.weight holds NaN or infinity"):
        require_clean(lint(network(weight=float("nan"))))


INSPECTED = (
    '{"Layers": [{"Name": "stem + act", "LayerType": "CaskConvolution", "TacticName": "sm90", "Metadata": '
    '"[ONNX Layer: stem]\x1e[ONNX Layer: act]", "Inputs": [{"Name": "images", "Format/Datatype": "KIND"}], "Outputs": []}]}'
)


@pytest.mark.parametrize(
    ("said", "kind", "proved"),
    [
        ("Channel major FP16 format where channel % 8 == 0", "fp16", True),
        ("Row major linear FP32", "fp32", False),
        ("Half", "fp16", True),
        ("who knows", "unknown", False),
    ],
)
def test_an_engine_that_fell_back_is_not_proved(said: str, kind: str, proved: bool, tmp_path: Path) -> None:
    nodes = node_facts(onnx.load(export_half(record(network(), tmp_path), tmp_path).path), (1, 3, 8, 6))
    layers = layer_facts(INSPECTED.replace("KIND", said), nodes)
    assert (layers[0].nodes, layers[0].precision) == (("stem", "act"), kind)
    proof = prove("fp16", layers, nodes)
    assert proof.proved == proved
    assert proof.fallen == (("stem + act",) if kind == "fp32" else ())


def test_a_copy_for_a_layer_counts_as_none_of_its_work(tmp_path: Path) -> None:
    nodes = node_facts(onnx.load(record(network(), tmp_path).path), (1, 3, 8, 6))
    copy = (
        '{"Name": "Reformatting CopyNode for Input Tensor 0 to stem + act [profile 1]", "LayerType": "Reformat", '
        '"Metadata": "", "Inputs": [{"Name": "images", "Format/Datatype": "Row major linear FP32"}], "Outputs": []}, '
    )
    text = INSPECTED.replace("KIND", "Four wide channel vectorized row major Int8 format")
    layers = layer_facts(text.replace('[{"Name"', f'[{copy}{{"Name"', 1), nodes)
    assert [layer.flop > 0 for layer in layers] == [False, True]
    proof = prove("int8", layers, nodes)
    assert dict(proof.shares) == {"int8": 1.0}
    assert proof.fallen == ()


def test_ahead_of_time_builds_of_both_precisions(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    from redline.engine.tensorrt_store import build_engine
    from redline.engine.tensorrt_versions import find
    from redline.store import Store

    library, full = find("tensorrt-rtx"), record(network(), tmp_path)
    spans = [((1, 3, 32, 32), (1, 3, 64, 64), (2, 3, 64, 64)), ((1, 3, 64, 64), (4, 3, 64, 96), (4, 3, 64, 96))]
    profiles = tuple(EngineProfile(index=i, minimum=a, optimum=b, maximum=c) for i, (a, b, c) in enumerate(spans))
    store = Store(tmp_path / "store")
    for model, precision in ((full, "fp32"), (export_half(full, tmp_path), "fp16")):
        options = BuildOptions(precision=precision, profiles=profiles, capabilities=("8.0", "8.9"))  # type: ignore[arg-type]
        build = build_engine(model, options, library, store)
        assert build.plan_bytes == store.path(build.digest).stat().st_size > 1000
        assert build.inputs[0].dtype == "float32"
        assert dict(build.proof.shares) == {precision: 1.0}
        assert not build.proof.proved
        assert "ahead of time" in build.proof.note
        assert build_engine(model, options, library, store) == build
    with pytest.raises(TrialError, match=r"compute capability 9\.0"):
        build_engine(full, BuildOptions(precision="fp32", profiles=profiles, capabilities=("9.0",)), library, store)
