"""Compiling the event core: with numba, which the extra `plan` brings, or not at all."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

COMPILED = importlib.util.find_spec("numba") is not None
"""Without, the same functions run as they stand, some thirty times slower."""


def compiled(function: F) -> F:
    """The function compiled when it is first called, and kept on disk; itself where there is no numba."""
    if not COMPILED:
        return function
    made: F = importlib.import_module("numba").njit(cache=True)(function)
    return made
