"""Triton away, dying, slow or replaced; releases swapped under load; shadows; health that asks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from gateway_case import BOXES, Asked, Case, FakeTriton, good, http, infer_answer, release_limits, served

from redline.records import Routes
from redline.serve.gateway.health import FRESH_S


def run(scenario: Callable[[Case], Awaitable[None]], **how: Any) -> None:
    async def whole() -> None:
        async with served(**how) as case:
            await scenario(case)

    asyncio.run(whole())


def lost(case: Case) -> float | None:
    return case.gateway.metrics.registry.get_sample_value("redline_lost_requests_total", {"service": "detector"})


def boxes(case: Case, release: int) -> tuple[float | None, float | None]:
    read = case.gateway.metrics.registry.get_sample_value
    labels = {"service": "detector", "release": str(release)}
    return tuple(read("redline_shadow_boxes_total", labels | {"outcome": outcome}) for outcome in ("same", "differing"))  # type: ignore[return-value]


def skipped(case: Case, release: int) -> float | None:
    labels = {"service": "detector", "release": str(release)}
    return case.gateway.metrics.registry.get_sample_value("redline_shadow_skipped_total", labels)


def test_a_server_that_dies_during_an_answer_is_a_503_and_counted_as_lost() -> None:
    async def dies(asked: Asked) -> bytes | None:
        return None

    async def half(asked: Asked) -> bytes:
        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(case_of[0].triton.stop()))
        return infer_answer(asked)[:200]

    case_of: list[Case] = []

    async def scenario(case: Case) -> None:
        case_of.append(case)
        reply = await case.detect()
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "server-lost", "1")
        assert lost(case) == 1
        case.triton.answer = half
        assert (await case.detect()).code == "server-lost"
        assert lost(case) == 2
        reply = await case.detect()
        assert (reply.status, reply.code) == (503, "server-down")
        assert lost(case) == 2
        assert case.count(503) == 3

    run(scenario, answer=dies)


def test_a_server_that_is_being_started_is_not_even_asked() -> None:
    async def scenario(case: Case) -> None:
        port, case.gateway.address.port = case.gateway.address.port, None
        reply = await case.detect()
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "server-down", "1")
        assert (await case.ask("GET", "/v2/health/ready")).json == {"ready": False, "reason": "the server is being started"}
        assert case.triton.asked == []
        case.gateway.address.port = port
        assert (await case.detect()).status == 200

    run(scenario)


def test_a_restarted_server_on_another_port_is_found_at_once() -> None:
    async def scenario(case: Case) -> None:
        assert (await case.detect()).status == 200
        await case.triton.stop()
        assert (await case.detect()).status == 503
        other = FakeTriton(good)
        case.gateway.address.port = await other.start()
        assert [(await case.detect()).status for _ in range(3)] == [200] * 3
        assert len(other.asked) == 3
        await other.stop()

    run(scenario)


def test_a_restarted_server_on_the_same_port_is_found_at_once() -> None:
    async def scenario(case: Case) -> None:
        assert (await case.detect()).status == 200
        port = case.gateway.address.port
        assert port is not None
        await case.triton.stop()
        await asyncio.sleep(0.02)
        other = FakeTriton(good)
        await other.start(port)
        assert (await case.detect()).status == 200
        await other.stop()

    run(scenario)


def test_connections_to_the_server_are_kept_and_given_up_when_asked() -> None:
    async def scenario(case: Case) -> None:
        for _ in range(5):
            assert (await case.detect()).status == 200
        assert case.triton.connections == 1
        case.gateway.disconnect()
        assert (await case.detect()).status == 200
        assert case.triton.connections == 2

    run(scenario)


def test_a_late_answer_is_a_504_and_the_connection_is_not_used_again() -> None:
    async def late(asked: Asked) -> bytes:
        await asyncio.sleep(0.3)
        return infer_answer(asked, [()])

    async def scenario(case: Case) -> None:
        reply = await case.detect()
        assert (reply.status, reply.code) == (504, "answer-late")
        case.triton.answer = good
        assert len((await case.detect()).json["detections"]) == 2
        await asyncio.sleep(0.3)
        assert len((await case.detect()).json["detections"]) == 2

    run(scenario, answer=late, answer_s=0.1)


def test_requests_in_flight_keep_their_release_when_the_routes_are_swapped() -> None:
    gates = {1: asyncio.Event(), 2: asyncio.Event()}

    async def held(asked: Asked) -> bytes:
        await gates[asked.release].wait()
        return await good(asked)

    async def scenario(case: Case) -> None:
        first = asyncio.ensure_future(case.detect())
        while not case.triton.asked:
            await asyncio.sleep(0.005)
        case.gateway.table.routes = Routes(active=2, previous=1)
        second = asyncio.ensure_future(case.detect())
        while len(case.triton.asked) < 2:
            await asyncio.sleep(0.005)
        assert (case.gateway.in_flight(1), case.gateway.in_flight(2)) == (1, 1)
        assert not await case.gateway.drained(1, 0.02)
        case.releases.pop(1)
        gates[1].set()
        reply = await first
        assert (reply.status, reply.json["release"], reply.headers["x-redline-release"]) == (200, 1, "1")
        assert await case.gateway.drained(1, 1.0)
        gates[2].set()
        assert (await second).json["release"] == 2

    run(scenario, answer=held)


def test_the_canary_gets_its_share_over_both_entries() -> None:
    async def scenario(case: Case) -> None:
        fields = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 5}}]}
        for _ in range(10):
            assert (await case.detect()).status == 200
            assert (await case.infer(fields, b"\1\0\0\0J")).status == 200
        assert Counter(asked.release for asked in case.triton.asked) == {1: 16, 2: 4}

    run(scenario, routes=Routes(active=1, canary=2, canary_share=0.2))


def test_a_version_in_the_path_is_that_release() -> None:
    async def scenario(case: Case) -> None:
        data = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 5}}]}
        for version in (1, 2, 3):
            reply = await case.infer(data, b"\1\0\0\0J", f"/v2/models/detector/versions/{version}/infer")
            assert (reply.status, reply.headers["x-redline-release"]) == (200, str(version))
            assert reply.json["model_name"] == f"detector_r{version}"
        assert (await case.infer(data, b"\1\0\0\0J", "/v2/models/detector/versions/4/infer")).status == 404

    run(scenario, routes=Routes(active=1, previous=2, canary=3))


def test_the_tensor_entry_is_routed_to_its_own_model() -> None:
    async def scenario(case: Case) -> None:
        tensor = {"name": "images", "datatype": "FP32", "shape": [1, 3, 1, 8], "data": [0.5] * 24}
        place = {"name": "placement", "datatype": "FP64", "shape": [1, 8], "data": [1, 8, 1, 8, 1, 1, 0, 0]}
        reply = await case.infer({"inputs": [tensor, place]}, path="/v2/models/detector_tensor/infer")
        assert (reply.status, reply.json["model_name"]) == (200, "detector_r1_tensor")
        assert case.triton.asked[0].path == "/v2/models/detector_r1_tensor/versions/1/infer"
        assert case.count(200, entry="tensor") == 1

    run(scenario)


def test_a_release_that_triton_lacks_is_not_the_clients_fault() -> None:
    async def scenario(case: Case) -> None:
        case.releases.clear()
        reply = await case.detect()
        assert (reply.status, reply.code) == (503, "release-unavailable")
        case.gateway.table.routes = Routes()
        assert (await case.detect()).code == "no-release"

    run(scenario)


def test_a_shadow_never_delays_or_fails_the_request_and_is_counted() -> None:
    gate = asyncio.Event()

    async def answer(asked: Asked) -> bytes | None:
        if asked.release == 1:
            return await good(asked)
        await gate.wait()
        return infer_answer(asked, [BOXES[:1]])

    async def scenario(case: Case) -> None:
        replies = [await case.detect() for _ in range(6)]
        assert [reply.json["release"] for reply in replies] == [1] * 6
        assert skipped(case, 2) == 2
        assert case.gateway.in_flight(2) == 4
        gate.set()
        await case.gateway.shadows_done()
        assert boxes(case, 2) == (8, 4)  # four comparisons of two boxes with one of them
        assert case.count(200, release="2") == 0, "a shadow is no answer to a client"
        bodies = {asked.release: asked.body for asked in case.triton.asked}
        assert bodies[1] == bodies[2] == b"JPEG"

    run(scenario, answer=answer, routes=Routes(active=1, canary=2, shadow=True))


@pytest.mark.parametrize(
    ("answer", "counted", "left_out"),
    [
        (http(500, b'{"error": "x"}'), (0, 2), None),
        (http(400, b'{"error": "bad image"}'), (0, 2), None),
        (b"garbage\r\n\r\n", (0, 2), None),
        (http(503, b'{"error": "Exceeds maximum queue size"}'), (None, None), 1),
        (http(404, b'{"error": "no such model"}'), (None, None), 1),
        (None, (None, None), 1),
    ],
)
def test_a_shadow_that_fails_differs_if_it_is_the_releases_own_failure(
    answer: bytes | None, counted: tuple[float | None, float | None], left_out: float | None
) -> None:
    async def both(asked: Asked) -> bytes | None:
        return await good(asked) if asked.release == 1 else answer

    async def scenario(case: Case) -> None:
        assert (await case.detect()).status == 200
        await case.gateway.shadows_done()
        assert (boxes(case, 2), skipped(case, 2)) == (counted, left_out)
        assert lost(case) == 0

    run(scenario, answer=both, routes=Routes(active=1, canary=2, shadow=True))


def test_a_request_that_only_one_release_takes_is_not_compared() -> None:
    async def scenario(case: Case) -> None:
        case.releases[2] = release_limits(2, max_batch=1)
        image = {"name": "image", "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": 10}}
        assert (await case.infer({"inputs": [image]}, b"\1\0\0\0J\1\0\0\0K")).status == 200
        assert skipped(case, 2) == 1
        assert [asked.release for asked in case.triton.asked] == [1]

    run(scenario, routes=Routes(active=1, canary=2, shadow=True))


def test_during_a_hold_the_active_release_is_judged_against_the_one_before() -> None:
    async def answer(asked: Asked) -> bytes:
        return infer_answer(asked, [BOXES if asked.release == 2 else ()])

    async def scenario(case: Case) -> None:
        fields = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 5}}]}
        only = fields | {"outputs": [{"name": "count"}]}
        assert (await case.infer(only, b"\1\0\0\0J")).json["outputs"][0]["data"] == [2]
        await case.gateway.shadows_done()
        assert boxes(case, 2) == (0, 2)
        assert [asked.release for asked in case.triton.asked] == [2, 1]

    run(scenario, answer=answer, routes=Routes(active=2, previous=1, shadow=True))


def test_a_clients_error_is_not_shadowed() -> None:
    async def scenario(case: Case) -> None:
        assert (await case.detect(b"")).status == 400
        await case.gateway.shadows_done()
        assert case.triton.asked == []
        assert boxes(case, 2) == (None, None)

    run(scenario, routes=Routes(active=1, canary=2, shadow=True))


def test_live_is_the_gateway_ready_is_the_active_release_in_triton() -> None:
    ready = {"/v2/models/detector_r1/versions/1/ready": 200, "/v2/models/detector_r2/versions/2/ready": 400}

    async def answer(asked: Asked) -> bytes:
        return http(ready.get(asked.path, 404), b"")

    async def scenario(case: Case) -> None:
        assert (await case.ask("GET", "/v2/health/live")).json == {"live": True}
        assert (await case.ask("GET", "/v2/health/ready")).json == {"ready": True}
        case.gateway.table.routes = Routes(active=2)
        refused = await case.ask("GET", "/v2/health/ready")
        assert (refused.status, refused.json["reason"]) == (503, "detector_r2, version 2, is not ready in the server")
        page = await case.ask("GET", "/health")
        assert (page.status, page.json["ready"], page.json["server"], page.json["routes"]["active"]) == (503, False, "up", 2)
        case.gateway.table.routes = Routes()
        assert (await case.ask("GET", "/health")).json["reason"] == "nothing is released yet"
        assert (await case.ask("GET", "/v2/health/live")).status == 200

    run(scenario, answer=answer)


def test_triton_is_asked_at_most_every_half_second_about_readiness() -> None:
    async def scenario(case: Case) -> None:
        await asyncio.gather(*(case.ask("GET", "/v2/health/ready") for _ in range(20)))
        assert len(case.triton.asked) == 1
        case.triton.answer = never_ready
        await asyncio.sleep(FRESH_S + 0.05)
        assert (await case.ask("GET", "/v2/health/ready")).status == 503
        assert len(case.triton.asked) == 2

    async def never_ready(asked: Asked) -> bytes:
        return http(400, b"")

    run(scenario)


def test_a_server_that_hangs_is_not_ready() -> None:
    async def hangs(asked: Asked) -> bytes:
        await asyncio.sleep(5)
        return b""

    async def scenario(case: Case) -> None:
        reply = await case.ask("GET", "/v2/health/ready")
        assert (reply.status, reply.json["reason"]) == (503, "the server did not answer within 0.1 s")
        assert (await case.ask("GET", "/v2/health/live")).status == 200

    run(scenario, answer=hangs, probe_s=0.1)


def test_a_model_s_readiness_and_description_are_triton_s() -> None:
    async def answer(asked: Asked) -> bytes:
        return http(200, asked.path.encode()) if asked.release != 3 else http(400, b"")

    async def scenario(case: Case) -> None:
        assert (await case.ask("GET", "/v2/models/detector/ready")).status == 200
        assert (await case.ask("GET", "/v2/models/detector/versions/2/ready")).status == 200
        assert (await case.ask("GET", "/v2/models/detector/versions/3/ready")).status == 503
        assert (await case.ask("GET", "/v2/models/detector_tensor")).body == b"/v2/models/detector_r1_tensor/versions/1"
        assert (await case.ask("GET", "/v2/models/detector/versions/2")).body == b"/v2/models/detector_r2/versions/2"
        assert (await case.ask("GET", "/v2/models/detector/versions/3")).code == "release-unavailable"

    run(scenario, answer=answer, routes=Routes(active=1, previous=2, canary=3))


def test_metrics_are_prometheus_text_and_truthful() -> None:
    async def scenario(case: Case) -> None:
        await case.detect()
        reply = await case.ask("GET", "/metrics")
        assert reply.headers["content-type"].startswith("text/plain")
        lines = reply.body.decode().splitlines()
        assert 'redline_requests_total{code="200",entry="bytes",release="1",service="detector"} 1.0' in lines
        assert 'redline_server_up{service="detector"} 1.0' in lines
        case.gateway.address.port = None
        assert 'redline_server_up{service="detector"} 0.0' in (await case.ask("GET", "/metrics")).body.decode().splitlines()

    run(scenario)


def test_the_time_of_a_slow_upload_is_not_the_releases() -> None:
    async def scenario(case: Case) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", case.port)
        writer.write(b"POST /detect HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nJP")
        await asyncio.sleep(0.25)
        writer.write(b"EG")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        labels = {"service": "detector", "release": "1", "entry": "bytes"}
        spent = case.gateway.metrics.registry.get_sample_value("redline_request_seconds_sum", labels)
        assert spent is not None
        assert spent < 0.2

    run(scenario)
