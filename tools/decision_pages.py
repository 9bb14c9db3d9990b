"""Write docs/decisions/*.md: short pages whose figures come from the plan's functions, the simulator and the result files.

    python tools/decision_pages.py           # writes all
    python tools/decision_pages.py --check   # says which are stale, ends with 1

The words are in tools/decisions/*.md.j2, what others published in published.toml beside them.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

import decision_network
import decision_service

HERE = Path(__file__).resolve().parent / "decisions"
TARGET = Path(__file__).resolve().parents[1] / "docs" / "decisions"
FIGURES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "int8": decision_network.int8,
    "batching": decision_service.batching,
    "shapes": decision_network.shapes,
    "mig": decision_service.mig,
    "memory_bound": decision_network.memory_bound,
    "several_gpus": decision_service.several,
    "gpus": decision_service.cost,
}
WIDTH = 130
SIMULATED = ("batching", "mig", "several_gpus", "gpus")


def page(name: str) -> str:
    """Raises jinja2.UndefinedError for a figure that the words name and nothing computes."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    words = environment.from_string((HERE / f"{name}.md.j2").read_text("utf-8"))
    note = f"<!-- Written by tools/decision_pages.py from tools/decisions/{name}.md.j2: change it there. -->\n\n"
    return note + "\n\n".join(map(filled, words.render(FIGURES[name]()).split("\n\n")))


def filled(block: str) -> str:
    """A paragraph or list, its lines filled anew after the figures are in; tables and headings stay."""
    if block.startswith(("|", "#")):
        return block
    items = re.split(r"\n(?=- |\d+\. )", block.rstrip("\n"))
    indents = [re.match(r"- |\d+\. |", item) for item in items]
    end = "\n" if block.endswith("\n") else ""
    return (
        "\n".join(fill(item, " " * len(found.group() if found else "")) for item, found in zip(items, indents, strict=True))
        + end
    )


def fill(text: str, indent: str) -> str:
    words = " ".join(text.split())
    return textwrap.fill(words, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing, name the pages that differ")
    check = parser.parse_args().check
    TARGET.mkdir(exist_ok=True)
    stale = []
    for name in FIGURES:
        path, text = TARGET / f"{name}.md", page(name)
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print(f"{'stale' if check else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
