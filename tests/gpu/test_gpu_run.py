"""`redline run` and `redline build` end to end on a real NVIDIA GPU. Skipped without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from redline import api
from redline.engine.devices import tensorrt_facts
from redline.records import RunRecord

torch = pytest.importorskip("torch", reason="the reference is a torch module")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU that this torch can use", allow_module_level=True)

PROBLEM = tensorrt_facts().problem
needs_tensorrt = pytest.mark.skipif(PROBLEM is not None, reason=f"TensorRT cannot be used: {PROBLEM}")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from blob_net import project

    # Of one size: three would add bucketed and dynamic engines, which TensorRT 8.6 takes minutes to build.
    return project(tmp_path_factory.mktemp("gpu"), sizes=[(128, 128)])


@pytest.fixture(scope="module")
def record(spec: Path) -> RunRecord:
    return api.run(spec, runs=spec.parent / "runs", progress=False)


@pytest.mark.timeout(900)
def test_a_run_has_its_baseline_on_the_gpu_and_finds_a_choice(record: RunRecord) -> None:
    assert record.baseline.candidate.name == "torch-eager fp32 fixed b1 c1 cuda:0"
    assert record.baseline.failure is None
    assert record.choice.candidate is not None
    assert record.choice.candidate.gpus
    assert record.choice.verdict.answer == "pass"


def test_every_load_has_telemetry(record: RunRecord) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py")
    for trial in record.trials:
        if trial.screen is not None:
            assert len(trial.screen.gpus) == len(trial.candidate.gpus)
            assert trial.screen.gpus[0].sm_mhz[1] > 0


@needs_tensorrt
def test_the_fp16_engine_is_proved_keeps_the_accuracy_and_is_dissected(record: RunRecord) -> None:
    trial = next(t for t in record.trials if (t.candidate.runner, t.candidate.precision) == ("tensorrt", "fp16"))
    assert trial.failure is None, trial.failure
    assert trial.parity is not None
    assert trial.parity.accuracy.ap > 0.9
    assert abs(trial.parity.drop.relative_pct) < 0.5
    assert trial.parity.determinism.identical
    (engine,) = [e for e in record.engines if e.build.digest == trial.engine]
    assert engine.build.proof.proved
    assert dict(engine.build.proof.shares)["fp16"] > 0.9
    assert engine.anatomy is not None
    assert 0 < engine.anatomy.gpu_ms < engine.anatomy.wall_ms
    assert engine.layers
    assert sum(bool(layer.nodes) for layer in engine.layers) > len(engine.layers) / 2


@needs_tensorrt
def test_a_second_build_of_the_same_engine_is_the_first(spec: Path, record: RunRecord) -> None:
    runs = spec.parent / "runs"
    built = api.build(spec, runs=runs, precision="fp16", progress=False)
    assert built.verdict.answer == "pass"
    assert built.build.digest in {engine.build.digest for engine in record.engines}
    again = api.replay(built.build.digest[:12], runs=runs, progress=False)
    assert again.found.seconds < built.build.seconds
    assert again.verdict.answer in {"pass", "fail"}


@needs_tensorrt
@pytest.mark.timeout(900)
def test_boundary_shapes_are_right_and_layers_can_be_compared(spec: Path, record: RunRecord) -> None:
    measured = {trial.engine for trial in record.trials if trial.candidate.runner == "tensorrt" and trial.screen is not None}
    for engine in record.engines:
        if engine.build.digest in measured:
            assert any(check.taken for check in engine.boundaries)
            assert all(check.passed for check in engine.boundaries)
    built = api.build(spec, runs=spec.parent / "runs", precision="fp16", layers=True, progress=False)
    assert built.layers is not None
    assert all(point.finite for point in built.layers.points)
    assert built.layers.faults == ()
    held = api.build(
        spec, runs=spec.parent / "runs", precision="fp16", wide=(built.layers.points[0].node,), layers=True, progress=False
    )
    assert held.verdict.answer == "pass", held.verdict.reason
    assert held.build.onnx != built.build.onnx


@needs_tensorrt
def test_a_plan_cut_short_is_refused_with_the_command_that_builds_it(spec: Path, record: RunRecord) -> None:
    from redline.engine.tensorrt_runner import TensorRTRunner
    from redline.engine.tensorrt_versions import find
    from redline.errors import TrialError
    from redline.store import Store

    plan = Store(spec.parent / "runs" / "store").path(record.engines[0].build.digest).read_bytes()
    with pytest.raises(TrialError, match="redline build"):
        TensorRTRunner(plan[: len(plan) // 2], find(), rebuild=f"redline build {spec}")


@needs_tensorrt
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_two_gpus_behind_one_queue_answer_as_one(spec: Path, record: RunRecord) -> None:
    from redline.engine.pool import PooledRunner
    from redline.engine.tensorrt_runner import TensorRTRunner
    from redline.engine.tensorrt_versions import find
    from redline.store import Store

    engine = next(e for e in record.engines if e.build.proof.proved and e.build.options.profiles[0].maximum[0] == 1)
    plan = Store(spec.parent / "runs" / "store").path(engine.build.digest).read_bytes()
    pool = PooledRunner([TensorRTRunner(plan, find(), device=index) for index in (0, 1)], lanes=1)
    batch = np.random.default_rng(0).uniform(0, 255, (1, 3, 128, 128)).astype(np.float32)
    answers = [pool.run(batch) for _ in range(4)]
    pool.close()
    for answer in answers[1:]:
        for one, other in zip(answers[0], answer, strict=True):
            np.testing.assert_array_equal(one, other)
