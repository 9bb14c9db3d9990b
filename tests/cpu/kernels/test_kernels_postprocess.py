"""The post-processing kernels in Triton's interpreter, and compiled for GPUs that are not there.

Processes of their own: Triton chooses between the two when it is imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.language", reason="the kernels' language")

CASES = Path(__file__).with_name("interpreted_postprocess.py")


def test_the_kernels_agree_with_the_reference() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", str(CASES)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 30
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("capability", [90])
def test_the_kernels_compile_as_meant(capability: int, tmp_path: Path) -> None:
    """Wide loads where scores are streamed; IEEE division, and no product fused with a sum, where the reference has
    neither an approximation nor a fusion."""
    worker, out = CASES.with_name("compile_postprocess.py"), tmp_path / "ptx.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, str(worker), str(capability), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(out.read_text())
    assert set(made) == {"filter_scores", "count_digits", "collect", "order_and_decode", "overlap_bits", "suppress"}
    assert "ld.global.v4.b32" in made["filter_scores"][0]
    assert "div.rn.f32" in made["overlap_bits"][0]
    for kernels in made.values():
        for text in kernels:
            assert not re.search(r"fma\.rn\S*\.f32|div\.(full|approx)\S*\.f32", text)
