"""The stable names at Triton itself: every pipeline in turn, bytes and tensors, over HTTP, gRPC and shared memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import blob_case
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
import tritonclient.utils.shared_memory as shm
from service_case import Case, promoted, serving, waited
from tritonclient.utils import InferenceServerException

from redline import vision
from redline.backend.answer import placement_numbers, unpack
from redline.errors import BadInput, TrialError
from redline.parity import differs
from redline.records import Detections, Routes, Serving
from redline.serve.client import Endpoint, SharedTensor
from redline.serve.control import ADMIN_HEADER
from redline.serve.names import DETECTIONS

PIPELINES = ("fused", "bls", "ensemble")
KEYS = {http: ADMIN_HEADER, grpc: f"triton-grpc-protocol-{ADMIN_HEADER}"}


class Served(NamedTuple):
    case: Case
    number: int
    ports: dict[ModuleType, int]
    key: str

    def client(self, kind: ModuleType) -> Any:
        return kind.InferenceServerClient(f"127.0.0.1:{self.ports[kind]}")


@pytest.fixture(scope="module")
def service(environment, tmp_path_factory):
    case = Case(tmp_path_factory.mktemp("entries"))
    with serving(case) as service:
        yield case, service


@pytest.fixture(scope="module", params=PIPELINES)
def served(service, request) -> Served:
    """A release of this pipeline, promoted over the one before."""
    case, running = service
    number = case.add(candidate=blob_case.candidate(serving=Serving(pipeline=request.param)))
    promoted(running, number)
    info = running.info
    return Served(case, number, {http: info.http_port, grpc: info.grpc_port}, info.server_key)


def inputs_of(kind: ModuleType, **arrays: np.ndarray) -> list[Any]:
    types = {"image": "BYTES", "images": "FP32", "placement": "FP64"}
    found = []
    for name, array in arrays.items():
        one = kind.InferInput(name, list(array.shape), types[name])
        one.set_data_from_numpy(array)
        found.append(one)
    return found


def found_in(answer: Any, rows: int) -> list[Detections]:
    arrays = {name: answer.as_numpy(name) for name in DETECTIONS}
    return [unpack(arrays, row) for row in range(rows)]


def served_by(kind: ModuleType, answer: Any) -> tuple[str, str]:
    response = answer.get_response()
    return (
        (response["model_name"], response["model_version"]) if kind is http else (response.model_name, response.model_version)
    )


@pytest.mark.parametrize("kind", [http, grpc], ids=["http", "grpc"])
def test_images_by_the_stable_name(served: Served, kind) -> None:
    client, case = served.client(kind), served.case
    for image, wanted in zip(case.expected.encoded, case.expected.detections, strict=True):
        answer = client.infer("detector", inputs_of(kind, image=np.array([[image]], np.object_)))
        assert served_by(kind, answer) == ("detector", str(served.number))
        assert differs(wanted, found_in(answer, 1)[0]) is None


def test_several_images_and_a_bad_one_in_a_request(served: Served) -> None:
    case, client = served.case, served.client(http)
    of_one_shape = [index for index, image in enumerate(case.expected.dataset.images) if image.height == image.width][:2]
    images = [case.expected.encoded[index] for index in of_one_shape]
    answer = client.infer("detector", inputs_of(http, image=np.array([[image] for image in images], np.object_)))
    for index, found in zip(of_one_shape, found_in(answer, 2), strict=True):
        assert differs(case.expected.detections[index], found) is None
    several = np.array([[images[0]], [images[1][: len(images[1]) // 2]]], np.object_)
    if served.case.repository.joinpath(f"detector_r{served.number}_finish").exists():
        with pytest.raises(
            InferenceServerException, match="ends before its pixels do"
        ) as caught:  # an ensemble's steps see whole requests
            client.infer("detector", inputs_of(http, image=several))
        assert caught.value.status() == "400"
        return
    answer = client.infer("detector", inputs_of(http, image=several))
    arrays = {name: answer.as_numpy(name) for name in DETECTIONS}
    assert differs(case.expected.detections[of_one_shape[0]], unpack(arrays, 0)) is None
    with pytest.raises(BadInput, match="ends before its pixels do"):
        unpack(arrays, 1)
    assert arrays["count"][1, 0] == 0


@pytest.mark.parametrize("damage", [lambda image: image[:200], lambda image: b"", lambda image: b"GIF89a" + bytes(50)])
def test_a_bad_image_alone_is_a_400(served: Served, damage) -> None:
    image = damage(served.case.expected.encoded[0])
    with pytest.raises(InferenceServerException) as caught:
        served.client(http).infer("detector", inputs_of(http, image=np.array([[image]], np.object_)))
    assert caught.value.status() == "400"
    with pytest.raises(InferenceServerException) as told:
        served.client(grpc).infer("detector", inputs_of(grpc, image=np.array([[image]], np.object_)))
    assert "INVALID_ARGUMENT" in str(told.value.status())


def prepared(case: Case) -> Iterator[tuple[Detections, np.ndarray, np.ndarray]]:
    """Of each image its detections in-process, and what the second entry takes."""
    for image, wanted in zip(case.expected.encoded, case.expected.detections, strict=True):
        tensor, placement = vision.prepare(vision.decode(image, name="image"), case.spec.model.preprocess, "minimal")
        yield wanted, tensor, placement_numbers(placement)


@pytest.mark.parametrize("kind", [http, grpc], ids=["http", "grpc"])
def test_tensors_of_several_shapes_by_the_stable_name(served: Served, kind) -> None:
    client, shapes = served.client(kind), set()
    for wanted, tensor, placement in prepared(served.case):
        answer = client.infer("detector_tensor", inputs_of(kind, images=tensor[None], placement=placement[None]))
        assert served_by(kind, answer) == ("detector_tensor", str(served.number))
        assert differs(wanted, found_in(answer, 1)[0]) is None
        shapes.add(tensor.shape)
    assert len(shapes) == 3


def let_go(act: Callable[[], object]) -> bool:
    """Triton lets a region go a moment after it has answered, later in an ensemble."""
    try:
        act()
    except InferenceServerException as error:
        if "currently in use" in str(error):
            return False
        raise
    return True


@pytest.mark.parametrize("kind", [http, grpc], ids=["http", "grpc"])
def test_tensors_in_shared_memory(served: Served, kind) -> None:
    client, owner = served.client(kind), {KEYS[kind]: served.key}
    size, name = 3 * 128 * 128 * 4 + 64, f"redline-test-{kind.__name__}-{served.number}"
    region = shm.create_shared_memory_region(name, name, size)
    try:
        with pytest.raises(InferenceServerException):
            client.register_system_shared_memory(name, name, size)
        client.register_system_shared_memory(name, name, size, headers=owner)
        for wanted, tensor, placement in prepared(served.case):
            shm.set_shared_memory_region(region, [placement])
            shm.set_shared_memory_region(region, [tensor], offset=64)
            images, places = kind.InferInput("images", [1, *tensor.shape], "FP32"), kind.InferInput("placement", [1, 8], "FP64")
            places.set_shared_memory(name, 64)
            images.set_shared_memory(name, tensor.nbytes, offset=64)
            answer = client.infer("detector_tensor", [images, places])
            assert served_by(kind, answer) == ("detector_tensor", str(served.number))
            assert differs(wanted, found_in(answer, 1)[0]) is None
        waited(lambda: let_go(lambda: client.unregister_system_shared_memory(name, headers=owner)), 3, "the region's release")
    finally:
        shm.destroy_shared_memory_region(region)


def test_our_own_clients_on_every_entry(served: Served) -> None:
    case, port = served.case, served.ports[http]
    endpoint = Endpoint(port, "detector")
    for image, wanted in zip(case.expected.encoded, case.expected.detections, strict=True):
        assert differs(wanted, endpoint.detect(image)) is None
    endpoint.close()
    with pytest.raises(TrialError):
        SharedTensor(port, "detector_tensor", served.number, "not the key", (3, 128, 128))
    for wanted, tensor, placement in list(prepared(case))[:3]:
        shared = SharedTensor(port, "detector_tensor", served.number, served.key, tensor.shape)
        shared.images[:], shared.placement[:] = tensor, placement
        assert differs(wanted, shared.detect()) is None
        shared.close()


def test_a_tensor_that_does_not_fit_is_the_clients_mistake(served: Served) -> None:
    wanted, tensor, placement = next(prepared(served.case))
    assert len(wanted.scores)
    client = served.client(http)
    broken = tensor.copy()
    broken[0, 3, 4] = np.nan
    elsewhere = placement.copy()
    elsewhere[2:4] = 64
    odd = tensor[:, : tensor.shape[1] - 7]
    for images, numbers in ((broken, placement), (tensor, elsewhere), (odd, placement)):
        given = inputs_of(http, images=np.ascontiguousarray(images)[None], placement=numbers[None])
        with pytest.raises(InferenceServerException) as caught:
            client.infer("detector_tensor", given)
        assert caught.value.status() == "400"


def test_the_release_before_is_still_there_and_its_pipeline_agrees(service) -> None:
    """After all three: the active one, and the one before by its own name."""
    case, running = service
    routes = running.status().state.routes
    assert routes.previous is not None
    assert routes == Routes(active=routes.previous + 1, previous=routes.previous)
    for release in (routes.active, routes.previous):
        endpoint = Endpoint(running.info.http_port, f"detector_r{release}", release)
        for image, wanted in zip(case.expected.encoded, case.expected.detections, strict=True):
            assert differs(wanted, endpoint.detect(image)) is None
        endpoint.close()
