"""Rendered repositories on the real server: every pipeline answers as in-process, and a promotion reloads no release."""

from __future__ import annotations

import concurrent.futures
import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc
from google.protobuf import descriptor_pb2
from onnx import TensorProto, helper
from PIL import Image
from tritonclient.utils import InferenceServerException

from redline import vision
from redline.backend.answer import placement_numbers, unpack
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.errors import StoreError, TrialError
from redline.predict import Predictor
from redline.records import (
    Candidate,
    Head,
    Objective,
    Postprocess,
    Preprocess,
    Serving,
    TensorFact,
)
from redline.records.engine import EngineProfile, PlanOrigin
from redline.records.serve import EngineFacts, Golden, Release
from redline.serve import control, names
from redline.serve.repository import remove_release, write_repository, write_stable
from redline.serve.schema import FIELDS
from redline.store import digest_of

PIPELINES = ("fused", "bls", "ensemble")
SIZES = ((40, 64), (64, 40), (64, 64), (30, 90), (90, 30), (200, 100))


def network(path: Path) -> None:
    """A detector with dynamic N, H and W that looks at its input: three boxes whose scores are the channels' means."""
    image = helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["N", 3, "H", "W"])
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 3, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["N", 3]),
    ]
    corners = np.array([[1, 2, 20, 21], [4, 4, 30, 31], [0, 0, 9, 9]], np.float32)
    constants = {
        "axes": np.array([2, 3], np.int64),
        "corners": corners[None],
        "classes": np.array([[2, 0, 1]], np.int64),
        "last": np.array([2], np.int64),
        "no": np.zeros((1, 3), np.int64),
    }
    nodes = [
        helper.make_node("ReduceMean", ["pictures", "axes"], ["scores"], keepdims=0),
        helper.make_node("Unsqueeze", ["scores", "last"], ["column"]),
        helper.make_node("Mul", ["corners", "column"], ["boxes"]),
        helper.make_node("Cast", ["scores"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "no"], ["zeros"]),
        helper.make_node("Add", ["zeros", "classes"], ["labels"]),
    ]
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "means", [image], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def picture(index: int) -> bytes:
    height, width = SIZES[index % len(SIZES)]
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PREPROCESS = Preprocess(size=(64, 64), stride=32, scale=1 / 255)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("given")
    network(folder / "network.onnx")
    for index in range(2):
        (folder / f"golden-{index}.png").write_bytes(picture(index))
    goldens = {path.name: path for path in sorted(folder.glob("*.png"))}
    return {"network_file": folder / "network.onnx", "golden_files": goldens}


def release(given: dict[str, Any], pipeline: str, number: int) -> Release:
    def fact(name: str, dtype: str, *rest: int) -> TensorFact:
        return TensorFact(name=name, dtype=dtype, shape=("N", *rest))

    serving = Serving(pipeline=pipeline, queue_delay_us=20_000, workers=2)  # type: ignore[arg-type]
    engine = EngineFacts(
        format="onnx",
        digest=digest_of(given["network_file"].read_bytes()),
        input=TensorFact(name="pictures", dtype="float32", shape=("N", 3, "H", "W")),
        outputs=(fact("boxes", "float32", 3, 4), fact("scores", "float32", 3), fact("labels", "int64", 3)),
    )
    return Release(
        service="means",
        number=number,
        created="2026-01-02T03:04:05.000+00:00",
        run="run",
        trial="0" * 64,
        candidate=Candidate(runner="onnxruntime", batch=4, concurrency=1, shapes="minimal", serving=serving),
        engine=engine,
        preprocess=PREPROCESS,
        postprocess=Postprocess(max_detections=5),
        head=Head(kind="detections"),
        labels="index",
        classes=("a", "b", "c"),
        objective=Objective(p95_ms=50.0, throughput=10.0),
        accuracy=None,
        golden=tuple(
            Golden(file=name, sha256=digest_of(path.read_bytes()), boxes=(), scores=(), labels=())
            for name, path in given["golden_files"].items()
        ),
        redline="0.1.0",
        tools=(),
    )


@pytest.fixture(scope="module")
def served(triton, given):
    """One release of each pipeline on the server, 1 to 3."""
    releases = {}
    for number, pipeline in enumerate(PIPELINES, 1):
        of = release(given, pipeline, number)
        for files in write_repository(repository_of(triton), of, "embedded", **given):
            triton.control.load(files.name)
        releases[pipeline] = of
    yield triton, releases
    for of in releases.values():
        for role in ("entry", "tensor", "finish", "prepare", "network"):
            name = names.model_name(of.service, of.number, role)
            if (repository_of(triton) / name).exists():
                triton.control.unload(name)


