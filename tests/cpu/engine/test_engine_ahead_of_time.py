"""Builds ahead of time by TensorRT-RTX, without a GPU: the zoo's detectors for compute capability 8.0 and 8.9."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from detector_graphs import LARGEST, Graphs

from redline.engine.cuts import wire
from redline.engine.graph_facts import node_facts, total_flop
from redline.engine.tensorrt_builder import build_plan
from redline.engine.tensorrt_lint import lint, require_clean
from redline.engine.tensorrt_store import build_engine, replay
from redline.errors import TrialError
from redline.export.half import export_half
from redline.records import BuildOptions, EngineBuild, EngineProfile
from redline.store import Store

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
from redline.engine.tensorrt_versions import Library, find

Get = Callable[[str], Graphs]
CAPABILITIES = ("8.0", "8.9")
SHARE = {"demo": 0.98, "yolox": 0.98, "retinanet": 0.999}
"""Least share of the operations that the float16 graph computes in float16."""


@pytest.fixture(scope="module")
def library() -> Library:
    return find("tensorrt-rtx")


def profiles(name: str) -> tuple[EngineProfile, ...]:
    """One for single images of any shape, one for batches of the largest."""
    tall, wide = LARGEST[name]
    low, high = (1, 3, 64, 64), (1, 3, tall, wide)
    spans = [(low, high, high), ((1, 3, tall, wide), (4, 3, tall, wide), (4, 3, tall, wide))]
    return tuple(EngineProfile(index=i, minimum=a, optimum=b, maximum=c) for i, (a, b, c) in enumerate(spans))


@pytest.fixture(scope="module")
def built(
    graphs: Get, library: Library, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[EngineBuild, Store]]:
    store = Store(tmp_path_factory.mktemp("store"))
    made: dict[tuple[str, str], EngineBuild] = {}

    def get(name: str, precision: str) -> tuple[EngineBuild, Store]:
        if (name, precision) not in made:
            model = graphs(name).full if precision == "fp32" else graphs(name).half
            store.put_file(Path(model.path), kind="onnx", stage="export")
            options = BuildOptions(precision=precision, profiles=profiles(name), capabilities=CAPABILITIES)  # type: ignore[arg-type]
            made[name, precision] = build_engine(model, options, library, store)
        return made[name, precision], store

    return get


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", LARGEST)
def test_detectors_build_for_gpus_that_are_not_here(built: Any, graphs: Get, name: str, precision: str) -> None:
    build, store = built(name, precision)
    weights = sum(len(weight.raw_data) for weight in onnx.load(graphs(name).full.path).graph.initializer)
    size = weights * (1.0 if precision == "fp32" else 0.5) * len(CAPABILITIES)
    # An engine for two capabilities holds the weights at least once, in the type of the graph, and no more than twice.
    assert 0.4 * size < build.plan_bytes < 3 * size + (8 << 20)
    assert store.path(build.digest).stat().st_size == build.plan_bytes
    assert (build.library, build.gpu, build.driver, build.timing_cache) == ("tensorrt-rtx", "", "", "none")
    assert build.inputs[0].shape == ("N", 3, "H", "W")
    assert [output.name for output in build.outputs] == [output.name for output in graphs(name).full.outputs]
    assert {output.dtype for output in build.outputs} == {"float32"}
    shares = dict(build.proof.shares)
    assert shares.get(precision, 0.0) >= (0.999999 if precision == "fp32" else SHARE[name])
    assert not build.proof.proved
    assert "ahead of time" in build.proof.note


@pytest.mark.parametrize("name", LARGEST)
def test_flop_do_not_depend_on_the_precision(graphs: Get, name: str) -> None:
    shape = (1, 3, *LARGEST[name])
    both = [total_flop(node_facts(onnx.load(model.path), shape)) for model in (graphs(name).full, graphs(name).half)]
    assert both[0] == both[1] > 1e8


def test_a_replay_ahead_of_time_builds_again(built: Any, library: Library) -> None:
    build, store = built("demo", "fp16")
    found = replay(build, library, store)
    assert found.same_tactics  # the bytes are not always the same


def test_a_capability_the_library_does_not_know_is_refused_by_name(graphs: Get, library: Library) -> None:
    options = BuildOptions(precision="fp32", profiles=profiles("demo"), capabilities=("9.0",))
    with pytest.raises(TrialError, match=r"compute capability 9\.0") as caught:
        build_plan(graphs("demo").full.path, options, library)
    assert "8.9" in str(caught.value.fix)


def test_debug_tensors_can_be_marked(graphs: Get, library: Library) -> None:
    options = BuildOptions(precision="fp16", profiles=profiles("demo")[:1], capabilities=("8.9",))
    plan = build_plan(graphs("demo").half.path, options, library, watched=("silu_7", "silu_35"))
    assert len(plan.data) > 1000
    with pytest.raises(TrialError, match="nowhere"):
        build_plan(graphs("demo").half.path, options, library, watched=("nowhere",))


def test_a_graph_with_nodes_held_in_fp32_builds_as_it_is_typed(graphs: Get, library: Library, tmp_path: Path) -> None:
    full = graphs("demo").full
    wiring = wire(onnx.load(full.path))
    layers = [wiring.nodes[index] for index in sorted(wiring.layers)]
    behind = [wiring.nodes[index] for index in wiring.readers[layers[30].output[0]]]
    held = {node.name for node in (layers[0], layers[30], *behind, layers[-1])}
    half = export_half(full, tmp_path, wide_nodes=tuple(held))
    options = BuildOptions(precision="fp16", profiles=profiles("demo")[:1], capabilities=("8.9",))
    plan = build_plan(half.path, options, library)
    assert len(plan.data) > 1000
    wide = {fact.name for fact in plan.nodes if fact.type == "fp32" and fact.operator != "Cast"}
    assert held <= wide
    assert not {layer.name for layer in layers} & (wide - held)
    assert [output.dtype for output in plan.outputs] == ["float32"]


@pytest.mark.parametrize(
    ("operator", "words"),
    [("Unique", "depends on data"), ("DeformConv", "no TensorRT layer"), ("SequenceAt", "tensors only")],
)
def test_lint_refuses_with_the_name_of_the_node(graphs: Get, library: Library, operator: str, words: str) -> None:
    model = onnx.load(graphs("demo").full.path)
    assert lint(model, library) == ()
    node = model.graph.node[40]
    node.op_type = operator
    with pytest.raises(TrialError, match=rf"node {node.name}: operator {operator}") as caught:
        require_clean(lint(model, library))
    assert words in str(caught.value.fix)


def test_what_the_parser_refuses_names_the_node(graphs: Get, library: Library, tmp_path: Path) -> None:
    model = onnx.load(graphs("demo").full.path)
    node = next(entry for entry in model.graph.node if entry.op_type == "Sigmoid")
    node.op_type = "ImaginarySigmoid"
    path = tmp_path / "imaginary.onnx"
    path.write_bytes(model.SerializeToString())
    options = BuildOptions(precision="fp32", profiles=profiles("demo")[:1], capabilities=("8.9",))
    with pytest.raises(TrialError, match=node.name) as caught:
        build_plan(str(path), options, library)
    assert caught.value.code == "engine-parse"
