"""FP8 graphs: what is rounded, that it is E4M3, what it costs against INT8, and that an engine is built or refused with why."""

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
from test_quantize_graph import SET, residual_graph
from test_quantize_run import CALIBRATE, SPEC

from redline import api
from redline.demo.scenes import write_dataset
from redline.engine.graph_facts import node_facts, read_graph
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.errors import BadInput, TrialError
from redline.export.quantized import export_int8, structure_of
from redline.prepare import export_graphs, load_subject
from redline.progress import Progress
from redline.quantize.placement import heavy_nodes, place, roundable, rounded_nodes
from redline.quantizing import calibrate, narrowed, table_of
from redline.records import BuildOptions, Candidate, EngineProfile, OnnxModel
from redline.records.quantize import QuantTable, Ranges, TensorRange
from redline.sensitivity import Scales
from redline.store import Journal, Store, load
from redline.vision import decode

Get = Callable[[str], Graphs]
ROOT = Path(__file__).parents[3]


def table(model: onnx.ModelProto, scales: dict[str, float], layers: tuple[str, ...] | None = None) -> QuantTable:
    placement = place(model, rounded_nodes(model, "fp8") if layers is None else layers, copies=False)
    return QuantTable(
        structure=structure_of(model), method="max", calibration=SET, scales=tuple(scales.items()), points=placement.points,
        weights=placement.weights, order=tuple(node.name for node in model.graph.node), number="fp8",
    )  # fmt: skip


def e4m3(values: Any) -> Any:
    """By the format's definition: 448 the largest, 3 bits after the leading one, 2^-9 the least step, ties to even."""
    clipped = np.clip(np.asarray(values, np.float64), -448, 448)
    exponent = np.floor(np.log2(np.maximum(np.abs(clipped), 2.0**-6)))
    step = 2.0 ** (exponent - 3)
    return np.rint(clipped / step) * step


def fake(values: Any, scale: Any) -> Any:
    return (e4m3(np.asarray(values, np.float32) / np.asarray(scale, np.float32)) * scale).astype(np.float32)


def run(model: OnnxModel, batch: Any) -> Any:
    return OnnxRuntimeRunner(model.path, threads=1, concurrent=False, exact=True).run(batch)[0]


def wire_graph(tmp_path: Path) -> OnnxModel:
    """A convolution that hands on its 16 channels as they are."""
    weight = numpy_helper.from_array(np.eye(16, dtype=np.float32).reshape(16, 16, 1, 1), "w")
    facts = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16, "H", "W"]) for name in ("images", "y")]
    graph = helper.make_graph([helper.make_node("Conv", ["images", "w"], ["y"], name="C")], "g", facts[:1], facts[1:], [weight])
    path = tmp_path / "wire.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return replace(residual_graph(tmp_path), path=str(path))


