"""A real tritonserver for the session, on loopback; skipped with a reason where it is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from redline.errors import BadInput
from redline.serve.environment import ServerEnvironment, find_environment
from redline.serve.server import TritonServer


@pytest.fixture(scope="session")
def environment() -> ServerEnvironment:
    try:
        return find_environment()
    except BadInput as error:
        pytest.skip(f"no server: {error.what} ({error.fix})")


@pytest.fixture(scope="session")
def triton(environment: ServerEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Started once; its repository is `triton.repository`."""
    folder = tmp_path_factory.mktemp("triton")
    server = TritonServer(environment, folder / "repository", folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_triton(environment: ServerEnvironment, tmp_path: Path) -> Iterator[TritonServer]:
    """A server of the test's own, not started: for tests that kill it or look at its start."""
    server = TritonServer(environment, tmp_path / "repository", tmp_path)
    yield server
    server.stop()