def repository_of(triton: Any) -> Path:
    return triton._repository


def ask(triton: Any, model: str, version: int, arrays: dict[str, Any]) -> dict[str, Any]:
    with grpc.InferenceServerClient(f"127.0.0.1:{triton.known.grpc_port}") as client:
        inputs = []
        for name, array in arrays.items():
            kind = {np.dtype(np.float32): "FP32", np.dtype(np.float64): "FP64", np.dtype(object): "BYTES"}[array.dtype]
            inputs.append(grpc.InferInput(name, list(array.shape), kind))
            inputs[-1].set_data_from_numpy(array)
        answer = client.infer(model, inputs, model_version=str(version))
        assert answer.get_response().model_version == str(version)
        return {name: answer.as_numpy(name) for name in names.DETECTIONS}


def encoded(*images: bytes) -> dict[str, Any]:
    return {"image": np.array([[image] for image in images], np.object_)}


@pytest.fixture(scope="module")
def in_process(given):
    runner = OnnxRuntimeRunner(str(given["network_file"]), threads=1, concurrent=False)
    return Predictor(runner, PREPROCESS, Head(kind="detections"), Postprocess(max_detections=5), "minimal")


def same(found: Any, expected: Any) -> None:
    assert len(expected.scores) == 3
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_images_of_many_sizes_at_once_are_detected_as_in_process(served, in_process, pipeline):
    triton, releases = served
    of = releases[pipeline]
    images = [picture(index) for index in range(24)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda image: ask(triton, f"means_r{of.number}", of.number, encoded(image)), images))
    for answer, expected in zip(answers, in_process.from_bytes(images), strict=True):
        same(unpack(answer, 0), expected)
    shapes = {vision.input_size(vision.decode(image, name="x").shape[:2], PREPROCESS, "minimal") for image in images}
    assert len(shapes) == 3


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_preprocessed_tensors_are_detected_as_in_process(served, in_process, pipeline):
    triton, releases = served
    of = releases[pipeline]
    for index in (0, 2):
        image = vision.decode(picture(index), name="x")
        tensor, placement = vision.prepare(image, PREPROCESS, "minimal")
        arrays = {"images": tensor[None], "placement": placement_numbers(placement)[None]}
        same(unpack(ask(triton, f"means_r{of.number}_tensor", of.number, arrays), 0), in_process([image])[0])


def test_requests_are_joined_and_processes_were_warm(served):
    triton, _ = served
    fused = triton.control.statistics("means_r1", 1)
    assert fused.mean_batch > 1.0, "24 requests of three shapes shared executions"
    warm = triton.control.statistics("means_r2_network", 2)
    assert warm.failures == 0


def test_warm_up_detects_on_golden_images_in_every_form(triton, given):
    """Triton loads no model whose warm-up fails: two golden images, the first also as a batch of 4."""
    of = replace(release(given, "fused", 7), service="warm")
    for files in write_repository(repository_of(triton), of, "embedded", **given):
        triton.control.load(files.name)
    entry, tensor = triton.control.statistics("warm_r7", 7), triton.control.statistics("warm_r7_tensor", 7)
    assert (entry.inferences, entry.executions, entry.failures) == (6, 3, 0)
    assert (tensor.inferences, tensor.executions, tensor.failures) == (1, 1, 0)
    for name in ("warm_r7", "warm_r7_tensor"):
        triton.control.unload(name)
    remove_release(repository_of(triton), "warm", 7)


def test_a_broken_warm_up_is_a_failed_load(own_triton, given, monkeypatch):
    """On a server of its own: 2.51 can hang or die of a failed warm-up on a busy machine, and then the load fails as well."""
    monkeypatch.setattr(control, "LOAD_TIMEOUT_S", 20.0)
    own_triton.start()
    of = replace(release(given, "fused", 8), service="warm")
    write_repository(repository_of(own_triton), of, "embedded", **given)
    (repository_of(own_triton) / "warm_r8" / "warmup" / "golden-0.png.string").write_bytes(b"\4\0\0\0junk")
    with pytest.raises((TrialError, StoreError)) as error:
        own_triton.control.load("warm_r8")
    if isinstance(error.value, TrialError):
        assert "failed to run warmup sample 'golden-0.png x1'" in str(error.value)
    assert not own_triton.control.ready("warm_r8", 8)


def settled(triton, number):
    """Requests counted: Triton counts one after it has answered it."""
    count = -1
    while count != (count := triton.control.statistics(f"means_r{number}", number).requests):
        time.sleep(0.2)
    return count


