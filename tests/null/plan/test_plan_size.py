"""Sizes in N, H and W: what the evaluator takes, what it refuses, and that the algebra keeps every value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.records import Size
from redline.records.cost import LONGEST
from redline.store import dump, load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("N*64*((H + 1)//2)*((W + 1)//2)", 2 * 64 * 51 * 17),
        ("-(-H//32)", 4),
        ("H//32 - W//32", 2),
        ("max(H, W, 7) + min(N, 1)", 102),
        ("-7//2", -4),
        ("819", 819),
    ],
)
def test_a_size_is_what_python_makes_of_it(text: str, value: int) -> None:
    assert Size(text).at(2, 101, 33) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "H**9",
        "H/2",
        "K + 1",
        "H if W else N",
        "__import__('os')",
        "max(H)",
        "max(H, key=N)",
        "1.5*H",
        "True",
        "H.real",
        "(H",
    ],
)
def test_all_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        Size(text)


def test_an_endless_text_is_refused_before_it_is_read() -> None:
    with pytest.raises(ValueError, match=f"at most {LONGEST}"):
        Size("+".join(["H"] * LONGEST))
    with pytest.raises(ValueError, match="not a size"):
        Size("(" * 900 + "H" + ")" * 900)


def test_a_division_by_zero_names_the_size() -> None:
    with pytest.raises(ValueError, match="divides by zero at N=1, H=8"):
        Size("W//(H - 8)").at(1, 8, 8)


def test_a_size_survives_the_store() -> None:
    size = Size("9*N*((H + 7)//8)")
    assert load(Size, dump(size)) == size


def test_a_forged_size_in_a_file_is_refused() -> None:
    from redline.errors import StoreError

    with pytest.raises(StoreError, match="not allowed in a size"):
        load(Size, b'{"text": "print(H)"}')


ALGEBRA = pytest.importorskip("redline.plan.costs.algebra", reason="needs onnx")


@given(st.lists(st.tuples(st.sampled_from("+-*/"), st.integers(1, 130)), min_size=1, max_size=9), st.integers(1, 5000))
def test_the_normal_form_of_a_chain_of_strides_has_its_value(chain: list[tuple[str, int]], pixels: int) -> None:
    size, value = ALGEBRA.symbol("H"), pixels
    for operation, amount in chain:
        if operation == "/":
            size, value = size // amount, value // amount
        elif operation == "*":
            size, value = size * amount + ALGEBRA.symbol("W"), value * amount + 7
        else:
            change = amount if operation == "+" else -amount
            size, value = size + change, value + change
    at = {"N": 1, "H": pixels, "W": 7}
    assert ALGEBRA.evaluate(size, at) == value
    assert Size(str(size)).at(1, pixels, 7) == value


def test_strides_one_after_another_are_one_stride() -> None:
    size = ALGEBRA.symbol("H")
    for _ in range(5):
        size = (size - 1) // 2 + 1
    assert str(size) == "((H + 31)//32)"
