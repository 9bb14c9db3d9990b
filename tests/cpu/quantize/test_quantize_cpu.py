"""INT8 for ONNX Runtime's CPU: what is rounded, what stays wide, what a run keeps of it, and that a release finds its graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from redline import api, calibrating_cpu
from redline.calibrating import NO_SET
from redline.demo.scenes import write_dataset
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.errors import BadInput
from redline.export import quantized_cpu
from redline.export.quantized_cpu import export_cpu_int8, saturates
from redline.prepare import Graphs, Subject, export_graphs, load_subject
from redline.progress import Progress
from redline.quantize.placement import heavy_nodes, with_activations
from redline.records import Candidate
from redline.store import Journal, Store
from redline.vision import decode, prepare

SPEC = """
[model]
factory = "redline.zoo:demo"
head = "yolox"
[model.preprocess]
resize = "letterbox"
size = [96, 96]
channels = "rgb"
[data]
evaluate = {{ images = "val/images", annotations = "val/instances.json" }}
{calibrate}
[objective]
p95_ms = 50
throughput = 1
[target]
precisions = ["fp32", "int8"]
[budget]
minutes = {minutes}
"""
CALIBRATE = 'calibrate = { images = "calib/images", annotations = "calib/instances.json" }'
INT8 = Candidate(runner="onnxruntime", precision="int8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_dataset(folder / "val", 4, 11)
    write_dataset(folder / "calib", 8, 12)
    (folder / "detector.toml").write_text(SPEC.format(calibrate=CALIBRATE, minutes=1))
    (folder / "long.toml").write_text(SPEC.format(calibrate=CALIBRATE, minutes=5))
    (folder / "without.toml").write_text(SPEC.format(calibrate="", minutes=1))
    return folder


def exported(project: Path, name: str) -> tuple[Subject, Graphs]:
    subject = load_subject(api.load_spec(project / name), Progress(None))
    store, journal = Store(project / "runs" / "store"), Journal(project / f"{name}.jsonl")
    return subject, export_graphs(subject, store, journal, Progress(None))


@pytest.fixture(scope="module")
def made(project: Path) -> tuple[Subject, Graphs]:
    return exported(project, "detector.toml")


def inputs(project: Path, subject: Subject) -> list[np.ndarray[Any, Any]]:
    paths = sorted((project / "calib" / "images").iterdir())
    return [prepare(decode(p.read_bytes(), name=p.name), subject.detector.preprocess, "fixed")[0] for p in paths]


def rounded_inputs(model: onnx.ModelProto, name: str) -> list[bool]:
    """Whether each input of the node comes out of a DequantizeLinear."""
    back = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [tensor in back for tensor in next(node for node in model.graph.node if node.name == name).input]


def test_every_layer_reads_int8_activations_with_a_zero_point_and_weights_with_a_scale_for_each_channel(
    made: tuple[Subject, Graphs],
) -> None:
    _, graphs = made
    assert graphs.network is not None
    graph = graphs.of(INT8)
    assert graph is not None
    model = onnx.load(graph.path)
    onnx.checker.check_model(model, full_check=True)
    values = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    layers = heavy_nodes(onnx.load(graphs.network.path))
    for name in layers:
        assert all(rounded_inputs(model, name)), name
    weights = [v for v in values.values() if v.dtype == np.int8 and v.ndim == 4]
    assert len(weights) == len(layers)
    limit = 64 if saturates() else 127
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) in (limit - 1, limit)
    scales = [
        values[node.input[1]] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values
    ]
    assert any(scale.ndim == 1 and scale.size > 1 and len(np.unique(scale)) > 1 for scale in scales)
    zeros = [values[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert any(int(zero) != 0 for zero in zeros), "activations that are never very negative use all 256 levels"


def test_outputs_stay_near_fp32_at_other_shapes_and_batches_than_those_calibrated_on(
    made: tuple[Subject, Graphs], project: Path
) -> None:
    subject, graphs = made
    graph = graphs.of(INT8)
    assert graph is not None
    assert graphs.network is not None
    runners = [OnnxRuntimeRunner(path, threads=1, concurrent=False) for path in (graphs.network.path, graph.path)]
    tensor = inputs(project, subject)[0]
    for batch in (np.stack([tensor, tensor[:, ::-1]]), tensor[None, :, :64]):
        wide, narrow = (runner.run(np.ascontiguousarray(batch))[0] for runner in runners)
        assert wide.shape == narrow.shape
        error = float(np.linalg.norm(narrow - wide) / np.linalg.norm(wide))
        assert 1e-4 < error < 0.2
    for runner in runners:
        runner.close()


def test_a_layer_that_is_kept_stays_in_fp32_with_the_activation_behind_it(
    made: tuple[Subject, Graphs], project: Path, tmp_path: Path
) -> None:
    subject, graphs = made
    assert graphs.network is not None
    source = onnx.load(graphs.network.path)
    first = heavy_nodes(source)[0]
    wide = with_activations(source, [first])
    assert len(wide) > 1
    graph = export_cpu_int8(graphs.network, tmp_path, inputs(project, subject)[:2], "max", keep_wide=wide)
    model = onnx.load(graph.path)
    assert rounded_inputs(model, first)[1:] == [False, False], "what it reads is rounded by who makes it; its weights are not"
    assert all(rounded_inputs(model, heavy_nodes(source)[1]))
    assert graph.notes[-1] == f"int8 by ONNX Runtime, max ranges of 2 images, {len(wide)} nodes in fp32"
    assert graph.digest != graphs.network.digest


def test_unknown_layers_and_graphs_that_are_rounded_already_are_refused(
    made: tuple[Subject, Graphs], project: Path, tmp_path: Path
) -> None:
    subject, graphs = made
    assert graphs.network is not None
    name = heavy_nodes(onnx.load(graphs.network.path))[0]
    tensors = inputs(project, subject)[:1]
    with pytest.raises(BadInput) as caught:
        export_cpu_int8(graphs.network, tmp_path, tensors, "max", keep_wide=[name + "x"])
    assert (caught.value.code, caught.value.fix) == ("quantize.node", f"did you mean {name}?")
    graph = graphs.of(INT8)
    assert graph is not None
    with pytest.raises(BadInput) as caught:
        export_cpu_int8(graph, tmp_path, tensors, "max")
    assert caught.value.code == "quantize.already"


def test_the_record_has_the_images_the_losses_and_the_graph_and_nothing_is_made_twice(
    made: tuple[Subject, Graphs], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, graphs = made
    found = graphs.int8.record
    assert found is not None
    assert [loss.method for loss in found.losses] in (["max", "percentile"], ["percentile", "max"])
    assert 0 < found.losses[0].divergence <= found.losses[1].divergence < 1
    assert len(found.calibration.images) == 8
    assert found.calibration.images == tuple(image.sha256 for image in found.choice.images)
    assert {coverage.selector for coverage in found.choice.others} == {"first", "random"}
    assert graphs.int8.kept == ((),), "a budget of a minute does not weigh groups of layers"

    def again(*_: Any, **__: Any) -> Any:
        raise AssertionError("made again")

    monkeypatch.setattr(quantized_cpu, "export_cpu_int8", again)
    monkeypatch.setattr("redline.sensitivity.Scales.seen_by", again)
    _, other = exported(project, "detector.toml")
    assert other.int8.record == found
    assert other.of(INT8) == graphs.of(INT8)


def test_a_longer_budget_weighs_groups_of_layers_and_keeps_those_that_lose_most(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redline.quantize import groups

    few = groups.layer_groups
    monkeypatch.setattr(groups, "layer_groups", lambda model: few(model, 3))
    _, graphs = exported(project, "long.toml")
    found = graphs.int8.record
    assert found is not None
    assert len(found.sensitivities) >= 2
    assert all(0 <= one.divergence < 1 for one in found.sensitivities)
    assert len(graphs.int8.kept) == 2
    most = max(found.sensitivities, key=lambda one: one.divergence)
    assert set(most.group.nodes) <= set(graphs.int8.kept[1])
    graph = graphs.of(replace(INT8, wide=graphs.int8.kept[1]))
    assert graph is not None
    assert not any(rounded_inputs(onnx.load(graph.path), most.group.nodes[0])[1:])


def test_without_images_there_is_a_reason_and_with_int8_left_out_nothing_is_asked(project: Path) -> None:
    _, graphs = exported(project, "without.toml")
    assert graphs.int8.failure == NO_SET
    assert graphs.of(INT8) is None
    subject = load_subject(api.load_spec(project / "detector.toml"), Progress(None))
    store, journal = Store(project / "other" / "store"), Journal(project / "other.jsonl")
    assert export_graphs(subject, store, journal, Progress(None), int8=False).int8.record is None


def test_a_graph_that_the_quantiser_refuses_is_a_reason_not_an_end(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("no such operator\nat all")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", broken)
    monkeypatch.setattr(calibrating_cpu, "tool_versions", lambda: {"other": "1"})
    _, graphs = exported(project, "detector.toml")
    assert graphs.network is not None
    assert graphs.int8.failure is not None
    assert "ValueError: no such operator at all" in graphs.int8.failure


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "flags: avx2 avx512f", True),
        ("x86_64", "flags: avx2 avx512f avx512_vnni", False),
        ("AMD64", "flags: avx_vnni", False),
        ("aarch64", "", False),
    ],
)
def test_weights_have_seven_bits_where_products_saturate(
    machine: str, flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: flags)
    saturates.cache_clear()
    try:
        assert saturates() is expected
    finally:
        saturates.cache_clear()
