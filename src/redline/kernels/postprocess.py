"""Raw network outputs to detections in source pixels without leaving the GPU: `vision.postprocess` as Triton kernels.

Nothing is allocated and the host waits for nothing in `launch`, so that it can be captured in a CUDA graph. The results are the
same every time: see `postprocess_select` for the order of candidates, `postprocess_suppress` for the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from redline.errors import TrialError
from redline.kernels import postprocess_select as select
from redline.kernels import postprocess_suppress as suppression
from redline.records import Detections, Head, Placement, Postprocess
from redline.vision.geometry import resized_size
from redline.vision.levels import LARGEST_LOG_RATIO, level_anchors, retinanet_anchors, sigmoid, yolox_grid
from redline.vision.suppression import at_most

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Sizes of the kernels' blocks, powers of two; warps a block. They change the speed alone.

    The defaults were the fastest of each stage alone, on an H200 and one image: benchmarks/results, h200-postprocess-sweep.
    """

    filter: int = 4096
    """Scores a block of the filter reads, 65536 at most."""
    filter_warps: int = 4
    listed: int = 2048
    """Survivors read at once by a block of the selection."""
    listed_warps: int = 8
    programs: int = 256
    """Blocks of the selection, of all images: two a multiprocessor are at work at once on an H200. Not measured."""
    ranked: int = 16
    """Candidates a block ranks and decodes, against so many at once."""
    ranked_against: int = 256
    overlapped: int = 32
    """Candidates a block compares with 32 times `words` others."""
    words: int = 4
    suppressed: int = 64
    """Ranks decided at once."""
    suppressed_warps: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What is allocated. More candidates than that are counted, and the highest scores kept."""

    images: int
    candidates: int = 8192
    """An image's candidates before suppression where `Postprocess.candidates_per_level` sets no limit."""
    survivors: float = 0.125
    """Part of all scores that may be above the threshold before a slower way is taken, of the same result."""


