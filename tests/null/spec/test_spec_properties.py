"""Properties of spec files: any unknown key is refused by name; any valid spec written and read is the same."""

from __future__ import annotations

import string
import tempfile
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from redline.records import spec as kinds
from redline.spec import load_spec, to_toml
from redline.spec.rules import HEAD_DEFAULTS
from redline.spec.tables import TABLES

MINIMAL = {
    "model": 'factory = "pkg.mod:fn"\nhead = "yolox"',
    "data": 'evaluate = { images = "val" }',
    "objective": "p95_ms = 20\nthroughput = 5.5",
}


def with_key(table: str, key: str) -> str:
    """A valid file with one more key, at the top or in a table."""
    tables = {**MINIMAL, table: f"{MINIMAL.get(table, '')}\n{key} = 1"} if table else MINIMAL
    text = "\n".join(f"[{name}]\n{lines}" for name, lines in tables.items())
    return text if table else f"{key} = 1\n{text}"


KEYS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=15)


@settings(max_examples=40, deadline=None)
@given(
    table=st.sampled_from(
        [name for name in TABLES if name not in ("model.head", "data.evaluate", "data.calibrate", "data.confirm")]
    ),
    key=KEYS,
)
def test_any_unknown_key_is_refused_by_name(table, key):
    if key in TABLES[table].model_fields:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "val").mkdir()
        (folder / "detector.toml").write_text(with_key(table, key))
        with pytest.raises(BadInput) as caught:
            load_spec(folder / "detector.toml")
        error = caught.value
        place = f"{table}.{key}" if table else key
        assert error.code == "spec.unknown-key"
        assert f"{place}: unknown key" in error.what
        assert error.got == key


POSITIVE = st.floats(min_value=1e-6, max_value=1e9)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
NAME = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,8}\Z")
THREE = st.tuples(POSITIVE, POSITIVE, POSITIVE)
STRIDES = st.lists(st.integers(1, 256), min_size=1, max_size=4, unique=True).map(tuple)


def literal(kind: object) -> st.SearchStrategy[str]:
    return st.sampled_from(get_args(kind))


@st.composite
def preprocesses(draw):
    resize, stride = draw(literal(kinds.Resize)), draw(st.integers(1, 64))
    sides = sorted(draw(st.tuples(st.integers(1, 40), st.integers(1, 40))))
    return Preprocess(
        resize=resize,
        size=(sides[0] * stride, sides[1] * stride),
        anchor=draw(literal(kinds.Anchor)),
        interpolation=draw(literal(kinds.Interpolation)),
        antialias=draw(st.booleans()),
        round_to_uint8=draw(st.booleans()),
        stride=stride,
        fill=draw(st.tuples(*[st.floats(0, 255)] * 3)),
        channels=draw(literal(kinds.Channels)),
        scale=draw(POSITIVE),
        mean=draw(st.tuples(NUMBER, NUMBER, NUMBER)),
        std=draw(THREE),
    )


@st.composite
def heads(draw):
    kind = draw(literal(kinds.HeadKind))
    if kind == "yolox":
        return Head(kind=kind, strides=draw(STRIDES), activation=draw(literal(kinds.Activation)))
    if kind == "detections":
        return Head(kind=kind, box_format=draw(literal(kinds.BoxFormat)), normalized=draw(st.booleans()))
    if kind == "custom":
        return Head(kind=kind, function=f"{draw(NAME)}:{draw(NAME)}")
    strides = draw(STRIDES)
    sizes = draw(st.integers(1, 3).flatmap(lambda n: st.tuples(*[st.tuples(*[POSITIVE] * n)] * len(strides))))
    plain = st.just(Head(kind=kind, **HEAD_DEFAULTS[kind]))
    return draw(plain | st.just(Head(kind=kind, strides=strides, anchor_sizes=sizes, aspect_ratios=(0.5, 3.0))))


@st.composite
def specs(draw, folder: Path):
    onnx = draw(st.booleans())
    arguments = draw(st.dictionaries(NAME, TEXT | st.booleans() | st.integers(-(2**62), 2**62) | NUMBER, max_size=3))
    ref = st.sampled_from(
        [DataRef(images=str(folder / "val")), DataRef(images=str(folder / "val"), annotations=str(folder / "val.json"))]
    )
    return Spec(
        path=str(folder / "detector.toml"),
        model=ModelSpec(
            factory=None if onnx else f"{draw(NAME)}.{draw(NAME)}:{draw(NAME)}",
            arguments=() if onnx else tuple(sorted(arguments.items())),
            onnx=str(folder / "net.onnx") if onnx else None,
            weights=None if onnx else draw(st.none() | st.just(str(folder / "net.pt"))),
            head=draw(heads()),
            labels=draw(literal(kinds.LabelMap)),
            preprocess=draw(preprocesses()),
            postprocess=Postprocess(
                score=draw(st.floats(0, 0.999)),
                iou=draw(st.floats(0.001, 1)),
                max_detections=draw(st.integers(1, 1000)),
                class_aware=draw(st.booleans()),
                candidates_per_level=draw(st.none() | st.integers(1, 5000)),
            ),
        ),
        data=DataSpec(
            evaluate=draw(ref),
            calibrate=draw(st.none() | ref),
            confirm=draw(st.none() | ref),
            traffic=draw(st.none() | st.just(str(folder / "val.json"))),
            overlap=draw(st.sampled_from(["refuse", "allow"])),
        ),
        objective=Objective(
            p95_ms=draw(POSITIVE),
            throughput=draw(POSITIVE),
            map_drop_pct=draw(st.floats(0.001, 99.9)),
            map_evidence=draw(literal(kinds.MapEvidence)),
        ),
        target=TargetSpec(
            devices=draw(st.sampled_from(["auto", "cpu", "cuda:1", "cuda:0,1"])),
            precisions=tuple(draw(st.lists(literal(kinds.Precision), min_size=1, unique=True))),
            server=draw(literal(kinds.Server)),
            tensorrt=TensorRTSpec(
                optimization_level=draw(st.integers(0, 5)),
                workspace_gib=draw(st.floats(0.001, 1024)),
                tactic_sources=draw(st.none() | st.lists(literal(kinds.TacticSource), min_size=1, unique=True).map(tuple)),
                version_compatible=draw(st.booleans()),
                hardware=draw(literal(kinds.Hardware)),
                timing_cache=draw(st.booleans()),
            ),
        ),
        budget=Budget(minutes=draw(POSITIVE)),
        serve=ServeSpec(
            name=draw(st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,39}", fullmatch=True)),
            port=draw(st.integers(0, 65_535)),
            canary_pct=draw(st.floats(0, 50)),
            hold_s=draw(st.floats(0, 86_400)),
        ),
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_spec_written_and_read_is_the_same(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "val").mkdir()
        for file in ("val.json", "net.onnx", "net.pt"):
            (folder / file).write_bytes(b"")
        spec = data.draw(specs(folder))
        (folder / "detector.toml").write_bytes(to_toml(spec).encode())
        assert load_spec(folder / "detector.toml") == spec
