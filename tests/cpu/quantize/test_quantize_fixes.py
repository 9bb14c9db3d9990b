"""Bias correction and clipping search on planted faults, and all remedies on the demo detector, resumed and bounded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixable_graphs import PADDED, SET, activate, draw_weight, graph_of, loss, pictures, rounded, run, saved, table_by_max
from onnx import helper

from redline import fixing
from redline.demo.scenes import write_dataset
from redline.engine.onnxruntime_runner import run_named
from redline.export import export_onnx
from redline.fixing import Fixing, is_negligible
from redline.model.load import load_detector
from redline.quantize.biases import SHIFT, added, correctable, twin_graph
from redline.quantize.clipping import FACTORS, MOST, clip_units, search_clipping
from redline.quantize.ranges import rounding_errors
from redline.quantizing import calibrate, table_of, tensors_of
from redline.records import Head, ModelSpec, OnnxModel, Preprocess
from redline.records.quantize import LayerBias, QuantPoint, QuantTable
from redline.sensitivity import Scales
from redline.store import Store
from redline.vision import decode

FIRST_SCALE = 1.0
POINT = QuantPoint(node="", input=0, tensor="")


def shifting_chain(bias: bool = True) -> onnx.ModelProto:
    """Three dense layers. The last channel of the image is between 0.2 and 0.4, which a scale of 1 rounds to 0."""
    draw = np.random.default_rng(4)
    weights = {"a.w": draw_weight(draw, 6, 3, 1, 1), "b.w": draw_weight(draw, 6, 6, 3, 3), "c.w": draw_weight(draw, 4, 6, 1, 1)}
    weights["a.w"][:, 2] = np.linspace(1, 3, 6).reshape(6, 1, 1)
    more = ["a.b"] if bias else []
    weights |= {"a.b": draw.normal(0, 0.1, 6).astype(np.float32)} if bias else {}
    nodes = [
        helper.make_node("Conv", ["images", "a.w", *more], ["a"], name="A"), *activate("Relu", "a", "x"),
        helper.make_node("Conv", ["x", "b.w"], ["b"], name="B", **PADDED), *activate("SiLU", "b", "y"),
        helper.make_node("Conv", ["y", "c.w"], ["c"], name="C"),
    ]  # fmt: skip
    return graph_of(nodes, weights, "c")


def shifting_pictures(count: int = 6, seed: int = 0) -> list[Any]:
    draw, found = np.random.default_rng(seed), pictures(count, seed)
    for batch in found:
        batch[:, :2] *= 20
        batch[:, 2] = draw.uniform(0.2, 0.4, batch[:, 2].shape)
    return found


def with_first_scale(table: QuantTable, scale: float) -> QuantTable:
    return dataclasses.replace(table, scales=tuple((n, scale if n == "images" else s) for n, s in table.scales))


def shifts(network: OnnxModel, table: QuantTable) -> dict[str, Any]:
    """Own shift of each layer, (C,), on the calibration pictures."""
    plain = onnx.load(network.path)
    layers = correctable(plain, table.weights)
    graph = twin_graph(plain, rounded(network, table), table.weights, layers).SerializeToString()
    found = [run_named(graph, {"images": batch}, threads=1) for batch in shifting_pictures()]
    return {layer: np.mean([one[layer + SHIFT].reshape(-1) for one in found], axis=0) for layer in layers}


@pytest.mark.parametrize("bias", [True, False])
def test_a_planted_shift_is_found_where_it_arises_and_taken_off(bias: bool, tmp_path: Path) -> None:
    network = saved(shifting_chain(bias), tmp_path)
    table = with_first_scale(table_by_max(network, shifting_pictures()), FIRST_SCALE)
    found = shifts(network, table)
    assert list(found) == ["A", "B", "C"]
    assert found["A"] == pytest.approx(0.3 * np.linspace(1, 3, 6), rel=0.1), "what was rounded away times its weights"
    assert max(np.abs(found["B"]).max(), np.abs(found["C"]).max()) < 0.1, "what A shifts is none of theirs"
    corrected = dataclasses.replace(table, biases=added((), found))
    again = shifts(network, corrected)
    assert max(np.abs(shift).max() for shift in again.values()) < 0.05
    other = shifting_pictures(seed=8)
    held = (onnx.load(network.path), rounded(network, table), rounded(network, corrected))
    means = [np.mean([run(graph, batch).mean(axis=(0, 2, 3)) for batch in other], axis=0) for graph in held]
    assert np.abs(means[1] - means[0]).max() > 0.1
    assert np.abs(means[2] - means[0]).max() < 0.2 * np.abs(means[1] - means[0]).max()
    assert loss(network, corrected, other) < loss(network, table, other) / 2


def test_shifts_add_to_the_biases_that_there_were() -> None:
    held = (LayerBias(node="A", added=(1.0, 2.0)),)
    found = added(held, {"A": np.asarray([0.5, -2.0]), "B": np.asarray([3.0])})
    assert found == (LayerBias(node="A", added=(1.5, 0.0)), LayerBias(node="B", added=(3.0,)))


def test_a_bias_that_is_computed_cannot_be_corrected() -> None:
    model = shifting_chain()
    assert correctable(model, ["A", "C"]) == ("A", "C")
    next(node for node in model.graph.node if node.name == "A").input[2] = "computed"
    assert correctable(model, ["A", "B"]) == ("B",)


def table_like(scales: dict[str, float]) -> QuantTable:
    return QuantTable(structure="", method="max", calibration=SET, scales=tuple(scales.items()), points=(), weights=())


def away(table: QuantTable, wanted: dict[str, float]) -> float:
    return float(sum(np.log(dict(table.scales)[name] / scale) ** 2 for name, scale in wanted.items()))


def test_the_search_takes_the_best_factor_of_each_unit() -> None:
    wanted = {"a": 0.5, "b": 1.3, "c": 1.0, "d": 0.7}
    found = search_clipping(
        table_like(dict.fromkeys("abcd", 1.0)),
        (("a",), ("b",), ("c", "d")),
        lambda t: away(t, wanted),
        lambda t: away(t, wanted),
    )
    assert dict(found.table.scales) == pytest.approx({"a": 0.5, "b": 1.3, "c": 0.84, "d": 0.84}), "c and d share a scale"
    assert found.changed == (("a", 0.5), ("b", 1.3), ("c", 0.84))
    assert found.evaluations == 2 + 3 * (len(FACTORS) + 1)


def test_what_helps_one_set_of_inputs_alone_is_not_kept() -> None:
    start = table_like({"a": 1.0, "b": 1.0})
    found = search_clipping(
        start, (("a",), ("b",)), lambda t: away(t, {"a": 0.5, "b": 0.5}), lambda t: away(t, {"a": 1.0, "b": 0.5})
    )
    assert dict(found.table.scales) == {"a": 1.0, "b": 0.5}
    assert found.changed == (("b", 0.5),)


def test_the_search_stops_at_its_bound_and_counts_what_it_asked() -> None:
    asked: list[QuantTable] = []

    def weigh(table: QuantTable) -> float:
        asked.append(table)
        return away(table, {name: 0.5 for name, _ in table.scales})

    names = [f"t{index}" for index in range(40)]
    found = search_clipping(table_like(dict.fromkeys(names, 1.0)), [(name,) for name in names], weigh, weigh)
    assert found.evaluations == len(asked) <= MOST
    assert [name for name, _ in found.changed] == names[: len(found.changed)]
    assert len(found.changed) == (MOST - 2) // (len(FACTORS) + 1)


def test_a_planted_outlier_is_clipped_and_comes_first(tmp_path: Path) -> None:
    network = saved(shifting_chain(), tmp_path)
    batches = pictures(6)
    table = table_by_max(network, batches)
    spoilt = dataclasses.replace(table, scales=tuple((n, 20 * s if n == "y" else s) for n, s in table.scales))
    model = onnx.load(network.path)
    scales = {point.tensor: dict(spoilt.scales)[point.tensor] for point in spoilt.points}
    errors = rounding_errors(tensors_of(network, model, list(scales), 1), lambda: batches, scales)
    units = clip_units(spoilt, (), errors)
    assert units[0] == ("y",)
    assert sorted(name for unit in units for name in unit) == ["images", "x", "y"]
    found = search_clipping(
        spoilt, units, lambda t: loss(network, t, batches[:3]), lambda t: loss(network, t, batches[3:]), most=30
    )
    assert dict(found.changed)["y"] == FACTORS[0]
    other = pictures(4, seed=8)
    assert loss(network, found.table, other) < loss(network, spoilt, other) / 4


def test_units_keep_a_shared_scale_together_and_are_ordered_by_their_worst() -> None:
    points = [dataclasses.replace(POINT, node=name, tensor=name) for name in "abcd"]
    table = dataclasses.replace(table_like(dict.fromkeys("abcde", 1.0)), points=tuple(points))
    units = clip_units(table, (("b", "e"),), {"a": 0.1, "b": 0.0, "c": 0.3, "e": 0.2})
    assert units == (("c",), ("b", "e"), ("a",), ("d",))


def test_rounding_errors_are_relative_and_by_channel() -> None:
    values = np.zeros((1, 3, 4, 4), np.float32)
    values[:, 0], values[:, 1] = 10.0, 0.4
    errors = rounding_errors(lambda batch, names: {"t": batch}, lambda: [values, values], {"t": 1.0})
    assert errors["t"] == pytest.approx(1 / 3), "the second channel is lost whole, the third has nothing to lose"


def test_what_is_negligible_follows_the_budget() -> None:
    assert is_negligible(0.01, 0.5)
    assert not is_negligible(0.0101, 0.5)
    assert is_negligible(0.0101, 1.0)


class Demo:
    """The demo detector at 96 x 96 and generated scenes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_dataset(folder / "calib", 6, 21)
        self.paths = sorted((folder / "calib" / "images").iterdir())
        spec = ModelSpec(
            factory="redline.zoo:demo", head=Head(kind="yolox"), preprocess=Preprocess(size=(96, 96), channels="rgb")
        )
        self.detector = load_detector(spec)
        self.network = export_onnx(self.detector, folder, input_hw=(96, 96))
        ranges = calibrate(self.network, self.detector, self.paths, threads=1)
        self.plain = table_of(self.network, ranges, "percentile")

    def fixing(self) -> tuple[Scales, Fixing]:
        store = Store(self.folder / "store")
        images = [decode(path.read_bytes(), name=path.name) for path in self.paths[:4]]
        scales = Scales(self.network, self.detector, images, self.folder, threads=1, store=store)
        return scales, Fixing(scales, self.detector, self.paths, threads=1, store=store)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"))


