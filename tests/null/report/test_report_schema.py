"""docs/run.schema.json and docs/run-json.md keep up with the records."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from report_fixture import make_parity, make_record

from redline.records import RunRecord
from redline.store import dump

ROOT = Path(__file__).parents[3]
TYPES = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "array": list,
    "object": dict,
}


def errors(value: Any, schema: dict[str, Any], definitions: dict[str, Any], at: str = "run") -> list[str]:
    """The few words of JSON Schema that the generator uses."""
    if "$ref" in schema:
        return errors(value, definitions[schema["$ref"].removeprefix("#/$defs/")], definitions, at)
    if "anyOf" in schema:
        found = [errors(value, option, definitions, at) for option in schema["anyOf"]]
        return [] if any(not entry for entry in found) else min(found, key=len)
    if "const" in schema:
        return [] if value == schema["const"] else [f"{at}: {value!r}"]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{at}: {value!r}"]
    if not isinstance(value, TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return [f"{at}: {value!r} is no {schema['type']}"]
    if schema["type"] == "array":
        rows = schema.get("prefixItems") or [schema["items"]] * len(value)
        wrong = [] if schema.get("minItems", len(value)) == len(value) else [f"{at}: {len(value)} items"]
        return wrong + [
            error for index, item in enumerate(value) for error in errors(item, rows[index], definitions, f"{at}[{index}]")
        ]
    if schema["type"] == "object":
        unknown = [f"{at}.{key}: unknown" for key in value if key not in schema["properties"]]
        missing = [f"{at}.{key}: missing" for key in schema["required"] if key not in value]
        inner = [
            error
            for key in value.keys() & schema["properties"].keys()
            for error in errors(value[key], schema["properties"][key], definitions, f"{at}.{key}")
        ]
        return unknown + missing + inner
    return []


@pytest.fixture
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "run.schema.json").read_text(encoding="utf-8"))
    return found


def test_the_schema_file_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "write_schema.py"))["text"]()
    assert (ROOT / "docs" / "run.schema.json").read_text(encoding="utf-8") == made, "run python tools/write_schema.py"


def test_a_record_with_values_that_are_not_finite_fits_the_schema(tmp_path: Path, schema: dict[str, Any]) -> None:
    record = make_record(tmp_path)
    broken = dataclasses.replace(record.trials[0], parity=make_parity(0.3, 6.6, 0.4, "fail", finite=False))
    value = json.loads(dump(dataclasses.replace(record, trials=(*record.trials, broken))))
    assert value["trials"][-1]["parity"]["tensors"][0]["max_rel"] == "NaN"
    assert errors(value, schema, schema["$defs"]) == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("schema_version",), 999),
        (("seconds",), "fast"),
        (("choice", "verdict", "answer"), "maybe"),
        (("data", "traffic", "shapes", 0), [1]),
    ],
)
def test_the_schema_refuses_wrong_values(
    tmp_path: Path, schema: dict[str, Any], path: tuple[str | int, ...], wrong: object
) -> None:
    value = json.loads(dump(make_record(tmp_path)))
    inner: Any = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = wrong
    assert len(errors(value, schema, schema["$defs"])) == 1


def test_every_top_level_field_is_documented() -> None:
    text = (ROOT / "docs" / "run-json.md").read_text(encoding="utf-8")
    table = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert table == [field.name for field in dataclasses.fields(RunRecord)]
