"""A finished run whose choice is a TensorRT engine, released: files, refusals, and the server's Python code on the engine.

CUDA and TensorRT are the fakes of this folder, and so is the module that Triton gives its Python models; the rest is real.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as triton

import redline.backend
from redline import releasing
from redline.data import load_dataset
from redline.engine import devices, tensorrt_versions
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.errors import BadInput, RedlineError, TrialError
from redline.networks import Network, network_of, open_network, with_engine_shapes
from redline.parity import differs
from redline.plan.gpu import engine_profiles
from redline.predict import Predictor
from redline.progress import Progress
from redline.records import BuildOptions, Candidate, Detections, EngineRecord, Preprocess, Release, RunRecord, Serving, Spec
from redline.releasable import choice_to_serve
from redline.serve.checks import problems
from redline.serve.config import ModelFiles, render
from redline.serve.repository import write_repository
from redline.store import Store, load
from redline.store.disk import sha256_of

QUIET = Progress(None)
CHOSEN = Candidate(
    runner="tensorrt", device="cuda:0,1", batch=4, concurrency=3, shapes="minimal", profiles="exact", cuda_graphs=True
)
GROUP = triton.ModelInstanceGroup


@dataclass(frozen=True)
class Case:
    """A finished run on a made-up machine with two GPUs."""

    spec: Spec
    record: RunRecord
    runs: Path

    def network(self) -> Network:
        candidate, trial = choice_to_serve(self.record)
        return network_of(self.spec, self.record, candidate, trial, self.runs, QUIET)

    def made(self, pipeline: str = "fused") -> tuple[Release, Network, Any]:
        candidate, trial = choice_to_serve(self.record)
        network = self.network()
        serving = Serving(pipeline=pipeline)  # type: ignore[arg-type]
        candidate = replace(with_engine_shapes(candidate, network.engine, self.spec, self.record), serving=serving)
        expected = releasing.expect(self.spec, self.record, candidate, network)
        made = releasing.make_release(self.spec, self.record, candidate, trial, expected, 1, engine=network.engine)
        return made, network, expected


Make = Callable[..., Case]


@pytest.fixture
def make(cuda: FakeCuda, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    for module in (devices, tensorrt_versions):
        monkeypatch.setattr(module, "find", lambda name=None: trt.library())
    monkeypatch.setattr(devices, "unusable", lambda library: None)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "triton"))
    blob_case = importlib.import_module("blob_case")

    def finished(candidate: Candidate = CHOSEN, **options: Any) -> Case:
        from redline.engine.foundry import Foundry

        spec = blob_case.project(tmp_path / "project")
        record: RunRecord = blob_case.finished_run(spec, tmp_path / "runs", replace(candidate, shapes="minimal"))
        assert record.onnx is not None
        profiles = engine_profiles(candidate, record.data.traffic, spec.model.preprocess, 8).profiles
        foundry = Foundry(trt.library(), Store(tmp_path / "runs" / "store"), None, QUIET.build)
        build = foundry.build(record.onnx, BuildOptions(precision="fp32", profiles=profiles, **options), "x")
        (trial,) = (replace(trial, candidate=candidate, engine=build.digest) for trial in record.trials)
        choice = replace(record.choice, candidate=candidate)
        record = replace(record, trials=(trial,), choice=choice, engines=(EngineRecord(build=build),))
        return Case(spec, record, tmp_path / "runs")

    return finished


def configs(models: Sequence[ModelFiles], folder: Path) -> dict[str, Any]:
    """As they are on the disk, by role."""
    return {
        str(files.role): text_format.Parse((folder / files.name / "config.pbtxt").read_text(), triton.ModelConfig())
        for files in models
    }


def write(made: Release, network: Network, expected: Any, folder: Path, target: Any) -> tuple[ModelFiles, ...]:
    with releasing.golden_files(made, expected) as files:
        return write_repository(folder, made, target, network_file=network.path, golden_files=files)


def test_the_embedded_repository_has_the_engine_its_runner_and_processes_on_its_gpus(make: Make, tmp_path: Path) -> None:
    case = make()
    made, network, expected = case.made()
    engine, build = made.engine, case.record.engines[0].build
    assert (engine.format, engine.digest, engine.profiles) == ("tensorrt", build.digest, build.options.profiles)
    assert (engine.input.name, [out.name for out in engine.outputs]) == ("images", ["raw"])
    assert engine.origin is not None
    assert (engine.origin.version, engine.origin.gpu, engine.origin.graph) == ("10.13.0", "Fake 1 8.9", build.onnx)
    assert engine.origin.rebuild.endswith("--precision fp32 --profiles exact --minimal --batched")
    models = write(made, network, expected, tmp_path / "served", "embedded")
    assert problems(models, made, "embedded", "2.51.0") == ()
    found = configs(models, tmp_path / "served")
    assert set(found) == {"tensor", "entry"}
    for config in found.values():
        (group,) = config.instance_group
        assert (group.kind, group.count, list(group.gpus)) == (GROUP.KIND_GPU, 2, [0, 1])
        assert config.max_batch_size == 4
    version = tmp_path / "served" / models[-1].name / "1"
    assert sha256_of(version / "network.plan") == build.digest
    assert load(Release, (version / "release.json").read_bytes()) == made
    assert (version / "code" / "redline" / "engine" / "tensorrt_runner.py").is_file()
    assert {path.name for path in (version / "golden").iterdir()} == {golden.file for golden in made.golden}
    warm = {tuple(one.inputs["images"].dims) for one in found["tensor"].model_warmup}
    assert warm == {profile.optimum[1:] for profile in engine.profiles}


def test_the_container_gets_the_plan_with_profiles_graphs_and_a_readme(make: Make) -> None:
    case = make()
    spec = replace(case.spec, target=replace(case.spec.target, server="container"))
    outcome = releasing.release(spec, case.record, runs=case.runs, progress=QUIET)
    assert outcome.verdict.answer == "inconclusive"
    folder, service = Path(outcome.folder), spec.serve.name
    config = text_format.Parse((folder / f"{service}_r1_network" / "config.pbtxt").read_text(), triton.ModelConfig())
    build = case.record.engines[0].build
    assert sha256_of(folder / f"{service}_r1_network" / "1" / "model.plan") == build.digest
    made = load(Release, (folder / f"{service}_r1" / "1" / "release.json").read_bytes())
    assert problems(render(made, "container"), made, "container", "2.51.0") == ()
    (group,) = config.instance_group
    profiles = [str(profile.index) for profile in build.options.profiles]
    assert (config.backend, group.kind, group.count, list(group.gpus)) == ("tensorrt", GROUP.KIND_GPU, 2, [0, 1])
    assert list(group.profile) == profiles
    assert len(profiles) == 3
    sizes = {tuple(graph.input["images"].dim) for graph in config.optimization.cuda.graph_spec}
    assert sizes == {profile.optimum[1:] for profile in build.options.profiles}
    assert {sample.batch_size for sample in config.model_warmup} == {4}
    assert config.optimization.input_pinned_memory.enable
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 128
    readme = (folder / "README.md").read_text()
    assert "tensorrt 10.13.0 on Fake 1 8.9" in readme
    assert "GPU 0 and 1" in readme


def test_shapes_that_no_profile_takes_are_padded_into_one_that_does(make: Make) -> None:
    """The traffic has 96 x 128, 128 x 96 and 128 x 128; a long image has a shape of its own under "minimal"."""
    case = make()
    made = case.made()[0]
    assert made.candidate.shapes == ((96, 128), (128, 96), (128, 128))
    dynamic = make(replace(CHOSEN, profiles="dynamic"))
    assert len(dynamic.record.engines[0].build.options.profiles) == 1
    assert dynamic.made()[0].candidate.shapes == made.candidate.shapes
    fixed = make(replace(CHOSEN, shapes="fixed"))
    assert fixed.made()[0].candidate.shapes == "fixed"


def test_an_orientation_that_the_traffic_lacks_is_not_sent_to_the_engine(make: Make) -> None:
    """Under "fixed" a shortest-side resize has one shape for each orientation; the engine may have been built for one."""
    case = make()
    preprocess = Preprocess(resize="shortest-side", size=(96, 128))
    spec = replace(case.spec, model=replace(case.spec.model, preprocess=preprocess))
    engine, fixed = case.network().engine, replace(CHOSEN, shapes="fixed")
    both = [profile for profile in engine.profiles if profile.maximum[2:] != (128, 128)]
    assert len(both) == 2
    assert with_engine_shapes(fixed, replace(engine, profiles=tuple(both)), spec, case.record) == fixed
    one = next(profile for profile in both if profile.maximum[2:] == (96, 128))
    found = with_engine_shapes(fixed, replace(engine, profiles=(one,)), spec, case.record)
    assert found.shapes == ((96, 128),)
    whole = replace(one, minimum=(1, 3, 32, 32), maximum=(8, 3, 128, 128))
    free = replace(CHOSEN, profiles="dynamic")
    assert with_engine_shapes(free, replace(engine, profiles=(whole,)), case.spec, case.record).shapes == "minimal"


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> Any:
        return self.array


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`TritonPythonModel` over the part of Triton's module that it calls."""
    pb = ModuleType("triton_python_backend_utils")
    error = type("TritonError", (str,), {"__new__": lambda cls, text, code: str.__new__(cls, text)})
    error.INVALID_ARG, error.INTERNAL = 3, 1  # type: ignore[attr-defined]
    response: Any = lambda tensors=(), error=None: SimpleNamespace(tensors=tensors, error=error)  # noqa: E731
    for name, value in {"TritonError": error, "Tensor": Tensor, "InferenceResponse": response}.items():
        setattr(pb, name, value)
    pb.get_input_tensor_by_name = lambda request, name: request[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb)
    monkeypatch.delitem(sys.modules, "redline.backend.model", raising=False)
    yield importlib.import_module("redline.backend.model").TritonPythonModel
    sys.modules.pop("redline.backend.model", None)
    if hasattr(redline.backend, "model"):
        del redline.backend.model


