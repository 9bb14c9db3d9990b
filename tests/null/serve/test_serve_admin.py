"""The owner's client of a service: what the service refuses comes back as the same error, and a service that is away as one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from redline.errors import BadInput, RedlineError, StoreError, TrialError
from redline.serve.admin import KEY_HEADER, Service
from redline.serve.state import ServiceInfo


class Answers(BaseHTTPRequestHandler):
    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b"null"
    asked: ClassVar[list[tuple[str, dict[str, Any], str | None]]] = []

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, given, self.headers[KEY_HEADER]))
        if self.status == 0:
            self.connection.close()
            return
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        Answers.status, Answers.body = 200, b"null"
        Answers.asked.clear()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Service(info(server.server_port))
        server.shutdown()


def info(port: int) -> ServiceInfo:
    return ServiceInfo(
        pid=1, identity="", gateway_port=1, admin_port=port, http_port=1, grpc_port=1, metrics_port=1, key="k", server_key=""
    )


@pytest.mark.parametrize(("kind", "type"), [("BadInput", BadInput), ("TrialError", TrialError), ("StoreError", StoreError)])
def test_a_refusal_comes_back_as_the_same_error(service: Service, kind: str, type: type[RedlineError]) -> None:
    fault = {"kind": kind, "code": "serve.busy", "what": "w", "got": "g", "allowed": None, "fix": "f"}
    Answers.status, Answers.body = 409, json.dumps(fault).encode()
    with pytest.raises(type) as caught:
        service.withdraw(3, "because")
    error = caught.value
    assert (error.code, error.what, error.got, error.allowed, error.fix) == ("serve.busy", "w", "g", None, "f")
    assert Answers.asked == [("/withdraw", {"number": 3, "reason": "because"}, "k")]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_service_that_does_not_understand_is_a_store_error(service: Service, status: int) -> None:
    Answers.status = status
    with pytest.raises(StoreError, match=f"stop: {status}"):
        service.stop()


def test_a_service_that_dies_with_the_question_is_named(service: Service) -> None:
    Answers.status = 0
    with pytest.raises(StoreError, match="does not answer") as caught:
        service.stop()
    assert caught.value.code == "serve.gone"


def test_a_service_that_is_not_there_is_named() -> None:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        free = server.server_port
    with pytest.raises(StoreError, match="redline serve"):
        Service(info(free)).status()


def test_an_answer_that_is_no_record_is_a_store_error(service: Service) -> None:
    Answers.body = b'{"at": "now"}'
    with pytest.raises(StoreError, match="Switch"):
        service.promote(1, hold_s=0.0)
