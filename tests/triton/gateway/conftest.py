"""The session's Triton with the probe's models; it must be the same process, and answer right, after every test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import probe_model
import pytest

from redline.serve.server import TritonServer


@pytest.fixture(scope="package")
def probed(triton: TritonServer) -> Iterator[TritonServer]:
    probe_model.load_models(triton)
    yield triton
    probe_model.unload_models(triton)


@pytest.fixture
def server(probed: TritonServer) -> Iterator[TritonServer]:
    pid = probed.known.pid
    yield probed

    async def still_right() -> None:
        async with probe_model.gateway_before(probed) as wire:
            reply = await wire.detect(b"alive")
            assert reply.status == 200
            assert reply.json["detections"] == []
            longer = (await wire.detect(b"alive and well")).json["detections"]
            rows = probe_model.image_rows(b"alive and well")
            assert [(one["box"], one["score"], one["label"]) for one in longer] == rows

    assert probed.alive, f"the server died: {probed.exit_code}"
    assert probed.known.pid == pid
    asyncio.run(still_right())
