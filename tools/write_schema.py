"""Write docs/run.schema.json: the JSON Schema of run.json, made from the records and their docstrings."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import sys
import types
import typing
from itertools import pairwise
from pathlib import Path
from typing import Any

from redline.records import SCHEMA_VERSION, RunRecord

TARGET = Path(__file__).parents[1] / "docs" / "run.schema.json"
NOT_FINITE = ["NaN", "Infinity", "-Infinity"]
"""JSON has no numbers for these; run.json writes them as strings."""


def schema() -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    top = _record(RunRecord, definitions)
    top["properties"]["schema_version"] = {"const": SCHEMA_VERSION, "description": "Raised when a field changes or goes."}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "redline run.json"}
    return {**head, **top, "$defs": dict(sorted(definitions.items()))}


def text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _record(record: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, told = typing.get_type_hints(record), _field_docs(record)
    properties = {}
    for field in dataclasses.fields(record):
        made = _type(hints[field.name], definitions)
        properties[field.name] = {**made, "description": told[field.name]} if field.name in told else made
    described = inspect.cleandoc(record.__doc__ or "")
    # A dataclass without a docstring gets its signature for one.
    heading = {} if described.startswith(f"{record.__name__}(") else {"description": described}
    given = (dataclasses.MISSING, dataclasses.MISSING)
    required = [field.name for field in dataclasses.fields(record) if (field.default, field.default_factory) == given]
    return {"type": "object", **heading, "properties": properties, "required": required}


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__] = _record(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type(argument, definitions) for argument in arguments]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is tuple:
        items = [_type(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if hint is float:
        definitions["float"] = {"anyOf": [{"type": "number"}, {"enum": NOT_FINITE}]}
        return {"$ref": "#/$defs/float"}
    return {"type": {str: "string", int: "integer", bool: "boolean", types.NoneType: "null"}[hint]}


def _field_docs(record: type) -> dict[str, str]:
    """The string literal under each field of a dataclass."""
    body = typing.cast(ast.ClassDef, ast.parse(inspect.cleandoc(inspect.getsource(record))).body[0]).body
    found = {}
    for field, after in pairwise(body):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(told))):
                found[name] = inspect.cleandoc(told)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the file is up to date")
    if parser.parse_args().check:
        current = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text()
        print("up to date" if current else f"{TARGET.name} is out of date: run python tools/write_schema.py")
        return 0 if current else 1
    TARGET.write_text(text(), encoding="utf-8")
    print(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
