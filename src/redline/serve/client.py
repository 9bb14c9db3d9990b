"""A lean client: encoded images to detections over HTTP, a connection a thread. It is what load measurements send through."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import mmap
import os
import secrets
import threading
from typing import Any

import numpy as np

from redline.backend.answer import unpack
from redline.errors import BadInput, StoreError, TrialError
from redline.records import Detections
from redline.serve.control import Control
from redline.serve.names import IMAGES, PLACEMENT, PLACEMENT_NUMBERS
from redline.serve.wire import Wire, WireError

HEADER_LENGTH = b"inference-header-content-length"
HEAD = (
    b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
)
DTYPES: dict[str, Any] = {"FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "INT64": np.int64}


class Endpoint:
    """`port`: of the gateway or of Triton, on the loopback interface; `model` and `version` as the server names them.

    Thread-safe. Each image is a request of its own.
    """

    def __init__(self, port: int, model: str, version: int | None = None, *, timeout_s: float = 30.0) -> None:
        at = f"/versions/{version}" if version is not None else ""
        self._port, self._path, self._timeout_s = port, f"/v2/models/{model}{at}/infer".encode(), timeout_s
        self._local = threading.local()
        self._open: set[Wire] = set()

    def detect(self, image: bytes) -> Detections:
        """Raises BadInput if the server refuses the image (4xx), TrialError if it fails (5xx), StoreError if it is away."""
        return unpack(answer_arrays(*self.send(image)), 0)

    def send(self, image: bytes) -> tuple[bytes, int]:
        """The answer as it came, and the length of its JSON header. Raises as `detect`."""
        size = {"binary_data_size": len(image) + 4}
        wanted = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": size}
        header = json.dumps({"inputs": [wanted], "parameters": {"binary_data_output": True}}).encode()
        return self.post(header, len(image).to_bytes(4, "little"), image)

    def close(self) -> None:
        """Every thread's connection; a later request opens a new one."""
        for wire in tuple(self._open):
            wire.close()
        self._open.clear()
        self._local = threading.local()

    def _drop(self) -> None:
        """The calling thread's connection."""
        wire: Wire | None = getattr(self._local, "wire", None)
        if wire is not None:
            wire.close()
            self._open.discard(wire)
            self._local.wire = None

    def post(self, header: bytes, *data: bytes) -> tuple[bytes, int]:
        """A KServe v2 request: its JSON and the binary data after it. The answer and its JSON's length. Raises as `detect`."""
        fresh = getattr(self._local, "wire", None) is None
        try:
            status, length, answer = self._exchange(header, *data)
        except (OSError, WireError) as error:
            self._drop()
            if fresh or isinstance(error, TimeoutError):
                raise StoreError("serve.unreachable", "the server does not answer", got=repr(error)) from error
            # A kept connection may have been closed by the server meanwhile: that is not the server's failure.
            try:
                status, length, answer = self._exchange(header, *data)
            except (OSError, WireError) as again:
                self._drop()
                raise StoreError("serve.unreachable", "the server does not answer", got=repr(again)) from again
        if status == 200:
            return answer, length
        what = answer.decode(errors="replace")[:500]
        if 400 <= status < 500:
            raise BadInput("serve.refused-request", f"the server refused the request ({status})", got=what)
        raise TrialError("serve.failed-request", f"the server failed ({status})", got=what)

    def _exchange(self, *body: bytes) -> tuple[int, int, bytes]:
        wire: Wire | None = getattr(self._local, "wire", None)
        if wire is None:
            wire = self._local.wire = Wire(self._port, self._timeout_s)
            self._open.add(wire)
        request = HEAD % (self._path, len(body[0]), sum(len(piece) for piece in body))
        head, answer = wire.exchange(request, *body)
        if not head.keeps:
            self._drop()
        return head.status, int(head.headers.get(HEADER_LENGTH) or 0), answer


def answer_arrays(data: bytes, header: int) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs of a KServe v2 answer whose outputs are all binary, by name. Raises TrialError (serve.answer)."""
    try:
        return {name: _array(data[start:end], kind, shape) for name, kind, shape, start, end in _layout(data[:header])}
    except (KeyError, TypeError, ValueError) as error:
        raise TrialError("serve.answer", "an answer of the server cannot be read", got=repr(error)) from error


@functools.lru_cache(maxsize=64)
def _layout(header: bytes) -> tuple[tuple[str, Any, tuple[int, ...], int, int], ...]:
    """Of each output its name, dtype (None: texts), shape, start and end. Answers of one shape have equal headers."""
    at, found = len(header), []
    for output in json.loads(header)["outputs"]:
        kind, end = output["datatype"], at + output["parameters"]["binary_data_size"]
        found.append((output["name"], None if kind == "BYTES" else DTYPES[kind], tuple(output["shape"]), at, end))
        at = end
    return tuple(found)


def _array(data: bytes, kind: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if kind is not None:
        return np.frombuffer(data, kind).reshape(shape)
    texts, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        texts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return np.array(texts, np.object_).reshape(shape)


class SharedTensor:
    """The second entry for a client on the server's machine: a preprocessed tensor in shared memory, in no request's body.

    Write the network input into `images` (3, H, W) float32 and its placement into `placement` (8,) float64 (see
    `backend.answer.placement_numbers`), then `detect`. `vision.prepare(..., out=shared.images)` writes it in place. One thread.
    """

    def __init__(self, port: int, model: str, version: int, key: str, shape: tuple[int, int, int]) -> None:
        """`port`: Triton's own. `key`: its `admin_key`. Raises TrialError if the server refuses the region."""
        self._endpoint, self._control = Endpoint(port, model, version), Control(port, key)
        self._name = f"redline_{os.getpid()}_{secrets.token_hex(4)}"
        tensor_bytes, placement_bytes = 4 * math.prod(shape), 8 * PLACEMENT_NUMBERS
        size = tensor_bytes + placement_bytes
        descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.ftruncate(descriptor, size)
            memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self.images = np.frombuffer(memory, np.float32, math.prod(shape)).reshape(shape)
        self.placement = np.frombuffer(memory, np.float64, PLACEMENT_NUMBERS, offset=tensor_bytes)
        inputs = [
            _shared(IMAGES, "FP32", [1, *shape], self._name, tensor_bytes, 0),
            _shared(PLACEMENT, "FP64", [1, PLACEMENT_NUMBERS], self._name, placement_bytes, tensor_bytes),
        ]
        self._header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        try:
            self._control.register_memory(self._name, size)
        except BaseException:
            os.unlink(self._path)
            raise

    @property
    def _path(self) -> str:
        return f"/dev/shm/{self._name}"

    def detect(self) -> Detections:
        """Raises as `Endpoint.detect`."""
        return unpack(answer_arrays(*self._endpoint.post(self._header)), 0)

    def close(self) -> None:
        self._endpoint.close()
        with contextlib.suppress(StoreError, TrialError):  # a server that has gone has forgotten the region
            self._control.unregister_memory(self._name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def _shared(name: str, datatype: str, shape: list[int], region: str, size: int, offset: int) -> dict[str, Any]:
    where = {"shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": offset}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": where}
