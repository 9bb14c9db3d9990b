"""A YOLOX head that misbehaves when it is told to, for planting bad releases.

The fault file holds what to do and in which release ("*": everywhere, in-process too): "slow 3" sleeps 50 ms an image,
"wrong 3" shifts the boxes by 40 pixels, "broken 3" raises.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redline.records import Head
from redline.vision import decode_head

FAULT = Path(tempfile.gettempdir()) / "redline_planted_fault"
SLOW_S = 0.05
SHIFT_PX = 40


def decode(outputs: Sequence[Any], input_hw: tuple[int, int]) -> tuple[Any, Any]:
    """(N, A, 4) boxes and (N, A, C) scores."""
    fault, _, release = FAULT.read_text().partition(" ") if FAULT.exists() else ("", "", "")
    # A release runs its own copy of this file, below a folder of its number.
    here = release == "*" or f"/{release}/code/" in __file__
    if here and fault == "slow":
        time.sleep(SLOW_S * len(outputs[0]))
    if here and fault == "broken":
        raise RuntimeError("planted")
    boxes, scores = decode_head(outputs, Head(kind="yolox"), input_hw)
    return (boxes + SHIFT_PX if here and fault == "wrong" else boxes), scores
