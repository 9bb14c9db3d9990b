"""Records to bytes and back. Reference: the record itself, and the standard library's json and hashlib."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.errors import StoreError
from redline.records import Head, Load, ModelSpec, Noise, RunRecord, TensorFact, Trial
from redline.store import digest_of, dump, load

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


@given(JSON)
def test_canonical_bytes_are_strict_json_of_the_same_value(value):
    assert json.loads(dump(value), parse_constant=pytest.fail) == value
    assert digest_of(value) == hashlib.sha256(dump(value)).hexdigest()


@given(st.dictionaries(st.text(), st.integers(), min_size=2), st.randoms())
def test_digest_does_not_depend_on_key_order(value, random):
    keys = list(value)
    random.shuffle(keys)
    assert digest_of({key: value[key] for key in keys}) == digest_of(value)


def test_digest_of_bytes_is_the_sha256_of_the_bytes():
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_digest_separates_what_differs():
    values = [
        1,
        1.0,
        "1",
        True,
        None,
        [1],
        {"a": 1},
        {"a": 1.5},
        {"b": 1},
        float("inf"),
        -float("inf"),
        float("nan"),
        0.1,
        0.1 + 1e-17,
    ]
    assert len({digest_of(value) for value in values}) == len(values)


@given(st.tuples(ANY_FLOAT, ANY_FLOAT), ANY_FLOAT)
def test_records_with_nan_and_infinity_come_back(p95_ms, relative):
    record = Noise(p95_ms=p95_ms, relative=relative)
    again = load(Noise, dump(record))
    for got, want in zip((*again.p95_ms, again.relative), (*p95_ms, relative), strict=True):
        assert (math.isnan(got) and math.isnan(want)) or (got == want and math.copysign(1, got) == math.copysign(1, want))
    assert dump(again) == dump(record)


ARGUMENT = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.lists(st.tuples(st.text(), ARGUMENT), max_size=5), st.lists(st.integers() | st.text(), max_size=4))
def test_unions_keep_their_types(arguments, shape):
    spec = ModelSpec(factory="a:b", arguments=tuple(arguments), head=Head(kind="yolox"))
    again = load(ModelSpec, dump(spec))
    assert again == spec
    assert [type(value) for _, value in again.arguments] == [type(value) for _, value in spec.arguments]
    fact = TensorFact(name="x", dtype="float32", shape=tuple(shape))
    assert load(TensorFact, dump(fact)) == fact


def test_every_record_of_a_run_has_an_adapter():
    with pytest.raises(StoreError) as caught:
        load(RunRecord, b"{}")
    assert caught.value.code == "store.schema"
    assert "environment: " in str(caught.value) or "more" in str(caught.value)


def test_unknown_field_is_refused_by_its_place():
    with pytest.raises(StoreError) as caught:
        load(Trial, b'{"candidate":{"runner":"onnxruntime","thread":2},"digest":"a","seconds":1}')
    assert caught.value.code == "store.schema"
    assert "candidate.thread: " in str(caught.value)
    assert "Trial" in str(caught.value)


def test_missing_and_wrong_fields_are_all_named():
    record = dump(Noise(p95_ms=(1.0,), relative=0.5)).replace(b"0.5", b'"wide"').replace(b"p95_ms", b"p95")
    with pytest.raises(StoreError) as caught:
        load(Noise, record)
    for place in ("p95_ms: ", "p95: ", "relative: "):
        assert place in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b'{"p95_ms": [1.0', b"\xff\xfe", b"]", b"{} {}"])
def test_what_is_not_json_is_said_to_be_not_json(data):
    with pytest.raises(StoreError) as caught:
        load(Load, data)
    assert caught.value.code in {"store.json", "store.schema"}


@pytest.mark.parametrize("value", [{1, 2}, object(), {1: 2}, dataclasses.dataclass, b"x", [object()]])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(TypeError):
        dump(value)


def test_text_that_is_not_unicode_is_refused_readably():
    with pytest.raises(StoreError) as caught:
        dump("caf\udce9.jpg")
    assert caught.value.code == "store.text"


def test_indented_form_loads_as_well():
    record = Noise(p95_ms=(1.0, 2.0), relative=0.25)
    assert b"\n" in dump(record, indent=2)
    assert load(Noise, dump(record, indent=2)) == record
