"""Compiles the post-processing kernels for a GPU that is not there: PTX of each by name, as JSON, to the file given.

A worker of test_kernels_postprocess.py. Triton asks its driver for little before a launch: which GPU to compile for.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from redline.kernels.postprocess import Capacity, PostprocessKernels
from redline.records import Head, Postprocess

RETINANET = Head(
    kind="retinanet", activation="sigmoid", anchor_sizes=((32.0,), (64.0,), (128.0,)), aspect_ratios=(0.5, 1.0, 2.0)
)


class Absent:
    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def main() -> None:
    driver.set_active(Absent(int(sys.argv[1])))
    launch, made = JITFunction.run, {}

    def compiled(self: Any, *args: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, warmup=True, **options)
        made.setdefault(self.__name__, []).append(kernel.asm["ptx"])
        return kernel

    JITFunction.run = compiled
    post = Postprocess(candidates_per_level=100)
    for head, widths in ((RETINANET, (91, 4)), (Head(kind="yolox", activation="sigmoid"), (85,))):
        classes = widths[0] if head.kind == "retinanet" else 80
        kernels = PostprocessKernels(head, post, (320, 320), classes, Capacity(images=2), device="cpu")
        kernels.launch([torch.zeros(2, kernels.anchors, width, dtype=torch.float16) for width in widths])
    with open(sys.argv[2], "w") as file:
        json.dump(made, file)


if __name__ == "__main__":
    main()