def test_the_demo_detectors_remedies_are_weighed_and_resumed(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    scales, remedies = demo.fixing()
    table, outcomes = remedies.best(demo.plain, 0.0)
    by = {outcome.fix: outcome for outcome in outcomes}
    assert list(by) == ["equalised layers", "scaled inputs", "bias correction", "clipping search"]
    assert (by["equalised layers"].after, dict(by["equalised layers"].passed)["SiLU"] > 10) == (None, True)
    assert by["scaled inputs"].after is None, "it has no depthwise layers"
    assert by["bias correction"].taken == len(table.weights)
    assert by["clipping search"].evaluations <= MOST + 1
    reached = scales.divergence(demo.plain)
    for outcome in outcomes:
        assert outcome.before == reached
        assert outcome.kept == (outcome.after is not None and outcome.after < outcome.before)
        reached = outcome.after if outcome.kept and outcome.after is not None else reached
    assert scales.divergence(table) == reached
    assert reached < scales.divergence(demo.plain)

    def again(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(Scales, "_weigh", again)
    monkeypatch.setattr(Fixing, "_shifts", again)
    monkeypatch.setattr(Fixing, "_errors", again)
    assert demo.fixing()[1].best(demo.plain, 0.0) == (table, outcomes)


def test_nothing_is_tried_where_little_is_lost_and_no_search_where_it_takes_too_long(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales, remedies = demo.fixing()
    allowed = 100 * scales.divergence(demo.plain) / fixing.NEGLIGIBLE
    assert remedies.best(demo.plain, 1.001 * allowed) == (demo.plain, ())
    monkeypatch.setattr("redline.fixing.CLIPPING_S", 0.0)
    table, outcome = remedies.clipped(demo.plain)
    assert table == demo.plain
    assert (outcome.after, outcome.kept, outcome.evaluations) == (None, False, 0)
    assert outcome.note.startswith("left out: 48 evaluations at ")
    alone = Fixing(scales.part(slice(0, 1)), demo.detector, demo.paths, threads=1)
    table, outcome = alone.clipped(demo.plain)
    assert (table, outcome.after, outcome.note) == (demo.plain, None, "one image cannot be divided")
