"""A lean client: encoded images to detections over HTTP, a connection a thread. It is what load measurements send through."""

from __future__ import annotations

import json
import socket
import threading
from http.client import HTTPConnection, HTTPException
from typing import Any

import numpy as np

from redline.backend.answer import unpack
from redline.errors import BadInput, StoreError, TrialError
from redline.records import Detections

HEADER_LENGTH = "Inference-Header-Content-Length"
DTYPES: dict[str, Any] = {"FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "INT64": np.int64}


class Endpoint:
    """`port`: of the gateway or of Triton, on the loopback interface; `model` and `version` as the server names them.

    Thread-safe. Each image is a request of its own.
    """

    def __init__(self, port: int, model: str, version: int | None = None, *, timeout_s: float = 30.0) -> None:
        at = f"/versions/{version}" if version is not None else ""
        self._port, self._path, self._timeout_s = port, f"/v2/models/{model}{at}/infer", timeout_s
        self._local = threading.local()
        self._open: set[HTTPConnection] = set()

    def detect(self, image: bytes) -> Detections:
        """Raises BadInput if the server refuses the image (4xx), TrialError if it fails (5xx), StoreError if it is away."""
        return unpack(answer_arrays(*self.send(image)), 0)

    def send(self, image: bytes) -> tuple[bytes, int]:
        """The answer as it came, and the length of its JSON header. Raises as `detect`."""
        header = json.dumps(
            {
                "inputs": [
                    {
                        "name": "image",
                        "datatype": "BYTES",
                        "shape": [1, 1],
                        "parameters": {"binary_data_size": len(image) + 4},
                    }
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        body = b"".join((header, len(image).to_bytes(4, "little"), image))
        return self._post(body, {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"})

    def close(self) -> None:
        """Every thread's connection; a later request opens a new one."""
        for connection in tuple(self._open):
            connection.close()
        self._open.clear()
        self._local = threading.local()

    def _drop(self) -> None:
        """The calling thread's connection."""
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._open.discard(connection)
            self._local.connection = None

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[bytes, int]:
        fresh = getattr(self._local, "connection", None) is None
        try:
            answer = self._exchange(body, headers)
        except (OSError, HTTPException) as error:
            self._drop()
            if fresh or isinstance(error, TimeoutError):
                raise StoreError("serve.unreachable", "the server does not answer", got=repr(error)) from error
            # A kept connection may have been closed by the server meanwhile: that is not the server's failure.
            try:
                answer = self._exchange(body, headers)
            except (OSError, HTTPException) as again:
                self._drop()
                raise StoreError("serve.unreachable", "the server does not answer", got=repr(again)) from again
        status, length, data = answer
        if status == 200:
            return data, length
        what = data.decode(errors="replace")[:500]
        if 400 <= status < 500:
            raise BadInput("serve.refused-request", f"the server refused the request ({status})", got=what)
        raise TrialError("serve.failed-request", f"the server failed ({status})", got=what)

    def _exchange(self, body: bytes, headers: dict[str, str]) -> tuple[int, int, bytes]:
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = HTTPConnection("127.0.0.1", self._port, timeout=self._timeout_s)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._local.connection = connection
            self._open.add(connection)
        connection.request("POST", self._path, body, headers)
        answer = connection.getresponse()
        return answer.status, int(answer.headers.get(HEADER_LENGTH) or 0), answer.read()


def answer_arrays(data: bytes, header: int) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs of a KServe v2 answer whose outputs are all binary, by name. Raises TrialError (serve.answer)."""
    try:
        outputs = json.loads(data[:header])["outputs"]
        at, arrays = header, {}
        for output in outputs:
            size = output["parameters"]["binary_data_size"]
            arrays[output["name"]] = _array(output, data[at : at + size])
            at += size
    except (KeyError, TypeError, ValueError) as error:
        raise TrialError("serve.answer", "an answer of the server cannot be read", got=repr(error)) from error
    return arrays


def _array(output: dict[str, Any], data: bytes) -> np.ndarray[Any, Any]:
    if output["datatype"] != "BYTES":
        return np.frombuffer(data, DTYPES[output["datatype"]]).reshape(output["shape"])
    texts, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        texts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return np.array(texts, np.object_).reshape(output["shape"])
