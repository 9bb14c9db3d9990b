"""The Triton preprocessing kernel, in Triton's interpreter, against the numpy reference. Tolerances: preprocess_cases."""

from __future__ import annotations

import json
import os
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
RANDOM = 6


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


@pytest.mark.parametrize(("sampling", "dtype", "capability"), [("linear-uint8", "fp16", "90"), ("linear-float", "fp32", "80")])
def test_it_compiles_to_word_loads_and_vector_stores(sampling: str, dtype: str, capability: str) -> None:
    """Also that no product is fused with a sum, which the reference does not do, but where it weighs in float32."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, HERE / "triton_compile.py", sampling, dtype, capability]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True, timeout=200)
    found = json.loads(done.stdout)
    assert found["cubin"] > 1000
    loads = {name for name in found["instructions"] if name.startswith("ld.global")}
    assert loads == {"ld.global.b32", "ld.global.b64"}
    stores = {name: count for name, count in found["instructions"].items() if name.startswith("st.global")}
    assert stores == {"st.global.v2.b32" if dtype == "fp16" else "st.global.v4.b32": 3}
    fused = sum(count for name, count in found["instructions"].items() if name.startswith("fma"))
    pixels = 4  # of a thread
    assert fused == (0 if sampling == "linear-uint8" else 3 * 3 * pixels)
