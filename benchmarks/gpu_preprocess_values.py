"""Values of both preprocessing kernels on the GPU against the numpy reference, in and out of a CUDA graph."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from preprocess_cases import CASES, IMAGENET, Case, compare, random_case

from redline.kernels.preprocess import launch
from redline.kernels.preprocess_cuda import CudaPreprocess
from redline.kernels.table import ROW_WORDS, constants, fill_rows
from redline.records import DeviceBatch, DeviceImage, Preprocess, PreprocessTile
from redline.vision import input_size

RANDOM, RANDOM_FEW = 60, 6
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class Setup:
    """Images, table and output of one batch in device memory, and a kernel over them."""

    def __init__(self, case: Case, *, extra: int = 1, packed: bool = False) -> None:
        rng = np.random.default_rng(case.seed)
        self.case, self.kept = case, []
        height, width = input_size(case.sizes[0], case.preprocess, case.shapes)
        self.out = torch.full((len(case.sizes) + extra, 3, height, width), 7.0, dtype=DTYPES[case.dtype], device="cuda")
        self.batch = DeviceBatch(pointer=self.out.data_ptr(), shape=tuple(self.out.shape), dtype=case.dtype)  # type: ignore[arg-type]
        self.rows = torch.zeros((len(self.out), ROW_WORDS), dtype=torch.int64).pin_memory()
        self.table = torch.zeros_like(self.rows, device="cuda")
        self.images = [self.upload(image, rng, packed) for image in case.images()]
        self.placements = self.fill(self.images)

    def upload(self, image: NDArray[np.uint8], rng: np.random.Generator, packed: bool) -> DeviceImage:
        """In an allocation of its own, as small as the contract allows, at an odd address with odd strides unless `packed`."""
        height, width = image.shape[:2]
        offset, stride = (0, 3 * width) if packed else (int(rng.integers(0, 5)), 3 * width + int(rng.integers(0, 7)))
        size = offset + (height - 1) * stride + 3 * width
        memory = np.zeros(-(-size // 4) * 4, np.uint8)
        np.lib.stride_tricks.as_strided(memory[offset:], image.shape, (stride, 3, 1))[:] = image
        self.kept.append(torch.from_numpy(memory).cuda())
        return DeviceImage(pointer=self.kept[-1].data_ptr() + offset, height=height, width=width, row_bytes=stride)

    def fill(self, images: Sequence[DeviceImage]) -> Any:
        placements = fill_rows(self.rows.numpy(), images, self.case.preprocess, self.case.shapes, self.batch)
        self.table.copy_(self.rows, non_blocking=True)
        return placements


Kernel = Callable[[Setup], Any]


def kernel_for(setup: Setup, kind: str, tile: PreprocessTile | None = None) -> Kernel:
    """Compiled once, for every batch of the same shape and kind."""
    chosen = constants(setup.case.preprocess)
    options = {} if tile is None else {"tile": tile}
    if kind == "triton":
        return lambda each: launch(each.table, each.out, chosen, **options)
    made = CudaPreprocess(chosen, setup.case.dtype, setup.out.shape[3], **options)

    def run(each: Setup) -> CudaPreprocess:
        made.launch(each.table.data_ptr(), each.batch, torch.cuda.current_stream().cuda_stream)
        return made

    return run


def main(given: argparse.Namespace, notes: Any) -> None:
    cases = [*CASES, *(random_case(seed) for seed in range(RANDOM_FEW if given.check_only else RANDOM))]
    if not given.check_only:
        cases += [Case(name=f"random large {seed}", preprocess=preprocess, sizes=sizes(seed), dtype="fp16", seed=seed)
                  for seed, preprocess in enumerate(LARGE)]  # fmt: skip
    worst = []
    for kind in ("cuda", "triton"):
        for case in cases:
            setup = Setup(case)
            kernel_for(setup, kind)(setup)
            torch.cuda.synchronize()
            try:
                compare(case, setup.out.cpu().numpy())
            except AssertionError as exc:
                worst.append((kind, case.name))
                notes.note(kernel=kind, case=case.name, wrong=str(exc))
        notes.note(kernel=kind, cases=len(cases), wrong=sum(1 for name, _ in worst if name == kind))
        replayed(kind, notes)
    if worst:
        raise AssertionError(f"values differ from the reference: {worst[:20]}")


LARGE = (
    Preprocess(channels="bgr"),
    Preprocess(resize="stretch", size=(800, 800), round_to_uint8=False, **IMAGENET),
    Preprocess(anchor="center", size=(640, 1280)),
    Preprocess(antialias=True),
    Preprocess(interpolation="nearest"),
)


def sizes(seed: int) -> tuple[tuple[int, int], ...]:
    rng = np.random.default_rng(seed)
    drawn = [(int(height), int(width)) for height, width in rng.integers(1, 3000, (4, 2))]
    return (*drawn, (1080, 1920), (2160, 3840))


def replayed(kind: str, notes: Any) -> None:
    """A captured kernel takes other images, and fewer, when the table is copied anew: nothing is captured again."""
    case = Case(name="graph", preprocess=Preprocess(size=(96, 128), channels="bgr"), sizes=((90, 70), (200, 333), (96, 128)))
    setup = Setup(case)
    kernel = kernel_for(setup, kind)
    kernel(setup)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel(setup)
    graph.replay()
    torch.cuda.synchronize()
    compare(case, setup.out.cpu().numpy())
    for seed in range(1, 4):
        other = Case(name="graph", preprocess=case.preprocess, sizes=((11 * seed, 500), (301, 17 * seed)), seed=seed)
        setup.kept.clear()
        rng = np.random.default_rng(seed)
        setup.fill([setup.upload(image, rng, False) for image in other.images()])
        graph.replay()
        torch.cuda.synchronize()
        found = setup.out.cpu().numpy()
        compare(other, found[:3])
        compare(other, found[[0, 1, 3]])
    notes.note(kernel=kind, captured="replayed with four tables, values right")
