"""A gateway's real counters without a gateway, Triton's recorded text, and a loopback endpoint that says what it is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from redline.observe.scrape import Scrape, parse
from redline.records import Routes
from redline.serve.gateway.metrics import Metrics

OBJECTIVE_S, RATE, ERROR_RATIO = 0.02, 30.0, 0.001
GATEWAY, TRITON = "http://127.0.0.1:8080/metrics", "http://127.0.0.1:8002/metrics"
FOLDER = Path(__file__).parent
TRITON_BEFORE, TRITON_AFTER = ((FOLDER / f"triton_{name}.txt").read_text() for name in ("before", "after"))
"""A real server's: 8 requests to detector_r4 of version 4, then 24 more, executed in 22 batches, none of them failed."""
GPU = """\
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-a"} 0.61
nv_gpu_utilization{gpu_uuid="GPU-b"} 0
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-a"} 42949672960
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 7516192768
# TYPE nv_gpu_power_usage gauge
nv_gpu_power_usage{gpu_uuid="GPU-a"} 212.4
# TYPE nv_gpu_power_limit gauge
nv_gpu_power_limit{gpu_uuid="GPU-a"} 400
"""


@dataclass
class FakeGateway:
    """The gateway's own metrics, fed by hand."""

    routes: Routes = field(default_factory=Routes)
    up: bool = True

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.metrics = Metrics("detector", objective_s=OBJECTIVE_S, rate_per_s=RATE, error_ratio=ERROR_RATIO)

    def serve(self, release: int, requests: int, *, ms: float = 10.0, code: int = 200) -> None:
        for _ in range(requests):
            self.metrics.answered(release, "bytes", code, ms / 1000)

    def text(self) -> str:
        return self.metrics.exposition(self.routes, up=self.up, in_flight=2).decode()

    def scrape(self, at_s: float) -> Scrape:
        return Scrape(url=GATEWAY, at_s=at_s, samples=parse(self.text()))


def triton(text: str, at_s: float) -> Scrape:
    return Scrape(url=TRITON, at_s=at_s, samples=parse(text))


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    wait_s: float = 0.0


@contextmanager
def endpoint(answer: Answer) -> Iterator[str]:
    """host:port of a server that gives `answer`, which may be changed meanwhile."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(answer.wait_s)
            self.send_response(answer.status)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that gave up waiting is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
