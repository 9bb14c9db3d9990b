"""Which candidates are lawful, and that every refusal says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from redline.plan.candidates import Abilities, Space, space
from redline.plan.gpu import ALL_INT8, Int8Choices
from redline.records import (
    Budget,
    Candidate,
    DataRef,
    DataSpec,
    Environment,
    Head,
    ModelSpec,
    Objective,
    OnnxModel,
    Preprocess,
    ShapeShare,
    Spec,
    TargetSpec,
    TensorFact,
    Traffic,
)

ALL = Abilities(torch_compile=True, torch_compile_reason="", onnxruntime=True)
ENVIRONMENT = Environment(
    platform="Linux", python="3.11", cpu="x", cores=4, memory_bytes=1, gpus=(), libraries=(), redline="0", commit=None
)
IMAGES = TensorFact(name="images", dtype="float32", shape=("N", 3, "H", "W"))
GRAPH = OnnxModel(
    path="m.onnx", digest="d", exporter="torch.export", opset=18, input=IMAGES, outputs=(), dynamic=True, checks=()
)


def traffic(*sizes: tuple[int, int]) -> Traffic:
    """The same share of each (height, width)."""
    shapes = tuple(ShapeShare(height=height, width=width, share=1 / len(sizes)) for height, width in sizes)
    return Traffic(shapes=shapes, origin="test")


MIXED = traffic((480, 640), (440, 640), (360, 640), (600, 640), (640, 480), (640, 640))
BUCKETS = ((384, 640), (480, 640), (640, 480), (640, 640))


def spec(preprocess: Preprocess | None = None, head: str = "yolox", minutes: float = 10, **target: object) -> Spec:
    return Spec(
        path="detector.toml",
        model=ModelSpec(factory="a:b", head=Head(kind=head), preprocess=preprocess or Preprocess()),  # type: ignore[arg-type]
        data=DataSpec(evaluate=DataRef(images="images")),
        objective=Objective(p95_ms=20, throughput=10),
        target=TargetSpec(**target),  # type: ignore[arg-type]
        budget=Budget(minutes=minutes),
    )


def built(
    s: Spec,
    abilities: Abilities = ALL,
    onnx: OnnxModel | None = GRAPH,
    is_torch: bool = True,
    graph_failure: str | None = None,
    seen: Traffic = MIXED,
    int8: Int8Choices = ALL_INT8,
) -> Space:
    failure = "no export" if onnx is None else None
    return space(
        s,
        seen,
        ENVIRONMENT,
        abilities,
        onnx=onnx,
        network_failure=failure,
        graph_failure=graph_failure,
        is_torch=is_torch,
        int8=int8,
    )


def reasons(s: Space) -> dict[str, str]:
    return {refusal.what: refusal.reason for refusal in s.refusals}


def test_everything_that_can_run_is_a_family_and_eager_is_the_baseline() -> None:
    found = {(f.runner, f.shapes, f.prepost) for f in built(spec()).families}
    assert found == {
        ("torch-eager", "fixed", "host"),
        ("torch-compile", "fixed", "host"),
        ("onnxruntime", "fixed", "host"),
        ("onnxruntime", "fixed", "graph"),
        ("onnxruntime", "minimal", "host"),
        ("onnxruntime", BUCKETS, "host"),
    }
    assert built(spec()).baseline == Candidate(runner="torch-eager", threads=4)


@pytest.mark.parametrize("precision", ["tf32", "fp16", "fp8"])
def test_a_precision_that_cannot_help_on_this_machine_is_refused_with_the_reason(precision: str) -> None:
    space_ = built(spec(precisions=("fp32", precision)))
    assert precision in reasons(space_)
    assert all(f.precision == "fp32" for f in space_.families)


def test_int8_on_a_cpu_is_onnxruntime_s_with_the_least_padding_and_every_choice_of_layers() -> None:
    wanted = spec(precisions=("fp32", "int8"))
    space_ = built(wanted, int8=Int8Choices(kept=((), ("stem",))))
    rounded = [family for family in space_.families if family.precision == "int8"]
    assert [(f.runner, f.shapes, f.wide) for f in rounded] == [
        ("onnxruntime", "minimal", ()),
        ("onnxruntime", "minimal", ("stem",)),
    ]
    assert all(space_.lawful(family) for family in space_.families)
    assert not space_.lawful(replace(rounded[0], prepost="graph"))
    assert not space_.lawful(replace(rounded[0], runner="torch-eager"))
    assert not space_.lawful(replace(rounded[1], precision="fp32"))
    stretched = built(spec(Preprocess(resize="stretch"), precisions=("fp32", "int8")))
    assert [f.shapes for f in stretched.families if f.precision == "int8"] == ["fixed"]


def test_int8_on_a_cpu_without_images_or_without_onnxruntime_is_refused_with_the_reason() -> None:
    wanted = spec(precisions=("fp32", "int8"))
    assert reasons(built(wanted, int8=Int8Choices(failure="needs images")))["int8"] == "needs images"
    without = built(wanted, replace(ALL, onnxruntime=False))
    assert "ONNX Runtime" in reasons(without)["int8"]
    assert all(f.precision == "fp32" for f in without.families)


def test_eager_has_minimal_padding_only_where_no_onnxruntime_tells_what_padding_costs() -> None:
    assert "ONNX Runtime tells" in reasons(built(spec()))["torch-eager with minimal padding"]
    alone = built(spec(), replace(ALL, onnxruntime=False))
    assert ("torch-eager", "minimal") in {(f.runner, f.shapes) for f in alone.families}
    assert "torch-eager with minimal padding" not in reasons(alone)


def test_no_compiler_refuses_torch_compile_with_the_reason_given() -> None:
    space_ = built(spec(), replace(ALL, torch_compile=False, torch_compile_reason="no C++ compiler"))
    assert reasons(space_)["torch-compile"] == "no C++ compiler"
    assert all(f.runner != "torch-compile" for f in space_.families)


def test_a_budget_that_compiling_would_spend_refuses_torch_compile() -> None:
    assert "budget" in reasons(built(spec(minutes=1.5)))["torch-compile"]
    assert "torch-compile" not in reasons(built(spec(minutes=10)))


def test_a_failed_export_leaves_the_torch_runners() -> None:
    space_ = built(spec(), onnx=None)
    assert {f.runner for f in space_.families} == {"torch-eager", "torch-compile"}
    assert "no export" in reasons(space_)["onnxruntime"]


def test_an_onnx_file_starts_from_onnx_runtime_and_a_fixed_one_has_one_shape() -> None:
    fixed = replace(GRAPH, dynamic=False, input=replace(IMAGES, shape=(1, 3, 640, 640)))
    space_ = built(spec(), onnx=fixed, is_torch=False)
    assert space_.baseline.runner == "onnxruntime"
    assert space_.batches == (1,)
    assert all(f.shapes == "fixed" for f in space_.families)
    assert reasons(space_)["batch > 1"] == "the ONNX file fixes its batch size"
    assert reasons(space_)["minimal padding and shape buckets"] == "the ONNX file fixes its input shape"


@pytest.mark.parametrize("preprocess", [Preprocess(resize="stretch"), Preprocess(anchor="center")])
def test_minimal_padding_only_where_the_letterbox_allows_it(preprocess: Preprocess) -> None:
    space_ = built(spec(preprocess))
    assert all(f.shapes == "fixed" for f in space_.families)
    assert "minimal padding and shape buckets" in reasons(space_)


@pytest.mark.parametrize(
    ("seen", "same_as"),
    [
        (traffic((640, 640), (500, 500)), "fixed"),
        (traffic((480, 640), (640, 640)), "minimal"),
    ],
)
def test_buckets_that_are_another_policy_under_another_name_are_refused(seen: Traffic, same_as: str) -> None:
    space_ = built(spec(), seen=seen)
    assert {f.shapes for f in space_.families} == {"fixed", "minimal"}
    assert space_.buckets is None
    assert same_as in reasons(space_)["shape buckets"]


def test_the_bucketed_family_is_one_and_its_record_says_what_it_is() -> None:
    space_ = built(spec())
    assert [f.shapes for f in space_.families if not isinstance(f.shapes, str)] == [BUCKETS]
    assert space_.buckets is not None
    assert space_.buckets.policy == BUCKETS
    assert space_.buckets.waste_minimal < space_.buckets.waste < space_.buckets.waste_fixed
    assert "shape buckets" not in reasons(space_)


def test_without_onnx_runtime_there_is_no_bucketed_family() -> None:
    for space_ in (built(spec(), onnx=None), built(spec(), replace(ALL, onnxruntime=False))):
        assert all(isinstance(f.shapes, str) for f in space_.families)
        assert space_.buckets is None


def test_a_custom_head_has_no_graph_form() -> None:
    space_ = built(spec(head="custom"), graph_failure="custom heads have no graph form")
    assert all(f.prepost == "host" for f in space_.families)
    assert "custom heads have no graph form" in reasons(space_).values()


def test_neighbours_are_lawful_and_move_one_knob() -> None:
    space_ = built(spec())
    start = Candidate(runner="onnxruntime", threads=4)
    near = space_.neighbours(start)
    assert near == (replace(start, threads=2, concurrency=2), replace(start, batch=2))
    assert all(space_.lawful(candidate) for candidate in near)
    assert not space_.lawful(replace(start, concurrency=2))
    graph = replace(start, prepost="graph")
    assert all(candidate.batch == 1 for candidate in space_.neighbours(graph))
    compiled = replace(start, runner="torch-compile")
    assert all(candidate.batch == 1 for candidate in space_.neighbours(compiled))
    bucketed = replace(start, shapes=BUCKETS)
    assert replace(bucketed, batch=2) in space_.neighbours(bucketed)
    for whole in (
        replace(bucketed, prepost="graph"),
        replace(bucketed, runner="torch-compile"),
        replace(graph, shapes="minimal"),
    ):
        assert not space_.lawful(whole)
