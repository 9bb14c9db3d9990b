"""Both preprocessing kernels on a real GPU against the numpy reference. Skipped without one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch holds the images")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU that this torch can use", allow_module_level=True)
pytest.importorskip("triton", reason="Triton compiles one of the kernels")
pytest.importorskip("cuda.bindings", reason="NVRTC compiles the other")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "cpu" / "kernels"), str(ROOT / "benchmarks")]

from preprocess_cases import CASES, Case, compare, random_case  # noqa: E402

from gpu_preprocess_values import Setup, kernel_for  # noqa: E402


@pytest.mark.parametrize("kind", ["cuda", "triton"])
@pytest.mark.parametrize("case", [*CASES, *map(random_case, range(8))], ids=lambda case: case.name)
def test_values_are_the_references(case: Case, kind: str) -> None:
    setup = Setup(case)
    kernel_for(setup, kind)(setup)
    torch.cuda.synchronize()
    compare(case, setup.out.cpu().numpy())
