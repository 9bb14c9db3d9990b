"""Candidates on a GPU: what is lawful, what is refused and why, and that the CPU's are what they were."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from test_plan_candidates import ALL, BUCKETS, ENVIRONMENT, GRAPH, IMAGES, MIXED, built, reasons, spec, traffic

from redline.errors import BadInput
from redline.plan.candidates import MAX_LANES, Space, space
from redline.plan.gpu import GpuAbilities, Int8Choices, device_names, engine_profiles, pick_gpus, seen_traffic
from redline.records import Candidate, OnnxModel, Preprocess, Spec, TensorRTFacts, Traffic

FOUND = TensorRTFacts(library="tensorrt", version="10.13", abilities=("strongly typed networks",), problem=None)
H100 = GpuAbilities(names=("H100",), memory_bytes=80 << 30, tensorrt=FOUND)
TWO = replace(H100, names=("H100", "H100"))
EVERY = ("fp32", "tf32", "fp16")


def on_gpu(
    s: Spec,
    gpu: GpuAbilities = H100,
    onnx: OnnxModel | None = GRAPH,
    is_torch: bool = True,
    half_failure: str | None = None,
    seen: Traffic = MIXED,
    images: tuple[tuple[int, int], ...] = (),
    int8: Int8Choices = Int8Choices(),  # noqa: B008
    fp8: Int8Choices = Int8Choices(),  # noqa: B008
) -> Space:
    return space(
        s,
        seen,
        ENVIRONMENT,
        replace(ALL, gpu=gpu),
        onnx=onnx,
        network_failure="no export" if onnx is None else None,
        graph_failure=None,
        is_torch=is_torch,
        half_failure=half_failure,
        images=images,
        int8=int8,
        fp8=fp8,
    )


def families(s: Space) -> set[tuple[object, ...]]:
    return {(f.runner, f.precision, f.shapes, f.profiles) for f in s.families}


def test_eager_fp32_on_the_gpu_is_the_baseline_and_engines_come_in_every_precision_and_kind() -> None:
    found = on_gpu(spec(precisions=EVERY))
    assert found.baseline == Candidate(runner="torch-eager", device="cuda:0")
    assert families(found) == {
        ("torch-eager", "fp32", "fixed", None),
        ("torch-eager", "tf32", "fixed", None),
        ("torch-compile", "fp16", "fixed", None),
        ("tensorrt", "fp32", "fixed", "exact"),
        ("tensorrt", "tf32", "fixed", "exact"),
        ("tensorrt", "fp16", "fixed", "exact"),
        ("tensorrt", "fp16", "minimal", "exact"),
        ("tensorrt", "fp16", "minimal", "dynamic"),
        ("tensorrt", "fp16", BUCKETS, "bucketed"),
    }
    assert found.buckets is not None
    assert all(found.lawful(family) for family in found.families)
    assert {f.device for f in found.families} == {"cuda:0"}
    assert 'devices = "cpu"' in reasons(found)["CPU runners"]


def test_only_precisions_that_the_spec_names_are_tried() -> None:
    found = on_gpu(spec(precisions=("fp32", "int8")))
    assert {f.precision for f in found.families} == {"fp32", "int8"}
    assert "int8" not in reasons(found)
    assert 'add "int8"' in reasons(on_gpu(spec(precisions=EVERY)))["int8"]
    assert 'add "tf32"' in reasons(found)["tf32"]
    assert 'add "fp16"' in reasons(found)["fp16"]
    assert not found.lawful(replace(found.families[-1], precision="tf32"))


def test_int8_engines_come_with_each_choice_of_layers_kept_out_and_a_reason_where_there_are_none() -> None:
    asked = spec(precisions=("fp32", "fp16", "int8"))
    found = on_gpu(asked, int8=Int8Choices(kept=((), ("node_stem", "node_last"))))
    engines = {f.wide: f for f in found.families if f.precision == "int8" and f.prepost == "host"}
    assert set(engines) == {(), ("node_stem", "node_last")}
    assert engines["node_stem", "node_last"].name.endswith("2 not in int8")
    assert all(found.lawful(engine) and engine.runner == "tensorrt" for engine in engines.values())
    assert not found.lawful(replace(engines[()], runner="torch-compile", profiles=None))
    assert not on_gpu(spec(precisions=EVERY)).lawful(engines[()])
    compiled = next(f for f in found.families if f.runner == "torch-compile")
    assert compiled.precision == "fp16", "torch.compile has no INT8"
    shaped = {f.precision for f in found.families if f.profiles in ("dynamic", "bucketed")}
    assert shaped == {"fp16"}, "INT8 has to keep the accuracy first"
    none = on_gpu(asked, int8=Int8Choices(failure="needs images to calibrate on"))
    assert {f.precision for f in none.families} == {"fp32", "fp16"}
    assert reasons(none)["TensorRT int8"] == "needs images to calibrate on"


def test_fp8_engines_are_tried_like_int8_ones_and_offered_only_where_they_can_be_built() -> None:
    asked = spec(precisions=("fp16", "int8", "fp8"))
    found = on_gpu(asked)
    engine = next(f for f in found.families if f.precision == "fp8")
    assert (engine.runner, engine.profiles, engine.wide) == ("tensorrt", "exact", ())
    assert found.lawful(engine)
    assert found.lawful(replace(engine, wide=("node_stem",)))
    assert replace(engine, wide=("node_stem",)).name.endswith("1 not in fp8")
    assert not found.lawful(replace(engine, runner="torch-compile", profiles=None))
    assert {f.precision for f in found.families if f.profiles in ("dynamic", "bucketed")} == {"fp16"}
    old = on_gpu(asked, fp8=Int8Choices(failure="compute capability 8.0 has no FP8"))
    assert {f.precision for f in old.families if f.runner == "tensorrt"} == {"fp16", "int8"}
    assert reasons(old)["TensorRT fp8"] == "compute capability 8.0 has no FP8"
    assert 'add "fp8"' in reasons(on_gpu(spec(precisions=EVERY)))["fp8"]
    assert "fp8" not in reasons(on_gpu(spec(precisions=EVERY), fp8=Int8Choices(failure="none here")))


def test_fp16_alone_leaves_the_reference_in_fp32() -> None:
    found = on_gpu(spec(precisions=("fp16",)))
    assert found.baseline.precision == "fp32"
    assert {f.precision for f in found.families if f.runner == "tensorrt"} == {"fp16"}


@pytest.mark.parametrize("problem", ["No TensorRT can be loaded", "tensorrt 8.5.3 has no IBuilderConfig.x"])
def test_a_tensorrt_that_cannot_be_used_is_refused_with_what_is_known_of_it(problem: str) -> None:
    found = on_gpu(spec(precisions=EVERY), replace(H100, tensorrt=replace(FOUND, problem=problem)))
    assert reasons(found)["TensorRT"] == problem
    assert {f.runner for f in found.families} == {"torch-eager", "torch-compile"}


def test_no_graph_no_engine_and_no_half_graph_no_fp16_engine() -> None:
    assert reasons(on_gpu(spec(), onnx=None))["TensorRT"] == "no ONNX graph: no export"
    found = on_gpu(spec(precisions=("fp16",)), half_failure="Weight w does not fit float16")
    assert reasons(found)["TensorRT fp16"] == "Weight w does not fit float16"
    assert {f.runner for f in found.families} == {"torch-eager", "torch-compile"}


def test_torch_compile_is_refused_without_a_compiler_or_the_time_for_it() -> None:
    assert (
        reasons(on_gpu(spec(), replace(H100, no_compile="triton is not installed")))["torch-compile"]
        == "triton is not installed"
    )
    assert "0.5 minutes" in reasons(on_gpu(spec(minutes=0.5)))["torch-compile"]


def test_too_many_shapes_for_exact_profiles_are_refused_as_the_profiles_say() -> None:
    many = traffic(*[(32 * n, 640) for n in range(1, 20)])
    found = on_gpu(spec(), seen=many)
    (reason,) = [text for what, text in reasons(found).items() if "exact" in what]
    assert "Too many input shapes" in reason
    assert ("tensorrt", "fp32", "minimal", "dynamic") in families(found)
    assert ("tensorrt", "fp32", "fixed", "exact") in families(found)


def test_one_image_that_fits_no_gpu_leaves_no_engine() -> None:
    found = on_gpu(spec(), replace(H100, memory_bytes=1 << 20))
    assert all(f.runner != "tensorrt" for f in found.families)
    assert any("does not fit the memory limit" in reason for reason in reasons(found).values())


def test_without_minimal_padding_there_are_exact_profiles_of_fixed_shapes_only() -> None:
    found = on_gpu(spec(Preprocess(anchor="center"), precisions=EVERY))
    assert {(f.profiles, f.shapes) for f in found.families if f.runner == "tensorrt"} == {("exact", "fixed")}
    assert "centred letterbox" in reasons(found)["minimal padding and shape buckets"]


def test_an_onnx_file_has_its_reference_on_the_cpu_and_its_engines_on_the_gpu() -> None:
    fixed = replace(GRAPH, dynamic=False, input=replace(IMAGES, shape=(1, 3, 640, 640)))
    found = on_gpu(spec(), onnx=fixed, is_torch=False)
    assert found.baseline == Candidate(runner="onnxruntime", threads=4)
    assert families(found) == {("onnxruntime", "fp32", "fixed", None), ("tensorrt", "fp32", "fixed", "exact")}
    assert found.batches == (1,)
    assert all(found.lawful(family) for family in found.families)


def test_lawful_says_no_to_every_combination_that_nothing_can_run() -> None:
    found = on_gpu(spec(precisions=EVERY))
    good = Candidate(runner="tensorrt", precision="fp16", device="cuda:0", profiles="exact", cuda_graphs=True)
    assert found.lawful(good)
    assert found.lawful(replace(good, cuda_graphs=False))
    for change in (
        {"threads": 2}, {"prepost": "graph"}, {"precision": "int8"}, {"precision": "fp8"}, {"profiles": None},
        {"profiles": "dynamic"}, {"profiles": "bucketed"}, {"shapes": "minimal", "profiles": "bucketed"}, {"shapes": BUCKETS},
        {"device": "cpu"}, {"device": "cuda:1"}, {"concurrency": MAX_LANES + 1}, {"concurrency": 0}, {"batch": 3},
        {"runner": "onnxruntime"}, {"runner": "torch-eager"}, {"runner": "torch-compile"},
    ):  # fmt: skip
        assert not found.lawful(replace(good, **change)), change  # type: ignore[arg-type]
    eager = Candidate(runner="torch-eager", device="cuda:0")
    assert not found.lawful(replace(eager, precision="fp16"))
    assert not found.lawful(replace(eager, cuda_graphs=True))
    compiled = replace(eager, runner="torch-compile", precision="fp16", cuda_graphs=True)
    assert found.lawful(compiled)
    assert not on_gpu(spec(precisions=EVERY), TWO).lawful(replace(compiled, device="cuda:0,1", concurrency=2))
    for change in ({"batch": 2}, {"shapes": "minimal"}, {"cuda_graphs": False}):
        assert not found.lawful(replace(compiled, **change)), change  # type: ignore[arg-type]


def test_neighbours_move_lanes_batch_graphs_and_devices_and_are_all_lawful() -> None:
    found = on_gpu(spec(precisions=EVERY), TWO)
    start = Candidate(runner="tensorrt", precision="fp16", device="cuda:0", profiles="exact", cuda_graphs=True, concurrency=2)
    assert set(found.neighbours(start)) == {
        replace(start, concurrency=4),
        replace(start, concurrency=1),
        replace(start, batch=2),
        replace(start, cuda_graphs=False),
        replace(start, device="cuda:0,1", concurrency=4),
    }
    both = replace(start, device="cuda:0,1", concurrency=4)
    assert replace(start, concurrency=2) in found.neighbours(both)
    assert replace(both, concurrency=1) not in found.neighbours(replace(both, concurrency=2))
    reached, ahead = {found.baseline, *found.families}, list(found.families)
    while ahead:
        new = [there for there in found.neighbours(ahead.pop()) if there not in reached]
        reached.update(new)
        ahead += new
    assert all(found.lawful(candidate) for candidate in reached)
    assert max(candidate.concurrency for candidate in reached) == 2 * MAX_LANES


def test_all_gpus_of_the_first_kind_are_used_and_others_left_out_with_the_reason() -> None:
    indices, left_out = pick_gpus("auto", ("H100", "T4", "H100"))
    assert indices == (0, 2)
    assert [refusal.what for refusal in left_out] == ["GPU 1 (T4)"]
    assert device_names(indices) == ("cuda:0", "cuda:0,2")
    assert pick_gpus("cuda:1", ("H100", "T4"))[0] == (1,)
    assert device_names((1,)) == ("cuda:1",)
    with pytest.raises(BadInput, match="cuda:0 H100") as caught:
        pick_gpus("cuda:0,3", ("H100",))
    assert caught.value.code == "plan.no-gpu"


@pytest.mark.parametrize(("device", "gpus"), [("cpu", ()), ("cuda:0", (0,)), ("cuda:1,3", (1, 3))])
def test_a_device_says_which_gpus_it_is(device: str, gpus: tuple[int, ...]) -> None:
    assert Candidate(runner="tensorrt", device=device).gpus == gpus


def test_profiles_hold_every_evaluation_image_and_the_batches_there_may_be() -> None:
    seen = seen_traffic(traffic((480, 640)), [(480, 640), (640, 480), (640, 480)])
    assert [(s.height, s.width, s.share) for s in seen.shapes] == [(480, 640, 1.0), (640, 480, 0.0)]
    base = Candidate(runner="tensorrt", device="cuda:0", profiles="exact")
    fixed = engine_profiles(base, seen, Preprocess(), 8)
    assert [(p.minimum, p.optimum, p.maximum) for p in fixed.profiles] == [((1, 3, 640, 640),) * 3]
    assert fixed.waste == pytest.approx(640 * 640 / (480 * 640) - 1)
    minimal = engine_profiles(replace(base, shapes="minimal", batch=2), seen, Preprocess(), 8)
    assert [p.maximum for p in minimal.profiles] == [(8, 3, 480, 640), (8, 3, 640, 480)]
    assert {p.minimum[0] for p in minimal.profiles} == {1}
    dynamic = engine_profiles(replace(base, shapes="minimal", profiles="dynamic"), seen, Preprocess(), 8)
    assert [(p.minimum, p.optimum, p.maximum) for p in dynamic.profiles] == [
        ((1, 3, 480, 480), (1, 3, 480, 640), (1, 3, 640, 640))
    ]
    bucketed = engine_profiles(replace(base, shapes=BUCKETS, profiles="bucketed"), seen, Preprocess(), 8)
    assert {p.maximum[2:] for p in bucketed.profiles} == set(BUCKETS)


def test_engines_of_16_bits_and_fewer_are_tried_with_everything_on_the_gpu_too() -> None:
    wanted = spec(precisions=("fp32", "fp16", "int8"))
    space_ = on_gpu(wanted)
    twins = [f for f in space_.families if f.prepost == "kernel"]
    assert {(f.precision, f.shapes, f.profiles, f.cuda_graphs) for f in twins} == {
        ("fp16", "fixed", "exact", True),
        ("int8", "fixed", "exact", True),
    }
    for twin in twins:
        assert replace(twin, prepost="host") in space_.families, "the engine is built for the host's candidate already"
        assert space_.lawful(twin)
        assert space_.lawful(replace(twin, concurrency=2))
        assert not space_.lawful(replace(twin, cuda_graphs=False))
        assert not space_.lawful(replace(twin, shapes="minimal"))
        assert not space_.lawful(replace(twin, runner="torch-eager", profiles=None, precision="fp32"))
        assert all(c.prepost == "kernel" for c in space_.neighbours(twin))


@pytest.mark.parametrize(
    ("gpu", "wanted", "reason"),
    [
        (replace(H100, no_kernels="triton is not installed"), spec(precisions=EVERY), "triton is not installed"),
        (H100, spec(head="custom", precisions=EVERY), 'head = "custom"'),
        (H100, spec(Preprocess(resize="shortest-side"), precisions=EVERY), "several sizes"),
    ],
)
def test_why_nothing_runs_around_an_engine_on_the_gpu_is_said(gpu: GpuAbilities, wanted: Spec, reason: str) -> None:
    space_ = on_gpu(wanted, gpu)
    assert all(f.prepost != "kernel" for f in space_.families)
    assert reason in reasons(space_)["decoding, pre- and post-processing on the GPU"]


def test_the_cpu_has_the_candidates_that_it_had() -> None:
    here = built(spec(precisions=EVERY))
    assert here.devices == ("cpu",)
    assert {f.name for f in here.families} == {
        "torch-eager fp32 fixed t4 b1 c1",
        "torch-compile fp32 fixed t4 b1 c1",
        "onnxruntime fp32 fixed t4 b1 c1",
        "onnxruntime fp32 fixed t4 b1 c1 in-graph",
        "onnxruntime fp32 minimal t4 b1 c1",
        "onnxruntime fp32 4 buckets t4 b1 c1",
    }
    assert reasons(here)["GPU runners"] == "no NVIDIA GPU on this machine"
    for runner, device in product(("torch-eager", "tensorrt"), ("cuda:0", "cuda:0,1")):
        assert not here.lawful(Candidate(runner=runner, device=device, profiles="exact" if runner == "tensorrt" else None))  # type: ignore[arg-type]
    for change in ({"precision": "fp16"}, {"runner": "tensorrt"}, {"profiles": "exact"}, {"cuda_graphs": True}):
        assert not here.lawful(Candidate(**{"runner": "onnxruntime", **change}))  # type: ignore[arg-type]


def test_why_no_gpu_is_used_is_told() -> None:
    why = "this torch is built without CUDA; got: torch 2.13.0+cpu"
    assert reasons(built(spec(), replace(ALL, no_gpu=why)))["GPU runners"] == why