def test_every_value_is_rounded_to_the_nearest_e4m3_and_saturates_at_448(tmp_path: Path) -> None:
    network = wire_graph(tmp_path)
    written = export_int8(network, tmp_path, table(read_graph(network.path), {"images": 0.25}))
    model = onnx.load(written.path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (19, 9)
    assert {w.data_type for w in model.graph.initializer if "zero" in w.name} == {TensorProto.FLOAT8E4M3FN}
    ladder = np.geomspace(2.0**-10, 480, 5000)
    codes = np.concatenate([ladder, -ladder, [0, 1e4, -1e4, 464, 465, 448, 2.0**-10]])
    codes = np.resize(codes, (1, 16, 8, -(-codes.size // 128))).astype(np.float32)
    found = run(written, codes * 0.25) / 0.25
    assert np.allclose(found, e4m3(codes), rtol=1e-6, atol=0), "exactly the numbers of the format"
    assert found.max() == pytest.approx(448, rel=1e-6)
    assert found.min() == pytest.approx(-448, rel=1e-6)
    assert len(np.unique(np.abs(e4m3(codes)))) == 127, "E4M3 has 127 magnitudes, zero among them"


def test_the_graph_computes_what_rounding_by_hand_gives(tmp_path: Path) -> None:
    import torch

    network = residual_graph(tmp_path)
    model = read_graph(network.path)
    held = table(model, {"images": 0.004, "ar": 0.007, "p": 0.01, "sr": 0.01}, heavy_nodes(model))
    assert {(point.node, point.input) for point in held.points} == {("A", 0), ("B", 0), ("S", 1), ("C", 0)}, "pooling is not"
    batch = np.random.default_rng(1).normal(0, 0.4, (2, 3, 8, 8)).astype(np.float32)
    found = run(export_int8(network, tmp_path, held), batch)
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}

    def conv(values: Any, name: str) -> Any:
        steps = np.abs(weights[name]).max(axis=(1, 2, 3), keepdims=True) / 448
        return torch.conv2d(torch.from_numpy(values), torch.from_numpy(fake(weights[name], steps)), padding=1).numpy()

    first = fake(np.maximum(conv(fake(batch, 0.004), "a.w"), 0), 0.007)
    second = np.maximum(conv(first, "b.w") + first, 0)
    expected = conv(fake(second.reshape(2, 4, 4, 2, 4, 2).max(axis=(3, 5)), 0.01), "c.w")
    # A value on the border of two steps may round either way.
    assert np.mean(np.abs(found - expected) > 1e-4) < 0.05
    plain = run(network, batch)
    assert np.abs(found - plain).mean() > 20 * np.abs(found - expected).mean()


def test_an_outlier_that_sets_the_range_costs_int8_the_other_values_and_fp8_nothing(tmp_path: Path) -> None:
    network = wire_graph(tmp_path)
    batch = np.random.default_rng(2).normal(0, 1, (1, 16, 16, 16)).astype(np.float32)
    batch[0, 0, 0, 0] = 200.0
    fp8 = table(read_graph(network.path), {"images": 200 / 448})
    int8 = replace(fp8, number="int8", scales=(("images", 200 / 127),))
    errors = [np.sqrt(np.mean((run(export_int8(network, tmp_path, held), batch) - batch) ** 2)) for held in (fp8, int8)]
    assert errors[0] < 0.03, "a rounding error of up to a sixteenth, uniformly: sqrt(1 / 3) of it and less"
    assert errors[1] > 0.3, "steps of 1.6 for values of size 1"


@pytest.mark.parametrize(("name", "least"), [("demo", 0.88), ("yolox", 0.5), ("retinanet", 0.97)])
def test_layers_with_a_kernel_for_it_are_in_fp8_with_dynamic_shapes(
    name: str, least: float, graphs: Get, tmp_path: Path
) -> None:
    network = graphs(name).full
    model = read_graph(network.path)
    layers = rounded_nodes(model, "fp8")
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.name in heavy_nodes(model):
            grouped = any(a.name == "group" and a.i > 1 for a in node.attribute)
            small = min(shapes[node.input[1]][:2]) < 16 or np.prod(shapes[node.input[1]][2:]) > 32
            assert (node.name in layers) is not (grouped or small), node.name
    written = export_int8(network, tmp_path, table(model, dict.fromkeys(roundable(model), 0.02)))
    onnx.checker.check_model(read_graph(written.path), full_check=True)
    facts = node_facts(read_graph(written.path), (1, 3, *LARGEST[name]))
    assert {fact.name for fact in facts if fact.flop and fact.type == "fp8"} == set(layers)
    assert sum(f.flop for f in facts if f.type == "fp8") >= least * sum(f.flop for f in facts)
    runner = OnnxRuntimeRunner(written.path, threads=1, concurrent=False, exact=True)
    for hw in ((64, 96), (96, 64)):
        batch = np.random.default_rng(0).uniform(0, 1, (2, 3, *hw)).astype(np.float32)
        assert all(np.isfinite(array).all() and len(array) == 2 for array in runner.run(batch))


def test_a_half_graph_takes_the_same_table_with_scales_of_its_own_type(graphs: Get, tmp_path: Path) -> None:
    held = graphs("demo")
    model = read_graph(held.full.path)
    written = read_graph(export_int8(held.half, tmp_path, table(model, dict.fromkeys(roundable(model), 0.02))).path)
    onnx.checker.check_model(written, full_check=True)
    assert max(entry.version for entry in written.opset_import if not entry.domain) == 19
    assert {w.data_type for w in written.graph.initializer if w.name.endswith("_scale")} == {TensorProto.FLOAT16}


def test_a_table_without_a_number_is_of_int8_and_one_without_layers_is_refused(tmp_path: Path) -> None:
    for path in sorted((ROOT / "benchmarks" / "int8").glob("*.json")):
        assert load(QuantTable, path.read_bytes()).number == "int8"
    network = residual_graph(tmp_path)  # four channels
    ranges = Ranges(network="d", calibration=SET, tensors=(TensorRange(tensor="images", by=(("max", 1.0),)),))
    with pytest.raises(TrialError) as caught:
        table_of(network, ranges, "max", number="fp8")
    assert caught.value.code == "quantize-none"
    assert "FP8" in caught.value.what


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_dataset(folder / "val", 4, 11)
    write_dataset(folder / "calib", 6, 12)
    text = SPEC.format(calibrate=CALIBRATE).replace('"fp16", "int8"', '"fp8"')
    (folder / "detector.toml").write_text(text)
    return folder


def test_detections_are_near_to_fp32_though_int8_is_finer_where_ranges_have_no_outliers(project: Path, tmp_path: Path) -> None:
    subject = load_subject(api.load_spec(project / "detector.toml"), Progress(None))
    network = export_graphs(subject, Store(tmp_path / "store"), Journal(tmp_path / "j.jsonl"), Progress(None)).network
    assert network is not None
    paths = sorted((project / "calib" / "images").iterdir())[:4]
    ranges = calibrate(network, subject.detector, paths, threads=1)
    scales = Scales(network, subject.detector, [decode(p.read_bytes(), name=p.name) for p in paths], tmp_path, threads=1)
    fp8 = table_of(network, ranges, "max", number="fp8")
    int8 = table_of(network, ranges, "max")
    amax = {found.tensor: found.amax("max") for found in ranges.tensors}
    assert all(scale == pytest.approx(amax[tensor] / 448) for tensor, scale in fp8.scales)
    same = narrowed(scales.model, int8, [name for name in int8.weights if name not in fp8.weights])
    finer, lost = scales.divergence(same), scales.divergence(fp8)
    # Half a step of E4M3 is a sixteenth of the value, of INT8 a 254th of the largest one.
    assert 0 < finer < lost < 0.2


def test_a_run_has_fp8_graphs_in_half_unless_no_engine_can_be_built(project: Path) -> None:
    subject = load_subject(api.load_spec(project / "detector.toml"), Progress(None))
    store, journal = Store(project / "runs" / "store"), Journal(project / "journal.jsonl")
    refused = export_graphs(subject, store, journal, Progress(None), for_gpu=True, no_fp8="too old")
    assert (refused.fp8.failure, refused.fp8.make) == ("too old", None)
    found = export_graphs(subject, store, journal, Progress(None), for_gpu=True)
    assert (found.int8.make, found.fp8.failure) == (None, None)
    everything, some = found.fp8.kept
    assert everything == ()
    one = Candidate(runner="tensorrt", precision="fp8", device="cuda:0")
    graph, part = found.of(one), found.of(replace(one, wide=some))
    assert graph is not None
    assert part is not None
    rounded = [sum(node.op_type == "QuantizeLinear" for node in read_graph(g.path).graph.node) for g in (graph, part)]
    assert 0 < rounded[1] < rounded[0]
    assert any(note.startswith("fp8 in ") and note.endswith("ranges of 6 images") for note in graph.notes)
    assert "float16" in " ".join(graph.notes)


def test_an_engine_is_built_ahead_of_time_for_gpus_that_have_it_and_refused_for_others(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    from redline.engine.tensorrt_store import build_engine
    from redline.engine.tensorrt_versions import find

    def built(capability: str) -> Any:
        runs = project / "runs"
        return api.build(project / "detector.toml", runs=runs, precision="fp8", capabilities=(capability,), progress=False)

    found = built("8.9")
    assert found.verdict.answer == "pass"
    shares = dict(found.build.proof.shares)
    assert shares["fp8"] == pytest.approx(0.89, abs=0.02)
    assert shares["fp8"] + shares["fp16"] == pytest.approx(1.0)
    with pytest.raises(BadInput) as caught:
        built("8.6")
    assert caught.value.code == "build.precision"
    assert "8.6 has no FP8" in str(caught.value.got)
    # What the library itself says of the same graph: the refusal above is no stricter than it.
    store = Store(project / "runs" / "store")
    onnx_model = replace(residual_graph(tmp_path), path=str(store.path(found.build.onnx)), digest=found.build.onnx)
    shape = (1, 3, 96, 96)
    profile = EngineProfile(index=0, minimum=shape, optimum=shape, maximum=shape)
    with pytest.raises(TrialError) as failed:
        build_engine(
            onnx_model, BuildOptions(precision="fp8", profiles=(profile,), capabilities=("8.6",)), find("tensorrt-rtx"), store
        )
    assert failed.value.code == "engine-build"
    assert "fp8" in str(failed.value.got)
