"""docs/gpu.md works: Python fences run without a GPU, shell fences name options that exist, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", fences("python"))
def test_python_fences_run(code: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_shell_fences_name_verbs_and_options_that_exist() -> None:
    commands = [line.split("#")[0].split() for text in fences("sh") for line in text.splitlines() if line.strip()]
    assert len(commands) == 9
    for verb in {command[1] for command in commands}:
        told = subprocess.run(
            [sys.executable, "-m", "redline.cli", verb, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for command in commands:
            for option in (word for word in command if word.startswith("--") and command[1] == verb):
                assert option in told, (option, command)


def test_toml_fences_name_keys_that_exist() -> None:
    from redline.spec.read import tomllib
    from redline.spec.tables import TargetTable

    (given,) = [tomllib.loads(text) for text in fences("toml")]
    assert TargetTable.model_validate(given["target"]).precisions == ["fp32", "tf32", "fp16"]


def test_limits_are_those_of_the_code() -> None:
    from redline.engine.tensorrt_proof import ALLOWED_SHARE
    from redline.examining import BOUNDARY_MARGIN, ROUNDS
    from redline.plan.candidates import MAX_BATCH, MAX_LANES
    from redline.plan.gpu import COMPILE_MINUTES, MEMORY_SHARE
    from redline.plan.profiles import EXACT_MOST
    from redline.workbench import ATTEMPTS

    assert f"up to {MAX_LANES} a GPU" in PAGE
    assert f"batches of up to {MAX_BATCH}, tuned for {MAX_BATCH}" in PAGE
    assert f"more than {EXACT_MOST} shapes" in PAGE
    assert f"below {COMPILE_MINUTES:g} minute of budget" in PAGE
    assert f"more than {100 * ALLOWED_SHARE:g} %" in PAGE
    assert f"at most {ROUNDS} in a run" in PAGE
    assert BOUNDARY_MARGIN == 4
    assert MEMORY_SHARE == 0.5
    assert ATTEMPTS == 3


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", PAGE))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).exists()
