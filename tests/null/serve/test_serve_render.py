"""What is rendered: every pipeline and target holds together, and says what the release decided."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from release_cases import IMAGES, onnx_engine, profile, release, tensorrt_engine
from tritonclient.grpc import model_config_pb2 as triton

from redline.errors import BadInput
from redline.records import Objective, Postprocess, Preprocess, Serving, TensorFact
from redline.serve import names
from redline.serve.checks import problems
from redline.serve.config import adapted, render, render_stable
from redline.serve.shapes import sent_sizes

BOTH = ("embedded", "container")
PIPELINES = ("fused", "bls", "ensemble")
GROUP = triton.ModelInstanceGroup


def configs(of, target="embedded"):
    return {files.role: files.config for files in render(of, target)}


def checked(of, target):
    models = (*render(of, target), *render_stable(of.service, of, target))
    return problems(models, of, target, "2.51.0")


ROLES_IN_ORDER = {
    ("fused", "embedded"): ["tensor", "entry"],
    ("bls", "embedded"): ["network", "tensor", "entry"],
    ("ensemble", "embedded"): ["network", "prepare", "finish", "tensor", "entry"],
    ("fused", "container"): ["network", "tensor", "entry"],
    ("bls", "container"): ["network", "tensor", "entry"],
    ("ensemble", "container"): ["network", "prepare", "finish", "tensor", "entry"],
}


@pytest.mark.parametrize(("pipeline", "target"), ROLES_IN_ORDER)
def test_models_of_a_pipeline_in_the_order_they_load(pipeline, target):
    of = release(pipeline)
    models = render(of, target)
    assert [files.role for files in models] == ROLES_IN_ORDER[pipeline, target]
    assert [files.name for files in models] == [names.model_name("detector", 3, files.role) for files in models]
    assert checked(of, target) == ()


GPUS = ["cuda:0", "cuda:1", "cuda:0,3"]


@st.composite
def lawful_releases(draw):
    """Any release that its engine can serve, with the target."""
    target, tensorrt = draw(
        st.sampled_from([("embedded", False), ("embedded", True), ("container", False), ("container", True)])
    )
    size = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)).map(lambda size: (size[0] * 32, size[1] * 32)))
    preprocess = Preprocess(size=size, resize=draw(st.sampled_from(["letterbox", "stretch", "shortest-side"])))
    shapes = draw(st.sampled_from(["fixed", "minimal", (size, (size[1], size[0]))]))
    batch = draw(st.integers(1, 16))
    engine = onnx_engine()
    if tensorrt:
        ranges = sent_sizes(preprocess, shapes)
        profiles = []
        for index, one in enumerate(ranges):
            (low, high), (left, right) = one.height, one.width
            best = draw(st.integers(1, batch))
            profiles.append(profile(index, (1, low, left), (best, high, right), (batch + draw(st.integers(0, 3)), high, right)))
        engine = tensorrt_engine(*profiles)
    return target, release(
        draw(st.sampled_from(PIPELINES)),
        number=draw(st.integers(1, 10_000)),
        engine=engine,
        preprocess=preprocess,
        shapes=shapes,
        batch=batch,
        concurrency=draw(st.integers(1, 64)),
        workers=draw(st.integers(1, 64)),
        queue_size=draw(st.integers(1, 1_000_000)),
        queue_delay_us=draw(st.integers(0, 10_000_000)),
        device=draw(st.sampled_from(GPUS if tensorrt else ["cpu"] if target == "embedded" else ["cpu", *GPUS])),
        objective=Objective(p95_ms=draw(st.floats(0.001, 1e6)), throughput=1.0),
        postprocess=Postprocess(max_detections=draw(st.integers(1, 1000))),
    )


@settings(max_examples=40, deadline=None)
@given(lawful_releases())
def test_whatever_is_lawful_renders_without_a_problem_and_reads_back(case):
    target, of = case
    assert checked(of, target) == ()
    for files in (*render(of, target), *render_stable("other", of, target)):
        assert text_format.MessageToString(files.config) == files.text
        assert files.config.name == files.name
        assert list(files.config.version_policy.specific.versions) == [of.number]


def test_the_entry_of_a_fused_release():
    of = release("fused")
    config = configs(of)["entry"]
    assert (config.backend, config.max_batch_size, config.platform) == ("python", 4, "")
    (image,) = config.input
    assert (image.name, image.data_type, list(image.dims)) == ("image", triton.TYPE_STRING, [1])
    assert [(o.name, triton.DataType.Name(o.data_type), list(o.dims)) for o in config.output] == [
        ("boxes", "TYPE_FP32", [50, 4]),
        ("scores", "TYPE_FP32", [50]),
        ("labels", "TYPE_INT32", [50]),
        ("count", "TYPE_INT32", [1]),
        ("error", "TYPE_STRING", [1]),
    ]
    (group,) = config.instance_group
    assert (group.kind, group.count) == (GROUP.KIND_CPU, 2)
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "role": "entry",
        "material": "../detector_r3/3",
    }
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert not config.HasField("optimization")


@pytest.mark.parametrize(
    ("pipeline", "counts"),
    [
        ("fused", {"entry": 2, "tensor": 2}),
        ("bls", {"entry": 3, "tensor": 3, "network": 2}),
        ("ensemble", {"prepare": 3, "finish": 3, "tensor": 3, "network": 2}),
    ],
)
def test_processes_are_the_candidates_concurrency_and_workers(pipeline, counts):
    found = {
        role: config.instance_group[0].count for role, config in configs(release(pipeline)).items() if config.instance_group
    }
    assert found == counts


@pytest.mark.parametrize(
    ("pipeline", "waiting"), [("fused", {"entry", "tensor"}), ("bls", {"entry", "tensor"}), ("ensemble", {"network"})]
)
def test_a_request_waits_for_others_at_one_model_only(pipeline, waiting):
    delays = {
        role: config.dynamic_batching.max_queue_delay_microseconds
        for role, config in configs(release(pipeline)).items()
        if config.HasField("dynamic_batching")
    }
    assert {role for role, delay in delays.items() if delay} == waiting
    assert set(delays.values()) <= {0, 2000}


@pytest.mark.parametrize(
    ("p95_ms", "delay_us", "timeout_us"), [(20.0, 0, 5_000_000), (900.0, 0, 9_000_000), (20.0, 4_000_000, 8_000_000)]
)
def test_the_containers_queue_refuses_and_its_timeout_follows_the_objective(p95_ms, delay_us, timeout_us):
    """Ten times the P95, at least 5 s, at least twice the delay. Behind the gateway the server has none."""
    of = release("bls", objective=Objective(p95_ms=p95_ms, throughput=1.0), queue_delay_us=delay_us, queue_size=7)
    for config in configs(of).values():
        assert config.HasField("dynamic_batching")
        assert not config.dynamic_batching.HasField("default_queue_policy")
    for config in configs(of, "container").values():
        policy = config.dynamic_batching.default_queue_policy
        assert policy.timeout_action == triton.ModelQueuePolicy.REJECT
        assert policy.max_queue_size == 7
        assert policy.default_timeout_microseconds == timeout_us
        assert policy.allow_timeout_override


def test_an_ensemble_names_versions_and_keeps_raw_outputs_apart():
    """An engine whose output is named as an answer is: inside the ensemble it must not be taken for the answer."""
    engine = replace(onnx_engine(), outputs=(TensorFact(name="boxes", dtype="float32", shape=("N", 9, 4)),))
    of = release("ensemble", engine=engine)
    entry = configs(of)["entry"]
    prepare, network, finish = entry.ensemble_scheduling.step
    assert [(step.model_name, step.model_version) for step in (prepare, network, finish)] == [
        ("detector_r3_prepare", 3),
        ("detector_r3_network", 3),
        ("detector_r3_finish", 3),
    ]
    assert dict(network.input_map) == {"images": "images"}
    assert dict(network.output_map) == {"boxes": "raw_0"}
    assert dict(finish.input_map) == {"boxes": "raw_0", "placement": "placement"}
    assert finish.output_map["boxes"] == "boxes"
    assert entry.platform == "ensemble"
    assert not entry.instance_group
    assert checked(of, "embedded") == ()


def test_stable_names_are_one_step_on_the_release():
    of = release("bls")
    by_name = {files.name: files for files in render_stable("detector", of, "embedded")}
    assert set(by_name) == {"detector", "detector_tensor"}
    config = by_name["detector_tensor"].config
    (step,) = config.ensemble_scheduling.step
    assert (step.model_name, step.model_version) == ("detector_r3_tensor", 3)
    assert [(one.name, list(one.dims)) for one in config.input] == [("images", [3, 96, 96]), ("placement", [8])]
    assert config.max_batch_size == 4
    assert by_name["detector"].text == render_stable("detector", of, "container")[1].text
    assert not by_name["detector"].python


def test_the_container_serves_a_plan_on_the_gpu_with_every_profile_an_instance():
    small, large = profile(0, (1, 64, 64), (1, 96, 96), (2, 96, 96)), profile(1, (1, 64, 64), (4, 96, 96), (8, 96, 96))
    of = release("fused", engine=tensorrt_engine(small, large), batch=8)
    (files, *others) = render(of, "container")
    config = files.config
    assert (config.backend, files.network, files.python, config.default_model_filename) == ("tensorrt", "model.plan", False, "")
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.profile)) == (GROUP.KIND_GPU, 2, ["0", "1"])
    assert config.optimization.input_pinned_memory.enable
    assert config.optimization.output_pinned_memory.enable
    assert list(config.dynamic_batching.preferred_batch_size) == [1, 4]
    graphs = config.optimization.cuda.graph_spec
    assert config.optimization.cuda.graphs
    assert [(spec.graph_lower_bound.batch_size, spec.batch_size) for spec in graphs] == [(1, 1), (2, 2), (3, 4), (5, 8)]
    assert all(list(spec.input["images"].dim) == [3, 96, 96] for spec in graphs)
    assert all(list(spec.graph_lower_bound.input["images"].dim) == [3, 96, 96] for spec in graphs)
    warm = {sample.batch_size: list(sample.inputs["images"].dims) for sample in config.model_warmup}
    assert warm == {1: [3, 96, 96], 4: [3, 96, 96]}
    assert [one.config.backend for one in others] == ["python", "python"]
    assert all(one.config.instance_group[0].kind == GROUP.KIND_CPU for one in others)
    assert not any(one.config.model_warmup for one in others), "bls calls a model that may not be there yet"


def test_the_embedded_server_runs_a_plan_in_python_processes_on_each_gpu():
    small, large = profile(0, (1, 96, 64), (1, 96, 64), (8, 96, 64)), profile(1, (1, 64, 96), (8, 64, 96), (8, 64, 96))
    sizes = ((96, 64), (64, 96))
    of = release("fused", engine=tensorrt_engine(small, large), batch=8, concurrency=4, device="cuda:0,2", shapes=sizes)
    models = {files.role: files for files in render(of, "embedded")}
    assert checked(of, "embedded") == ()
    assert set(models) == {"entry", "tensor"}
    for files in models.values():
        config = files.config
        (group,) = config.instance_group
        assert (config.backend, files.network) == ("python", None)
        assert (group.kind, group.count, list(group.gpus), list(group.profile)) == (GROUP.KIND_GPU, 2, [0, 2], [])
        assert not config.HasField("optimization")
    warm = [(one.batch_size, *one.inputs["images"].dims) for one in models["tensor"].config.model_warmup]
    assert warm == [(batch, 3, *size) for size in sizes for batch in (1, 8)]
    assert models["tensor"].placements == sizes
    network = configs(replace(of, candidate=replace(of.candidate, serving=Serving(pipeline="bls"))))
    assert {role: config.instance_group[0].kind == GROUP.KIND_GPU for role, config in network.items()} == {
        "network": True,
        "tensor": False,
        "entry": False,
    }
    assert len(network["network"].model_warmup) == 4


def test_the_container_captures_cuda_graphs_only_where_the_candidate_has_them():
    of = release("bls", engine=tensorrt_engine(), concurrency=3, device="cuda:0,1", cuda_graphs=False)
    config = configs(of, "container")["network"]
    assert not config.optimization.HasField("cuda")
    (group,) = config.instance_group
    assert (group.count, list(group.gpus)) == (2, [0, 1]), "3 inferences in flight on 2 GPUs"


def test_graphs_of_free_shapes_are_the_profiles_optima_and_only_shapes_that_fit():
    engine = tensorrt_engine(
        profile(0, (1, 32, 32), (1, 96, 64), (4, 96, 96)), profile(1, (1, 32, 32), (2, 64, 96), (2, 96, 96))
    )
    config = configs(release("bls", engine=engine, shapes="minimal", batch=4), "container")["network"]
    graphs = {(spec.batch_size, *spec.input["images"].dim) for spec in config.optimization.cuda.graph_spec}
    assert graphs == {(batch, 3, *size) for batch in (1, 2, 4) for size in ((96, 64), (64, 96))}
    assert list(config.input[0].dims) == [3, -1, -1]


def test_one_profile_prefers_no_batch():
    config = configs(release("bls", engine=tensorrt_engine()), "container")["network"]
    assert not config.dynamic_batching.preferred_batch_size


@pytest.mark.parametrize(("device", "kind"), [("cpu", GROUP.KIND_CPU), ("cuda:0", GROUP.KIND_GPU)])
def test_an_onnx_network_runs_in_the_container_where_it_was_measured(device, kind):
    (files, *_) = render(release("ensemble", device=device), "container")
    config = files.config
    assert (config.backend, files.network) == ("onnxruntime", "model.onnx")
    assert config.instance_group[0].kind == kind
    threads = {key: value.string_value for key, value in config.parameters.items()}
    assert threads == ({"intra_op_thread_count": "2", "inter_op_thread_count": "1"} if device == "cpu" else {})
    assert not config.optimization.HasField("cuda")


def test_in_the_container_a_fused_release_becomes_bls_and_says_so():
    assert adapted(release("fused"), "container").candidate.serving.pipeline == "bls"
    assert adapted(release("fused"), "embedded") == release("fused")
    assert adapted(release("ensemble"), "container") == release("ensemble")


def test_warm_up_of_a_fused_release_detects_on_golden_images():
    models = {files.role: files for files in render(release("fused"), "embedded")}
    entry, tensor = models["entry"], models["tensor"]
    samples = [(one.batch_size, one.inputs["image"].input_data_file) for one in entry.config.model_warmup]
    assert samples == [(1, "a.jpg.string"), (4, "a.jpg.string"), (1, "b.png.string")]
    files = entry.warmup(IMAGES)
    assert files["b.png.string"] == struct.pack("<I", len(IMAGES["b.png"])) + IMAGES["b.png"]
    (sample,) = tensor.config.model_warmup
    assert list(sample.inputs["images"].dims) == [3, 96, 96]
    (placement,) = tensor.warmup({}).items()
    assert placement[0] == sample.inputs["placement"].input_data_file
    assert struct.unpack("<8d", placement[1]) == (96, 96, 96, 96, 1, 1, 0, 0)


def test_network_dims_are_the_engines():
    config = configs(release("bls", engine=onnx_engine(shape=("N", 3, "H", "W")), shapes="minimal"))["network"]
    assert [(one.name, list(one.dims)) for one in (*config.input, *config.output)] == [
        ("images", [3, -1, -1]),
        ("output", [-1, 7]),
    ]


def test_a_release_that_was_not_measured_through_a_server_is_refused():
    of = release()
    bare = replace(of, candidate=replace(of.candidate, serving=None))
    with pytest.raises(BadInput) as error:
        render(bare, "embedded")
    assert error.value.code == "release-serving"


def test_an_output_that_triton_cannot_carry_is_refused():
    engine = replace(onnx_engine(), outputs=(TensorFact(name="output", dtype="complex64", shape=("N", 4)),))
    with pytest.raises(BadInput) as error:
        render(release("bls", engine=engine), "embedded")
    assert error.value.code == "release-dtype"
    assert "complex64" in str(error.value)
