"""The ladder by hand: what bounds each step, what a device cannot take, and what a plan is held to afterwards."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from roof_cases import costs, gpu

from redline.errors import BadInput
from redline.plan.account import checks, step_of
from redline.plan.efficiency import PUBLISHED
from redline.plan.experiments import experiment
from redline.plan.ladder import Image, ladder, step_facts
from redline.records import Candidate, LadderStep, Load, Trial

NETWORK = costs(("big", "conv", "4000000000*N", "1000*N*H*W", 500_000), ("act", "pointwise", "0", "1000*N*H*W", 0))
IMAGE = Image(height=100, width=100)


def steps(image: Image = IMAGE, **device: Any) -> dict[str, LadderStep]:
    return {step.key: step for step in ladder(NETWORK, gpu(**device), image, PUBLISHED)}


def test_every_step_is_there_in_order_with_an_experiment() -> None:
    found = steps()
    assert list(found) == ["fp32-eager", "tf32-eager", "fp16-eager", "engine", "cuda-graph", "int8", "gpu-prepost"]
    for key, step in found.items():
        assert step.p50_ms is not None, key
        assert step.p95_ms is not None
        assert step.p95_ms >= step.p50_ms
        assert step.images_per_s == pytest.approx(1000 / step.p50_ms)
        assert step.experiment.success.endswith(" ms"), key
        assert step.evidence
        assert step.map_risk
        assert step.why


def test_eager_is_the_slower_of_host_and_device() -> None:
    facts = step_facts()
    bound = steps()["fp32-eager"]
    peak_us = (8e9 / 66.9e12 + (4 * 20_000_000) / 3350e9) * 1e6
    assert bound.network_ms == pytest.approx(peak_us / facts.eager_share["fp32"] / 1000, rel=0.25)
    many = replace(NETWORK, layers=NETWORK.layers * 400)
    host = ladder(many, gpu(), IMAGE, PUBLISHED)[0]
    assert host.network_ms == pytest.approx(facts.eager_layer_us * len(many.layers) / 1000)
    assert "the host's launches" in host.evidence


def test_the_graph_saves_the_launches_and_int8_half_the_bytes() -> None:
    found = steps()
    engine, graph, int8 = found["engine"].network_ms, found["cuda-graph"].network_ms, found["int8"].network_ms
    assert engine is not None
    assert graph is not None
    assert int8 is not None
    assert engine - graph == pytest.approx(2 * PUBLISHED.stream_us / 1000)
    assert 0.45 * graph < int8 < 0.75 * graph
    assert found["cuda-graph"].gain == pytest.approx(engine / graph)


def test_what_a_device_has_not_is_said_and_gains_go_on_from_the_last_known() -> None:
    found = steps(peaks={"fp32": 8.1, "tf32": None, "fp16": 65.0})
    assert found["tf32-eager"].p50_ms is None
    assert "tf32" in found["tf32-eager"].evidence
    assert found["tf32-eager"].confidence == "none"
    assert found["int8"].p50_ms is None
    before, after = found["fp32-eager"].p50_ms, found["fp16-eager"].p50_ms
    assert before is not None
    assert after is not None
    assert found["fp16-eager"].gain == pytest.approx(before / after)


def test_host_stages_are_in_every_step_but_the_last() -> None:
    bare, whole = steps(), steps(replace(IMAGE, host_ms=5.0))
    for key in list(bare)[:-1]:
        assert whole[key].p50_ms == pytest.approx(bare[key].p50_ms + 5.0)  # type: ignore[operator]
    assert whole["gpu-prepost"].p50_ms == pytest.approx(bare["gpu-prepost"].p50_ms)  # type: ignore[arg-type]
    assert whole["gpu-prepost"].gain is not None
    assert whole["gpu-prepost"].gain > 5
    assert "not counted" in bare["engine"].evidence
    assert "not counted" not in whole["engine"].evidence


def test_a_step_that_does_not_pay_says_so() -> None:
    launchy = costs(*((f"k{index}", "move", "0", "H", 0) for index in range(50)))
    found = {step.key: step for step in ladder(launchy, gpu(), IMAGE, PUBLISHED)}
    assert "not expected to pay" in found["int8"].evidence


def test_a_size_that_the_graph_does_not_take_is_bad_input() -> None:
    with pytest.raises(BadInput, match="size"):
        ladder(replace(NETWORK, size=(None, 64, 64)), gpu(), IMAGE, PUBLISHED)


def test_an_experiment_names_the_range_that_confirms_it() -> None:
    assert experiment("cuda-graph", 2.0).success == "1.2 to 2.8 ms"
    assert experiment("int8", None).success == "a first measurement"


def load(p50_ms: float) -> Load:
    figures = dict.fromkeys(("mean_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "slip_p99_ms"), p50_ms)
    counts: dict[str, Any] = {"requests": 100, "errors": 0, "seconds": 1.0, "mean_batch": 1.0, "histogram": ""}
    return Load(mode="closed", offered_per_s=None, achieved_per_s=1000 / p50_ms, p50_ms=p50_ms, **figures, **counts)


@pytest.mark.parametrize(
    ("knobs", "key"),
    [
        ({"runner": "torch-eager"}, "fp32-eager"),
        ({"runner": "torch-eager", "precision": "tf32"}, "tf32-eager"),
        ({"runner": "tensorrt", "precision": "fp16", "cuda_graphs": True}, "cuda-graph"),
        ({"runner": "tensorrt", "precision": "fp16"}, "engine"),
        ({"runner": "tensorrt", "precision": "fp16", "batch": 4}, None),
        ({"runner": "tensorrt", "precision": "fp16", "concurrency": 2}, None),
        ({"runner": "torch-eager", "device": "cpu"}, None),
        ({"runner": "torch-eager", "shapes": "minimal"}, None),
        ({"runner": "tensorrt", "precision": "fp16", "device": "cuda:0,1"}, None),
    ],
)
def test_a_candidate_measures_the_step_that_it_is(knobs: dict[str, Any], key: str | None) -> None:
    assert step_of(Candidate(**{"device": "cuda:0"} | knobs)) == key


def test_predictions_stand_beside_the_fastest_trial_of_their_step(plan_record: Any) -> None:
    slow, fast = (
        Candidate(runner="tensorrt", precision="fp16", device="cuda:0", profiles=kind) for kind in ("dynamic", "exact")
    )
    trials = [
        Trial(candidate=slow, digest="a", seconds=1.0, screen=load(9.0)),
        Trial(candidate=fast, digest="b", seconds=1.0, screen=load(4.0)),
        Trial(candidate=replace(fast, cuda_graphs=True), digest="c", seconds=1.0),
    ]
    (found,) = checks(plan_record, trials)
    assert (found.step, found.trial, found.measured) == ("engine", "b", 4.0)
    predicted = next(step.p50_ms for step in plan_record.ladder if step.key == "engine")
    assert found.error == pytest.approx(predicted / 4.0 - 1)


def test_every_share_of_eager_names_where_it_comes_from_and_its_file_is_here() -> None:
    facts, results = step_facts(), Path(__file__).parents[3] / "benchmarks/results"
    assert facts.eager_share.keys() == facts.eager_share_source.keys()
    for source in facts.eager_share_source.values():
        files = re.findall(r"20[\w-]+\.json", source)
        assert files or "no result file" in source
        assert all((results / file).is_file() for file in files), files