class PostprocessKernels:
    """Post-processing of raw outputs of one head and one network input size, for up to `capacity.images` images.

    boxes (images, max_detections, 4) float32 xyxy in source pixels, scores (images, max_detections) float32, labels
    (images, max_detections) int32, by descending score, and counts (images,) int32 are valid after `launch`; places from a
    count on hold 0, 0 and -1. found (images, levels) int32: candidates above the threshold, kept or not; without
    `candidates_per_level` the levels are one. Ties: descending float32 score, then ascending (anchor, class).
    """

    def __init__(
        self, head: Head, post: Postprocess, input_hw: tuple[int, int], classes: int, capacity: Capacity, *,
        device: str = "cuda", tiles: Tiles | None = None,
    ) -> None:  # fmt: skip
        """Raises TrialError: no-kernel-form (head or settings that the kernels do not know)."""
        _check(head, post)
        self.head, self.post, self.input_hw, self.classes, self.capacity = head, post, input_hw, classes, capacity
        self.tiles = tiles or Tiles()
        self._yolox = head.kind == "yolox"
        counts = level_anchors(head, input_hw)
        self.anchors = sum(counts)
        self._elements = self.anchors * classes
        _check_size(self._elements, capacity)
        levels = [count * classes for count in counts] if post.candidates_per_level is not None else [self._elements]
        self._limit = min(post.candidates_per_level or capacity.candidates, max(levels))
        self._levels = len(levels)
        self._allocate(levels, torch.device(device))
        self._table(torch.device(device))
        logits, threshold = head.activation == "sigmoid", at_most(post.score)
        self._bounds = (logit_bound(threshold) if logits else float(threshold), float(threshold), self._elements, self._slots)
        self._form = (self._levels, classes, self._yolox, logits)
        self._iou = float("inf") if post.iou >= 1 else float(at_most(post.iou))

    def place(self, placements: Sequence[Placement]) -> None:
        """Where each image lies in the network input, and its own size: an asynchronous copy to the device table.

        Raises TrialError: kernel-inputs (more images than the capacity, or another input size).
        """
        if len(placements) > self.capacity.images or any(place.input_hw != self.input_hw for place in placements):
            raise _misfit(
                [place.input_hw for place in placements], f"at most {self.capacity.images} images in inputs of {self.input_hw}"
            )
        rows = np.array([_geometry(place, clipped=not self._yolox) for place in placements], np.float64)
        self._staged[: len(rows)].copy_(torch.from_numpy(rows.reshape(-1, suppression.GEOMETRY.value)))
        self.geometry.copy_(self._staged, non_blocking=True)

    def launch(self, outputs: Sequence[torch.Tensor]) -> None:
        """Queue the kernels on the current stream: raw outputs as the `Head` record has them, contiguous, float16 or float32.

        Raises TrialError: kernel-inputs (shapes or types that do not fit).
        """
        for _, stage in self.stages(outputs):
            stage()

    def stages(self, outputs: Sequence[torch.Tensor]) -> list[tuple[str, Callable[[], object]]]:
        """What `launch` queues, in order, by name: each needs all before it. Raises TrialError as `launch` does."""
        images = self._checked(outputs)
        return [
            ("reset", self._zeroed.zero_),
            ("filter", partial(self._filter, outputs[0], images)),
            ("select", partial(self._select, outputs[0], images)),
            ("decode", partial(self._decode, outputs, images)),
            ("overlap", partial(self._overlap, images)),
            ("suppress", partial(self._suppress, images)),
        ]

    def _filter(self, raw: torch.Tensor, images: int) -> None:
        """Scores above the threshold."""
        tiles, total = self.tiles, images * self._elements
        select.filter_scores[(self._filter_tiles, images)](
            raw, self._level_table, self.found, self._listed, total, *self._bounds, *self._form, tiles.filter,
            num_warps=tiles.filter_warps, enable_fp_fusion=False,
        )  # fmt: skip

    def _select(self, raw: torch.Tensor, images: int) -> None:
        """The best of each level."""
        tiles, groups = self.tiles, (self._programs, images)
        shared = (raw, self._level_table, self.found, self._listed, self._state, self._histogram)
        for digit in range(select.PASSES.value):
            select.count_digits[groups](
                *shared, *self._bounds, self._limit, digit, *self._form, tiles.listed,
                num_warps=tiles.listed_warps, enable_fp_fusion=False,
            )  # fmt: skip
        select.collect[groups](
            *shared, self._chosen, self.chosen_count, *self._bounds, self._limit, self._candidates, *self._form, tiles.listed,
            num_warps=tiles.listed_warps, enable_fp_fusion=False,
        )  # fmt: skip

    def _decode(self, outputs: Sequence[torch.Tensor], images: int) -> None:
        """Candidates in order, with their boxes."""
        tiles = self.tiles
        codes, width = (outputs[0], self.classes + 5) if self._yolox else (outputs[1], 4)
        suppression.order_and_decode[(-(-self._candidates // tiles.ranked), images)](
            self._chosen, self.chosen_count, codes, self._bases, self.geometry, self._boxes, self._scores, self._labels,
            self.anchors, self._candidates, self.classes, width, self._yolox, LARGEST_LOG_RATIO, tiles.ranked,
            tiles.ranked_against, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip

    def _overlap(self, images: int) -> None:
        """Which candidate suppresses which."""
        tiles = self.tiles
        grid = (-(-self._candidates // tiles.overlapped), self._words // tiles.words, images)
        suppression.overlap_bits[grid](
            self.chosen_count, self._boxes, self._labels, self._bits, self._candidates, self._words, self._iou,
            self.post.class_aware, tiles.overlapped, tiles.words, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip

    def _suppress(self, images: int) -> None:
        """Candidates that nothing better suppresses, in source pixels."""
        tiles = self.tiles
        suppression.suppress[(images,)](
            self.chosen_count, self._boxes, self._scores, self._labels, self._bits, self.geometry, self.boxes, self.scores,
            self.labels, self.counts, self._candidates, self._words, self.post.max_detections,
            _power(self._words + tiles.suppressed // 32), tiles.suppressed, _power(self.post.max_detections),
            num_warps=tiles.suppressed_warps, enable_fp_fusion=False,
        )  # fmt: skip

    def detections(self, images: int) -> list[Detections]:
        """The first `images` results on the host; waits for the GPU."""
        boxes, scores, labels = (tensor[:images].cpu().numpy() for tensor in (self.boxes, self.scores, self.labels))
        return [
            Detections(boxes=boxes[row, :count], scores=scores[row, :count], labels=labels[row, :count].astype(np.int64))
            for row, count in enumerate(self.counts[:images].tolist())
        ]

    def _allocate(self, levels: list[int], device: torch.device) -> None:
        images, limit = self.capacity.images, self.post.max_detections
        table, tile, slot, program = [], 0, 0, 0
        ends = np.cumsum(levels).tolist()
        for size, end in zip(levels, ends, strict=True):
            room = min(size, max(int(size * self.capacity.survivors), self._limit))
            programs = max(1, self.tiles.programs * size // (images * self._elements))
            table.append((tile, end - size, end, slot, room, program, programs))
            program += programs
            # Tiles start up to ALIGNED - 1 elements before the level.
            tile, slot = tile + -(-(size + select.ALIGNED.value - 1) // self.tiles.filter), slot + room
        self._filter_tiles, self._slots, self._programs = tile, slot, program
        self._candidates = sum(min(size, self._limit) for size in levels)
        self._words = -(-self._candidates // (32 * self.tiles.words)) * self.tiles.words
        groups, bins = images * self._levels, select.PASSES.value * select.BINS.value

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self._level_table = torch.tensor(table, dtype=torch.int32, device=device)
        # Counters in one block, so that one fill resets them.
        self._zeroed = torch.zeros(groups * bins + groups + images, dtype=torch.int32, device=device)
        self._histogram, found, self.chosen_count = torch.split(self._zeroed, [groups * bins, groups, images])
        self.found = found.view(images, self._levels)
        self._state = empty(groups, select.PASSES.value, 2, dtype=torch.int64)
        self._listed = empty(images, slot, dtype=torch.int64)
        self._chosen = empty(images, self._candidates, dtype=torch.int64)
        self._boxes, self._scores = empty(images, 4, self._candidates), empty(images, self._candidates)
        self._labels = empty(images, self._candidates, dtype=torch.int32)
        self._bits = empty(images, self._candidates, self._words, dtype=torch.int32)
        self.boxes, self.scores, self.labels = (
            empty(images, limit, 4),
            empty(images, limit),
            self._labels.new_empty(images, limit),
        )
        self.counts = empty(images, dtype=torch.int32)
        self.geometry = torch.ones(images, suppression.GEOMETRY.value, dtype=torch.float64, device=device)
        self._staged = torch.ones(images, suppression.GEOMETRY.value, dtype=torch.float64, pin_memory=device.type == "cuda")

    def _table(self, device: torch.device) -> None:
        """What boxes are coded against, from the reference itself."""
        if self._yolox:
            grid, strides = yolox_grid(self.head.strides, self.input_hw)
            bases: NDArray[Any] = np.concatenate((grid, strides, strides), axis=1)
        else:
            bases = np.array(retinanet_anchors(self.head, self.input_hw))
        self._bases = torch.from_numpy(bases).to(device)

    def _checked(self, outputs: Sequence[torch.Tensor]) -> int:
        images = len(outputs[0]) if len(outputs) else 0
        widths = (self.classes + 5,) if self._yolox else (self.classes, 4)
        fits = len(outputs) >= len(widths) and 0 < images <= self.capacity.images
        for output, width in zip(outputs, widths, strict=False):
            fits = fits and tuple(output.shape) == (images, self.anchors, width) and output.is_contiguous()
            fits = fits and output.dtype in (torch.float16, torch.float32) and output.device == self._boxes.device
        if not fits:
            raise _misfit(
                [(tuple(output.shape), output.dtype, str(output.device)) for output in outputs],
                f"contiguous float16 or float32 on {self._boxes.device}, 1 to {self.capacity.images} images, "
                + " and ".join(f"(images, {self.anchors}, {width})" for width in widths),
            )
        return images


def logit_bound(threshold: np.float32) -> float:
    """The largest float32 whose sigmoid, as the reference computes it, is not above `threshold`.

    So `logit > bound` is the reference's `sigmoid(logit) > threshold`, without a sigmoid. Found by bisection over all float32.
    """

    def value(rank: int) -> NDArray[np.float32]:
        return np.array([rank if rank >= 0 else -(2**31) - 1 - rank], np.int64).astype(np.int32).view(np.float32)

    low, high = -0x7F800001, 0x7F800000  # ranks of the infinities
    while low < high:
        middle = (low + high + 1) // 2
        if sigmoid(value(middle))[0] > threshold:
            high = middle - 1
        else:
            low = middle
    return float(value(low)[0])


def _geometry(place: Placement, *, clipped: bool) -> tuple[float, ...]:
    (top, left), (scale_y, scale_x), (height, width) = place.offset_yx, place.scale_yx, resized_size(place)
    bounds = (left, top, left + width, top + height) if clipped else (-np.inf, -np.inf, np.inf, np.inf)
    return (*bounds, left, top, scale_x, scale_y, place.source_hw[1], place.source_hw[0])


def _check(head: Head, post: Postprocess) -> None:
    if head.kind not in ("yolox", "retinanet"):
        raise TrialError(
            "no-kernel-form",
            "This head has no kernel form",
            got=head.kind,
            allowed="yolox or retinanet",
            fix="post-process on the host, or in the graph",
        )
    if post.score < 0 or post.max_detections < 1:
        raise TrialError(
            "no-kernel-form",
            "The kernels do not know this post-processing",
            got=f"score {post.score}, max_detections {post.max_detections}",
            allowed="a score of at least 0 and at least one detection",
            fix="post-process on the host",
        )


def _check_size(elements: int, capacity: Capacity) -> None:
    if elements >= 1 << select.INDEX_BITS.value or elements * capacity.images >= 1 << 31 or capacity.images < 1:
        raise TrialError(
            "no-kernel-form",
            "The scores of a batch cannot be numbered",
            got=f"{capacity.images} images of {elements} scores",
            allowed="under 2**29 scores an image and 2**31 a batch",
            fix="use smaller batches or a smaller input",
        )


def _misfit(got: object, allowed: str) -> TrialError:
    return TrialError(
        "kernel-inputs",
        "What is given does not fit what the kernels were made for",
        got=got,
        allowed=allowed,
        fix="make the kernels for this head, input size and number of images",
    )


def _power(value: int) -> int:
    """The least power of two that is not below `value`."""
    return 1 << (value - 1).bit_length()
