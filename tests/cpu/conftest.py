"""Graphs that several rooms' tests share: an export takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from detector_graphs import Graphs, export_both


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Graphs]:
    """By name: demo, yolox, retinanet."""
    made: dict[str, Graphs] = {}

    def get(name: str) -> Graphs:
        if name not in made:
            made[name] = export_both(name, tmp_path_factory.mktemp("graphs") / name)
        return made[name]

    return get
