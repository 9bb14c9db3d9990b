"""Fails if a source file is longer than 400 lines or a function longer than 60: small stays small only if a tool says so."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

MAX_FILE = 400
MAX_FUNCTION = 60
FOLDERS = ("src", "tests", "tools", "benchmarks")


def problems(path: Path) -> list[str]:
    """One line for each limit that `path` exceeds."""
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    found = [f"{path}: {lines} lines (limit {MAX_FILE}): which record or room is missing?"] if lines > MAX_FILE else []
    if path.suffix != ".py":
        return found
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines (limit {MAX_FUNCTION})")
    return found


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    files = [p for folder in FOLDERS for pattern in ("*.py", "*.css", "*.j2") for p in sorted((root / folder).rglob(pattern))]
    found = [line for path in files for line in problems(path.relative_to(root) if Path.cwd() == root else path)]
    print("\n".join(found) if found else f"{len(files)} files within {MAX_FILE} lines, functions within {MAX_FUNCTION}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
