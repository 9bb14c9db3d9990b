"""docs/spec.md names every key with the default that holds."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

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
    TargetSpec,
    TensorRTSpec,
)

DOCS = Path(__file__).parents[3] / "docs" / "spec.md"
RECORDS = {
    "model": (ModelSpec,),
    "model.head": (Head,),
    "model.preprocess": (Preprocess,),
    "model.postprocess": (Postprocess,),
    "data": (DataSpec, DataRef),
    "objective": (Objective,),
    "target": (TargetSpec,),
    "target.tensorrt": (TensorRTSpec,),
    "budget": (Budget,),
    "serve": (ServeSpec,),
}


def documented() -> dict[str, dict[str, str]]:
    """{table: {key: default as written}}"""
    tables: dict[str, dict[str, str]] = {}
    for line in DOCS.read_text().splitlines():
        if heading := re.fullmatch(r"## `\[(.+)\]`", line):
            table = tables.setdefault(heading[1], {})
        elif row := re.fullmatch(r"\| `(\w+)` \| (.*?) \| .+ \|", line.replace("| |", "|  |")):
            table[row[1]] = row[2].strip()
    return tables


def shown(field: dataclasses.Field[object]) -> str:
    if field.default_factory is not dataclasses.MISSING or field.default is None or field.name == "arguments":
        return ""
    return "*required*" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`"


def test_every_key_is_documented_with_its_default():
    expected = {
        table: {field.name: shown(field) for record in records for field in dataclasses.fields(record)}
        for table, records in RECORDS.items()
    }
    assert documented() == expected
