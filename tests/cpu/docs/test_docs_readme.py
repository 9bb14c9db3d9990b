"""The README's fences work: Python ones run, shell ones name verbs, options and targets that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", fences("python"))
def test_python_fences_run(code: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "707361 parameters" in done.stdout


def test_shell_fences_name_what_exists() -> None:
    lines = "\n".join(fences("sh")).replace("\\\n", " ").splitlines()
    commands = [line.split("#")[0].split() for line in lines if line.strip()]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands:
        if command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE), command
            continue
        shown = subprocess.run(
            [sys.executable, "-m", "redline.cli", command[1], "--help"], capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, command
        for option in (word for word in command if word.startswith("--")):
            assert option in shown.stdout, (option, command)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_result_files_named_are_there() -> None:
    named = re.findall(r"`(20\d\d-[a-z0-9.-]+\.json)`", README)
    assert named
    for name in named:
        assert (ROOT / "benchmarks" / "results" / name).is_file(), name
