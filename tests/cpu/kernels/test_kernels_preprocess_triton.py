"""The Triton preprocessing kernel, in Triton's interpreter, against the numpy reference. Tolerances: preprocess_cases."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from preprocess_cases import CASES, Case, compare, random_case

pytest.importorskip("triton", reason="Triton interprets the kernel")

HERE = Path(__file__).parent
RANDOM = 10


def interpreted(folder: Path, cases: Sequence[Case], **tile: int) -> list[Any]:
    question, answer = folder / "cases", folder / "outputs"
    question.write_bytes(pickle.dumps((tile, list(cases))))
    subprocess.run([sys.executable, HERE / "triton_worker.py", question, answer], check=True, timeout=280)
    outputs: list[Any] = pickle.loads(answer.read_bytes())
    return outputs


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process for all: it takes seconds to start."""
    found = interpreted(tmp_path_factory.mktemp("triton"), CASES, columns=64, rows=32, warps=4)
    return {case.name: output for case, output in zip(CASES, found, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_are_the_references(case: Case, outputs: dict[str, Any]) -> None:
    compare(case, outputs[case.name])


def test_values_of_random_sizes_are_the_references_with_another_tile(tmp_path: Path) -> None:
    cases = [random_case(seed) for seed in range(RANDOM)]
    for case, output in zip(cases, interpreted(tmp_path, cases, columns=32, rows=64, warps=4), strict=True):
        compare(case, output)
