"""docs/decisions: the committed pages are what their generator writes, and hold no figure that it did not compute."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from redline.plan.queueing.jit import COMPILED

ROOT = Path(__file__).parents[3]
PAGES = ("int8", "batching", "shapes", "mig", "memory_bound", "several_gpus", "gpus")
MOST_LINES = 70


@pytest.fixture(scope="module")
def generator() -> Any:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module("decision_pages")
    finally:
        sys.path.remove(str(ROOT / "tools"))


def words(name: str) -> str:
    return (ROOT / "tools" / "decisions" / f"{name}.md.j2").read_text("utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_its_generator_writes(generator: Any, name: str) -> None:
    if name in generator.SIMULATED and not COMPILED:
        pytest.skip("numba is not installed: the simulations of this page take a minute without it")
    committed = (ROOT / "docs" / "decisions" / f"{name}.md").read_text("utf-8")
    assert generator.page(name) == committed, "run: python tools/decision_pages.py"
    assert len(committed.splitlines()) <= MOST_LINES


def test_every_page_is_generated_and_listed(generator: Any) -> None:
    assert tuple(generator.FIGURES) == PAGES
    assert {path.stem for path in (ROOT / "docs" / "decisions").glob("*.md")} == set(PAGES)
    index = (ROOT / "docs" / "plan.md").read_text("utf-8")
    assert all(f"(decisions/{name}.md)" in index for name in PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_the_words_of_a_page_hold_no_figures(name: str) -> None:
    """Names such as H100, P95 and v3.0 begin with a letter; the numbers of a list are no figures."""
    text = re.sub(r"\{\{.*?\}\}|^\d+\. ", "", words(name), flags=re.MULTILINE)
    assert re.findall(r"(?<![\w/.-])\d[\d.,]*", text) == []


@pytest.mark.parametrize("name", PAGES)
def test_result_files_that_a_page_names_are_there(name: str) -> None:
    page = (ROOT / "docs" / "decisions" / f"{name}.md").read_text("utf-8")
    found = set(re.findall(r"\d{4}-\d{2}-\d{2}-[\w-]+\.json", page))
    assert all((ROOT / "benchmarks" / "results" / file).is_file() for file in found), found
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / "decisions" / link).resolve().is_file(), link
