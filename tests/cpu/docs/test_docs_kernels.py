"""docs/kernels.md: its files are there, its fence compiles, and its headline figures are those of the files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"
YOLOX = "2026-11-29-h200-resident-yolox-nano.json"
PAGE = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")


def rows(name: str, phase: str) -> list[dict[str, Any]]:
    held: dict[str, Any] = json.loads((RESULTS / name).read_text("utf-8"))
    found: list[dict[str, Any]] = held["phases"][phase] if "phases" in held else held["rows"]
    return found


def test_every_result_file_named_is_there() -> None:
    names = set(re.findall(r"\b(20\d\d-\d\d-\d\d-[a-z0-9-]+\.json)", PAGE))
    assert len(names) >= 3
    assert all((RESULTS / name).is_file() for name in names)


def test_the_fence_compiles() -> None:
    (code,) = re.findall(r"^```python needs-a-gpu\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    compile(code, "docs/kernels.md", "exec")
    assert "ResidentPipeline(" in code


def test_latencies_are_the_files() -> None:
    files = {"retina_resident": "2026-11-29-h200-resident-retinanet.json", "yolox_resident": YOLOX}
    for phase, name in files.items():
        measured = rows(name, phase)
        for what in ("latency resident", "latency jpeg"):
            (row,) = (row for row in measured if row["what"] == what)
            assert f"{row['p95_ms']:.2f}" in PAGE, (phase, what)


def test_nothing_wrong_was_found_where_the_page_says_equal() -> None:
    for name, phase in ((YOLOX, "yolox_resident"), ("2026-11-29-h200-resident-bccd.json", "fp32")):
        (row,) = (row for row in rows(name, phase) if row["what"] == "equal")
        assert (row["found_again"], row["not_in_reference"]) == (row["reference"], 0)
        assert f"{row['reference']:,}" in PAGE


def test_the_objective_is_the_files() -> None:
    for name, phase, gpus in ((YOLOX, "yolox_resident", 1), ("2026-11-29-h200-objective-retinanet.json", "", 2)):
        loads = [
            row for row in rows(name, phase) if row["what"] == "poisson jpeg" and row["gpus"] == gpus and row["p95_ms"] <= 20
        ]
        best = max(loads, key=lambda row: row["offered_per_s"])
        assert best["offered_per_s"] > 2000
        assert f"{best['offered_per_s']:,.0f}/s with {best['p95_ms']:.1f}" in PAGE