def test_promotions_move_the_stable_names_and_reload_no_release(served, in_process):
    """A reload would start the statistics anew (and cost seconds of every core)."""
    triton, releases = served
    image = picture(2)
    expected = in_process.from_bytes([image])[0]
    for of in releases.values():
        ask(triton, f"means_r{of.number}", of.number, encoded(image))
    before = {of.number: settled(triton, of.number) for of in releases.values()}
    for pipeline in ("fused", "ensemble", "bls", "fused"):
        of = releases[pipeline]
        write_stable(repository_of(triton), "means", of)
        for name in ("means", "means_tensor"):
            triton.control.load(name)
            assert triton.control.ready(name, of.number)
        same(unpack(ask(triton, "means", of.number, encoded(image)), 0), expected)
        assert not any(triton.control.ready("means", other.number) for other in releases.values() if other != of)
    for of in releases.values():
        after = settled(triton, of.number)
        assert after - before[of.number] == {"fused": 2, "bls": 1, "ensemble": 1}[of.candidate.serving.pipeline]
    for name in ("means", "means_tensor"):
        triton.control.unload(name)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_batch_over_the_maximum_is_refused_and_the_server_lives(served, pipeline):
    triton, releases = served
    number = releases[pipeline].number
    with pytest.raises(InferenceServerException, match="batch-size must be <= 4"):
        ask(triton, f"means_r{number}", number, encoded(*[picture(2)] * 5))
    assert len(unpack(ask(triton, f"means_r{number}", number, encoded(*[picture(2)] * 4)), 3).scores) == 3


def container_releases(given):
    of = release(given, "fused", 5)
    profile = EngineProfile(index=0, minimum=(1, 3, 32, 32), optimum=(2, 3, 64, 64), maximum=(4, 3, 64, 64))
    origin = PlanOrigin(graph="0" * 64, library="tensorrt", version="10.5.0", gpu="H100 9.0")
    engine = replace(of.engine, format="tensorrt", profiles=(profile,), origin=origin)
    buckets = ((32, 64), (64, 32), (64, 64))
    on_gpu = replace(of.candidate, runner="tensorrt", device="cuda:0", cuda_graphs=True, profiles="dynamic", shapes=buckets)
    return {"onnxruntime": of, "tensorrt": replace(of, number=6, engine=engine, candidate=on_gpu)}


NO_GPU = "specifies invalid or unsupported gpu id 0. GPUs with at least the minimum required CUDA compute compatibility"


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_the_servers_parser_takes_the_containers_configuration(triton, given, backend):
    """The wheel has no such backend, and that is all it finds wrong."""
    of = replace(container_releases(given)[backend], service=f"for-{backend}")
    write_repository(repository_of(triton), of, "container", **given)
    with pytest.raises(TrialError) as error:
        triton.control.load(f"for-{backend}_r{of.number}_network")
    assert f"unable to find backend library for backend '{backend}'" in str(error.value)
    remove_release(repository_of(triton), of.service, of.number)


@pytest.mark.parametrize("role", ["entry", "tensor"])
def test_the_server_finds_nothing_wrong_with_processes_on_a_gpu_but_that_there_is_none(triton, given, role):
    of = replace(container_releases(given)["tensorrt"], service=f"plan-{role}")
    write_repository(repository_of(triton), of, "embedded", **given)
    with pytest.raises(TrialError) as error:
        triton.control.load(names.model_name(of.service, of.number, role))
    assert NO_GPU in str(error.value)
    remove_release(repository_of(triton), of.service, of.number)


def fields_in(binary: bytes) -> dict[str, set[str]]:
    """Fields by message in the descriptor of model_config.proto that a program was built with: it lies in it as one piece."""
    start = end = binary.index(b"\x0a\x12model_config.proto")
    while binary[end] & 7 == 2 and binary[end] >> 3 <= 12:  # length-delimited fields of a FileDescriptorProto, up to `syntax`
        last, length, shift = binary[end] >> 3, 0, 0
        end += 1
        while True:
            byte = binary[end]
            length, shift, end = length | (byte & 127) << shift, shift + 7, end + 1
            if byte < 128:
                break
        end += length
        if last == 12:
            break
    found: dict[str, set[str]] = {}

    def walk(messages: Any, prefix: str) -> None:
        for message in messages:
            if not message.options.map_entry:
                found[prefix + message.name] = {field.name for field in message.field}
            walk(message.nested_type, f"{prefix}{message.name}.")

    walk(descriptor_pb2.FileDescriptorProto.FromString(binary[start:end]).message_type, "")
    return found


def test_the_table_of_fields_is_the_servers_own(environment):
    binary = Path(environment.binary).read_bytes()
    assert {name: set(fields.split()) for name, fields in FIELDS.items()} == fields_in(binary)
