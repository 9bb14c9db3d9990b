"""mypy reads redline's calls of TensorRT against the published stubs of 10.13, where `make install` put them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
STUBS = Path(sys.prefix) / "stubs"
WRONG = """
from __future__ import annotations
import tensorrt as trt
from redline.engine.tensorrt_versions import Library

def wrong(library: Library, config: trt.IBuilderConfig, context: trt.IExecutionContext) -> None:
    config.max_workspace_size = 1
    library.module.BuilderFlag.STRICT_TYPES
    context.execute_async_v2([], 0)
    config.builder_optimization_level = "3"
"""


@pytest.mark.skipif(not (STUBS / "tensorrt").is_dir(), reason="no stubs in the environment: make install brings them")
def test_removed_members_and_wrong_types_are_found(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "--no-error-summary"]
    environment = {**os.environ, "MYPYPATH": f"{STUBS}:{ROOT / 'src'}"}
    done = subprocess.run([*command, str(path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    found = [line.partition(": error: ")[2] for line in done.stdout.splitlines() if line.startswith(str(path))]
    found = [re.sub(r"; maybe .*\?", "", line) for line in found]  # which names are alike is mypy's affair
    assert found == [
        '"IBuilderConfig" has no attribute "max_workspace_size"  [attr-defined]',
        '"type[BuilderFlag]" has no attribute "STRICT_TYPES"  [attr-defined]',
        '"IExecutionContext" has no attribute "execute_async_v2"  [attr-defined]',
        'Incompatible types in assignment (expression has type "str", variable has type "int")  [assignment]',
    ], done.stdout + done.stderr


def mending() -> Any:
    location = importlib.util.spec_from_file_location("mend_stubs", ROOT / "tools/mend_stubs.py")
    assert location is not None
    module = importlib.util.module_from_spec(location)
    assert location.loader is not None
    location.loader.exec_module(module)
    return module


def test_stubs_are_mended_once_and_are_python_then(tmp_path: Path) -> None:
    folder = tmp_path / "tensorrt_bindings"
    folder.mkdir()
    path = folder / "tensorrt.pyi"
    path.write_text(
        "import typing\n"
        "class Dims:\n    MAX_DIMS: typing.ClassVar[int] = 8\n"
        "class P:\n    def size(self, in: list[int]) -> int: ...\n"
        "    def scale(self, power: int = None, channel_axis: int) -> int: ...\n"
        "    def deserialize_cuda_engine(self, plan: bytes) -> P:\n        ...\n"
        "bool: DataType  # value\n"
    )
    assert mending().mend(tmp_path) == 6
    text = path.read_text()
    compile(text, "tensorrt.pyi", "exec")
    assert "-> P | None:" in text
    assert "__iter__" in text
    assert "bool:" not in text
    assert mending().mend(tmp_path) == 0
