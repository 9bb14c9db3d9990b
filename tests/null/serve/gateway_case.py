"""A gateway in front of a fake Triton in one event loop, and a client that can send what no library would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from redline.records import Routes
from redline.serve.gateway import (
    Address,
    Gateway,
    Limits,
    Metrics,
    ReleaseLimits,
    RouteTable,
    entry_limits,
    new_event_loop,
    tensor_limits,
)

CLASSES = ("screw", 'nut "M4"', "washer")
ROWS = 4
"""K of the fake models."""
BOXES = ((1.5, 2.0, 30.25, 40.0, 0.75, 1), (5.0, 6.0, 20.0, 21.0, 0.5, 2))
"""Rows of x1, y1, x2, y2, score, label."""


@dataclass(frozen=True)
class Asked:
    """A request as the fake Triton got it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def release(self) -> int:
        return int(self.path.split("/versions/")[1].split("/")[0])


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


Answer = Callable[[Asked], Awaitable[bytes | None]]


def http(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def failed(status: int, text: str) -> bytes:
    return http(status, json.dumps({"error": text}).encode(), {"Content-Type": "application/json"})


def infer_answer(asked: Asked, images: Sequence[Sequence[Sequence[float]]] = (BOXES,), errors: Sequence[str] = ()) -> bytes:
    """What Triton would send: `images` holds each image's rows."""
    count = len(images)
    rows = np.zeros((count, ROWS, 6), np.float64)
    for index, image in enumerate(images):
        rows[index, : len(image)] = np.asarray(image, np.float64).reshape(-1, 6)
    texts = [text.encode() for text in errors] or [b""] * count
    outputs: list[tuple[str, str, list[int], bytes]] = [
        ("boxes", "FP32", [count, ROWS, 4], rows[..., :4].astype("<f4").tobytes()),
        ("scores", "FP32", [count, ROWS], rows[..., 4].astype("<f4").tobytes()),
        ("labels", "INT32", [count, ROWS], rows[..., 5].astype("<i4").tobytes()),
        ("count", "INT32", [count, 1], np.asarray([len(image) for image in images], "<i4").tobytes()),
        ("error", "BYTES", [count, 1], b"".join(len(text).to_bytes(4, "little") + text for text in texts)),
    ]
    return binary_answer(asked, outputs)


def binary_answer(asked: Asked, outputs: Sequence[tuple[str, str, list[int], bytes]]) -> bytes:
    fields = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, kind, shape, data in outputs
    ]
    model = asked.path.split("/models/")[1].split("/")[0]
    header = json.dumps({"model_name": model, "model_version": str(asked.release), "outputs": fields}).encode()
    body = header + b"".join(data for *_, data in outputs)
    return http(200, body, {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))})


async def good(asked: Asked) -> bytes:
    """Two boxes for every image; ready; no metadata."""
    if asked.method == "GET":
        return http(200, b'{"name": "it"}')
    header = int(asked.headers["inference-header-content-length"])
    batch = json.loads(asked.body[:header])["inputs"][0]["shape"][0] if header else 1
    return infer_answer(asked, [BOXES] * batch)


class FakeTriton:
    """Speaks just enough HTTP. `answer` gives the bytes to send; None breaks the connection."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """As a process that dies: connections break."""
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                asked = Asked(method, path, headers, body)
                self.asked.append(asked)
                data = await self.answer(asked)
                if data is None:
                    writer.transport.abort()
                    return
                writer.write(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


def run_as_served(whole: Coroutine[Any, Any, None]) -> None:
    """In the event loop that the product uses."""
    loop = new_event_loop()
    try:
        loop.run_until_complete(whole)
    finally:
        loop.close()


@dataclass
class Case:
    gateway: Gateway
    triton: FakeTriton
    port: int
    releases: dict[int, ReleaseLimits]
    inferred: list[Asked] = field(default_factory=list)

    async def send(self, raw: bytes, *, half_close: bool = False, wait_s: float = 5.0) -> bytes:
        """Everything the gateway sends back until it closes, or for `wait_s`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(raw)
            if half_close:
                writer.write_eof()
            return await asyncio.wait_for(reader.read(), wait_s)
        finally:
            writer.close()

    async def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        """One request on a connection of its own."""
        fields = {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
        lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{k}: {v}" for k, v in fields.items())]
        return parsed(await self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body))

    async def detect(self, body: bytes = b"JPEG", headers: Mapping[str, str] | None = None) -> Reply:
        return await self.ask("POST", "/detect", body, headers)

    async def infer(self, fields: Any, data: bytes = b"", path: str = "/v2/models/detector/infer") -> Reply:
        """A KServe request: `fields` as JSON (bytes as they are), `data` after it."""
        header = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        return await self.ask(
            "POST", path, header + data, {"Inference-Header-Content-Length": str(len(header))} if data else {}
        )

    def count(self, code: int, release: str = "1", entry: str = "bytes") -> float:
        labels = {"service": "detector", "release": release, "entry": entry, "code": str(code)}
        return self.gateway.metrics.registry.get_sample_value("redline_requests_total", labels) or 0.0


def parsed(raw: bytes) -> Reply:
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
    return Reply(int(status.split(" ")[1]), headers, body)


def release_limits(release: int, *, max_batch: int = 4, images: tuple[int, ...] = (3, -1, 8)) -> ReleaseLimits:
    return ReleaseLimits(
        release=release, classes=CLASSES, entry=entry_limits(max_batch), tensor=tensor_limits(max_batch, images)
    )


@asynccontextmanager
async def served(answer: Answer = good, *, routes: Routes | None = None, **limits: Any) -> AsyncIterator[Case]:
    """Releases 1, 2 and 3 have limits; 1 is active unless `routes` say otherwise."""
    triton = FakeTriton(answer)
    address = Address(port=await triton.start())
    releases = {number: release_limits(number) for number in (1, 2, 3)}
    gateway = Gateway(
        "detector",
        table=RouteTable(routes or Routes(active=1)),
        address=address,
        releases=releases,
        metrics=Metrics("detector", objective_s=0.02, rate_per_s=10.0, error_ratio=0.001),
        limits=Limits(**limits),
    )
    try:
        yield Case(gateway, triton, await gateway.start(), releases)
    finally:
        await gateway.stop()
        await triton.stop()


def run(scenario: Callable[[Case], Awaitable[None]], **limits: Any) -> None:
    async def whole() -> None:
        async with served(**limits) as case:
            await scenario(case)
            assert (await case.detect()).status == 200, "it must be alive afterwards"

    run_as_served(whole())
