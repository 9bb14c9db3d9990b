"""What is wrong with a file, said all at once: each problem with its place, what was got, what is allowed, what to do."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redline.errors import BadInput
from redline.spec.tables import TABLES

ALLOWED = {
    "string_type": "a text in quotes",
    "string_too_short": "a text that is not empty",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "a table",
    "dict_type": "a table",
    "finite_number": "a finite number",
}
LITERALS = re.compile(r"'([^']*)'")
"""The values in pydantic's words for what a literal allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    code: str
    place: str
    """Dotted: "model.preprocess.fill[1]"."""
    what: str
    got: object = None
    allowed: object = None
    fix: str | None = None

    def error(self, prefix: str) -> BadInput:
        return BadInput(self.code, f"{prefix}{self.place}: {self.what}", got=self.got, allowed=self.allowed, fix=self.fix)


def refusal(path: Path, problems: Sequence[Problem]) -> BadInput:
    """One error for all problems of a file; a single one keeps its own code, several are `spec.problems`."""
    if len(problems) == 1:
        return problems[0].error(f"{path}: ")
    items = [f"{number}. {problem.error('').text()}" for number, problem in enumerate(problems, start=1)]
    lines = "\n".join(items).replace("\n", "\n  ")
    return BadInput("spec.problems", f"{path} has {len(problems)} problems:\n  {lines}")


def place_of(loc: Iterable[int | str]) -> str:
    place = ""
    for part in loc:
        place += f"[{part}]" if isinstance(part, int) else "" if part == "[key]" else f".{part}" if place else part
    return place


def from_validation(errors: Sequence[Any]) -> list[Problem]:
    """Pydantic's error dictionaries as problems, in the order of the file's tables."""
    return [_from_validation(error["type"], place_of(error["loc"]), error) for error in errors]


def _from_validation(kind: str, place: str, error: Any) -> Problem:
    if kind == "extra_forbidden":
        return unknown_key(place)
    if kind == "missing":
        return Problem(code="spec.missing", place=place, what="is missing", fix=f"add it; {place} has no default")
    fix = None
    if kind == "literal_error":
        allowed = error["ctx"]["expected"]
        close = nearest(str(error["input"]), LITERALS.findall(allowed))
        fix = f'did you mean "{close}"?' if close is not None else None
    elif kind == "value_error":
        allowed = str(error["ctx"]["error"])
    elif kind in ("too_short", "too_long"):
        allowed = _length(error)
    else:
        allowed = ALLOWED.get(kind, error["msg"].removeprefix("Input should be "))
    code, what = ("spec.type", "wrong type") if kind.endswith("_type") else ("spec.value", "value not allowed")
    return Problem(code=code, place=place, what=what, got=shown(error["input"]), allowed=allowed, fix=fix)


def _length(error: Any) -> str:
    wanted = error["ctx"].get("min_length", error["ctx"].get("max_length"))
    return "a list that is not empty" if wanted == 1 else f"one number, or a list of {wanted}"


def shown(value: object) -> str:
    """A value as TOML would have it, as near as JSON comes, cut to a readable length."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."


def unknown_key(place: str) -> Problem:
    table, _, key = place.rpartition(".")
    allowed = sorted(TABLES[table].model_fields) if table in TABLES else []
    close = nearest(key, allowed)
    homes = [name for name, fields in TABLES.items() if key in fields.model_fields and name]
    if close is not None:
        fix: str | None = f"did you mean `{close}`?"
    elif homes:
        fix = f"`{key}` belongs in " + " or ".join(f"[{name}]" for name in homes)
    else:
        fix = "remove it"
    return Problem(code="spec.unknown-key", place=place, what="unknown key", got=key, allowed=", ".join(allowed), fix=fix)


def nearest(word: str, words: Iterable[str]) -> str | None:
    known = {one.lower(): one for one in words}
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return known[found[0]] if found else None