def opened(backend: Any, folder: Path, config: Any, *, kind: str = "GPU") -> Any:
    """As Triton starts a process of the second GPU."""
    model = backend()
    text = json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True))
    args = {"model_config": text, "model_repository": str(folder / config.name)}
    model.initialize({**args, "model_instance_kind": kind, "model_instance_device_id": "1"})
    return model


def test_the_servers_code_on_the_engine_answers_as_onnx_runtime(
    make: Make, backend: Any, cuda: FakeCuda, tmp_path: Path
) -> None:
    import numpy as np

    from redline.backend.answer import placement_numbers, unpack
    from redline.vision import decode, prepare

    case = make()
    made, network, expected = case.made()
    models = write(made, network, expected, tmp_path / "served", "embedded")
    found = configs(models, tmp_path / "served")
    model = case.spec.model
    runner = OnnxRuntimeRunner(str(Store(case.runs / "store").path(str(made.engine.origin.graph))), threads=1, concurrent=False)  # type: ignore[union-attr]
    predict = Predictor(runner, model.preprocess, model.head, model.postprocess, made.candidate.shapes)
    images = [Path(image.path).read_bytes() for image in load_dataset(case.spec.data.evaluate).images]
    wanted: list[Detections] = [one for image in images for one in predict.from_bytes([image])]
    assert sum(len(one.scores) for one in wanted) > len(images)

    entry = opened(backend, tmp_path / "served", found["entry"])
    assert len(cuda.graphs) == 2 * len(made.engine.profiles), "each profile has run alone and as a full batch"
    rows = [np.array([[image] for image in images[start : start + 4]], np.object_) for start in range(0, len(images), 4)]
    answers = entry.execute([{"image": Tensor("image", part)} for part in rows])
    served = [
        unpack({tensor.name: tensor.array for tensor in answer.tensors}, row)
        for answer, part in zip(answers, rows, strict=True)
        for row in range(len(part))
    ]
    assert [differs(a, b) for a, b in zip(wanted, served, strict=True)] == [None] * len(images)
    assert [differs(a, b) for a, b in zip(expected.detections, served, strict=True)] == [None] * len(images)

    tensors = opened(backend, tmp_path / "served", found["tensor"])
    array, place = prepare(decode(images[0], name="first"), model.preprocess, made.candidate.shapes)
    request = {"images": Tensor("images", array[None]), "placement": Tensor("placement", placement_numbers(place)[None])}
    (answer,) = tensors.execute([request])
    assert differs(wanted[0], unpack({tensor.name: tensor.array for tensor in answer.tensors}, 0)) is None


