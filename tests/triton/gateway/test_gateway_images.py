"""Truncated and hostile images to a real release: its own decoder, in a real server, behind the gateway of a whole service."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from service_case import Case, promoted, serving

from redline.serve.admin import Service
from redline.serve.environment import ServerEnvironment
from redline.serve.state import read_events


@pytest.fixture(scope="module")
def service(environment: ServerEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Case, Service]]:
    case = Case(tmp_path_factory.mktemp("images"))
    number = case.add()
    with serving(case) as running:
        promoted(running, number)
        yield case, running


def post(service: Service, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", service.info.gateway_port, timeout=30)
    try:
        connection.request("POST", path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def good_images(case: Case) -> list[bytes]:
    return [Path(image.path).read_bytes() for image in case.expected.dataset.images[:3]]


def encoded(kind: str, size: tuple[int, int] = (60, 40), mode: str = "RGB") -> bytes:
    held = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(held, kind)
    return held.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than there are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


JPEG = encoded("JPEG")
HOSTILE = {
    "cut-jpeg": JPEG[: len(JPEG) // 2],
    "cut-header": JPEG[:20],
    "two-bytes": b"\xff\xd8",
    "cut-png": encoded("PNG")[:-30],
    "broken-png": encoded("PNG")[:40] + bytes(60) + encoded("PNG")[100:],
    "text": b"not an image at all",
    "html": b"<html><script>alert(1)</script></html>",
    "zeros": bytes(5000),
    "noise": bytes(range(256)) * 40,
    "gif": encoded("GIF", mode="P"),
    "pdf": b"%PDF-1.7\n" + bytes(300),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "bomb": png_of(60_000, 60_000),
    "wide": png_of(2**31 - 1, 1),
    "no-pixels": png_of(0, 10),
    "tiff": encoded("TIFF"),
    "path": b"/etc/passwd",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_a_clean_400_and_the_service_lives(service: tuple[Case, Service], name: str) -> None:
    case, running = service
    status, answer = post(running, "/detect", HOSTILE[name])
    assert (status, answer["error"]["code"]) == (400, "model-refused")
    assert "Traceback" not in json.dumps(answer)
    assert "/site-packages" not in json.dumps(answer)
    assert post(running, "/detect", good_images(case)[0])[0] == 200


def test_random_damage_to_a_real_image_never_kills_the_service(service: tuple[Case, Service]) -> None:
    import random

    case, running = service
    chance, image = random.Random(5), good_images(case)[0]
    statuses = set()
    for _ in range(200):
        damaged = bytearray(image)
        for _ in range(chance.randint(1, 30)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        status, answer = post(running, "/detect", bytes(damaged[: chance.randint(1, len(damaged))]))
        assert status in (200, 400), answer
        statuses.add(status)
    assert 400 in statuses
    os.kill(running.info.pid, 0)
    assert "server-died" not in {event.kind for event in read_events(case.folder, last=200)}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_image_of_a_batch_fails_alone(service: tuple[Case, Service], place: int) -> None:
    case, running = service
    images = good_images(case)
    alone = [post(running, "/detect", image)[1]["detections"] for image in images]
    images[place] = HOSTILE["cut-jpeg"]
    data = b"".join(struct.pack("<I", len(image)) + image for image in images)
    fields = {"name": "image", "datatype": "BYTES", "shape": [3, 1], "parameters": {"binary_data_size": len(data)}}
    header = json.dumps({"inputs": [fields]}).encode()
    path = f"/v2/models/{case.spec.serve.name}/infer"
    status, answer = post(running, path, header + data, {"Inference-Header-Content-Length": str(len(header))})
    assert status == 200, answer
    found = {output["name"]: output for output in answer["outputs"]}
    rows = found["scores"]["shape"][1]
    for index in range(3):
        count = found["count"]["data"][index]
        scores = found["scores"]["data"][index * rows : index * rows + count]
        if index == place:
            assert (count, found["error"]["data"][index] != "") == (0, True)
        else:
            assert found["error"]["data"][index] == ""
            assert scores == pytest.approx([one["score"] for one in alone[index]], abs=1e-5)
            assert count > 0
