"""Heads of the blob detector as a user's own code. A release carries a copy of this file, and looks for orders beside it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

STRIDE = 16
LATE_S = 0.05
SLEEPS_S = {"slow": 0.6, "tardy": 0.18}
"""A batch of 4 in 180 ms is 22 requests/s: tardy for an objective of 120 ms, but not overloaded by 15/s."""
ORDERS = ("slow", "tardy", "fail", "shift", "crash")


def plain(outputs, input_hw):
    """(N, A, 6) of the blob network -> boxes (N, A, 4), scores (N, A, 1). An order's file beside this one makes it go wrong."""
    raw = outputs[0]
    rows, columns = input_hw[0] // STRIDE, input_hw[1] // STRIDE
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(1, -1, 2)
    centre, size = (raw[..., :2] + grid) * STRIDE, np.exp(raw[..., 2:4]) * STRIDE
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=-1)
    here = Path(__file__).parent
    given = [order for order in ORDERS if (here / order).exists()]
    time.sleep(sum(SLEEPS_S.get(order, 0.0) for order in given))
    if "fail" in given:
        raise RuntimeError("told to fail")
    if "shift" in given:
        boxes = boxes + STRIDE
    if "crash" in given:
        os.kill(os.getpid(), signal.SIGKILL)
    return boxes, raw[..., 4:5] * raw[..., 5:6]


def late(outputs, input_hw):
    time.sleep(LATE_S * len(outputs[0]))
    return plain(outputs, input_hw)
