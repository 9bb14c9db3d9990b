"""The process around tritonserver: start, proof of outputs, ports, keys, crash, sweep."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc

from redline.errors import BadInput
from redline.serve import server as module
from redline.serve.environment import ServerEnvironment, find_environment
from redline.serve.processes import runs
from redline.serve.server import SHARED_MEMORY, TritonServer, end_stale, read_process
from redline.served import Host

SLEEPER = """
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [pb.InferenceResponse([pb.Tensor("y", pb.get_input_tensor_by_name(r, "x").as_numpy())]) for r in requests]
"""
CONFIG = """
name: "echo"
backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


def echo(repository: Path) -> None:
    (repository / "echo" / "1").mkdir(parents=True, exist_ok=True)
    (repository / "echo" / "config.pbtxt").write_text(CONFIG)
    (repository / "echo" / "1" / "model.py").write_text(SLEEPER)


def objects(prefix: str) -> list[str]:
    return sorted(path.name for path in SHARED_MEMORY.glob(f"{prefix}*"))


def test_it_starts_empty_on_loopback_and_stops_clean(own_triton: TritonServer, tmp_path: Path) -> None:
    known = own_triton.start()
    assert own_triton.control.index() == {}
    listening = {
        c.laddr.ip.removeprefix("::ffff:") for c in psutil.Process(known.pid).net_connections() if c.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}
    echo(tmp_path / "repository")
    own_triton.control.load("echo")
    assert own_triton.control.ready("echo", 1)
    assert not own_triton.control.ready("echo", 2)
    assert objects(known.memory_prefix)
    own_triton.stop()
    assert not psutil.pid_exists(known.pid)
    assert objects(known.memory_prefix) == []
    assert read_process(tmp_path) is None


def test_a_killed_server_leaves_memory_that_the_next_start_sweeps(own_triton: TritonServer, tmp_path: Path) -> None:
    first = own_triton.start()
    echo(tmp_path / "repository")
    own_triton.control.load("echo")
    os.kill(first.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while own_triton.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    assert own_triton.exit_code == -signal.SIGKILL
    assert objects(first.memory_prefix)
    second = own_triton.start()
    assert objects(first.memory_prefix) == []
    assert second.pid != first.pid


def test_a_server_left_by_a_dead_supervisor_is_ended(environment, tmp_path: Path) -> None:
    left = TritonServer(environment, tmp_path / "repository", tmp_path)
    known = left.start()
    assert end_stale(tmp_path)
    assert left._process is not None
    assert left._process.wait(5) == -signal.SIGKILL
    assert not end_stale(tmp_path)
    assert objects(known.memory_prefix) == []


def test_a_pid_that_is_somebody_elses_is_left_alone(own_triton: TritonServer, tmp_path: Path) -> None:
    known = own_triton.start()
    stranger = replace(known, pid=os.getpid())
    (tmp_path / "server.json").write_bytes(module.dump(stranger))
    assert read_process(tmp_path) is None


def test_a_taken_port_is_named(own_triton: TritonServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = module.free_ports(2)
        with pytest.raises(BadInput, match=str(taken.getsockname()[1])) as caught:
            own_triton.start(ports=(taken.getsockname()[1], *free))
    assert caught.value.code == "serve.port"
    assert not own_triton.alive


def test_a_port_taken_between_choice_and_start_is_replaced(own_triton: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        real, offered = module.free_ports, [taken.getsockname()[1]]
        monkeypatch.setattr(module, "free_ports", lambda count: (offered.pop(), *real(count - 1)) if offered else real(count))
        assert own_triton.start().http_port != taken.getsockname()[1]


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/models/echo/load", "/v2/trace/setting"])
def test_administration_over_http_asks_for_the_key(triton: TritonServer, path: str) -> None:
    with closing(HTTPConnection("127.0.0.1", triton.known.http_port)) as connection:
        connection.request("POST", path, b"{}", {"Content-Type": "application/json"})
        assert connection.getresponse().status == 403
    assert triton.control.index() is not None


def test_administration_over_grpc_asks_for_the_key(triton: TritonServer) -> None:
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{triton.known.grpc_port}")
    with pytest.raises(Exception, match="restricted"):
        client.get_model_repository_index()
    with pytest.raises(Exception, match="restricted"):
        client.register_system_shared_memory("a", "/b", 8)
    headers = {"triton-grpc-protocol-x-redline-admin": triton.known.admin_key}
    assert client.get_model_repository_index(headers=headers) is not None


def test_empty_outputs_are_caught_at_the_start(
    own_triton: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What numpy 2 does to the wheel's backend, here by a model that answers with an empty array."""
    from redline.serve import selftest

    monkeypatch.setattr(selftest, "_MODEL", selftest._MODEL.replace("scale[0] * ", "0 * "))
    with pytest.raises(BadInput, match="wrong outputs") as caught:
        own_triton.start()
    assert caught.value.code == "serve.empty-outputs"
    assert not own_triton.alive


def test_numpy_2_in_the_servers_environment_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    answer = (
        '{"minor": [3, 11], "libpython": "x", "library": "y", "purelib": "/", "versions": {"numpy": "2.4.6", "pillow": "1", '
        '"onnxruntime": "1", "opencv-python-headless": "1", "nvidia-pytriton": "0.7.0"}}'
    )
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    with pytest.raises(BadInput, match="numpy 2") as caught:
        find_environment(tmp_path)
    assert caught.value.code == "serve.numpy"


def test_no_environment_says_how_to_have_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="redline serve --install"):
        find_environment(tmp_path / "none")


def test_the_server_of_a_killed_run_is_ended_by_the_next(environment: ServerEnvironment, tmp_path: Path) -> None:
    """A run that is killed outright cannot end its server."""
    code = "import time; from redline.serve.environment import find_environment; from redline.served import Host; "
    code += "host = Host(find_environment()); print(host.server().known.pid, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = int(process.stdout.readline())
    other = Host(environment)  # an owner that lives keeps its server
    assert runs(server)
    process.kill()
    process.wait()
    process.stdout.close()
    assert runs(server)
    Host(environment).close()
    other.close()
    end_s = time.monotonic() + 5
    while runs(server) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not runs(server)
