"""Every boundary shape of an engine's profiles, run and compared: ONNX Runtime as the engine; a fake TensorRT refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from detector_graphs import Graphs, compiled
from fake_tensorrt import FakeTensorRT
from small_engine import small_options

from redline.boundary import boundary_failure, check_boundaries
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.engine.tensorrt_builder import build_plan
from redline.plan.boundaries import boundary_shapes
from redline.plan.profiles import choose_profiles
from redline.records import OnnxModel, Preprocess, ShapeShare, Traffic

Get = Callable[[str], Graphs]
TRAFFIC = Traffic(
    shapes=tuple(ShapeShare(height=h, width=w, share=s) for h, w, s in ((480, 640, 0.6), (640, 480, 0.3), (200, 640, 0.1))),
    origin="test",
)
SMALL = Preprocess(size=(160, 160))


@pytest.mark.parametrize("kind", ["exact", "bucketed", "dynamic"])
def test_every_boundary_shape_of_a_traffics_profiles_agrees_with_the_reference(graphs: Get, kind: Any) -> None:
    subject = graphs("demo")
    chosen = choose_profiles(TRAFFIC, SMALL, kind, batch=2, most=3)
    reference, engine = compiled(subject.full), compiled(subject.half)
    found = check_boundaries(engine, reference, chosen.profiles, SMALL, "fp16", ["predictions"], refuses=False)
    assert [check.shape for check in found] == list(boundary_shapes(chosen.profiles, SMALL.stride)[0])
    assert len(found) >= 2 * len(chosen.profiles)
    for check in found:
        assert check.passed, check
        assert 0 < check.max_rel < check.tolerance
    reference.close()
    engine.close()


class Spoiled:
    """Right everywhere but at one shape."""

    name = "spoiled"

    def __init__(self, runner: Any, shape: tuple[int, ...], error: float) -> None:
        self.runner, self.shape, self.error = runner, shape, error

    def run(self, batch: Any) -> tuple[Any, ...]:
        found = self.runner.run(batch)
        return tuple(array + (self.error if batch.shape == self.shape else 0.0) for array in found)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_an_engine_that_is_wrong_at_one_corner_is_caught_there(graphs: Get, error: float) -> None:
    runner = compiled(graphs("demo").full)
    profiles = choose_profiles(TRAFFIC, SMALL, "dynamic", batch=2).profiles
    corner = (2, 3, profiles[0].minimum[2], profiles[0].maximum[3])
    found = check_boundaries(Spoiled(runner, corner, error), runner, profiles, SMALL, "fp32", ["predictions"], refuses=False)
    assert [check.shape for check in found if not check.passed] == [corner]
    failure = boundary_failure(found, profiles)
    assert failure is not None
    assert failure.code == "engine-boundary"
    shape = " x ".join(map(str, corner))
    assert f"{shape} {'gives NaN or infinity' if np.isnan(error) else 'differs by 0.5'}" in str(failure.got)
    assert f"(profile 0: 1..2 x 3 x {profiles[0].minimum[2]}..{profiles[0].maximum[2]} x" in str(failure.got)
    # What parity saw on real images is allowed beyond the tolerance; what is not finite never is.
    lenient = check_boundaries(
        Spoiled(runner, corner, error), runner, profiles, SMALL, "fp32", ["predictions"], refuses=False, allowed=0.6
    )
    assert all(check.passed for check in lenient) is not np.isnan(error)
    runner.close()


def test_what_lies_beyond_every_profile_is_refused_and_that_is_checked(
    trt: FakeTensorRT, small: Callable[..., OnnxModel]
) -> None:
    from redline.engine.tensorrt_runner import TensorRTRunner

    options, unit = small_options(), Preprocess(size=(16, 16), stride=1)
    engine = TensorRTRunner(build_plan(small().path, options, trt.library()).data, trt.library())
    reference = OnnxRuntimeRunner(small().path, threads=1, concurrent=False)
    found = check_boundaries(engine, reference, options.profiles, unit, "fp32", ["out"], refuses=True)
    assert all(check.passed for check in found)
    beyond = [check.shape for check in found if not check.taken]
    assert {(3, 3, 8, 8), (2, 3, 8, 9), (2, 3, 7, 8), (2, 3, 16, 17)} <= set(beyond)
    assert {(2, 3, 16, 8), (1, 3, 16, 16)} <= {check.shape for check in found if check.taken}
    lenient = check_boundaries(reference, reference, options.profiles, unit, "fp32", ["out"], refuses=True)
    assert [check.shape for check in lenient if not check.passed] == beyond  # ONNX Runtime takes any shape
    assert "2 x 3 x 16 x 17 is not refused (profile 1: 1..2 x 3 x 16 x 8..16)" in str(
        boundary_failure(lenient, options.profiles)
    )
    assert boundary_failure(found, options.profiles) is None
    np.testing.assert_array_equal(
        engine.run(np.ones((1, 3, 8, 8), np.float32))[0], reference.run(np.ones((1, 3, 8, 8), np.float32))[0]
    )
    engine.close()
