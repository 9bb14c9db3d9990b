"""A service as the process it is: its server or itself killed, its files gone, its port taken, its settings changed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from service_case import Case, Stream, promoted, serving, waited
from supervisor_case import servers

from redline.errors import BadInput, StoreError
from redline.parity import differs
from redline.records import Routes
from redline.serve.admin import running_service
from redline.serve.processes import runs
from redline.serve.server import SHARED_MEMORY, read_process
from redline.serve.state import STATE, read_state
from redline.serving import prepare_service


def ended(case: Case, pid: int) -> None:
    """SIGKILL the service itself; what it has started is left alone."""
    process = psutil.Process(pid)
    process.kill()
    process.wait(10)


def objects(prefix: str) -> list[Path]:
    return sorted(SHARED_MEMORY.glob(f"{prefix}*"))


def answers_right(case: Case, stream: Stream) -> None:
    wanted = case.expected.detections
    for answer in stream.answers:
        if answer.status == 200:
            assert differs(wanted[answer.image], answer.detections()) is None


def test_a_server_killed_under_load_is_replaced_and_says_what_was_lost(case: Case) -> None:
    with serving(case) as service:
        promoted(service, 1)
        before = read_process(case.folder)
        assert before is not None
        family = [before.pid, *(child.pid for child in psutil.Process(before.pid).children(recursive=True))]
        assert objects(before.memory_prefix)
        with Stream(service.info.gateway_port, case.images, 40) as stream:
            time.sleep(1)
            case.order(1, "slow")  # so that requests are in flight for certain
            time.sleep(0.5)
            os.kill(before.pid, signal.SIGKILL)
            case.countermand(1, "slow")
            died = case.event("server-died")
            case.event("server-restarted", after=len(case.events()) - 1)
            time.sleep(1.5)
        lost = [answer for answer in stream.answers if answer.code == "server-lost"]
        assert died.text == f"signal 9; {died.lost} requests were in flight"
        assert died.lost == len(lost) > 0
        refused = [answer for answer in stream.answers if answer.status != 200]
        assert {answer.status for answer in refused} == {503}, stream.failures
        assert all(answer.headers["Retry-After"] == "1" for answer in refused)
        last = stream.answers[-1].at_s
        assert {answer.status for answer in stream.answers if answer.at_s > last - 1} == {200}
        answers_right(case, stream)
        after = read_process(case.folder)
        assert after is not None
        assert after.pid not in family
        assert (after.http_port, after.grpc_port, after.admin_key) == (before.http_port, before.grpc_port, before.admin_key)
        assert not any(psutil.pid_exists(pid) for pid in family)
        assert objects(before.memory_prefix) == []
        assert service.status().state.routes.active == 1
        prefix = after.memory_prefix
    assert servers(case.folder) == []
    assert objects(prefix) == []


def test_a_killed_service_comes_back_where_it_was_and_ends_what_it_left(case: Case) -> None:
    with serving(case) as first:
        promoted(first, 1)
        promoted(first, 2)
        left = read_process(case.folder)
        assert left is not None
        ended(case, first.info.pid)
        assert runs(left.pid), "the server ended with its service: nothing is left to end"
        assert running_service(case.folder) is None
        with pytest.raises(StoreError, match="does not answer"):
            first.status()
        second = case.start()
        assert second.info.gateway_port == first.info.gateway_port
        assert second.status().state.routes == Routes(active=2, previous=1)
        assert not runs(left.pid)  # nor a zombie counts: its parent has gone
        assert objects(left.memory_prefix) == []
        with Stream(second.info.gateway_port, case.images, 20) as stream:
            time.sleep(0.5)
        assert not stream.failures
        assert {answer.release for answer in stream.answers} == {2}


def test_models_whose_service_and_server_were_killed_are_ended_too(case: Case) -> None:
    with serving(case) as first:
        promoted(first, 1)
        left = read_process(case.folder)
        assert left is not None
        models = psutil.Process(left.pid).children(recursive=True)
        for model in models:
            model.suspend()  # a model notices its service's or its server's end by itself, if it can look
        ended(case, first.info.pid)
        os.kill(left.pid, signal.SIGKILL)
        second = case.start()
        waited(lambda: not any(model.is_running() for model in models), 3, "the models' end")
        assert second.status().state.routes.active == 1
        assert objects(left.memory_prefix) == []


def test_an_active_release_without_files_gives_way_to_the_one_before(case: Case) -> None:
    with serving(case) as service:
        promoted(service, 1)
        promoted(service, 2)
    shutil.rmtree(case.repository / "detector_r2")
    known = len(case.events())
    with serving(case) as service:
        state = service.status().state
        assert state.routes == Routes(active=1)
        assert state.failed == (2,)
        assert (state.switches[-1].cause, state.switches[-1].source, state.switches[-1].to) == ("restart", 2, 1)
        event = case.event("switched", after=known)
        assert "release 2 does not load any more, 1 is served" in event.text
        assert "there is no release 2" in event.text
        with Stream(service.info.gateway_port, case.images, 20) as stream:
            time.sleep(0.3)
        assert not stream.failures
        assert {answer.release for answer in stream.answers} == {1}
    shutil.rmtree(case.repository / "detector_r1")
    with serving(case) as service:
        assert service.status().state.routes == Routes()
        # Nothing is served, and the way out is the one that its error names.
        with pytest.raises(BadInput, match="no release to go back to"):
            service.rollback(to=None, reason="test")
        assert service.rollback(to=3, reason="test").to == 3
        assert service.status().state.routes == Routes(active=3)


def test_a_damaged_index_is_refused_and_the_releases_are_not_lost(case: Case) -> None:
    with serving(case) as service:
        promoted(service, 1)
        promoted(service, 2)
    path = case.folder / STATE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput) as caught:
        case.start()
    assert str(path) in caught.value.text()
    assert "redline rollback SPEC --to N" in caught.value.text()
    assert "Traceback" not in caught.value.text()
    assert path.read_bytes() == whole[: len(whole) // 2]
    assert servers(case.folder) == []
    path.rename(path.with_suffix(".damaged"))
    with serving(case) as service:
        assert service.rollback(to=2, reason="test").to == 2
        assert service.status().state.routes == Routes(active=2)


def test_a_chosen_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        case = Case(tmp_path, serve=f"port = {taken.getsockname()[1]}")
        with pytest.raises(BadInput, match=f":{taken.getsockname()[1]}") as caught:
            case.start()
        assert "choose another port" in caught.value.text()
        assert servers(case.folder) == []
    with serving(case) as service:
        assert service.info.gateway_port == case.spec.serve.port


def test_two_starts_at_once_are_one_service(case: Case) -> None:
    try:
        with ThreadPoolExecutor(2) as pool:
            found = [future.result() for future in [pool.submit(case.start) for _ in range(2)]]
        assert found[0].info == found[1].info
        assert len([process for process in servers(case.folder) if process.name() == "tritonserver"]) == 1
        # Neither other settings nor a second service are let in; a stop is seen at once, and a start waits for its end.
        spec = replace(case.spec, objective=replace(case.spec.objective, p95_ms=1.0))
        with pytest.raises(BadInput) as caught:
            prepare_service(spec, case.runs)
        assert caught.value.code == "serve.settings"
        psutil.Process(found[0].info.pid).terminate()
        waited(lambda: running_service(case.folder) is None, 5, "the stop to be seen")
        again = case.start()
        assert again.info.pid != found[0].info.pid
        assert again.info.gateway_port == found[0].info.gateway_port
        assert again.status().server_up
    finally:
        case.stop()
    prepare_service(spec, case.runs)


def test_the_index_is_what_the_service_says(case: Case) -> None:
    with serving(case) as service:
        promoted(service, 1)
        service.stage(2)
        service.withdraw(2, "test")
        assert service.status().state == read_state(case.folder, "detector")
