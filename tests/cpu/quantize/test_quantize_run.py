"""INT8 from a spec to an engine: calibration, provenance, what is chosen by its loss, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from redline import api, mixing
from redline.calibrating import NO_SET, int8_graphs
from redline.demo.scenes import write_dataset
from redline.doctor import inspect_machine
from redline.engine.graph_facts import read_graph
from redline.errors import BadInput
from redline.mixing import group_costs, mixer
from redline.plan.devices import known_device
from redline.prepare import Graphs, export_graphs, load_subject
from redline.progress import Progress
from redline.records import Candidate, LayerTime
from redline.sensitivity import Scales, kept_nodes
from redline.store import Journal, Store
from redline.vision import decode

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
precisions = ["fp32", "fp16", "int8"]
"""
CALIBRATE = 'calibrate = { images = "calib/images", annotations = "calib/instances.json" }'


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_dataset(folder / "val", 4, 11)
    write_dataset(folder / "calib", 10, 12)
    (folder / "detector.toml").write_text(SPEC.format(calibrate=CALIBRATE))
    (folder / "without.toml").write_text(SPEC.format(calibrate=""))
    return folder


@pytest.fixture(scope="module")
def made(project: Path) -> tuple[Any, Graphs, Store]:
    subject = load_subject(api.load_spec(project / "detector.toml"), Progress(None))
    store, journal = Store(project / "runs" / "store"), Journal(project / "journal.jsonl")
    return subject, export_graphs(subject, store, journal, Progress(None), for_gpu=True), store


def test_a_run_has_int8_graphs_in_half_and_two_choices_of_layers(made: tuple[Any, Graphs, Store]) -> None:
    _, graphs, _ = made
    assert graphs.int8.failure is None
    everything, some = graphs.int8.kept
    assert everything == ()
    assert len(some) > 0
    whole, part = (
        graphs.of(Candidate(runner="tensorrt", precision="int8", device="cuda:0", wide=kept)) for kept in (everything, some)
    )
    assert whole is not None
    assert part is not None
    rounded = [sum(node.op_type == "QuantizeLinear" for node in read_graph(graph.path).graph.node) for graph in (whole, part)]
    assert rounded[1] < rounded[0]
    assert any(note.startswith("int8 in ") and note.endswith("ranges of 10 images") for note in whole.notes)
    assert "float16" in " ".join(whole.notes)
    assert [fix.fix for fix in graphs.int8.record.fixes][:2] == ["equalised layers", "scaled inputs"]
    kept = [fix for fix in graphs.int8.record.fixes if fix.kept]
    assert kept
    assert all(fix.after is not None and fix.after < fix.before for fix in kept)


def test_on_a_known_gpu_the_choices_are_of_the_frontier_of_loss_and_the_plan_s_time(
    made: tuple[Any, Graphs, Store], project: Path
) -> None:
    subject, graphs, store = made
    environment = replace(inspect_machine(), gpus=("NVIDIA H200",))
    mix = mixer(environment, project / "runs", subject.spec)
    assert mix is not None
    other = export_graphs(subject, store, Journal(project / "front.jsonl"), Progress(None), for_gpu=True, mix=mix)
    found = other.int8.record
    assert found is not None
    assert graphs.int8.record is not None
    assert found.sensitivities == graphs.int8.record.sensitivities
    whole = sum(one.divergence for one in found.sensitivities)
    losses = [point.predicted_loss for point in found.frontier]
    times = [point.predicted_us for point in found.frontier]
    assert losses == sorted(losses)
    assert times == sorted(times, reverse=True)
    assert len(times) > 2
    assert other.int8.kept[0] == ()
    nodes = {one.group.name: one.group.nodes for one in found.sensitivities}
    within = [point for point in found.frontier if point.predicted_loss <= 0.2 * whole]
    fastest = min(within, key=lambda point: point.predicted_us)
    assert tuple(sorted(node for name in fastest.kept for node in nodes[name])) in other.int8.kept
    assert mixer(replace(environment, gpus=("Other GPU",)), project / "runs", subject.spec) is None


