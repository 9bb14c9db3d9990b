"""`redline run` as a user meets it: a whole run, the same run again, a killed one, two at once, and models that misbehave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corridor_case import DEMO, journal, project, shorten

from redline import api
from redline.records import SCHEMA_VERSION, RunRecord
from redline.store import Store

MEASURED = {"screen", "pilot", "objective", "step", "parity", "detections"}
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def cli(spec: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """`redline run` in a process of its own, with this folder's models importable."""
    command = [sys.executable, "-m", "redline.cli", "run", str(spec), "--runs", str(spec.parent / "runs"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


def only_run(spec: Path) -> Path:
    (found,) = [path for path in (spec.parent / "runs").iterdir() if (path / "journal.jsonl").exists()]
    return found


def assert_nothing_twice(run: Path) -> None:
    lines = journal(run)
    computed = [str(line["inputs"]) for line in lines if line["stage"] in MEASURED and line["outcome"] == "computed"]
    assert computed
    assert len(computed) == len(set(computed))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    spec = project(tmp_path_factory.mktemp("corridor"))
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        return spec, api.run(spec, runs=spec.parent / "runs", progress=False)


@pytest.fixture
def onnx_model(finished: tuple[Path, RunRecord]) -> str:
    """The demo as a file: no export and no torch candidates, for tests that are about neither."""
    record = finished[1]
    assert record.onnx is not None
    return f'onnx = "{record.onnx.path}"\nhead = "yolox"'


def test_a_run_goes_from_baseline_to_choice_and_leaves_what_it_promises(finished: tuple[Path, RunRecord]) -> None:
    spec, record = finished
    assert record.baseline.candidate.runner == "torch-eager"
    assert record.baseline.parity is not None
    assert record.baseline.parity.drop.relative_pct == 0.0
    assert {t.candidate.runner for t in record.trials} >= {"torch-eager", "onnxruntime"}
    assert any(t.candidate.prepost == "graph" and t.parity is not None for t in record.trials)
    assert {refusal.what for refusal in record.refusals} >= {"GPU runners", "torch-compile"}
    assert record.onnx is not None
    assert record.onnx.dynamic
    assert record.choice.candidate is not None
    run = only_run(spec)
    assert json.loads((run / "run.json").read_text())["id"] == record.id == run.name
    assert "<svg" in (run / "report.html").read_text()


def test_onnx_runtime_finds_what_torch_finds(finished: tuple[Path, RunRecord]) -> None:
    _, record = finished
    for trial in record.trials:
        if trial.candidate.shapes == "fixed" and trial.parity is not None:
            assert all(delta.max_rel <= delta.tolerance for delta in trial.parity.tensors), trial.candidate.name
            assert trial.parity.boxes.missing == trial.parity.boxes.extra == 0, trial.candidate.name
            assert trial.parity.drop.relative_pct == pytest.approx(0.0, abs=0.1)
            assert trial.parity.determinism.identical


def test_padding_falls_from_fixed_over_buckets_to_minimal(finished: tuple[Path, RunRecord]) -> None:
    _, record = finished
    assert record.buckets is not None
    measured = {t.candidate.shapes: t.padding_pct for t in record.trials if t.candidate.prepost == "host" and t.padding_pct}
    assert set(measured) == {"fixed", record.buckets.policy, "minimal"}
    assert measured["fixed"] > measured[record.buckets.policy] > measured["minimal"]
    expected = 100 * record.buckets.waste / (1 + record.buckets.waste)
    assert measured[record.buckets.policy] == pytest.approx(expected, abs=0.5)  # 12 scenes in 256 requests: shares are rounded
    bucketed = next(t for t in record.trials if t.candidate.shapes == record.buckets.policy)
    assert bucketed.parity is not None
    assert all(delta.max_rel <= delta.tolerance for delta in bucketed.parity.tensors)


def test_the_same_run_again_measures_nothing_and_says_the_same(finished: tuple[Path, RunRecord]) -> None:
    spec, record = finished
    before = len(journal(only_run(spec)))
    again = api.run(spec, runs=spec.parent / "runs", progress=False)
    lines = journal(only_run(spec))[before:]
    assert lines
    assert {line["outcome"] for line in lines} == {"reused"}
    assert again.choice == record.choice
    assert [t.objective_load for t in again.trials] == [t.objective_load for t in record.trials]


def test_explain_walks_from_the_end_to_end_graph_to_the_network(finished: tuple[Path, RunRecord]) -> None:
    spec, _ = finished
    store = Store(spec.parent / "runs" / "store")
    graphs = [d for d in store.digests() if store.meta(d).kind == "onnx" and store.meta(d).parents]
    lineage = api.explain(graphs[0][:12], spec.parent / "runs")
    assert lineage.stage == "export-end-to-end"
    assert [parent.stage for parent in lineage.parents] == ["export"]


def test_gc_keeps_what_a_run_needs_and_frees_what_none_does(finished: tuple[Path, RunRecord]) -> None:
    spec, _ = finished
    runs = spec.parent / "runs"
    orphan = Store(runs / "store").put_bytes(b"nobody needs this", kind="test")
    freed = api.gc(runs)
    assert freed.files >= 1
    assert not Store(runs / "store").has(orphan)
    before = len(journal(only_run(spec)))
    api.run(spec, runs=runs, progress=False)
    assert {line["outcome"] for line in journal(only_run(spec))[before:]} == {"reused"}


def test_killed_and_run_again_nothing_is_measured_twice(onnx_model: str, tmp_path: Path) -> None:
    spec = project(tmp_path, scenes=8, model=onnx_model)
    command = [sys.executable, str(HERE / "corridor_case.py"), "run", str(spec), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        found = list((tmp_path / "runs").glob("*/journal.jsonl"))
        if found and sum('"stage":"screen"' in line.replace(" ", "") for line in found[0].read_text().splitlines()) >= 1:
            break
        time.sleep(0.05)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (only_run(spec) / "run.json").exists()
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    computed = [
        line["inputs"] for line in journal(only_run(spec)) if line["stage"] in MEASURED and line["outcome"] == "computed"
    ]
    assert len(computed) == len(set(map(str, computed)))
    assert any(line["outcome"] == "reused" and line["stage"] == "parity" for line in journal(only_run(spec)))
    assert record.choice.candidate is not None


def test_two_runs_at_once_share_one_folder(onnx_model: str, tmp_path: Path) -> None:
    spec = project(tmp_path, scenes=8, model=onnx_model)
    command = [sys.executable, str(HERE / "corridor_case.py"), "run", str(spec), "--runs", str(tmp_path / "runs")]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in both]
    assert both[0].returncode == both[1].returncode, errors
    assert both[0].returncode in {0, 3, 4}, errors
    computed = [
        line["inputs"] for line in journal(only_run(spec)) if line["stage"] in MEASURED and line["outcome"] == "computed"
    ]
    assert len(computed) == len(set(map(str, computed)))
    assert json.loads((only_run(spec) / "run.json").read_text())["schema_version"] == SCHEMA_VERSION


def test_nan_weights_fail_parity_and_nothing_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    spec = project(tmp_path, scenes=4, model='factory = "corridor_case:nan_demo"\nhead = "yolox"')
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    assert record.choice.verdict.answer == "fail"
    assert record.choice.candidate is None
    assert "NaN" in record.choice.verdict.reason
    assert (only_run(spec) / "report.html").exists()


def test_an_onnx_file_is_its_own_baseline_and_unlabelled_images_are_measured_by_agreement(
    onnx_model: str, tmp_path: Path
) -> None:
    record = api.run(project(tmp_path, scenes=6, labelled=False, model=onnx_model), runs=tmp_path / "runs", progress=False)
    assert record.baseline.candidate.runner == "onnxruntime"
    assert record.model.origin == "onnx"
    assert record.choice.candidate is not None
    assert record.data.boxes is None
    assert record.baseline.parity is not None
    assert record.baseline.parity.accuracy.kind == "agreement"
    assert record.baseline.parity.accuracy.ap == pytest.approx(1.0)


def test_a_detector_that_returns_boxes_needs_no_nms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    model = 'factory = "corridor_case:boxes"\n[model.head]\nkind = "detections"\nnormalized = true'
    spec = project(tmp_path, scenes=6, labelled=False, model=model, preprocess='resize = "stretch"')
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    assert record.baseline.parity is not None
    assert record.baseline.parity.boxes.matched > 0
    engines = [t for t in record.trials if t.candidate.runner == "onnxruntime" and t.parity is not None]
    assert engines
    assert all(t.parity is not None and t.parity.boxes.missing == 0 for t in engines)


def test_an_objective_out_of_reach_is_not_met_and_names_the_best_found(onnx_model: str, tmp_path: Path) -> None:
    record = api.run(
        project(tmp_path, scenes=6, p95_ms=300, throughput=2000, model=onnx_model), runs=tmp_path / "runs", progress=False
    )
    assert record.choice.verdict.answer == "fail"
    assert "best found" in record.choice.verdict.reason


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('factory = "corridor_case:raising"\nhead = "yolox"', "on holiday"),
        ('factory = "corridor_case:boxes"\nhead = "retinanet"', "head"),
        ('factory = "redline.zoo:yolox_nan"\nhead = "yolox"', "yolox_nano"),
        (f'{DEMO}\nweights = "absent.pt"', "absent.pt"),
    ],
    ids=["factory raises", "outputs fit no head", "no such factory", "no weights"],
)
def test_bad_models_are_exit_2_without_a_traceback(change: str, says: str, tmp_path: Path) -> None:
    found = cli(project(tmp_path, scenes=2, model=change))
    assert found.returncode == 2, found.stderr
    assert says in found.stderr
    assert "Traceback" not in found.stderr


def test_a_truncated_image_is_named_before_anything_is_measured(onnx_model: str, tmp_path: Path) -> None:
    spec = project(tmp_path, scenes=4, model=onnx_model)
    broken = sorted((tmp_path / "val" / "images").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:2000])
    found = cli(spec)
    assert found.returncode == 2, found.stderr
    assert broken.name in found.stderr
    assert "Traceback" not in found.stderr
