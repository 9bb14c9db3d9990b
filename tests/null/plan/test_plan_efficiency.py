"""The efficiency table: what calibration recovers, what little data may change, and the packaged one."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from roof_cases import costs, gpu

from redline.errors import BadInput
from redline.plan.efficiency import PUBLISHED, KernelTime, Measured, calibrate, kernel_times, shipped_table
from redline.plan.roofline import roofline
from redline.records import EfficiencyTable, KernelFloor, KernelShare, LayerTime, ModelCosts
from redline.store import load
from redline.store.codec import plain

RESULT = Path(__file__).parents[3] / "benchmarks/results/2026-11-29-plan-predictions-second.json"
TRUTH = replace(
    PUBLISHED,
    shares=(
        KernelShare(kind="conv", arithmetic="fp16", limit="compute", share=0.35, points=1),
        KernelShare(kind="conv", arithmetic="fp16", limit="memory", share=0.8, points=1),
    ),
    floors=(KernelFloor(kind="conv", us=4.0, points=1), KernelFloor(kind="move", us=2.0, points=1)),
)


def network(seed: int, kernels: int = 60) -> ModelCosts:
    draw = random.Random(seed)
    parts = [
        (
            f"k{i}",
            "conv" if i % 4 else "move",
            f"{draw.choice((0, draw.randint(5, 20))) * 10**9 if i % 4 else 0}",
            f"{draw.randint(1, 9)}*10000*H",
            9,
        )
        for i in range(kernels)
    ]
    return costs(*parts)


def measured(seed: int, kernels: int = 60, layers: bool = True, truth: EfficiencyTable = TRUTH) -> Measured:
    """What a machine that obeys `truth` would show, against a prediction that knows published figures alone."""
    model, card = network(seed, kernels), gpu()
    real = roofline(model, card, "fp16", 1, 100, 100, table=truth)
    times = tuple(KernelTime(groups=(one.name,), launches=1, us=one.expected_us) for one in real.groups)
    guess = roofline(model, card, "fp16", 1, 100, 100, table=PUBLISHED)
    return Measured(prediction=guess, step_us=real.expected_us, kernels=times if layers else ())


def predicted(run: Measured, table: EfficiencyTable, seed: int) -> float:
    return roofline(network(seed, len(run.prediction.groups)), gpu(), "fp16", 1, 100, 100, table=table).expected_us


def test_enough_measurements_give_the_machine_back() -> None:
    table = calibrate([measured(seed) for seed in range(4)], PUBLISHED, source="a test", belief=0.001)
    assert table.share("conv", "fp16", "compute")[0] == pytest.approx(0.35, rel=0.01)
    assert table.share("conv", "fp16", "memory")[0] == pytest.approx(0.8, rel=0.01)
    assert table.floor_us("conv") == pytest.approx(4.0, rel=0.01)
    assert table.floor_us("move") == pytest.approx(2.0, rel=0.01)
    assert table.source == "a test"
    held = measured(99)
    assert predicted(held, table, 99) == pytest.approx(held.step_us, rel=0.02)
    assert predicted(held, PUBLISHED, 99) < 0.8 * held.step_us, "the fit is what made the difference"


def test_whole_inferences_alone_move_the_table_towards_the_machine() -> None:
    table = calibrate([measured(seed, layers=False) for seed in range(3)], PUBLISHED, source="")
    held = measured(99)
    before, after = (abs(predicted(held, one, 99) / held.step_us - 1) for one in (PUBLISHED, table))
    assert after < before / 3
    assert {row.points for row in (*table.shares, *table.floors)} == {0}, "no kernel was timed"


def test_one_kernel_changes_little_and_what_was_not_measured_stays() -> None:
    guess = roofline(costs(("a", "conv", "1000000000", "1", 0)), gpu(), "fp16", 1, 8, 8, table=PUBLISHED)
    far = guess.groups[0].expected_us * 4
    table = calibrate([Measured(prediction=guess, step_us=4 * guess.expected_us)], TRUTH, source="")
    few = calibrate(
        [
            Measured(
                prediction=guess,
                step_us=roofline_of(TRUTH),
                kernels=(KernelTime(groups=("a",), launches=1, us=far),),
            )
        ],
        TRUTH,
        source="",
    )
    assert 0.35 / 1.5 < few.share("conv", "fp16", "compute")[0] < 0.35, "one kernel four times slower"
    assert table.share("conv", "fp16", "compute")[0] < few.share("conv", "fp16", "compute")[0]
    assert [row for row in few.shares if row.limit == "memory"] == [TRUTH.shares[1]]
    assert few.floors[1] == TRUTH.floors[1], "no move was measured"


def roofline_of(table: EfficiencyTable) -> float:
    return roofline(costs(("a", "conv", "1000000000", "1", 0)), gpu(), "fp16", 1, 8, 8, table=table).expected_us


def test_a_fit_stays_within_what_is_possible() -> None:
    fast = measured(2)
    run = replace(fast, step_us=1.0, kernels=tuple(replace(one, us=0.01) for one in fast.kernels))
    table = calibrate([run], PUBLISHED, source="")
    assert all(0 < row.share <= 1 for row in table.shares)
    assert min(*(row.us for row in table.floors), table.step_us) >= 0


def test_measurements_add_up_and_a_fitted_table_can_be_fitted_again() -> None:
    once = calibrate([measured(3)], PUBLISHED, source="one")
    twice = calibrate([measured(4)], once, source="two")
    row, again = (next(one for one in table.floors if one.kind == "move") for table in (once, twice))
    assert (row.points, again.points) == (15, 30)
    assert abs(again.us - 2.0) < abs(row.us - 2.0)


def test_the_launches_of_a_stream_are_learnt_from_runs_without_a_graph() -> None:
    """Kernels that hardly work, with and without a graph: the difference is the launches'."""
    model, card, truth = costs(*((f"k{i}", "move", "0", "H", 0) for i in range(60))), gpu(), replace(PUBLISHED, stream_us=6.0)
    runs = []
    for graphs in (True, False) * 5:
        real = roofline(model, card, "fp16", 1, 100, 100, table=truth, cuda_graph=graphs)
        guess = roofline(model, card, "fp16", 1, 100, 100, table=PUBLISHED, cuda_graph=graphs)
        runs.append(Measured(prediction=guess, step_us=real.expected_us))
    assert calibrate(runs, PUBLISHED, source="").stream_us == pytest.approx(6.0, rel=0.15), "drawn towards 2.65"