def test_the_network_of_a_bls_release_runs_in_a_process_on_the_gpu(make: Make, backend: Any, tmp_path: Path) -> None:
    import numpy as np

    case = make()
    made, network, expected = case.made("bls")
    found = configs(write(made, network, expected, tmp_path / "served", "embedded"), tmp_path / "served")
    assert {role: config.instance_group[0].kind for role, config in found.items()} == {
        "network": GROUP.KIND_GPU,
        "tensor": GROUP.KIND_CPU,
        "entry": GROUP.KIND_CPU,
    }
    batch = np.random.default_rng(0).uniform(0, 255, (3, 3, 128, 96)).astype(np.float32)
    model = opened(backend, tmp_path / "served", found["network"])
    (answer,) = model.execute([{"images": Tensor("images", batch)}])
    assert answer.error is None
    runner = open_network(network, made.candidate)
    assert answer.tensors[0].array.tolist() == runner.run(batch)[0].tolist()
    runner.close()
    with pytest.raises(TrialError, match="needs a GPU"):
        opened(backend, tmp_path / "served", found["network"], kind="CPU")


def test_a_process_on_another_gpu_or_tensorrt_refuses_the_engine_with_the_command_that_builds_it(
    make: Make, backend: Any, cuda: FakeCuda, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = make()
    made, network, expected = case.made()
    found = configs(write(made, network, expected, tmp_path / "served", "embedded"), tmp_path / "served")
    cuda.name = "Fake 2"
    with pytest.raises(TrialError) as caught:
        opened(backend, tmp_path / "served", found["entry"])
    assert caught.value.code == "engine-place"
    assert (caught.value.got, caught.value.allowed) == ("tensorrt 10.13.0 on Fake 2 8.9", "tensorrt 10.13.0 on Fake 1 8.9")
    assert "redline build" in str(caught.value.fix)
    cuda.name = "Fake 1"
    monkeypatch.setattr(tensorrt_versions, "find", lambda name=None: FakeTensorRT("11.0", cuda).library())
    with pytest.raises(TrialError, match="another TensorRT"):
        opened(backend, tmp_path / "served", found["entry"])


@pytest.mark.parametrize(
    ("options", "here", "runs"),
    [
        ({}, ("10.13.0", "Fake 1", 8), True),
        ({}, ("10.16", "Fake 1", 8), False),
        ({"version_compatible": True}, ("10.16", "Fake 1", 8), True),
        ({"version_compatible": True}, ("10.7.0", "Fake 1", 8), False),
        ({"version_compatible": True}, ("11.0", "Fake 1", 8), False),
        ({"hardware": "same-capability"}, ("10.13.0", "Fake 2", 8), True),
        ({"hardware": "same-capability"}, ("10.13.0", "Fake 2", 9), False),
        ({"hardware": "ampere-plus"}, ("10.13.0", "Fake 2", 9), True),
        ({"hardware": "ampere-plus"}, ("10.13.0", "Fake 2", 7), False),
    ],
)
def test_where_an_engine_may_be_released(
    make: Make, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, options: Any, here: tuple[str, str, int], runs: bool
) -> None:
    case = make(**options)
    version, name, major = here
    for module in (devices, tensorrt_versions):
        monkeypatch.setattr(module, "find", lambda name=None: FakeTensorRT(version, cuda).library())
    properties = SimpleNamespace(name=name.encode(), major=major, minor=9)
    cudart = importlib.import_module("redline.engine.cuda").cudart
    monkeypatch.setattr(cudart, "cudaGetDeviceProperties", lambda device: (0, properties))
    if runs:
        assert case.network().engine.digest == case.record.engines[0].build.digest
        return
    with pytest.raises(BadInput) as caught:
        case.network()
    assert caught.value.code == "engine-place"
    assert version in str(caught.value.got)
    assert "redline build" in str(caught.value.fix)
    assert "redline run" in str(caught.value.fix)


def test_a_plan_that_is_gone_is_built_anew_and_must_be_as_accurate(make: Make, trt: FakeTensorRT, tmp_path: Path) -> None:
    case = make()
    store, build = Store(case.runs / "store"), case.record.engines[0].build
    store.path(build.digest).write_bytes(b"damaged")
    trt.tactic = "tactic_b"
    network = case.network()
    assert network.anew
    assert network.engine.digest != build.digest
    assert sha256_of(network.path) == network.engine.digest
    assert len(trt.builds) == 2
    made, network, expected = case.made()
    releasing.require_accuracy(made, expected)
    assert made.accuracy is not None
    better = replace(made, accuracy=replace(made.accuracy, ap=made.accuracy.ap - 0.01))
    with pytest.raises(BadInput, match="not as accurate"):
        releasing.require_accuracy(better, expected)
    for digest in (network.engine.digest, build.onnx):
        store.drop(digest)
    with pytest.raises(BadInput) as caught:
        case.network()
    assert caught.value.code == "release.engine"
    assert caught.value.fix == "redline run makes it again"


def refused(case: Case) -> RedlineError:
    with pytest.raises(BadInput) as caught:
        releasing.release(case.spec, case.record, runs=case.runs, progress=QUIET)
    assert not (case.runs / "services").exists()
    return caught.value


def test_what_cannot_be_released_says_why(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = make()
    torch = replace(CHOSEN, runner="torch-compile", profiles=None)
    of_torch = replace(case.record, choice=replace(case.record.choice, candidate=torch))
    error = refused(replace(case, record=of_torch))
    assert error.code == "release.runner"
    assert "has no torch" in error.what
    error = refused(replace(case, record=replace(case.record, engines=())))
    assert error.code == "release.engine"

    asked: list[tuple[str, str]] = []

    def require(environment: Any, library: str, version: str) -> None:
        asked.append((library, version))
        raise BadInput("serve.tensorrt", "the server's Python cannot run the engine", fix="redline serve --install")

    monkeypatch.setattr("redline.serve.environment.find_environment", lambda: None)
    monkeypatch.setattr("redline.serve.environment.require_tensorrt", require)
    assert refused(case).code == "serve.tensorrt"
    assert asked == [("tensorrt", "10.13.0")]
    facts = replace(devices.tensorrt_facts(), problem="the CUDA runtime's binding is missing")
    monkeypatch.setattr(devices, "tensorrt_facts", lambda: facts)
    error = refused(case)
    assert (error.code, error.got) == ("release.gpu", "the CUDA runtime's binding is missing")
