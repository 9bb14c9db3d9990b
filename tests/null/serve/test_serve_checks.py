"""Each check finds what it is for: a sound repository is changed in one place, and the code of that comes back."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from release_cases import ORIGIN, onnx_engine, profile, release, tensorrt_engine
from tritonclient.grpc import model_config_pb2 as triton

from redline import serve
from redline.errors import BadInput
from redline.records import Preprocess, TensorFact
from redline.serve.checks import check, problems
from redline.serve.config import render, render_stable

GROUP = triton.ModelInstanceGroup
GOLDEN_PLAN = tensorrt_engine(profile(0, (1, 96, 96), (4, 96, 96), (8, 96, 96)))


def found(of, target="embedded", *, role=None, change=None, stable=None, drop=None, version="2.51.0"):
    """Codes of the problems after `change` of the configuration of `role` (or of the stable name `stable`)."""
    models = [*render(of, target), *render_stable("detector", of, target)]
    out = []
    for files in models:
        if (files.role is not None and files.role == role) or files.name == stable:
            config = files.config
            if change is not None:
                result = change(config)
                files = result if isinstance(result, type(files)) else replace(files, text=text_format.MessageToString(config))
        if files.role is None or files.role != drop:
            out.append(files)
    return {problem.code for problem in problems(out, of, target, version)}


BLS, PLAN = release("bls"), release("bls", engine=GOLDEN_PLAN)
ENSEMBLE, FUSED = release("ensemble"), release("fused")
FUSED_PLAN = release("fused", engine=GOLDEN_PLAN, device="cuda:0,1")


def step(index, config):
    return config.ensemble_scheduling.step[index]


def put(path, value):
    """A change: follow `path` of names and indices, then set, or replace the items of a repeated field."""
    *way, last = path.split(".")

    def change(config):
        for part in way:
            config = config[int(part)] if part.lstrip("-").isdigit() else getattr(config, part)
        if isinstance(value, list):
            del getattr(config, last)[:]
            getattr(config, last).extend(value)
        else:
            setattr(config, last, value)

    return change


def clear(field):
    return lambda config: config.ClearField(field)


def both(*changes):
    def change(config):
        for one in changes:
            one(config)

    return change


def map_to(number, side, key, tensor):
    def change(config):
        getattr(step(number, config), side)[key] = tensor

    return change


def unmap(number, side, key):
    def change(config):
        del getattr(step(number, config), side)[key]

    return change


def swap_steps(config):
    steps = list(config.ensemble_scheduling.step)
    del config.ensemble_scheduling.step[:]
    config.ensemble_scheduling.step.extend([steps[1], steps[0], *steps[2:]])


def add(field, **values):
    return lambda config: getattr(config, field).add(**values)


def parameter(key, value):
    def change(config):
        config.parameters[key].string_value = value

    return change


def graph(**values):
    def change(config):
        spec = config.optimization.cuda.graph_spec[0]
        for key, value in values.items():
            if key == "dim":
                del spec.input["images"].dim[:]
                del spec.graph_lower_bound.input["images"].dim[:]
                spec.input["images"].dim.extend(value)
                spec.graph_lower_bound.input["images"].dim.extend(value)
            elif key == "lowest":
                spec.graph_lower_bound.batch_size = value
            elif key == "lower_dim":
                del spec.graph_lower_bound.input["images"].dim[:]
                spec.graph_lower_bound.input["images"].dim.extend(value)
            elif key == "other_input":
                spec.input["pictures"].dim.extend(value)
            else:
                spec.batch_size = value

    return change


def warm(name, **values):
    def change(config):
        data = config.model_warmup[0].inputs[name]
        for key, value in values.items():
            put(key, value)(data)

    return change


def without_data(config):
    config.model_warmup[0].inputs["image"].ClearField("input_data_file")


def no_cuda_graph_backend(config):
    config.optimization.cuda.graphs = True


CONTAINER, EMBEDDED = "container", "embedded"
# (code, release, target, role, change)
POLICY = "dynamic_batching.default_queue_policy"
CHANGES = [
    ("config-name", BLS, EMBEDDED, "entry", put("name", "detector_r4")),
    ("config-version-policy", BLS, EMBEDDED, "tensor", put("version_policy.specific.versions", [2])),
    ("config-version-policy", BLS, EMBEDDED, "tensor", put("version_policy.specific.versions", [2, 3])),
    ("config-version-policy", BLS, EMBEDDED, "tensor", put("version_policy.latest.num_versions", 1)),
    ("config-version-policy", BLS, EMBEDDED, "tensor", clear("version_policy")),
    ("config-batch", BLS, EMBEDDED, "entry", put("max_batch_size", 0)),
    ("config-batch", BLS, EMBEDDED, "network", put("max_batch_size", -5)),
    ("config-tensors", BLS, EMBEDDED, "network", clear("input")),
    ("config-tensors", ENSEMBLE, EMBEDDED, "finish", put("input.0.name", "placement")),
    ("config-dtype", BLS, EMBEDDED, "network", put("output.0.data_type", triton.TYPE_INVALID)),
    ("config-dims", BLS, EMBEDDED, "network", put("output.0.dims", [0, 7])),
    ("config-dims", BLS, EMBEDDED, "network", put("output.0.dims", [-2, 7])),
    ("config-dims", BLS, EMBEDDED, "network", put("output.0.dims", [])),
    ("config-backend", PLAN, CONTAINER, "network", put("backend", "openvino")),
    ("config-backend", PLAN, CONTAINER, "network", put("platform", "tensorrt_plan")),
    ("config-backend", BLS, EMBEDDED, "network", put("backend", "onnxruntime")),
    ("config-backend", BLS, EMBEDDED, "entry", clear("backend")),
    ("config-backend", ENSEMBLE, EMBEDDED, "entry", add("instance_group", count=1)),
    ("config-code", BLS, EMBEDDED, "entry", put("backend", "onnxruntime")),
    ("config-file", PLAN, CONTAINER, "network", put("default_model_filename", "other.plan")),
    ("config-instances", BLS, EMBEDDED, "entry", clear("instance_group")),
    ("config-instances", BLS, EMBEDDED, "entry", put("instance_group.0.count", 0)),
    ("config-instances", BLS, EMBEDDED, "entry", put("instance_group.0.count", -1)),
    ("config-kind", BLS, EMBEDDED, "entry", put("instance_group.0.kind", GROUP.KIND_GPU)),
    ("config-kind", BLS, EMBEDDED, "entry", put("instance_group.0.kind", GROUP.KIND_AUTO)),
    ("config-kind", BLS, EMBEDDED, "entry", put("instance_group.0.gpus", [0])),
    ("config-kind", PLAN, CONTAINER, "network", put("instance_group.0.kind", GROUP.KIND_CPU)),
    ("config-kind", PLAN, CONTAINER, "entry", put("instance_group.0.kind", GROUP.KIND_GPU)),
    ("config-kind", PLAN, CONTAINER, "network", put("instance_group.0.gpus", [1])),
    ("config-kind", PLAN, EMBEDDED, "network", put("instance_group.0.kind", GROUP.KIND_CPU)),
    ("config-kind", FUSED_PLAN, EMBEDDED, "entry", put("instance_group.0.gpus", [0])),
    ("config-kind", FUSED_PLAN, EMBEDDED, "tensor", put("instance_group.0.kind", GROUP.KIND_CPU)),
    ("config-profile", BLS, CONTAINER, "network", put("instance_group.0.profile", ["0"])),
    ("config-queue", BLS, EMBEDDED, "entry", put(f"{POLICY}.max_queue_size", 64)),
    ("config-queue", BLS, EMBEDDED, "entry", clear("dynamic_batching")),
    ("config-queue", BLS, CONTAINER, "entry", put(f"{POLICY}.max_queue_size", 0)),
    ("config-queue", BLS, CONTAINER, "entry", put(f"{POLICY}.timeout_action", 1)),
    ("config-timeout", BLS, CONTAINER, "entry", put(f"{POLICY}.default_timeout_microseconds", 2000)),
    ("config-timeout", BLS, CONTAINER, "entry", put("dynamic_batching.max_queue_delay_microseconds", 10**8)),
    ("config-preferred", PLAN, CONTAINER, "network", put("dynamic_batching.preferred_batch_size", [2, 5])),
    ("config-preferred", PLAN, CONTAINER, "network", put("dynamic_batching.preferred_batch_size", [0])),
    ("config-parameters", BLS, EMBEDDED, "entry", lambda config: config.parameters.pop("role")),
    ("config-parameters", BLS, EMBEDDED, "entry", parameter("role", "tensor")),
    ("config-parameters", BLS, EMBEDDED, "entry", parameter("material", "../detector_r2/2")),
    ("config-warmup", FUSED, EMBEDDED, "entry", put("model_warmup.0.batch_size", 5)),
    ("config-warmup", FUSED, EMBEDDED, "entry", put("model_warmup.0.batch_size", 0)),
    ("config-warmup", FUSED, EMBEDDED, "entry", warm("image", input_data_file="other")),
    ("config-warmup", FUSED, EMBEDDED, "entry", warm("image", data_type=triton.TYPE_FP32)),
    ("config-warmup", FUSED, EMBEDDED, "entry", warm("image", dims=[2])),
    ("config-warmup", FUSED, EMBEDDED, "entry", without_data),
    ("config-warmup", FUSED, EMBEDDED, "tensor", warm("images", dims=[3, -1, 96])),
    ("config-warmup", FUSED, EMBEDDED, "tensor", lambda config: config.model_warmup[0].inputs.pop("placement")),
    ("config-signature", BLS, EMBEDDED, "entry", put("input.0.data_type", triton.TYPE_UINT8)),
    ("config-signature", BLS, EMBEDDED, "entry", put("output.0.dims", [51, 4])),
    ("config-signature", BLS, EMBEDDED, "entry", put("output.0.dims", [-1, 4])),
    ("config-signature", BLS, EMBEDDED, "entry", put("output.3.name", "number")),
    ("config-signature", BLS, EMBEDDED, "entry", add("output", name="more", data_type=triton.TYPE_FP32, dims=[1])),
    ("config-signature", BLS, EMBEDDED, "tensor", put("input.1.data_type", triton.TYPE_FP32)),
    ("config-signature", BLS, EMBEDDED, "tensor", put("input.0.dims", [1, 96, 96])),
    ("config-signature", ENSEMBLE, EMBEDDED, "prepare", put("output.1.dims", [6])),
    ("config-signature", ENSEMBLE, EMBEDDED, "finish", lambda config: config.input.pop(1)),
    ("config-field", BLS, EMBEDDED, "entry", lambda config: config.model_metrics.metric_control.add()),
    ("config-field", ENSEMBLE, EMBEDDED, "entry", lambda config: put("ensemble_scheduling.max_inflight_requests", 3)(config)),
    ("engine-tensor", BLS, EMBEDDED, "network", put("input.0.name", "pictures")),
    ("engine-tensor", BLS, EMBEDDED, "network", put("input.0.data_type", triton.TYPE_FP16)),
    ("engine-tensor", BLS, EMBEDDED, "network", put("input.0.dims", [1, 96, 96])),
    ("engine-tensor", BLS, EMBEDDED, "network", put("output.0.dims", [-1, -1])),
    ("engine-tensor", BLS, EMBEDDED, "network", put("output.0.dims", [-1, 7, 1])),
    ("engine-tensor", BLS, EMBEDDED, "network", add("output", name="more", data_type=triton.TYPE_FP32, dims=[1])),
    ("engine-tensor", BLS, EMBEDDED, "network", put("output.0.name", "raw")),
    ("engine-batch", PLAN, CONTAINER, "network", put("max_batch_size", 9)),
    ("engine-batch", BLS, EMBEDDED, "entry", put("max_batch_size", 5)),
    ("engine-profile", PLAN, CONTAINER, "network", put("instance_group.0.profile", ["1"])),
    ("engine-profile", PLAN, CONTAINER, "network", put("instance_group.0.profile", ["best"])),
    ("engine-profile", PLAN, CONTAINER, "network", put("instance_group.0.profile", ["0", "0"])),
    ("engine-graph-batch", PLAN, CONTAINER, "network", graph(batch=5)),
    ("engine-graph-batch", PLAN, CONTAINER, "network", graph(lowest=0)),
    ("engine-graph-batch", PLAN, CONTAINER, "network", graph(lowest=2)),
    ("engine-graph", PLAN, CONTAINER, "network", graph(dim=[3, 128, 96])),
    ("engine-graph", PLAN, CONTAINER, "network", graph(dim=[3, 96])),
    ("engine-graph", PLAN, CONTAINER, "network", graph(lower_dim=[3, 64, 96])),
    ("engine-graph", PLAN, CONTAINER, "network", graph(other_input=[3, 96, 96])),
    ("engine-graph", BLS, CONTAINER, "network", no_cuda_graph_backend),
    ("ensemble-steps", ENSEMBLE, EMBEDDED, "entry", put("ensemble_scheduling.step", [])),
    ("ensemble-model", ENSEMBLE, EMBEDDED, "entry", put("ensemble_scheduling.step.0.model_name", "nobody")),
    ("ensemble-version", ENSEMBLE, EMBEDDED, "entry", put("ensemble_scheduling.step.0.model_version", -1)),
    ("ensemble-version", ENSEMBLE, EMBEDDED, "entry", put("ensemble_scheduling.step.0.model_version", 2)),
    ("ensemble-batch", ENSEMBLE, EMBEDDED, "finish", put("max_batch_size", 3)),
    ("ensemble-input", ENSEMBLE, EMBEDDED, "entry", unmap(1, "input_map", "images")),
    ("ensemble-input", ENSEMBLE, EMBEDDED, "entry", map_to(1, "input_map", "images", "pictures")),
    ("ensemble-input", ENSEMBLE, EMBEDDED, "entry", map_to(1, "input_map", "more", "images")),
    ("ensemble-input", ENSEMBLE, EMBEDDED, "entry", map_to(1, "output_map", "more", "more")),
    ("ensemble-input", ENSEMBLE, EMBEDDED, "entry", swap_steps),
    ("ensemble-tensor", ENSEMBLE, EMBEDDED, "entry", map_to(1, "input_map", "images", "placement")),
    ("ensemble-tensor", ENSEMBLE, EMBEDDED, "prepare", put("output.0.dims", [3, 96, 128])),
    ("ensemble-twice", ENSEMBLE, EMBEDDED, "entry", map_to(2, "output_map", "count", "image")),
    ("ensemble-twice", ENSEMBLE, EMBEDDED, "entry", map_to(2, "output_map", "count", "labels")),
    ("ensemble-output", ENSEMBLE, EMBEDDED, "entry", unmap(2, "output_map", "count")),
    ("ensemble-output", ENSEMBLE, EMBEDDED, "entry", put("output.3.data_type", triton.TYPE_INT64)),
    ("ensemble-cycle", ENSEMBLE, EMBEDDED, "entry", put("ensemble_scheduling.step.0.model_name", "detector_r3")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "of", "target", "role", "change"), CHANGES, ids=[f"{index}-{case[0]}" for index, case in enumerate(CHANGES)]
)
def test_one_change_is_found(code, of, target, role, change):
    assert found(of, target, role=role) == set(), "sound before the change"
    assert code in found(of, target, role=role, change=change)


def plan(**changes):
    """A TensorRT release whose one profile has something changed."""
    base = GOLDEN_PLAN.profiles[0]
    return release("bls", engine=replace(GOLDEN_PLAN, profiles=(replace(base, **changes),)))


def with_outputs(*facts):
    return release("bls", engine=replace(onnx_engine(), outputs=facts))


RAW = TensorFact(name="output", dtype="float32", shape=("N", 9, 7))
# (code, release, target)
RELEASES = [
    ("release-prepost", release("fused", prepost="graph"), EMBEDDED),
    ("release-input", release("bls", engine=onnx_engine(shape=("N", 1, "H", "W"))), EMBEDDED),
    ("release-input", release("fused", engine=onnx_engine(shape=("H", "W", 3))), EMBEDDED),
    ("release-outputs", with_outputs(), EMBEDDED),
    ("release-outputs", with_outputs(RAW, RAW), EMBEDDED),
    ("release-outputs", with_outputs(replace(RAW, name="placement")), EMBEDDED),
    ("release-outputs", with_outputs(replace(RAW, shape=("N",))), EMBEDDED),
    ("release-outputs", with_outputs(replace(RAW, shape=("N", 0))), EMBEDDED),
    ("release-batch", release("fused", batch=1, engine=onnx_engine(shape=(1, 3, 96, 96))), CONTAINER),
    ("release-batch", release("fused", batch=4, engine=onnx_engine(shape=(4, 3, 96, 96))), EMBEDDED),
    ("engine-batch", release("fused", batch=4, engine=onnx_engine(shape=(1, 3, 96, 96))), EMBEDDED),
    ("engine-batch", release("bls", batch=9, engine=GOLDEN_PLAN), CONTAINER),
    ("release-size", release("fused", engine=onnx_engine(shape=("N", 3, 128, "W"))), EMBEDDED),
    ("release-size", release("fused", shapes="minimal", engine=onnx_engine(shape=("N", 3, 96, 96))), EMBEDDED),
    (
        "release-size",
        release("fused", shapes="minimal", preprocess=Preprocess(resize="none"), engine=onnx_engine(shape=("N", 3, "H", 96))),
        EMBEDDED,
    ),
    ("release-device", release("bls", engine=GOLDEN_PLAN, device="cpu"), EMBEDDED),
    ("release-device", release("bls", device="cuda:0"), EMBEDDED),
    ("release-origin", release("bls", engine=replace(GOLDEN_PLAN, origin=None)), CONTAINER),
    ("release-origin", release("bls", engine=replace(onnx_engine(), origin=ORIGIN)), EMBEDDED),
    ("engine-range", release("fused", engine=GOLDEN_PLAN, shapes=((96, 96), (96, 128))), EMBEDDED),
    ("release-profiles", release("bls", engine=replace(GOLDEN_PLAN, profiles=())), CONTAINER),
    ("release-profiles", release("bls", engine=replace(GOLDEN_PLAN, format="onnx")), CONTAINER),
    ("release-profiles", plan(index=1), CONTAINER),
    ("release-profiles", plan(minimum=(1, 3, 96)), CONTAINER),
    ("release-profiles", plan(minimum=(1, 3, 128, 96)), CONTAINER),
    ("release-profiles", plan(maximum=(2, 3, 96, 96)), CONTAINER),
    ("release-profiles", plan(minimum=(0, 3, 96, 96)), CONTAINER),
    ("engine-range", release("bls", engine=GOLDEN_PLAN, shapes="minimal"), CONTAINER),
    ("engine-range", release("bls", engine=GOLDEN_PLAN, shapes=((96, 96), (96, 128))), CONTAINER),
    ("engine-range", release("bls", engine=GOLDEN_PLAN, shapes="minimal", preprocess=Preprocess(resize="none")), CONTAINER),
    ("engine-range", plan(minimum=(2, 3, 96, 96)), CONTAINER),
]


@pytest.mark.parametrize(("code", "of", "target"), RELEASES, ids=[f"{index}-{case[0]}" for index, case in enumerate(RELEASES)])
def test_a_release_that_its_engine_cannot_serve(code, of, target):
    assert code in found(of, target)


def test_a_profile_of_its_own_for_each_instance_is_refused():
    """A free instance gets the next request whatever its shape, so each must take every shape."""
    engine = tensorrt_engine(
        profile(0, (1, 96, 96), (1, 96, 96), (4, 96, 96)), profile(1, (1, 96, 128), (1, 96, 128), (4, 96, 128))
    )
    of = release("bls", engine=engine, shapes=((96, 96), (96, 128)))

    def split(config):
        del config.instance_group[:]
        for index in ("0", "1"):
            config.instance_group.add(kind=GROUP.KIND_GPU, count=1, gpus=[0], profile=[index])

    def without(config):
        del config.instance_group[0].profile[:]

    assert found(of, CONTAINER) == set()
    assert found(of, CONTAINER, role="network", change=split) == {"engine-range"}
    assert "engine-range" in found(of, CONTAINER, role="network", change=without), "no list means the first profile alone"


def test_a_missing_model_and_a_second_one():
    assert found(ENSEMBLE, drop="finish") == {"config-models", "ensemble-model", "ensemble-output"}
    models = render(BLS, EMBEDDED)
    assert {one.code for one in problems((*models, models[0]), BLS, EMBEDDED, "2.51.0")} == {"config-twice"}


def test_text_that_is_no_configuration_is_located():
    broken = replace(render(BLS, EMBEDDED)[0], text='name: "detector_r3_network"\nmax_batch: 4\n')
    (problem, *_) = problems((broken, *render(BLS, EMBEDDED)[1:]), BLS, EMBEDDED, "2.51.0")
    assert problem.code == "config-syntax"
    assert "2:1" in problem.got
    assert "max_batch" in problem.got


def test_stable_names_are_checked_too():
    change = put("ensemble_scheduling.step.0.model_version", 2)
    assert found(BLS, stable="detector", change=change) == {"ensemble-version"}
    assert "config-signature" in found(BLS, stable="detector_tensor", change=put("output.0.dims", [51, 4]))


@pytest.mark.parametrize(("version", "codes"), [("2.51.0", {"config-field"}), ("2.52.0", set()), ("2.71.0", set())])
def test_fields_are_known_from_the_server_that_brought_them(version, codes):
    def metrics(config):
        control = config.model_metrics.metric_control.add()
        control.metric_identifier.family = "nv_inference_first_response_histogram_ms"
        control.histogram_options.buckets.extend([1.0, 2.0])

    assert found(BLS, role="entry", change=metrics, version=version) == codes


@pytest.mark.parametrize(("version", "codes"), [("2.51.0", {"config-field"}), ("2.62.0", {"config-field"}), ("2.63.0", set())])
def test_inflight_limit_of_an_ensemble_came_later(version, codes):
    change = put("ensemble_scheduling.max_inflight_requests", 3)
    assert found(ENSEMBLE, role="entry", change=change, version=version) == codes


@pytest.mark.parametrize("version", ["2.50.0", "1.0", "latest", ""])
def test_an_unknown_server_is_refused(version):
    with pytest.raises(BadInput) as error:
        found(BLS, version=version)
    assert error.value.code == "server-version"


def test_check_says_everything_at_once():
    models = render(BLS, EMBEDDED)
    config = models[0].config
    config.max_batch_size = -1
    config.instance_group[0].count = 0
    broken = (replace(models[0], text=text_format.MessageToString(config)), *models[1:])
    with pytest.raises(BadInput) as error:
        check(broken, BLS, EMBEDDED, "2.51.0")
    text = str(error.value)
    assert error.value.code == "config-batch"
    for part in ("detector_r3_network", "max_batch_size: -1", "instances: 0", "Triton 2.51.0", "allowed: 1 or more"):
        assert part in text
    check(models, BLS, EMBEDDED, "2.51.0")


def test_every_code_is_proved_by_a_test_here():
    folder = Path(serve.__file__).parent
    sources = [*folder.glob("check_*.py"), folder / "checks.py"]
    codes = {code for path in sources for code in re.findall(r'Problem\(\s*"([a-z-]+)"', path.read_text())}
    tested = {case[0] for case in (*CHANGES, *RELEASES)} | {"config-syntax", "config-twice", "config-models"}
    assert codes == tested
