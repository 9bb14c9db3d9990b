"""A candidate made ready to answer through a real server: rendered, loaded, asked over HTTP. The served twin of `live`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from redline.errors import TrialError
from redline.live import Mix, first_of_each
from redline.networks import graph_facts
from redline.records import Candidate, Release

if TYPE_CHECKING:
    from redline.prepare import Graphs, Subject
    from redline.serve.client import Endpoint
    from redline.serve.environment import ServerEnvironment
    from redline.serve.server import TritonServer

SERVICE = "tune"
PREFIX, OWNER = "redline-server-", "owner"
CLIENTS = 32
"""Connections of an open load: more than the requests in flight while P95 holds."""
SPARE_CLIENTS = 1
"""Clients of a closed load beyond those whose requests are being computed: the next one is decoded meanwhile."""


class Host:
    """One embedded server for all candidates of a search, in a folder of its own, started when the first is opened."""

    def __init__(self, environment: ServerEnvironment) -> None:
        from redline.serve.processes import identity

        end_orphans()
        self._environment = environment
        # Two runs of one spec may search at once, and a server's folder is for one server.
        self._scratch = tempfile.TemporaryDirectory(prefix=PREFIX)
        self._folder = Path(self._scratch.name)
        (self._folder / OWNER).write_text(f"{os.getpid()} {identity(os.getpid())}", encoding="ascii")
        self._server: TritonServer | None = None
        self._numbers = 0

    @property
    def repository(self) -> Path:
        return self._folder / "repository"

    def server(self) -> TritonServer:
        """A living one: a server that a candidate has killed is started again."""
        from redline.serve.server import TritonServer

        if self._server is None:
            self._server = TritonServer(self._environment, self.repository, self._folder)
        if not self._server.alive:
            self._server.start()
        return self._server

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None
        self._scratch.cleanup()


def end_orphans() -> None:
    """End the servers of runs that were killed, which could not do it: their folders name an owner that is gone."""
    from redline.serve.processes import identity
    from redline.serve.server import end_stale

    for owner in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{OWNER}"):
        with contextlib.suppress(OSError, ValueError):
            pid, _, known = owner.read_text(encoding="ascii").partition(" ")
            if owner.stat().st_uid == os.getuid() and identity(int(pid)) != known:
                end_stale(owner.parent)
                shutil.rmtree(owner.parent, ignore_errors=True)


@dataclass(frozen=True, slots=True, eq=False)
class ServedLive:
    """As `live.Live`, but every request crosses the server."""

    candidate: Candidate
    host: Host
    number: int
    mix: Mix
    input_hw: tuple[tuple[int, int], ...]
    build_seconds: float
    """Render, load and the first answer."""
    endpoint: Endpoint

    @property
    def joined(self) -> int:
        """Requests that the load generator joins: none, the server's batcher does."""
        return 1

    @property
    def callers(self) -> int:
        return CLIENTS

    @property
    def closed_callers(self) -> int:
        return self.candidate.concurrency * self.candidate.batch + SPARE_CLIENTS

    def target(self, requests: Sequence[int]) -> None:
        for request in requests:
            self.endpoint.send(self.mix.at(request))

    def same_batch(self, request: int) -> tuple[int, int]:
        return self.input_hw[request % len(self.input_hw)]

    def warm_up_requests(self) -> list[list[int]]:
        return [[index] for index in first_of_each(self.input_hw)]

    def close(self) -> None:
        from redline.serve.loader import unload_release
        from redline.serve.repository import remove_release

        self.endpoint.close()
        unload_release(self.host.server().control, self.host.repository, SERVICE, self.number)
        remove_release(self.host.repository, SERVICE, self.number)


def open_served(host: Host, subject: Subject, graphs: Graphs, candidate: Candidate, mix: Mix) -> ServedLive:
    """Raises TrialError if the candidate cannot be rendered, loaded or asked; the search goes on."""
    from redline.errors import BadInput
    from redline.serve.client import Endpoint
    from redline.serve.loader import load_release
    from redline.serve.names import model_name
    from redline.serve.repository import write_repository

    if graphs.network is None:
        raise TrialError("serve-no-graph", "a server needs an exported graph", got=graphs.network_failure)
    started, number = time.perf_counter(), host.next_number()
    server = host.server()
    try:
        release = _release(subject, graphs, candidate, number)
        write_repository(host.repository, release, "embedded", network_file=Path(graphs.network.path), golden_files={})
        load_release(server.control, host.repository, SERVICE, number)
        endpoint = Endpoint(server.known.http_port, model_name(SERVICE, number, "entry"), number)
        endpoint.send(mix.at(0))
    except BadInput as error:  # a combination of knobs that cannot be served is this candidate's failure, not the user's
        raise TrialError(error.code, error.what, got=error.got, allowed=error.allowed, fix=error.fix) from error
    return ServedLive(
        candidate=candidate,
        host=host,
        number=number,
        mix=mix,
        input_hw=mix.input_hw(subject.detector.preprocess, candidate.shapes),
        build_seconds=time.perf_counter() - started,
        endpoint=endpoint,
    )


def plain(candidate: Candidate) -> Candidate:
    """The candidate without a server: of the same accuracy."""
    return replace(candidate, serving=None)


def _release(subject: Subject, graphs: Graphs, candidate: Candidate, number: int) -> Release:
    """What the repository needs of it; it is never promoted, so there is nothing golden."""
    from redline import __version__

    assert graphs.network is not None
    network, detector = graphs.network, subject.detector
    return Release(
        service=SERVICE,
        number=number,
        created="",
        run="",
        trial="",
        candidate=candidate,
        engine=graph_facts(network),
        preprocess=detector.preprocess,
        postprocess=detector.postprocess,
        head=detector.head,
        labels=subject.spec.model.labels,
        classes=(),
        objective=subject.spec.objective,
        accuracy=None,
        golden=(),
        redline=__version__,
        tools=(),
    )
