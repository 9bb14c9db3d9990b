"""What the tests of the supervisor share: three rendered releases, and a judge."""

from __future__ import annotations

from pathlib import Path

import pytest
from service_case import CUSTOM, Case
from supervisor_case import Judge


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Rendered once: releases 1 to 3, which every test gets a copy of."""
    case = Case(tmp_path_factory.mktemp("project"), head=CUSTOM)
    for _ in range(3):
        case.add()
    return case


@pytest.fixture
def case(project: Case, tmp_path: Path) -> Case:
    return project.copy(tmp_path / "runs")
