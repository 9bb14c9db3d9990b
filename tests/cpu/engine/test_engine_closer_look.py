"""A run and a build that look at their engines closely, on fake CUDA and TensorRT: boundary shapes, layers, nodes in FP32."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from blob_machine import trials, write
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT

from redline import api
from redline.engine import devices, tensorrt_versions
from redline.errors import BadInput
from redline.nodes import module_of
from redline.records import RunRecord, Trial

MODULE = "down.2"
CORNER = (1, 3, 96, 96)
"""Of the dynamic profile alone, and no image has it."""


@pytest.fixture
def brief(spec: Path) -> Path:
    return write(spec.parent, minutes=0.01, precisions=("fp32", "fp16"))


@pytest.fixture
def node(exported: Path) -> str:
    """Name of the convolution of MODULE in the exported graph: exporters count in ways of their own."""
    graphs = [onnx.load(path).graph for path in (exported / "objects").glob("*/*.onnx")]
    return next(node.name for graph in graphs for node in graph.node if node.op_type == "Conv" and module_of(node) == MODULE)


def first(found: list[Trial], profiles: str, shapes: str, *, wide: bool) -> Trial:
    return next(
        t for t in found
        if t.candidate.precision == "fp16" and t.candidate.profiles == profiles and t.candidate.shapes == shapes
        and bool(t.candidate.wide) == wide
    )  # fmt: skip


def engines_tell(record: RunRecord, narrow: Trial, corner: Trial, node: str) -> None:
    engines = {engine.build.digest: engine for engine in record.engines}
    looked = {digest for digest, engine in engines.items() if engine.layer_parity is not None}
    assert looked == {narrow.engine, corner.engine}
    parity = engines[str(narrow.engine)].layer_parity
    assert parity is not None
    assert parity.engine == "tensorrt 10.13.0"
    assert [fault.nodes for fault in parity.faults] == [(node,)]
    assert engines[str(narrow.engine)].boundaries == ()
    for trial in trials(record):
        if trial.screen is not None:
            checks = engines[str(trial.engine)].boundaries
            assert any(check.taken for check in checks)
            assert all(check.passed for check in checks)
    wrong = [check for check in engines[str(corner.engine)].boundaries if not check.passed]
    assert [(check.shape, check.profile) for check in wrong] == [(CORNER, 0)]


def page_tells(runs: Path, node: str) -> None:
    (html,) = [path.read_text() for path in runs.glob("*/report.html")]
    for text in (f"in FP32: {node}", f"layer by layer: {node} of {MODULE}", "1 × 3 × 96 × 96 of profile 0 differs by"):
        assert text in html, text


def nothing_is_done_again(brief: Path, machine: FakeTensorRT, record: RunRecord) -> None:
    runs = brief.parent / "runs"
    (folder,) = [path for path in runs.iterdir() if (path / "journal.jsonl").exists()]
    before = len((folder / "journal.jsonl").read_text().splitlines())
    built = len(machine.builds)
    assert api.run(brief, runs=runs, progress=False).choice == record.choice
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()[before:]]
    assert [line["stage"] for line in lines if line["outcome"] == "computed"] == []
    assert len(machine.builds) == built


def test_a_layer_that_fails_in_fp16_is_named_and_held_in_fp32_and_a_wrong_corner_is_a_failed_trial(
    machine: FakeTensorRT,
    cuda: FakeCuda,
    brief: Path,
    node: str,
) -> None:
    runs = brief.parent / "runs"
    machine.narrow_fault = (node, 1e30)
    machine.wrong_at = CORNER
    record: RunRecord = api.run(brief, runs=runs, progress=False)
    found = trials(record)
    narrow = first(found, "exact", "fixed", wide=False)
    assert narrow.parity is not None
    assert narrow.parity.verdict.answer == "fail"
    assert narrow.failure is not None
    assert narrow.failure.code == "parity-layers"
    assert f"the first bad layer is {node} (Conv) of module {MODULE}: it makes infinity or NaN" in narrow.failure.message
    assert narrow.screen is None

    mixed = first(found, "exact", "fixed", wide=True)
    assert mixed.candidate.wide == (node,)
    assert mixed.failure is None
    assert mixed.parity is not None
    assert mixed.parity.verdict.answer == "pass"
    assert [(held.node, held.module) for held in mixed.held] == [(node, MODULE)]
    assert "infinity" in mixed.held[0].why
    assert mixed.digest != narrow.digest
    assert mixed.candidate.name.endswith("1 in fp32")
    assert mixed.screen is not None

    # Other kinds of profiles start from what was found, and look into nothing again.
    again = first(found, "exact", "minimal", wide=True)
    assert again.candidate.wide == (node,)
    assert again.failure is None
    also = first(found, "exact", "minimal", wide=False).failure
    assert also is not None
    assert f"(as engine {str(narrow.engine)[:12]} of the same graph shows)" in also.message

    corner = first(found, "dynamic", "minimal", wide=True)
    assert corner.failure is not None
    assert corner.failure.code == "engine-boundary"
    assert "1 x 3 x 96 x 96 differs by 0.5" in corner.failure.message
    assert "(profile 0: 1 x 3 x 96..128 x 96..128)" in corner.failure.message
    assert corner.screen is None

    engines_tell(record, narrow, corner, node)
    assert not cuda.memory
    page_tells(runs, node)
    nothing_is_done_again(brief, machine, record)


def test_build_looks_on_demand_and_holds_nodes(machine: FakeTensorRT, cuda: FakeCuda, brief: Path, node: str) -> None:
    runs = brief.parent / "runs"
    right = api.build(brief, runs=runs, precision="fp16", layers=True, progress=False)
    assert right.verdict.answer == "pass"
    assert right.layers is not None
    assert right.layers.faults == ()
    assert [(check.shape, check.passed) for check in right.boundaries if check.taken] == [((1, 3, 128, 128), True)]

    machine.narrow_fault = (node, 1.5)
    machine.tactic = "another"  # the store has the engine of before
    wrong = api.build(brief, runs=runs, precision="fp16", level=4, layers=True, progress=False)
    assert wrong.verdict.answer == "fail"
    assert f"the first bad layer is {node} (Conv) of module {MODULE}" in wrong.verdict.reason
    held = api.build(brief, runs=runs, precision="fp16", wide=(node,), layers=True, progress=False)
    assert held.verdict.answer == "pass", held.verdict.reason
    assert held.build.onnx != right.build.onnx

    machine.wrong_at = CORNER
    dynamic = api.build(brief, runs=runs, precision="fp32", profiles="dynamic", progress=False)
    assert dynamic.verdict.answer == "fail"
    assert "1 x 3 x 96 x 96 differs by 0.5" in dynamic.verdict.reason
    assert not cuda.memory


def test_without_debug_tensors_it_looks_by_further_outputs(
    machine: FakeTensorRT, cuda: FakeCuda, brief: Path, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = FakeTensorRT("8.6.1", cuda)
    old.narrow_fault = (node, 1.5)
    for module in (devices, tensorrt_versions):
        monkeypatch.setattr(module, "find", lambda name=None: old.library())
    built = api.build(brief, runs=brief.parent / "runs", precision="fp16", layers=True, progress=False)
    assert built.layers is not None
    assert built.layers.engine == "tensorrt 8.6.1"
    assert [(fault.nodes, fault.module) for fault in built.layers.faults] == [((node,), MODULE)]
    assert old.builds[0] == b""
    assert all(old.builds[1:])  # looks begin with what the build timed
    assert not cuda.memory


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"precision": "fp16", "wide": ("node_relu_7",)}, "did you mean node_relu_"),
        ({"precision": "fp32", "wide": ("node_relu_1",)}, "not in fp32"),
        ({"precision": "fp16", "layers": True, "capabilities": ("8.9",)}, "ahead of time"),
    ],
)
def test_what_cannot_be_asked_of_a_build(
    machine: FakeTensorRT,
    brief: Path,
    asked: dict[str, object],
    says: str,
) -> None:
    with pytest.raises(BadInput, match=says):
        api.build(brief, runs=brief.parent / "runs", progress=False, **asked)  # type: ignore[arg-type]
