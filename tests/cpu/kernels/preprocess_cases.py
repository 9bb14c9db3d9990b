"""Images in memory as a GPU would have them, what a preprocessing kernel makes of them, and what the reference does.

Tolerance, in pixel levels (0 to 255) before normalisation, against `vision.prepare`:

| sampling        | tolerance                 | why                                                                        |
|-----------------|---------------------------|----------------------------------------------------------------------------|
| nearest         | 0 off ties                | a centre on the border of two pixels: OpenCV's versions differ             |
| linear-uint8    | 0                         | OpenCV's fixed point, operation by operation                               |
| linear-float    | 2 ** -15 * (h + w) + 2e-4 | OpenCV rounds coordinates to float32 for some sizes: 255 levels * 2 ** -23 |
| antialias-uint8 | 1; 0 if height grows      | Pillow 13 takes rows first for some sizes, and rounds between the passes   |
| antialias-float | 1e-3                      | Pillow sums in float64, the kernels in float32                             |

Normalisation adds one rounding of float32; a float16 output is compared with the reference rounded to float16, one unit of it
being allowed where the values before may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.table import ROW_WORDS, Constants, constants, fill_rows
from redline.records import DeviceBatch, DeviceImage, Preprocess, ShapePolicy
from redline.records.pixels import TensorType
from redline.vision import input_size, prepare

Launch = Callable[[NDArray[np.int64], NDArray[Any], Constants], None]
"""(table rows, output (N, 3, H, W), constants): fills the output; addresses in the rows are those of host memory."""

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "scale": 1 / 255}
TYPES: dict[TensorType, Any] = {"fp32": np.float32, "fp16": np.float16}


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    preprocess: Preprocess
    sizes: tuple[tuple[int, int], ...]
    shapes: ShapePolicy = "fixed"
    dtype: TensorType = "fp32"
    seed: int = field(default=0)

    def images(self) -> list[NDArray[np.uint8]]:
        rng = np.random.default_rng(self.seed)
        return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in self.sizes]


EDGES = ((1, 1), (1, 7), (9, 1), (2, 2), (3, 200), (150, 2), (48, 64), (97, 131))
ODD = ((33, 47), (61, 29), (64, 64), (130, 31), (17, 90))
SIDEWAYS = ((40, 90), (37, 83))
CASES = (
    Case(name="letterbox bgr", preprocess=Preprocess(size=(48, 64), channels="bgr"), sizes=EDGES),
    Case(name="letterbox centred", preprocess=Preprocess(size=(64, 48), anchor="center"), sizes=EDGES, dtype="fp16"),
    Case(name="letterbox float", preprocess=Preprocess(size=(48, 64), round_to_uint8=False, **IMAGENET), sizes=EDGES),
    Case(name="letterbox nearest", preprocess=Preprocess(size=(48, 64), interpolation="nearest"), sizes=EDGES),
    Case(name="letterbox antialias", preprocess=Preprocess(size=(48, 64), antialias=True, channels="bgr"), sizes=EDGES),
    Case(name="antialias float", preprocess=Preprocess(size=(48, 64), antialias=True, round_to_uint8=False), sizes=EDGES),
    Case(name="stretch", preprocess=Preprocess(resize="stretch", size=(50, 71), fill=(0.0, 0.0, 0.0)), sizes=ODD),
    Case(
        name="stretch float half", preprocess=Preprocess(resize="stretch", size=(51, 70), round_to_uint8=False, **IMAGENET),
        sizes=ODD, dtype="fp16",
    ),
    Case(
        name="shortest side", sizes=SIDEWAYS,
        preprocess=Preprocess(resize="shortest-side", size=(32, 60), round_to_uint8=False, channels="bgr", **IMAGENET),
    ),
    Case(
        name="shortest side bucket", sizes=SIDEWAYS, shapes=((32, 64), (64, 96)), dtype="fp16",
        preprocess=Preprocess(resize="shortest-side", size=(32, 60), anchor="center", fill=(1.0, 2.0, 3.0), **IMAGENET),
    ),
    Case(name="no resize", preprocess=Preprocess(resize="none", stride=1, channels="bgr"), sizes=((13, 17),), shapes="minimal"),
    Case(name="extreme", preprocess=Preprocess(size=(40, 40)), sizes=((1, 3000), (2500, 1), (2, 2999), (1200, 3))),
    Case(name="wide", preprocess=Preprocess(size=(8, 96), round_to_uint8=False), sizes=((3, 16384), (8, 96))),
)  # fmt: skip


def random_case(seed: int) -> Case:
    """Any kind of resize, of sizes up to 160 pixels to inputs of up to 80."""
    rng = np.random.default_rng([seed, 7])
    pick: Callable[[Sequence[Any]], Any] = lambda choices: choices[int(rng.integers(len(choices)))]  # noqa: E731
    preprocess = Preprocess(
        resize=pick(["letterbox", "stretch"]), size=(int(rng.integers(1, 81)), int(rng.integers(1, 81))),
        anchor=pick(["top-left", "center"]), interpolation=pick(["bilinear", "bilinear", "bilinear", "nearest"]),
        antialias=pick([False, False, True]), round_to_uint8=pick([True, False]), channels=pick(["rgb", "bgr"]),
        fill=tuple(float(level) for level in rng.integers(0, 256, 3)), **pick([{}, IMAGENET]),
    )  # fmt: skip
    sizes = tuple((int(height), int(width)) for height, width in rng.integers(1, 161, (3, 2)))
    return Case(name=f"random {seed}", preprocess=preprocess, sizes=sizes, dtype=pick(["fp32", "fp16"]), seed=seed)


def scattered(images: Sequence[NDArray[np.uint8]], rng: np.random.Generator) -> tuple[list[DeviceImage], list[Any]]:
    """The images in memory of their own, at odd addresses with odd strides; keep the second list as long as the first."""
    placed, kept = [], []
    for image in images:
        height, width = image.shape[:2]
        stride, offset = 3 * width + int(rng.integers(0, 7)), int(rng.integers(0, 5))
        memory = np.full(offset + height * stride + 8, 77, np.uint8)
        view = np.lib.stride_tricks.as_strided(memory[offset:], image.shape, (stride, 3, 1))
        view[:] = image
        kept.append(memory)
        placed.append(DeviceImage(pointer=memory.ctypes.data + offset, height=height, width=width, row_bytes=stride))
    return placed, kept


def outcome(case: Case, launch: Launch) -> NDArray[Any]:
    """What a kernel makes of a case, and of one input more, for which there is no image."""
    rng = np.random.default_rng(case.seed)
    images = case.images()
    height, width = input_size(case.sizes[0], case.preprocess, case.shapes)
    shape = (len(images) + 1, 3, height, width)
    memory = np.empty(int(np.prod(shape)) + 8, TYPES[case.dtype])
    skip = -(memory.ctypes.data % 16) % 16 // memory.itemsize
    out = memory[skip : skip + int(np.prod(shape))].reshape(shape)
    out[:] = 7
    rows = np.full((shape[0], ROW_WORDS), 12345, np.int64)
    placed, kept = scattered(images, rng)
    batch = DeviceBatch(pointer=out.ctypes.data, shape=shape, dtype=case.dtype)
    fill_rows(rows, placed, case.preprocess, case.shapes, batch)
    launch(rows, out, constants(case.preprocess))
    assert len(kept) == len(images)
    return out


def compare(case: Case, found: NDArray[Any]) -> None:
    """Raises AssertionError where the output differs from the reference by more than the table allows."""
    chosen = constants(case.preprocess)
    levels = np.array(chosen.level, np.float32).astype(TYPES[case.dtype])
    assert np.array_equal(found[-1], np.broadcast_to(levels[:, None, None], found[-1].shape)), "an input without an image"
    for index, image in enumerate(case.images()):
        wanted = prepare(image, case.preprocess, case.shapes)[0].astype(TYPES[case.dtype]).astype(np.float64)
        difference = np.abs(found[index].astype(np.float64) - wanted)
        if chosen.sampling == "nearest":
            difference = np.where(_near_tie(image.shape[:2], case), 0, difference)
        allowed = _levels(chosen.sampling, image.shape[:2], case) * max(chosen.gain)
        if allowed:
            allowed = allowed + (np.abs(wanted) + 1) * (2**-10 if case.dtype == "fp16" else 2**-23)
        worst = np.unravel_index(int(np.argmax(difference - allowed)), difference.shape)
        assert np.all(difference <= allowed), (case.name, image.shape, worst, difference[worst], wanted[worst])


def _levels(sampling: str, size: tuple[int, int], case: Case) -> float:
    if sampling == "linear-float":
        return 2**-15 * sum(size) + 2e-4
    if sampling == "antialias-uint8":
        return 1.0 if _resized(size, case)[0] < size[0] else 0.0
    return 1e-3 if sampling == "antialias-float" else 0.0


def _resized(size: tuple[int, int], case: Case) -> tuple[int, int]:
    from redline.vision.geometry import place, resized_size

    return resized_size(place(size, case.preprocess, case.shapes))


def _near_tie(size: tuple[int, int], case: Case) -> NDArray[np.bool_]:
    """(1, H, W): where a resized pixel's centre lies within OpenCV's 16 fractional bits of the border of two source pixels."""
    from redline.vision.geometry import place

    placement = place(size, case.preprocess, case.shapes)
    masks = []
    for source, resized, offset, whole in zip(size, _resized(size, case), placement.offset_yx, placement.input_hw, strict=True):
        index = np.arange(whole) - offset
        at = (index + 0.5) * source / resized
        masks.append(np.abs(at - np.rint(at)) <= (np.abs(index) + 1) * 2**-16)
    return (masks[0][:, None] | masks[1][None, :])[None]
