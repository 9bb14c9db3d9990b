"""The preprocessing kernels and the JPEG decoder on an NVIDIA GPU: values first, then times against the copy bandwidth.

    python benchmarks/gpu_preprocess.py --out DIR [--data COCO_IMAGES_DIR] [--check-only] [PHASE ...]

Phases: values, times, jpeg (all by default). Each writes <out>/<phase>.json as it goes. `--check-only` compares values alone,
of few and small images: for compute-sanitizer, under which PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives every image an allocation
of its own whose end the tool watches.

A time is of one launch among many in a CUDA graph, one after another over sets of images and outputs that together exceed the
L2 cache four times, so that every launch finds its input in device memory; median of replays. Bytes: see preprocess_bytes. The
copy is torch's device-to-device copy of 1 GiB, read and written bytes counted, and once more of as many bytes as the kernel
moves, in a graph as the kernels are, which shows what a launch of that size can reach.

Predicted before any measurement (H200, 4.3 TB/s copied; float16 output, batch 8; time in us, share of the 1 GiB copy):

| case                                       | unique MB | floor | CUDA      | Triton    | why                             |
|--------------------------------------------|-----------|-------|-----------|-----------|---------------------------------|
| YOLOX 640 letterbox, 1080p (1 row in 3)    | 36        | 8.4   | 12 (70 %) | 16 (53 %) | start and tail of a launch: 3 us|
| YOLOX 640 letterbox, 4K (1 row in 3)       | 86        | 20    | 26 (77 %) | 32 (63 %) | memory; 6 bytes in 18 are used  |
| RetinaNet 749 x 1333, 1080p (all rows)     | 99        | 23    | 38 (61 %) | 48 (48 %) | 120, 150 instructions a pixel   |
| RetinaNet 749 x 1333, 4K (70 % of rows)    | 188       | 44    | 55 (80 %) | 70 (63 %) | memory                          |
| YOLOX 640 letterbox, 480 x 640             | 27        | 6.3   | 9 (70 %)  | 12 (53 %) | start and tail; mostly output   |
| the same, batch 1                          | 3.4       | 0.8   | 3         | 3.5       | latency alone                   |

float32 output moves 20 MB more at 640: its share is higher. Antialiased: bound by instructions, 5 to 10 times slower. JPEG,
images a second at batch 32: hardware 1080p 2,500, COCO 9,000; CUDA 1080p 1,500, COCO 4,000; one 1080p image alone 3 ms by
either. The engine's pixels differ from libjpeg's by 0.5 levels on average with fancy upsampling, 1.5 without.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "cpu" / "kernels"), str(ROOT / "benchmarks")]

PHASES = {"values": "gpu_preprocess_values", "times": "gpu_preprocess_times", "jpeg": "gpu_jpeg"}
"""Each in a module of its own."""
PACKAGES = (
    "torch", "triton", "numpy", "opencv-python-headless", "pillow", "cuda-bindings", "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg",
)  # fmt: skip


class Notes:
    """Rows of one phase, written after each."""

    def __init__(self, out: Path, phase: str) -> None:
        self.path, self.started = out / f"{phase}.json", time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.environment = environment()

    def note(self, **row: Any) -> None:
        self.rows.append(row)
        self.path.write_text(json.dumps({"environment": self.environment, "rows": self.rows}, indent=1, default=str) + "\n")
        print(f"[{time.monotonic() - self.started:6.1f}]", json.dumps(row, default=str)[:500], flush=True)


def environment() -> dict[str, Any]:
    from importlib.metadata import distributions

    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda, "python": sys.version.split()[0]}
    installed = {each.name: each.version for each in distributions()}
    found |= {name: installed.get(name) for name in PACKAGES}
    try:
        from redline.doctor import inspect_machine
        from redline.store import dump

        found["machine"] = json.loads(dump(inspect_machine()))
    except Exception as exc:  # the figures are worth more than what they were measured on
        found["machine"] = repr(exc)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phases", nargs="*", metavar="PHASE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of JPEG photographs, such as COCO's")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--fixed", action="store_true", help="times: the default tiles alone")
    given = parser.parse_args()
    if unknown := set(given.phases) - set(PHASES):
        parser.error(f"unknown phase {', '.join(sorted(unknown))}; there are {', '.join(PHASES)}")
    given.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for phase in ["values"] if given.check_only else given.phases or PHASES:
        notes = Notes(given.out, phase)
        try:
            import_module(PHASES[phase]).main(given, notes)
        except Exception:
            traceback.print_exc()
            notes.note(failed=traceback.format_exc())
            failed.append(phase)
    print(f"failed: {', '.join(failed)}" if failed else "all phases ran", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
