"""JSON from strangers. Reference for nesting: a parser that looks at one character after the other."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.serve.gateway import Limits
from redline.serve.gateway.refusal import Refused
from redline.serve.gateway.strict_json import nesting, parse

LIMITS = Limits()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a"\\[]{}é'), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=25,
)


def slow_nesting(text: str) -> int:
    deepest = depth = 0
    quoted = escaped = False
    for letter in text:
        if quoted:
            escaped, quoted = letter == "\\" and not escaped, letter != '"' or escaped
        elif letter == '"':
            quoted = True
        else:
            depth += (letter in "[{") - (letter in "]}")
            deepest = max(deepest, depth)
    return deepest


def refusal(data: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(data, LIMITS)
    return caught.value


@given(VALUES, st.booleans())
def test_nesting_is_what_a_slow_parser_finds(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert nesting(text.encode()) == slow_nesting(text)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_sound_json_within_the_depth_is_what_python_reads(value: dict[str, object]) -> None:
    text = json.dumps(value)
    if slow_nesting(text) <= LIMITS.json_depth:
        assert parse(text.encode(), LIMITS) == value
    else:
        assert refusal(text.encode()).code == "json-depth"


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":', b'["[",'])
@pytest.mark.parametrize("depth", [17, 1000, 200_000])
def test_deep_nesting_is_refused_before_it_is_parsed(opening: bytes, depth: int) -> None:
    found = refusal(b'{"inputs":' + (opening * depth)[: LIMITS.json_bytes - 100])
    assert (found.status, found.code) == (400, "json-depth")


def test_brackets_in_texts_are_not_nesting() -> None:
    assert parse(json.dumps({"id": "[" * 500 + '\\"[[{{' + '"' * 9}).encode(), LIMITS)["id"].startswith("[[")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "json-broken"),
        (b"{", "json-broken"),
        (b'{"a": 1} x', "json-broken"),
        (b'{"a": 01}', "json-broken"),
        (b'{"a": "\n"}', "json-broken"),
        (b"\xff\xfe{}", "json-broken"),
        ('{"a": 1}'.encode("utf-16"), "json-broken"),
        (b'{"a": "\xc3"}', "json-broken"),
        (b'{"a": ' + b"9" * 5000 + b"}", "json-broken"),
        (b"[]", "json-object"),
        (b'"x"', "json-object"),
        (b'{"a": 1, "b": 2, "a": 1}', "json-duplicate"),
        (b'{"x": {"a": 1, "a": 2}}', "json-duplicate"),
        (b'{"a": NaN}', "json-number"),
        (b'{"a": [-Infinity]}', "json-number"),
    ],
)
def test_what_is_not_strict_json_is_refused(data: bytes, code: str) -> None:
    found = refusal(data)
    assert (found.status, found.code) == (400, code)


def test_a_json_part_over_the_limit_is_refused_whatever_it_holds() -> None:
    found = refusal(b" " * LIMITS.json_bytes + b"{}")
    assert (found.status, found.code) == (413, "json-size")


@pytest.mark.parametrize(
    "data",
    [
        b"{" + b'\\"' * 500_000,
        b'{"' + b'\\"' * 500_000,
        b'"' * 1_000_000,
        b"[]" * 500_000,
        b'{"a":"' + b"\\" * 1_000_000,
        b"{" + b",".join(b'"%d":0' % (index % 90_000) for index in range(95_000)) + b"}",
    ],
    ids=["escaped-quotes", "open-text", "quotes", "pairs", "backslashes", "late-duplicate"],
)
def test_no_megabyte_takes_long(data: bytes) -> None:
    """The event loop stands still meanwhile. The bound is ten times what the worst of these took."""
    started = time.perf_counter()
    with pytest.raises(Refused):
        parse(data, LIMITS)
    assert time.perf_counter() - started < 1.0
