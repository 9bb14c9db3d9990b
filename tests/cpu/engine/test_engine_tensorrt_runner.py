"""The runner on a fake CUDA and a fake TensorRT: memory, graphs, profiles, refusals. What a GPU alone can show is elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from small_engine import small_graph, small_options

from redline.engine.tensorrt_builder import build_plan
from redline.errors import TrialError
from redline.records import OnnxModel

Write = Callable[..., OnnxModel]
SMALLEST = (1, 3, 8, 8)


def batch(shape: tuple[int, ...] = SMALLEST, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def expected(images: Any) -> Any:
    return ort.InferenceSession(small_graph().SerializeToString()).run(None, {"images": images})[0]


def opened(trt: FakeTensorRT, small: Write, **how: Any) -> Any:
    from redline.engine.tensorrt_runner import TensorRTRunner

    plan = build_plan(small().path, small_options(), trt.library())
    return TensorRTRunner(plan.data, trt.library(), **how)


def alive(cuda: FakeCuda) -> dict[str, int]:
    return {name: len(getattr(cuda, name)) for name in ("memory", "pinned", "streams", "graphs", "events")}


@pytest.mark.parametrize("graphs", [True, False])
def test_every_boundary_shape_gives_what_the_reference_gives(trt: FakeTensorRT, small: Write, graphs: bool) -> None:
    runner = opened(trt, small, graphs=graphs)
    for shape in (SMALLEST, (2, 3, 8, 8), (1, 3, 16, 8), (2, 3, 16, 16), (1, 3, 12 + 4, 11), SMALLEST):
        for seed in range(3):  # captured at the first, replayed at the others
            (found,) = runner.run(batch(shape, seed))
            np.testing.assert_array_equal(found, expected(batch(shape, seed)))
    assert trt.cuda.launches == (2 * 6 + 1 if graphs else 0)
    runner.close()


def test_a_graph_for_each_shape_in_a_bounded_cache_that_drops_the_least_used(
    trt: FakeTensorRT, small: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened(trt, small)
    from redline.engine import tensorrt_runner

    monkeypatch.setattr(tensorrt_runner, "GRAPHS", 3)
    with runner.lane() as lane:
        lane._keep = tensorrt_runner.GRAPHS
    widths = [8, 9, 10, 11]
    for width in widths[:3]:
        runner.run(batch((1, 3, 16, width)))
    runner.run(batch((1, 3, 16, 8)))  # used again, so 9 is the oldest
    runner.run(batch((1, 3, 16, 11)))
    with runner.lane() as lane:
        assert [key[1][3] for key in lane.graphs] == [10, 8, 11]
    assert len(trt.cuda.graphs) == 3
    runner.close()


def test_nothing_is_allocated_per_call_and_all_is_given_back(trt: FakeTensorRT, small: Write) -> None:
    before = alive(trt.cuda)
    runner = opened(trt, small, lanes=2)
    shapes = [SMALLEST, (2, 3, 16, 16), (1, 3, 16, 9)]
    for shape in shapes * 2:
        runner.run(batch(shape))
    count = trt.cuda.allocations
    for seed in range(30):
        runner.run(batch(shapes[seed % 3], seed))
    assert trt.cuda.allocations == count
    runner.close()
    assert alive(trt.cuda) == before


def test_calls_in_flight_do_not_mix(trt: FakeTensorRT, small: Write) -> None:
    runner = opened(trt, small, lanes=3)
    inputs = [batch((1, 3, 16, 8 + seed % 4), seed) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda images: runner.run(images)[0], inputs))
    for images, found in zip(inputs, results, strict=True):
        np.testing.assert_array_equal(found, expected(images))
    runner.close()


@pytest.mark.parametrize(
    ("shape", "near"),
    [
        ((1, 3, 8, 9), "profile 0: 1..2 x 3 x 8 x 8"),
        ((3, 3, 8, 8), "profile 0: 1..2 x 3 x 8 x 8"),
        ((1, 3, 16, 17), "profile 1: 1..2 x 3 x 16 x 8..16"),
        ((1, 3, 17, 16), "profile 1: 1..2 x 3 x 16 x 8..16"),
    ],
)
def test_a_shape_outside_every_profile_names_the_nearest(
    trt: FakeTensorRT, small: Write, shape: tuple[int, ...], near: str
) -> None:
    runner = opened(trt, small)
    with pytest.raises(TrialError, match="outside every profile") as caught:
        runner.run(batch(shape))
    assert (caught.value.code, caught.value.allowed) == ("engine-shape", near)
    assert caught.value.got == " x ".join(map(str, shape))
    np.testing.assert_array_equal(runner.run(batch())[0], expected(batch()))  # the runner goes on
    runner.close()


def test_a_plan_that_cannot_be_opened_says_why_and_how_to_build_it_anew(trt: FakeTensorRT, small: Write) -> None:
    from redline.engine.tensorrt_runner import TensorRTRunner

    data = build_plan(small().path, small_options(), trt.library()).data
    other = build_plan(small().path, small_options(), FakeTensorRT("8.6.1", trt.cuda).library()).data
    cases = {b"": "magicTag", b"not an engine": "magicTag", data[:-40]: "end of data", other: "expecting 10.13.0 got 8.6.1"}
    for plan, why in cases.items():
        with pytest.raises(TrialError, match=why) as caught:
            TensorRTRunner(plan, trt.library(), rebuild="redline build detector.toml")
        assert caught.value.code == "engine-plan"
        assert caught.value.fix == "build it here: redline build detector.toml"
    assert sum(alive(trt.cuda).values()) == 0


def test_out_of_memory_is_a_clean_failure_and_memory_comes_back(trt: FakeTensorRT, small: Write) -> None:
    need = 2 * 3 * 16 * 16 * 4 + 2 * 2 * 16 * 16 * 4 + trt.context_bytes  # one scratch for the contexts of a lane
    trt.cuda.total = need
    opened(trt, small).close()
    for total, code in ((need - 1, "engine-memory"), (trt.context_bytes, "engine-memory")):
        trt.cuda.total = total
        with pytest.raises(TrialError) as caught:
            opened(trt, small)
        assert caught.value.code == code
        assert trt.cuda.used == 0
        assert sum(alive(trt.cuda).values()) == 0
    trt.cuda.total = need
    runner = opened(trt, small)
    np.testing.assert_array_equal(runner.run(batch())[0], expected(batch()))
    runner.close()


def test_the_librarys_own_words_are_in_the_error_of_a_run(trt: FakeTensorRT, small: Write) -> None:
    runner = opened(trt, small)
    trt.run_error = "[executionContext.cpp::enqueueV3] Error Code 1: Cuda Runtime (an illegal memory access)"
    with pytest.raises(TrialError, match="illegal memory access") as caught:
        runner.run(batch())
    assert caught.value.code == "engine-run"
    runner.close()


def test_anatomy_and_layer_times_name_their_parts(trt: FakeTensorRT, small: Write) -> None:
    runner = opened(trt, small)
    from redline.engine.tensorrt_anatomy import anatomy, layer_times
    from redline.records import LayerFact

    found = anatomy(runner, batch(), repeats=5, warm_up=1)
    assert (found.upload_ms, found.gpu_ms, found.download_ms, found.repeats) == (0.25, 0.25, 0.25, 5)
    assert found.wall_ms > 0
    layer = LayerFact(name="stem", kind="", precision="fp32", tactic="", nodes=("stem", "act"), flop=1.0)
    times = layer_times(runner, batch(), (layer,), repeats=3)
    assert {(time.name, time.ms, time.nodes) for time in times} == {
        ("stem", 0.5, ("stem", "act")), ("act", 0.5, ()), ("last", 0.5, ()),
    }  # fmt: skip
    runner.close()
    assert sum(alive(trt.cuda).values()) == 0


@pytest.mark.parametrize("way", ["outputs", "debug tensors"])
def test_a_fault_of_the_compiler_is_found_by_outputs_and_by_debug_tensors(
    trt: FakeTensorRT, small: Write, way: str, tmp_path: Path
) -> None:
    from redline.engine.tensorrt_debug import look_by_debug_tensors
    from redline.engine.tensorrt_runner import TensorRTRunner
    from redline.layers import compare_layers

    model, library, images = small(), trt.library(), batch()

    def build(cut: OnnxModel) -> TensorRTRunner:
        return TensorRTRunner(build_plan(cut.path, small_options(), library).data, library)

    look = look_by_debug_tensors(model.path, small_options(), library, images) if way == "debug tensors" else None
    for node in (None, "stem", "last"):
        trt.fault = (node, 1.05) if node else None
        found = compare_layers(model, model, build, images, "fp32", folder=tmp_path, look=look)
        assert [fault.nodes for fault in found.faults] == ([(node,)] if node else [])
    assert trt.cuda.used == 0


def test_debug_tensors_are_refused_by_name_where_the_version_has_none(trt: FakeTensorRT, small: Write) -> None:
    from redline.engine.tensorrt_debug import look_by_debug_tensors

    with pytest.raises(TrialError, match=r"8\.6\.1 does not have this") as caught:
        look_by_debug_tensors(small().path, small_options(), FakeTensorRT("8.6.1", trt.cuda).library(), batch())
    assert caught.value.code == "engine-ability"
    with pytest.raises(TrialError, match="nowhere"):
        build_plan(small().path, small_options(), trt.library(), watched=("nowhere",))
