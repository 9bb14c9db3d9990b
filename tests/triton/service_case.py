"""A running service over the blob detector, releases made for it at will, and a stream of requests from another process."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import blob_case
import numpy as np
from aiohttp import web  # noqa: F401  the stream needs aiohttp: fail here and not in another process

from redline.networks import graph_network
from redline.records import Candidate, Detections, Release, RunRecord, Spec
from redline.releasable import choice_to_serve
from redline.releasing import expect, make_release
from redline.rollout import Expected
from redline.serve.admin import Service, running_service
from redline.serve.daemon import start_detached, stop_service
from redline.serve.repository import releases_in, write_repository
from redline.serve.state import REPOSITORY, Event, read_events
from redline.serving import prepare_service, service_folder
from redline.store import Store, digest_of

CUSTOM = 'head = { kind = "custom", function = "planted_heads:plain" }'
STREAM = Path(__file__).with_name("stream.py")


class Case:
    """A project, its finished run and its service's folder. Nothing runs until `start`."""

    def __init__(self, folder: Path, chosen: Candidate | None = None, **project: Any) -> None:
        self.runs = folder / "runs"
        self.images = folder / "val"
        self.spec: Spec = blob_case.project(folder, **project)
        self.record: RunRecord = blob_case.finished_run(self.spec, self.runs, chosen)
        self.folder = prepare_service(self.spec, self.runs)
        self.repository = self.folder / REPOSITORY
        candidate, _ = choice_to_serve(self.record)
        self.expected: Expected = expect(self.spec, self.record, candidate, graph_network(self.record, self.runs, candidate))

    @property
    def network(self) -> Path:
        assert self.record.onnx is not None
        return Store(self.runs / "store").path(self.record.onnx.digest)

    def add(self, **changes: Any) -> int:
        """Write the next release into the repository, unverified; `changes` of the record that `redline release` would make."""
        candidate, trial = choice_to_serve(self.record)
        number = 1 + max(releases_in(self.repository, self.spec.serve.name), default=0)
        candidate, engine = changes.pop("candidate", candidate), graph_network(self.record, self.runs, candidate).engine
        made = make_release(self.spec, self.record, candidate, trial, self.expected, number, engine=engine)
        made = replace(made, **changes)
        write_repository(self.repository, made, "embedded", network_file=self.network, golden_files=self._golden(made))
        return number

    def _golden(self, made: Release) -> dict[str, Path]:
        images = {digest_of(Path(image.path).read_bytes()): Path(image.path) for image in self.expected.dataset.images}
        return {golden.file: images[golden.sha256] for golden in made.golden}

    def copy(self, runs: Path) -> Case:
        """The same project with runs, and so a service folder, of its own."""
        found = copy.copy(self)
        shutil.copytree(self.runs, runs)
        found.runs, found.folder = runs, service_folder(self.spec, runs)
        found.repository = found.folder / REPOSITORY
        return found

    def start(self) -> Service:
        return start_detached(self.folder)

    def stop(self) -> None:
        stop_service(self.folder)

    @property
    def service(self) -> Service:
        found = running_service(self.folder)
        assert found is not None, "the service does not run"
        return found

    def order(self, number: int, what: str) -> None:
        """Make a release with a head of `planted_heads` go wrong."""
        (self.repository / f"{self.spec.serve.name}_r{number}" / str(number) / "code" / what).touch()

    def countermand(self, number: int, what: str) -> None:
        (self.repository / f"{self.spec.serve.name}_r{number}" / str(number) / "code" / what).unlink()

    def events(self) -> tuple[Event, ...]:
        return read_events(self.folder, last=200)

    def event(self, kind: str, seconds: float = 10.0, after: int = 0) -> Event:
        """The first event of this kind beyond the first `after` ones of the folder, waited for."""
        return waited(lambda: next((event for event in self.events()[after:] if event.kind == kind), None), seconds, kind)


@contextmanager
def serving(case: Case) -> Iterator[Service]:
    try:
        yield case.start()
    finally:
        case.stop()


def promoted(service: Service, number: int, *, hold_s: float = 0.0) -> None:
    service.stage(number)
    service.promote(number, hold_s=hold_s)


def waited(look: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return found


class Stream:
    """Requests at a constant rate from a process of its own, open loop, until it is stopped. Answers come with `stop`."""

    def __init__(self, port: int, images: Path, rate_per_s: float) -> None:
        command = [sys.executable, str(STREAM), str(port), str(images), str(rate_per_s)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answers: list[Answer] = []
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> list[Answer]:
        if self._process.poll() is None:
            output, _ = self._process.communicate(timeout=60)
            self.answers = [Answer(**json.loads(line)) for line in output.splitlines()]
            assert self._process.returncode == 0
        return self.answers

    @property
    def failures(self) -> list[str]:
        return [f"{answer.at_s:.2f} s: {answer.status} {answer.body}" for answer in self.answers if answer.status != 200]

    def p95_ms_by_second(self) -> list[int]:
        """Of each second since the start, from the intended times on."""
        seconds: dict[int, list[float]] = {}
        for answer in self.answers:
            seconds.setdefault(int(answer.at_s), []).append(answer.latency_s)
        return [round(1000 * float(np.percentile(found, 95))) for _, found in sorted(seconds.items())]


class Answer:
    def __init__(
        self, *, image: int, at_s: float, latency_s: float, status: int, headers: dict[str, str], body: Any, clock_s: float
    ) -> None:
        self.image, self.at_s, self.latency_s, self.clock_s = image, at_s, latency_s, clock_s
        self.status, self.headers, self.body = status, headers, body
        """`at_s`: intended time since the start; `clock_s`: the monotonic clock at the answer; `status` 0: no answer at all."""

    @property
    def release(self) -> int:
        return int(self.body["release"])

    @property
    def code(self) -> str:
        """Of an error."""
        return str(self.body["error"]["code"]) if self.status not in (0, 200) else ""

    def detections(self) -> Detections:
        found = self.body["detections"]
        return Detections(
            boxes=np.array([one["box"] for one in found], np.float32).reshape(-1, 4),
            scores=np.array([one["score"] for one in found], np.float32),
            labels=np.array([one["label"] for one in found], np.int64),
        )


def read(case: Case, number: int) -> Release:
    from redline.serve.loader import read_release

    return read_release(case.repository, case.spec.serve.name, number)
