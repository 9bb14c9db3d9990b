"""A small model with exactly the tensors of a release, loaded into the session's Triton, and the gateway in front of it.

Its answer follows from the request's bytes, so that a test can tell a right answer from a wrong one.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from redline.records import Routes
from redline.serve.gateway import Address, Gateway, Limits, Metrics, ReleaseLimits, RouteTable, entry_limits, tensor_limits
from redline.serve.server import TritonServer

SERVICE = "probe"
ROWS, BATCH, WIDTH = 4, 4, 8
RELEASES = (1, 2)
"""Release 2 gives every box another label, and its queue holds one request."""

MODEL = """
import json
import time

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        name = args["model_name"]
        self.tensor, self.shift = name.endswith("_tensor"), int(args["model_version"]) - 1

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        rows = self.tensors(request) if self.tensor else self.images(request)
        if isinstance(rows, str):
            return pb.InferenceResponse(error=pb.TritonError(rows, pb.TritonError.INVALID_ARG))
        count = len(rows)
        boxes, scores = np.zeros((count, 4, 4), np.float32), np.zeros((count, 4), np.float32)
        labels, counts = np.zeros((count, 4), np.int32), np.zeros((count, 1), np.int32)
        errors = np.full((count, 1), b"", np.object_)
        for index, found in enumerate(rows):
            if isinstance(found, str):
                errors[index, 0] = found.encode()
                continue
            counts[index, 0] = len(found)
            for row, (box, score, label) in enumerate(found):
                boxes[index, row], scores[index, row], labels[index, row] = box, score, label + self.shift
        outputs = {"boxes": boxes, "scores": scores, "labels": labels, "count": counts, "error": errors}
        return pb.InferenceResponse([pb.Tensor(name, array) for name, array in outputs.items()])

    def images(self, request):
        found = [self.image(data) for data in pb.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)]
        return found[0] if len(found) == 1 and isinstance(found[0], str) else found

    def image(self, data):
        if data[:3] == b"BAD":
            return "image: not an image"
        if data[:5] == b"RAISE":
            raise ValueError("a defect in /srv/secret/model.py")
        if data[:5] == b"SLEEP":
            time.sleep(0.25)
        low = sum(data) % 200
        score = float("nan") if data[:3] == b"NAN" else 1.0
        return [((low, row, low + 10, row + 20), score * (1 + row) / 8, row) for row in range(len(data) % 5)]

    def tensors(self, request):
        images = pb.get_input_tensor_by_name(request, "images").as_numpy()
        places = pb.get_input_tensor_by_name(request, "placement").as_numpy()
        if not np.isfinite(images).all():
            return "images: not finite"
        if not (np.abs(places) < 1e9).all():
            return "placement: beyond any image"
        return [[(place[:4], image.mean(), 3)] for image, place in zip(images, places)]
