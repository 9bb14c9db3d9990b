"""docs/devices.md works: Python fences run, shell fences name options that exist, its numbers are those of the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_python_fences_run(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for code in fences("python"):
        exec(compile(code, "docs/devices.md", "exec"), {})
        said.append(capsys.readouterr().out)
    table, occupancy, node = said
    assert table.startswith("h100-sxm 1978.9 3350.0\n")
    assert "value=None" in table
    assert occupancy.splitlines()[0] == "2 16 25%"
    assert node.splitlines() == [
        "the network itself 8 GPUs x 715/s = 5,720/s",
        "PCIe switch shared by GPUs needs how many GPUs share a switch",
    ]


def test_shell_fences_name_options_that_exist() -> None:
    commands = [line.split("#")[0].split() for text in fences("sh") for line in text.splitlines()]
    assert len(commands) == 3
    told = subprocess.run([sys.executable, "-m", "redline.cli", "doctor", "--help"], capture_output=True, text=True, check=True)
    assert all(command[:2] == ["redline", "doctor"] for command in commands)
    assert all(word in told.stdout for command in commands for word in command if word.startswith("--"))


def test_numbers_are_those_of_the_code() -> None:
    from redline.doctor.ceilings import GPU_SIZES
    from redline.plan.devices import devices

    assert f"has {len(devices())} GPUs" in PAGE
    assert f"{GPU_SIZES.side} x {GPU_SIZES.side}" in PAGE
    reference = json.loads((ROOT / "tests/null/plan/occupancy_reference.json").read_text(encoding="utf-8"))
    assert f"[{len(reference['rows'])}]" in PAGE
    assert f"{reference['launches_compared']:,} launches" in PAGE
    assert reference["launches_different"] == 0
    assert "of CUDA 13.5" in reference["source"]


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", PAGE))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).exists()
