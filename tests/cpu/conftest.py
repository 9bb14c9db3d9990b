"""Graphs that several rooms' tests share: an export takes seconds."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from detector_graphs import Graphs, export_both


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Graphs]:
    """By name: demo, yolox, retinanet. Processes that share the tests share the exports."""
    made: dict[str, Graphs] = {}
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graphs"
    shared.mkdir(exist_ok=True)

    def get(name: str) -> Graphs:
        if name not in made:
            with (shared / f"{name}.lock").open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                made[name] = export_both(name, shared / name)
        return made[name]

    return get