"""
OUTPUTS = """
output [ { name: "boxes" data_type: TYPE_FP32 dims: [ 4, 4 ] } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "labels" data_type: TYPE_INT32 dims: [ 4 ] } ]
output [ { name: "count" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "error" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
backend: "python"
max_batch_size: 4
"""
ENTRY = 'input [ { name: "image" data_type: TYPE_STRING dims: [ 1 ] } ]'
TENSOR = """
input [ { name: "images" data_type: TYPE_FP32 dims: [ 3, -1, 8 ] } ]
input [ { name: "placement" data_type: TYPE_FP64 dims: [ 8 ] } ]
"""

Rows = list[tuple[list[float], float, int]]


def image_rows(data: bytes, release: int = 1) -> Rows:
    """What the model must answer to an image; not for BAD, RAISE and NAN."""
    low = sum(data) % 200
    return [([low, row, low + 10, row + 20], (1 + row) / 8, row + release - 1) for row in range(len(data) % 5)]


def load_models(server: TritonServer) -> None:
    for release in RELEASES:
        queue = f"default_queue_policy {{ timeout_action: REJECT max_queue_size: {1 if release == 2 else 64} }}"
        for suffix, inputs in (("", ENTRY), ("_tensor", TENSOR)):
            name = f"{SERVICE}_r{release}{suffix}"
            folder = server._repository / name
            (folder / str(release)).mkdir(parents=True, exist_ok=True)
            version = f"version_policy: {{ specific {{ versions: [ {release} ] }} }}"
            config = f'name: "{name}"\n{OUTPUTS}{inputs}\n{version}\ndynamic_batching {{ {queue} }}\n'
            (folder / "config.pbtxt").write_text(config)
            (folder / str(release) / "model.py").write_text(MODEL)
            server.control.load(name)


def unload_models(server: TritonServer) -> None:
    for release in RELEASES:
        for suffix in ("", "_tensor"):
            server.control.unload(f"{SERVICE}_r{release}{suffix}")


@asynccontextmanager
async def gateway_before(server: TritonServer, routes: Routes | None = None, **limits: Any) -> AsyncIterator[Wire]:
    """A gateway in the running loop and a connection to it."""
    gateway = Gateway(
        SERVICE,
        table=RouteTable(routes or Routes(active=1)),
        address=Address(port=server.known.http_port),
        releases={
            number: ReleaseLimits(
                release=number,
                classes=("a", "b", "c"),
                entry=entry_limits(BATCH),
                tensor=tensor_limits(BATCH, (3, -1, WIDTH)),
            )
            for number in RELEASES
        },
        metrics=Metrics(SERVICE, objective_s=0.02, rate_per_s=100.0, error_ratio=0.001),
        limits=Limits(**limits),
    )
    wire = Wire(await gateway.start(), gateway)
    try:
        yield wire
    finally:
        await wire.close()
        await gateway.stop()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of the error, in either of its two forms."""
        return str(self.json.get("reason", self.json["error"])["code"])


class Wire:
    """A keep-alive connection that sends bytes as they are and reads one answer for each."""

    def __init__(self, port: int, gateway: Gateway) -> None:
        self.port, self.gateway = port, gateway
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def raw(self, data: bytes, *, half_close: bool = False) -> Reply:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        writer.write(data)
        if half_close:
            writer.write_eof()
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close" or head[0].startswith("HTTP/1.0") or half_close:
            await self.close()
        return Reply(int(head[0].split(" ")[1]), headers, body)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        fields = {"Content-Length": str(len(body)), **(headers or {})}
        head = "\r\n".join((f"POST {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in fields.items())))
        return await self.raw(head.encode("latin-1") + b"\r\n\r\n" + body)

    async def detect(self, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        return await self.post("/detect", body, headers)

    async def infer(self, fields: Any, data: bytes | None = None, path: str = f"/v2/models/{SERVICE}/infer") -> Reply:
        """`fields` as JSON, or bytes as they are; `data` after it (None: JSON alone)."""
        header = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        length = {} if data is None else {"Inference-Header-Content-Length": str(len(header))}
        return await self.post(path, header + (data or b""), length)


def bytes_data(images: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def image_input(images: Sequence[bytes], **changes: Any) -> dict[str, Any]:
    size = len(bytes_data(images))
    return {"name": "image", "datatype": "BYTES", "shape": [len(images), 1], "parameters": {"binary_data_size": size}} | changes


def tensor_inputs(images: np.ndarray[Any, Any], places: np.ndarray[Any, Any]) -> tuple[list[dict[str, Any]], bytes]:
    """Both inputs as binary data."""
    arrays = {"images": images.astype("<f4"), "placement": places.astype("<f8")}
    types = {"images": "FP32", "placement": "FP64"}
    inputs = [
        {"name": name, "datatype": types[name], "shape": list(a.shape), "parameters": {"binary_data_size": a.nbytes}}
        for name, a in arrays.items()
    ]
    return inputs, b"".join(array.tobytes() for array in arrays.values())
