"""A plan on paper, made once for the tests that look at one."""

from __future__ import annotations

import pytest
from paper_plan import plan_on_paper

from redline.records import PlanRecord


@pytest.fixture(scope="session")
def plan_record(tmp_path_factory: pytest.TempPathFactory) -> PlanRecord:
    return plan_on_paper(tmp_path_factory.mktemp("none"))
