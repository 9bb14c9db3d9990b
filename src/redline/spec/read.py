"""A spec file as a `Spec` record, or every reason why not."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from redline.errors import BadInput
from redline.records import (
    Budget,
    DataRef,
    DataSpec,
    Head,
    ModelSpec,
    Objective,
    Postprocess,
    Preprocess,
    ServeSpec,
    Spec,
    TargetSpec,
    TensorRTSpec,
)
from redline.records.spec import HeadKind
from redline.spec.problems import Problem, from_validation, nearest, refusal, shown
from redline.spec.rules import HEAD_DEFAULTS, PATHS, absolute, at, broken_rules
from redline.spec.tables import SpecFile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILT_IN_HEADS = tuple(kind for kind in get_args(HeadKind) if kind != "custom")


def load_spec(path: Path | str) -> Spec:
    """Read and check a spec file. Raises BadInput that names every problem of the file, with its place and what to do."""
    file = Path(os.path.abspath(path))
    try:
        text = file.read_bytes().decode()
    except FileNotFoundError:
        raise BadInput("spec.absent", f"no spec file {path}", fix="`redline init` writes one") from None
    except OSError as error:
        raise BadInput("spec.unreadable", f"cannot read {path}", got=error.strerror) from error
    except UnicodeDecodeError as error:
        raise BadInput("spec.syntax", f"{path} is not UTF-8 text", got=f"byte {error.start}: {error.reason}") from error
    return parse_spec(text, file)


def parse_spec(text: str, path: Path) -> Spec:
    """As `load_spec`, from the text that `path` (absolute) holds or will hold."""
    try:
        given = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        fix = "TOML wants key = value, with texts in quotes: https://toml.io"
        raise BadInput("spec.syntax", f"{path} is not TOML", got=str(error), fix=fix) from error
    problems = _spread_head(given)
    valid = copy.deepcopy(given)
    tables: SpecFile | None = None
    try:
        tables = SpecFile.model_validate(given)
    except ValidationError as error:
        found = _merged(error.errors(include_url=False), given)
        head_is_wrong = any(problem.place == "model.head" for problem in problems)
        problems += from_validation([item for item in found if not (head_is_wrong and item["loc"][:2] == ("model", "head"))])
        for item in found:
            _remove(valid, item["loc"])
    problems += broken_rules(given, valid, path.parent)
    if tables is None or problems:
        raise refusal(path, problems)
    return _record(tables, path)


def _spread_head(given: dict[str, Any]) -> list[Problem]:
    """Replace a head given as a word by its table, in place."""
    model = given.get("model")
    word = model.get("head") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(word, str):
        return []
    if ":" in word:
        model["head"] = {"kind": "custom", "function": word}
    elif word in BUILT_IN_HEADS:
        model["head"] = {"kind": word}
    else:
        del model["head"]
        close = nearest(word, BUILT_IN_HEADS)
        return [
            Problem(
                code="spec.head",
                place="model.head",
                what="no such head",
                got=shown(word),
                allowed=", ".join(f'"{kind}"' for kind in BUILT_IN_HEADS)
                + ', "package.module:callable", or a table [model.head]',
                fix=f'did you mean "{close}"?' if close else None,
            )
        ]
    return []


def _merged(errors: Sequence[Any], given: Mapping[str, Any]) -> list[Any]:
    """A number that stands for a list of equal ones is wrong once, at its own place."""
    merged: dict[tuple[int | str, ...], Any] = {}
    for error in errors:
        loc = error["loc"]
        if isinstance(loc[-1], int) and isinstance(at(given, ".".join(map(str, loc[:-1]))), int | float):
            loc = loc[:-1]
        merged.setdefault(loc, {**error, "loc": loc})
    return list(merged.values())


def _remove(tree: dict[str, Any], loc: tuple[int | str, ...]) -> None:
    """Take a wrong value out of a tree; of a wrong list the whole list."""
    node: Any = tree
    for index, key in enumerate(loc):
        last = index == len(loc) - 1 or not isinstance(node.get(key) if isinstance(node, dict) else None, dict)
        if last:
            if isinstance(node, dict):
                node.pop(key, None)
            return
        node = node[key]


def _record(tables: SpecFile, path: Path) -> Spec:
    given = tables.model_dump(exclude_unset=True)
    for place in PATHS:
        parent, _, key = place.rpartition(".")
        if at(given, place) is not None:
            at(given, parent)[key] = absolute(at(given, place), path.parent)
    model, data = given["model"], given["data"]
    sets: dict[str, Any] = {key: DataRef(**value) if isinstance(value, Mapping) else value for key, value in data.items()}
    head = model.pop("head")
    arguments = tuple(sorted(model.pop("arguments", {}).items()))
    pre, post = _tupled(model.pop("preprocess", {})), model.pop("postprocess", {})
    return Spec(
        path=str(path),
        model=ModelSpec(
            **model,
            arguments=arguments,
            head=Head(**{**HEAD_DEFAULTS.get(head["kind"], {}), **_tupled(head)}),
            preprocess=Preprocess(**pre),
            postprocess=Postprocess(**post),
        ),
        data=DataSpec(**sets),
        objective=Objective(**given["objective"]),
        target=_target(_tupled(given.get("target", {}))),
        budget=Budget(**given.get("budget", {})),
        serve=ServeSpec(**given.get("serve", {})),
    )


def _target(given: dict[str, Any]) -> TargetSpec:
    return TargetSpec(**{**given, "tensorrt": TensorRTSpec(**given.get("tensorrt", {}))})


def _tupled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tupled(item) for key, item in value.items()}
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value
