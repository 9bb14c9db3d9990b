"""What `Predictor` itself adds to a request: its wall time less decode, preprocess, network and post-process.

    python benchmarks/request_overhead.py [--requests 3000] [--json FILE]

The runner does nothing, so that the network stage is as short as it can be. Target: a median of at most 0.2 ms;
the 99th percentile is printed too, and holds whatever else the machine did meanwhile.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from redline.predict import Predictor
from redline.records import Head, Postprocess, Preprocess

TARGET_MS = 0.2


class NoRunner:
    """Gives the same empty YOLOX output for every batch of one."""

    name = "none"

    def __init__(self) -> None:
        self.outputs = (np.zeros((1, 3549, 85), np.float32),)

    def run(self, batch: Any) -> tuple[Any, ...]:
        return self.outputs

    def close(self) -> None: ...


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--json", type=Path, help="result file")
    options = parser.parse_args()
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)).save(stream, "JPEG")
    data, stages = stream.getvalue(), {"decode": 0.0, "preprocess": 0.0, "network": 0.0, "postprocess": 0.0}
    preprocess = Preprocess(size=(416, 416), channels="bgr")
    predict = Predictor(NoRunner(), preprocess, Head(kind="yolox"), Postprocess(), "fixed", stages.__setitem__)
    added: list[float] = []
    whole: list[float] = []
    for _ in range(options.requests):
        start = perf_counter()
        predict.from_bytes([data])
        wall = perf_counter() - start
        whole.append(1e3 * wall)
        added.append(1e3 * (wall - sum(stages.values())))
    p99 = float(np.percentile(added, 99))
    median = statistics.median(added)
    result = {
        "requests": options.requests,
        "added_ms": {"median": median, "p99": p99},
        "request_ms_median": statistics.median(whole),
        "ratio": median / statistics.median(whole),
        "target_ms": TARGET_MS,
    }
    print(json.dumps(result, indent=2))
    if options.json:
        environment = {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "load_average_1min": os.getloadavg()[0],
            "libraries": {name: version(name) for name in ("numpy", "pillow", "opencv-python-headless")},
        }
        options.json.write_text(json.dumps({"environment": environment, "results": result}, indent=2) + "\n")
    return 0 if median <= TARGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
