"""`redline plan` as a user meets it: from a graph, from saved costs without torch, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from corridor_case import project
from detector_graphs import Graphs

from redline import api
from redline.errors import BadInput
from redline.records import ModelCosts, PlanRecord
from redline.store import load

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from redline import cli; cli.main(sys.argv[1:])"


@pytest.fixture(scope="module")
def spec(graphs: Callable[[str], Graphs], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = f'onnx = "{graphs("demo").full.path}"\nhead = "yolox"'
    return project(tmp_path_factory.mktemp("plan"), model=model, scenes=4, p95_ms=20, throughput=2000)


@pytest.fixture(scope="module")
def planned(spec: Path) -> PlanRecord:
    # Decoding is timed on this machine: so many cores that a busy one does not limit the node.
    return api.plan(spec, runs=spec.parent / "runs", device="H100", cores=64, progress=False)


def folder(spec: Path) -> Path:
    (found,) = (spec.parent / "runs").glob("*/plan.json")
    return found.parent


def test_a_plan_leaves_its_record_its_page_and_the_costs(spec: Path, planned: PlanRecord) -> None:
    assert planned.device == "h100-sxm"
    assert planned.size == (1, 320, 320)
    assert planned.decision.answer == "go"
    assert [step.key for step in planned.ladder][-2:] == ["batching", "more-gpus"]
    assert planned.limits is not None
    assert {"jpeg-host", "h2d", "d2h"} <= {limit.resource for limit in planned.limits.known}
    assert planned.limits.node.output_bytes == 4 * 2100 * (5 + 6), "anchors of 320 x 320 at strides 8, 16 and 32; 6 classes"
    assert load(PlanRecord, (folder(spec) / "plan.json").read_bytes()) == planned
    costs = load(ModelCosts, (folder(spec) / "costs.json").read_bytes())
    assert planned.gflop == pytest.approx(2 * costs.macs(1, 320, 320) / 1e9)
    assert planned.decision.reason in (folder(spec) / "plan.md").read_text()


def test_from_saved_costs_it_needs_neither_torch_nor_the_device(spec: Path, planned: PlanRecord, tmp_path: Path) -> None:
    facts = folder(spec) / "costs.json"
    command = [sys.executable, "-c", WITHOUT_TORCH, "plan", str(spec), "--facts", str(facts), "--runs", str(tmp_path / "r")]
    found = subprocess.run(
        [*command, "--device", "h100", "--cores", "64", "--json", "--quiet"], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["graph_digest"] == planned.graph_digest


def test_an_impossible_objective_is_exit_3_with_the_reason(
    spec: Path, planned: PlanRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    from redline import cli

    hopeless = spec.with_name("hopeless.toml")
    hopeless.write_text(spec.read_text().replace("p95_ms = 20", "p95_ms = 0.01"))
    facts = str(folder(spec) / "costs.json")
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", str(hopeless), "--facts", facts, "--device", "t4", "--quiet", "--runs", str(spec.parent / "other")])
    assert ended.value.code == 3
    shown = capsys.readouterr().out
    assert "NO-GO" in shown
    assert "one image alone takes" in shown
    assert "to change: a P95 above" in shown


def test_an_unknown_device_is_refused_with_the_nearest(spec: Path, planned: PlanRecord) -> None:
    with pytest.raises(BadInput, match="no such device") as refused:
        api.plan(spec, runs=spec.parent / "runs", device="a100-8", progress=False)
    assert "a100-80" in str(refused.value.fix)


def test_costs_that_an_earlier_plan_left_are_not_taken_for_the_models_own(spec: Path, planned: PlanRecord) -> None:
    (folder(spec) / "costs.json").write_text("{}")
    again = api.plan(spec, runs=spec.parent / "runs", device="h100", cores=16, progress=False)
    assert again.graph_digest == planned.graph_digest
    assert load(ModelCosts, (folder(spec) / "costs.json").read_bytes()).graph_digest == planned.graph_digest


def test_a_file_that_holds_no_costs_is_refused(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text('{"layers": 3}')
    with pytest.raises(BadInput, match="holds no costs"):
        api.plan(spec, runs=tmp_path / "runs", device="h100", facts=tmp_path / "costs.json", progress=False)


def test_calibration_wants_a_finished_run_on_a_gpu(spec: Path, planned: PlanRecord) -> None:
    with pytest.raises(BadInput, match="cannot be calibrated on"):
        api.calibrate([folder(spec)], runs=spec.parent / "runs")
