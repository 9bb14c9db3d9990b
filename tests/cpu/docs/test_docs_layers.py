"""The fence of docs/layers.md runs, and what the page says of seams is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/layers.md").read_text(encoding="utf-8")


def test_the_fence_runs_and_finds_nothing_wrong(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "at fault: []"
    assert len(lines) == 50  # 48 seams, the output and the verdict
    assert any(line.startswith("backbone.") for line in lines)


def test_the_result_file_is_there() -> None:
    (name,) = re.findall(r"`benchmarks/results/(20[^`]*\.json)`", PAGE)
    assert (ROOT / "benchmarks/results" / name).is_file()
