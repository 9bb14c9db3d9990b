"""A user's own head function: found once by name, called, its result checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray


@lru_cache(maxsize=16)
def resolve(function: str | None) -> Callable[..., Any]:
    """The callable named "module:callable". Raises BadInput: head-function."""
    module, _, attribute = (function or "").partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise BadInput(
            "head-function", f"Cannot find the head function {function!r}", got=str(exc), allowed='"module:callable"',
            fix="check the name and that the module can be imported",
        ) from exc  # fmt: skip
    if not callable(found):
        raise BadInput("head-function", f"The head function {function!r} cannot be called", got=type(found).__name__)
    return found  # type: ignore[no-any-return]


def apply_custom(
    function: str | None, outputs: Sequence[NDArray[Any]], input_hw: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """boxes (N, A, 4) xyxy in network-input pixels and scores (N, A, C), float32. Raises BadInput: head-function."""
    call = resolve(function)
    try:
        boxes, scores = call(list(outputs), input_hw)
        boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    except Exception as exc:  # the user's code may raise anything
        raise BadInput("head-function", f"The head function {function!r} failed", got=f"{type(exc).__name__}: {exc}") from exc
    if boxes.ndim != 3 or scores.ndim != 3 or boxes.shape[2] != 4 or boxes.shape[:2] != scores.shape[:2]:
        raise BadInput(
            "head-function",
            f"The head function {function!r} returned arrays that do not fit",
            got=f"boxes {boxes.shape}, scores {scores.shape}",
            allowed="boxes (N, A, 4), scores (N, A, C)",
        )
    return boxes, scores
