"""A scene-drawing process for training: draws chunks of scenes into a memory-mapped file. Knows nothing of torch.

Reads lines "slot first-index" from standard input until its end; answers each with the slot once it is drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from redline.demo.scenes import SIDE_PX, scene

CANVAS = SIDE_PX[1]
MOST_PARTS = 18
CHUNK = 16
SLOT = np.dtype(
    [
        ("images", np.uint8, (CHUNK, CANVAS, CANVAS, 3)),
        ("sizes", np.float32, (CHUNK, 2)),
        ("boxes", np.float32, (CHUNK, MOST_PARTS, 4)),
        ("labels", np.int64, (CHUNK, MOST_PARTS)),
    ],
    align=True,
)
"""One chunk: pixels from the top-left corner of a square canvas, (height, width), boxes xyxy, labels (-1: none)."""


def draw(slot: Any, seed: int, first: int) -> None:
    """Fill `slot`, a `SLOT` record, with the scenes first, first + 1, ... of series `seed`."""
    slot["labels"] = -1
    for k in range(CHUNK):
        made = scene(seed, first + k)
        height, width = made.image.shape[:2]
        count = min(len(made.labels), MOST_PARTS)
        slot["images"][k, :height, :width] = made.image
        slot["sizes"][k] = height, width
        slot["boxes"][k, :count] = made.boxes[:count]
        slot["labels"][k, :count] = made.labels[:count]


def main(path: Path, seed: int) -> None:
    cv2.setNumThreads(1)
    slots: Any = np.memmap(path, dtype=SLOT, mode="r+")
    for line in sys.stdin:
        slot, first = map(int, line.split())
        draw(slots[slot], seed, first)
        print(slot, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