@pytest.mark.parametrize("step_us", [0.0, -1.0, float("nan"), float("inf")])
def test_nothing_or_no_time_to_calibrate_on_is_refused(step_us: float) -> None:
    with pytest.raises(BadInput, match="calibrate"):
        calibrate([], PUBLISHED, source="")
    with pytest.raises(BadInput, match="calibrate"):
        calibrate([replace(measured(1), step_us=step_us)], PUBLISHED, source="")


def test_layers_of_an_engine_are_given_to_kernels_without_what_timing_them_costs() -> None:
    model = costs(
        ("a", "conv", "1", "1", 0), ("b", "conv", "1", "1", 0), ("c", "move", "0", "1", 0), ("cat", "concat", "0", "1", 0)
    )
    model = replace(model, groups=(replace(model.groups[0], layers=("a", "relu")), *model.groups[1:]))
    layers = [
        LayerTime(name="a || b", ms=0.020, nodes=("a", "b")),
        LayerTime(name="relu", ms=0.010, nodes=("relu",)),
        LayerTime(name="c", ms=0.006, nodes=("c",)),
        LayerTime(name="x copy", ms=0.008, nodes=()),
        LayerTime(name="nothing", ms=0.0, nodes=("c",)),
    ]
    found = {one.groups: (one.launches, one.us) for one in kernel_times(model, layers, gpu_ms=0.032)}
    assert found == {("a", "b"): (1, pytest.approx(24.0)), ("c",): (1, pytest.approx(3.0)), ("cat",): (1, pytest.approx(5.0))}


def test_the_packaged_table_is_the_one_that_the_predictions_were_made_with() -> None:
    report = json.loads(RESULT.read_text("utf-8"))
    assert plain(shipped_table()) == report["table"]
    assert load(EfficiencyTable, json.dumps(report["table"]).encode()) == shipped_table()
    assert all(0 < row.share <= 1 for row in shipped_table().shares)
    assert all(row.points for row in shipped_table().shares if row.arithmetic == "fp16")
    assert all(row.us > 0 for row in shipped_table().floors)
    for name in {file for row in report["left_out_model"] if row["level"] != 0 for file in row["files"]}:
        assert (RESULT.parent / name).exists()
        assert name in shipped_table().source