def test_a_frontier_is_decided_once_a_run_whatever_is_dissected_later(
    made: tuple[Any, Graphs, Store], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, graphs, store = made
    assert graphs.half is not None
    assert graphs.int8.record is not None
    journal = Journal(project / "decided.jsonl")
    mix = mixer(replace(inspect_machine(), gpus=("NVIDIA H200",)), project / "runs", subject.spec, store, journal)
    assert mix is not None
    given = (graphs.half, graphs.int8.record.sensitivities, "int8")
    first = mix(*given)
    assert len(first) > 2
    monkeypatch.setattr(mixing, "dissected", lambda *_: pytest.fail("decided again"))
    assert mix(*given) == first
    assert "frontier" in (project / "decided.jsonl").read_text(encoding="utf-8")


def test_groups_take_the_times_of_layers_that_were_measured(made: tuple[Any, Graphs, Store], project: Path) -> None:
    subject, graphs, _ = made
    assert graphs.half is not None
    assert graphs.int8.record is not None
    sensitive, gpu = graphs.int8.record.sensitivities, known_device("NVIDIA H200")
    assert gpu is not None
    parts = (graphs.half, sensitive, "int8", gpu, project / "runs", subject.spec)
    planned = {one.name: one for one in group_costs(*parts, {})}
    first = sensitive[0].group

    def engine(ms: float) -> Any:
        layers = tuple(LayerTime(name=node, ms=ms, nodes=(node,)) for node in first.nodes)
        return SimpleNamespace(shape=(8, 3, 96, 96), layers=layers, anatomy=None)

    measured = {one.name: one for one in group_costs(*parts, {"fp16": engine(1.0)})}
    assert measured[first.name].fp16_us == pytest.approx(1000 * len(first.nodes))
    assert 0 < measured[first.name].int8_us < measured[first.name].fp16_us * 1.001
    assert measured[sensitive[1].group.name] == planned[sensitive[1].group.name]
    both = {one.name: one for one in group_costs(*parts, {"fp16": engine(1.0), "int8": engine(0.7)})}
    assert both[first.name].int8_us == pytest.approx(700 * len(first.nodes))


def test_what_was_measured_is_kept_with_its_images_and_not_measured_again(
    made: tuple[Any, Graphs, Store], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, graphs, store = made
    kinds = {store.meta(digest).kind for digest in store.digests()}
    assert {"ranges", "divergence"} <= kinds
    ranges = next(digest for digest in store.digests() if store.meta(digest).kind == "ranges")
    text = store.path(ranges).read_text()
    for path in sorted((project / "calib" / "images").iterdir()):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text

    def again(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr("redline.quantizing.calibrate", again)
    monkeypatch.setattr(Scales, "_weigh", again)
    other = export_graphs(subject, store, Journal(project / "second.jsonl"), Progress(None), for_gpu=True)
    assert other.int8.kept == graphs.int8.kept
    assert other.int8.record.fixes == graphs.int8.record.fixes


def test_without_calibration_images_there_is_a_reason_and_no_graph(project: Path) -> None:
    subject = load_subject(api.load_spec(project / "without.toml"), Progress(None))
    store, journal = Store(project / "runs" / "store"), Journal(project / "third.jsonl")
    graphs = export_graphs(subject, store, journal, Progress(None), for_gpu=True)
    assert graphs.int8.failure == NO_SET
    assert graphs.of(Candidate(runner="tensorrt", precision="int8", device="cuda:0")) is None


def test_a_calibration_set_with_evaluation_images_is_refused(made: tuple[Any, Graphs, Store], project: Path) -> None:
    subject, graphs, store = made
    other = project / "mixed"
    shutil.copytree(project, other, ignore=shutil.ignore_patterns("runs", "mixed"))
    shutil.copy(other / "val" / "images" / "000001.jpg", other / "calib" / "images" / "000001.jpg")
    (other / "detector.toml").write_text(SPEC.format(calibrate='calibrate = { images = "calib/images" }'))
    spoilt = load_subject(api.load_spec(other / "detector.toml"), Progress(None))
    assert graphs.network is not None
    with pytest.raises(BadInput) as caught:
        int8_graphs(
            spoilt, graphs.network, graphs.network, store, Journal(other / "j.jsonl"), lambda *_: graphs.network, Progress(None)
        )
    assert caught.value.code == "quantize.evaluation"
    assert str(caught.value.got).endswith("000001.jpg")
    del subject


def test_an_engine_is_built_ahead_of_time_in_int8(project: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    found = api.build(project / "detector.toml", runs=project / "runs", precision="int8", capabilities=("8.9",), progress=False)
    shares = dict(found.build.proof.shares)
    assert shares["int8"] == pytest.approx(1.0)
    assert found.verdict.answer == "pass"
    with pytest.raises(BadInput) as caught:
        api.build(project / "without.toml", runs=project / "runs", precision="int8", capabilities=("8.9",), progress=False)
    assert caught.value.code == "build.precision"


def test_an_interrupted_weighing_goes_on_where_it_was(
    made: tuple[Any, Graphs, Store], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redline.quantizing import calibrate, table_of

    subject, graphs, _ = made
    assert graphs.network is not None
    paths = sorted((project / "calib" / "images").iterdir())[:3]
    images = [decode(path.read_bytes(), name=path.name) for path in paths]
    ranges = calibrate(graphs.network, subject.detector, paths, threads=1)
    tables = [table_of(graphs.network, ranges, method) for method in ("max", "entropy")]
    scales = Scales(graphs.network, subject.detector, images, tmp_path, threads=1, store=Store(tmp_path / "store"))
    first = scales.divergence(tables[0])
    assert 0 < first < 1
    weighed: list[Any] = []
    real = Scales._weigh

    def weigh(self: Scales, table: Any) -> float:
        weighed.append(table)
        if len(weighed) == 1:
            raise KeyboardInterrupt
        return real(self, table)

    monkeypatch.setattr(Scales, "_weigh", weigh)
    with pytest.raises(KeyboardInterrupt):
        scales.divergence(tables[1])
    resumed = Scales(graphs.network, subject.detector, images, tmp_path, threads=1, store=Store(tmp_path / "store"))
    assert resumed.divergence(tables[0]) == first
    assert np.isfinite(resumed.divergence(tables[1]))
    assert weighed == [tables[1], tables[1]], "what was weighed before the interruption is not weighed again"


def test_a_keep_list_with_an_unknown_group_offers_the_nearest(made: tuple[Any, Graphs, Store]) -> None:
    from redline.quantize.groups import layer_groups

    _, graphs, _ = made
    assert graphs.network is not None
    groups = layer_groups(read_graph(graphs.network.path))
    assert kept_nodes(groups, [groups[0].name]) == groups[0].nodes
    with pytest.raises(BadInput) as caught:
        kept_nodes(groups, [groups[-1].name + "x"])
    assert caught.value.code == "quantize.keep"
    assert groups[-1].name in str(caught.value.fix)
