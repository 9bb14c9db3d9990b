"""10,000 requests, sound and spoiled: a right answer to every sound one, a clean 4xx to every other, one server process."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from kserve_reference import images_of, is_sound
from probe_model import SERVICE, Reply, Wire, bytes_data, gateway_before, image_input, image_rows, tensor_inputs

from redline.serve.server import TritonServer

SEED = 20
RAW, DETECT, KSERVE = 1_000, 2_500, 6_500
PATHS = {True: f"/v2/models/{SERVICE}/infer", False: f"/v2/models/{SERVICE}_tensor/infer"}
KINDS = ("application/octet-stream", "application/x-www-form-urlencoded", "multipart/form-data", "text/html", "\xe9", "")
DEEP: list[Any] = []
for _ in range(20):
    DEEP = [DEEP]
NUMBERS = (0, -1, 1, 2, 4, 5, 8, 2**31, 2**63, 10**30, 1.5, 2.0, float("nan"), float("inf"), 1e300)
TEXTS = ("", "a\nb", "image", "images", "BYTES", "FP32", "boxes", "count", "é", "\ud800", "x" * 300)
LISTS: tuple[list[Any], ...] = ([], [[]], [{}], [1, 1], [2, 1], ["a"], [["a"]], DEEP)
OBJECTS: tuple[dict[str, Any], ...] = (
    {},
    {"binary_data": True},
    {"binary_data_size": 5},
    {"binary_data_output": True},
    {"shared_memory_region": "r"},
    {"classification": 1},
)
VALUES: tuple[Any, ...] = (None, True, False, *NUMBERS, *TEXTS, *LISTS, *OBJECTS)
NAMES = (
    "id",
    "parameters",
    "inputs",
    "outputs",
    "data",
    "name",
    "shape",
    "binary_data_size",
    "sequence_id",
    "timeout",
    "",
    "a\nb",
)


@dataclass
class Request:
    """A KServe request in parts that can be spoiled one by one."""

    entry: bool
    fields: Any
    data: bytes
    binary: bool
    """Has Inference-Header-Content-Length."""
    header: bytes | None = None
    """The JSON as text, once it is spoiled as such."""
    lengths: list[str] | None = None
    spoiled: list[str] = field(default_factory=list)

    def json(self) -> bytes:
        return json.dumps(self.fields).encode() if self.header is None else self.header

    def sent(self) -> tuple[list[str], bytes]:
        header = self.json()
        lengths = ([str(len(header))] if self.binary else []) if self.lengths is None else self.lengths
        return lengths, header + self.data


def sound_request(chance: random.Random) -> Request:
    entry, binary = chance.random() < 0.6, chance.random() < 0.7
    batch = chance.randint(1, 4) if chance.random() < 0.97 else chance.randint(5, 9)
    if entry:
        images = [some_image(chance, text=not binary) for _ in range(batch)]
        inputs = [image_input(images)]
        if not binary:
            inputs = [{"name": "image", "datatype": "BYTES", "shape": [batch, 1], "data": [image.decode() for image in images]}]
        data = bytes_data(images) if binary else b""
    else:
        values = np.asarray([chance.uniform(-3, 3) for _ in range(batch * 24)], np.float32).reshape(batch, 3, 1, 8)
        places = np.asarray([chance.uniform(0, 99) for _ in range(batch * 8)]).reshape(batch, 8)
        inputs, data = tensor_inputs(values, places)
        if not binary:
            inputs = [{"name": "images", "datatype": "FP32", "shape": [batch, 3, 1, 8], "data": values.tolist()}]
            inputs.append({"name": "placement", "datatype": "FP64", "shape": [batch, 8], "data": places.reshape(-1).tolist()})
            data = b""
    fields: dict[str, Any] = {"inputs": inputs}
    if chance.random() < 0.3:
        fields["id"] = f"n{chance.randint(0, 9)}"
    if chance.random() < 0.4:
        fields["parameters"] = {"binary_data_output": chance.random() < 0.5}
    if chance.random() < 0.4:
        chosen = chance.sample(("boxes", "scores", "labels", "count", "error"), chance.randint(1, 5))
        fields["outputs"] = [{"name": name, "parameters": {"binary_data": chance.random() < 0.5}} for name in chosen]
    return Request(entry, fields, data, binary)


def some_image(chance: random.Random, *, text: bool = False) -> bytes:
    if chance.random() < 0.1:
        return b"BAD"
    return bytes(chance.randint(32, 126) if text else chance.randint(0, 255) for _ in range(chance.randint(0, 40)))


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below `value`."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [spot for key in keys for spot in ((value, key), *spots(value[key]))]


def spoil_value(request: Request, chance: random.Random) -> None:
    found = spots(request.fields)
    if found:
        container, key = chance.choice(found)
        container[key] = copy.deepcopy(chance.choice(VALUES))


def spoil_key(request: Request, chance: random.Random) -> None:
    found = [(container, key) for container, key in spots(request.fields) if isinstance(container, dict)]
    if found:
        container, key = chance.choice(found)
        if chance.random() < 0.5:
            del container[key]
        else:
            container[chance.choice(NAMES)] = copy.deepcopy(chance.choice(VALUES))


def spoil_list(request: Request, chance: random.Random) -> None:
    found = [value for container, key in spots(request.fields) if isinstance(value := container[key], list) and value]
    if found:
        chosen = chance.choice(found)
        index = chance.randrange(len(chosen))
        if chance.random() < 0.5:
            chosen.append(copy.deepcopy(chosen[index]))
        else:
            del chosen[index]


def spoil_text(request: Request, chance: random.Random) -> None:
    request.header = spoiled_bytes(request.json(), chance)


def spoil_data(request: Request, chance: random.Random) -> None:
    request.data = spoiled_bytes(request.data, chance)


def spoil_prefix(request: Request, chance: random.Random) -> None:
    if len(request.data) >= 4:
        length = chance.choice((0, 1, 5, len(request.data), len(request.data) - 4, 2**31, 2**32 - 1))
        request.data = struct.pack("<I", length) + request.data[4:]


def spoil_length(request: Request, chance: random.Random) -> None:
    size = len(request.json())
    texts = (
        str(size + chance.randint(-5, 5)),
        "0",
        "-1",
        "abc",
        "",
        "1e2",
        " 7",
        str(2**64),
        f"{size}.0",
        "+9",
        "07",
        f"0{size}",
    )
    request.lengths = chance.choice(([], [str(size)] * 2, [chance.choice(texts)], [chance.choice(texts)]))


def spoil_size(request: Request, chance: random.Random) -> None:
    """More bytes for the last input, and said so: only the shape tells."""
    inputs = request.fields.get("inputs")
    if request.binary and isinstance(inputs, list) and inputs and isinstance(inputs[-1], dict):
        parameters = inputs[-1].get("parameters")
        if isinstance(parameters, dict) and isinstance(parameters.get("binary_data_size"), int):
            more = bytes(chance.choice((4, 8, 32, 64)))
            parameters["binary_data_size"] += len(more)
            request.data += more


def spoil_batch(request: Request, chance: random.Random) -> None:
    """One image less in a placement that is otherwise sound."""
    inputs = request.fields.get("inputs")
    if not request.entry and request.binary and isinstance(inputs, list) and len(inputs) == 2 and isinstance(inputs[1], dict):
        shape, parameters = inputs[1].get("shape"), inputs[1].get("parameters")
        if isinstance(shape, list) and shape and isinstance(shape[0], int) and shape[0] > 1 and isinstance(parameters, dict):
            inputs[1] |= {"shape": [shape[0] - 1, *shape[1:]], "parameters": {"binary_data_size": 64 * (shape[0] - 1)}}
            request.data = request.data[:-64]


def spoil_twice(request: Request, chance: random.Random) -> None:
    header = request.json()
    keys = [key for key in (b'"name": ', b'"shape": ', b'"inputs": ', b'"datatype": ') if key in header]
    if keys:
        key = chance.choice(keys)
        request.header = header.replace(key, key + b"0, " + key, 1)


SPOILERS: tuple[Callable[[Request, random.Random], None], ...] = (
    spoil_value,
    spoil_value,
    spoil_key,
    spoil_list,
    spoil_text,
    spoil_data,
    spoil_prefix,
    spoil_length,
    spoil_size,
    spoil_batch,
    spoil_twice,
)
ON_FIELDS = (spoil_value, spoil_key, spoil_list, spoil_size, spoil_batch)
"""Of no use once the JSON is spoiled as text."""


def spoiled_bytes(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    how = chance.randrange(5)
    if how == 0:
        return data[:at]
    if how == 1:
        return data[:at] + bytes([chance.randrange(256)]) + data[at:]
    if how == 2:
        return data[:at] + data[at + 1 :]
    if how == 3:
        return data[:at] + bytes([chance.choice(b'[]{}",:0\\\xff')]) + data[at + 1 :]
    return data + data[at:]


def mutant(chance: random.Random) -> Request:
    request = sound_request(chance)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        spoiler = chance.choice(SPOILERS)
        if request.header is None or spoiler not in ON_FIELDS:
            spoiler(request, chance)
            request.spoiled.append(spoiler.__name__)
    return request


async def one_kserve(wire: Wire, chance: random.Random, seen: Counter[str]) -> None:
    request = mutant(chance)
    lengths, body = request.sent()
    lines = [f"POST {PATHS[request.entry]} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"Content-Type: {chance.choice(KINDS)}", *(f"Inference-Header-Content-Length: {length}" for length in lengths)]
    reply = await wire.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
    # A header's value loses the blanks around it on its way, by HTTP's own rules.
    lengths = [length.strip() for length in lengths]
    sound = is_sound(request.entry, lengths, body)
    about = (request.spoiled, lengths, body[:2000], reply.status, reply.body[:500])
    refused = sound and reply.status == 400 and reply.code == "model-refused"
    seen["sound" if sound else "unsound"] += 1
    if refused:
        seen["refused by the model"] += 1
        assert not request.entry or all(image.startswith(b"BAD") for image in images_of(lengths, body)), about
        return
    assert (reply.status == 200) == sound, about
    if not sound:
        assert reply.status in (400, 413), about
        assert reply.code not in ("model-refused", "gateway-fault"), about
    elif request.entry:
        check_images(images_of(lengths, body), reply)


def check_images(images: list[bytes], reply: Reply) -> None:
    """Every output that was asked for says what the images' bytes say."""
    length = reply.headers.get("inference-header-content-length")
    header = json.loads(reply.body[: int(length)] if length else reply.body)
    data = reply.body[int(length) :] if length else b""
    rows = [[] if image.startswith(b"BAD") else image_rows(image) for image in images]
    for output in header["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            raw, data = data[:size], data[size:]
        if output["name"] not in ("count", "scores"):
            continue
        found = (
            output["data"] if size is None else np.frombuffer(raw, "<i4" if output["datatype"] == "INT32" else "<f4").tolist()
        )
        if output["name"] == "count":
            assert found == [len(image) for image in rows]
        else:
            assert found == [score for image in rows for score in ([row[1] for row in image] + [0.0] * 4)[:4]]
    assert not data


async def one_detect(wire: Wire, chance: random.Random, seen: Counter[str]) -> None:
    body = some_image(chance)
    reply = await wire.detect(
        body, {"Content-Type": chance.choice(KINDS), "X-Request-Id": chance.choice(("a", "b" * 99, "\xe9"))}
    )
    seen[f"detect {reply.status}"] += 1
    if not body or body.startswith(b"BAD"):
        assert (reply.status, reply.code) == (400, "model-refused" if body else "body-empty")
        return
    assert reply.status == 200, (body, reply)
    found = [(row["box"], row["score"], row["label"]) for row in reply.json["detections"]]
    assert found == image_rows(body), body


async def one_raw(wire: Wire, chance: random.Random, seen: Counter[str]) -> None:
    """The head of a request spoiled: whatever comes back is HTTP and no 5xx, and the connection ends."""
    body = some_image(chance)
    head = b"POST /detect HTTP/1.1\r\nHost: x\r\nX-Request-Id: r\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    for _ in range(chance.randint(1, 3)):
        head = spoiled_bytes(head, chance)
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    writer.write(head + body)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    status = answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/") else "closed" if not answer else "?"
    seen[f"raw {status}"] += 1
    assert status == "closed" or (status.isdigit() and 200 <= int(status) < 500), (head, answer)


def test_ten_thousand_requests(server: TritonServer) -> None:
    pid = server.known.pid
    chance = random.Random(SEED)
    plan = [one_raw] * RAW + [one_detect] * DETECT + [one_kserve] * KSERVE
    chance.shuffle(plan)
    assert len(plan) == 10_000
    seen: Counter[str] = Counter()

    async def whole() -> dict[str, float]:
        async with gateway_before(server, upload_s=1.0) as wire:
            for index, one in enumerate(plan):
                await one(wire, random.Random(f"{SEED}:{index}"), seen)
            codes: Counter[str] = Counter()
            for family in wire.gateway.metrics.registry.collect():
                for sample in family.samples:
                    if sample.name == "redline_requests_total":
                        codes[sample.labels["code"]] += int(sample.value)
            return codes

    codes = asyncio.run(whole())
    assert not [code for code in codes if code >= "500"], codes
    assert min(seen["sound"], seen["unsound"], seen["detect 200"], seen["raw 400"]) > 300, seen
    assert (server.alive, server.known.pid) == (True, pid)
