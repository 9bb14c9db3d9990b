"""Scenes for training: worker processes draw them into shared memory, a ring on the device keeps the newest, batches are
cut out of it with random geometry and colour on the device. Knows nothing of the network.
"""

from __future__ import annotations

import mmap
import multiprocessing as mp
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from redline.demo.loss import Targets
from redline.demo.scenes import SIDE_PX, VISIBLE_SHARE, scene

CANVAS = SIDE_PX[1]
MOST_PARTS = 18
CHUNK = 16
FILL = 114.0


def _shared(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array in anonymous memory that forked processes share (no limit of /dev/shm applies)."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class _Slots:
    """Chunks of scenes in shared memory: every array starts with (slots, CHUNK)."""

    images: NDArray[np.uint8]
    sizes: NDArray[np.float32]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]

    @classmethod
    def make(cls, slots: int) -> _Slots:
        lead = (slots, CHUNK)
        return cls(
            _shared((*lead, CANVAS, CANVAS, 3), np.uint8),
            _shared((*lead, 2), np.float32),
            _shared((*lead, MOST_PARTS, 4), np.float32),
            _shared((*lead, MOST_PARTS), np.int64),
        )


def _draw(slots: _Slots, seed: int, tasks: Any, done: Any) -> None:
    """Worker: fill (slot, first scene index) tasks until None."""
    import cv2

    cv2.setNumThreads(1)
    while (task := tasks.get()) is not None:
        slot, first = task
        for k in range(CHUNK):
            made = scene(seed, first + k)
            height, width = made.image.shape[:2]
            count = min(len(made.labels), MOST_PARTS)
            slots.images[slot, k, :height, :width] = made.image
            slots.sizes[slot, k] = height, width
            slots.boxes[slot, k, :count] = made.boxes[:count]
            slots.labels[slot, k] = -1
            slots.labels[slot, k, :count] = made.labels[:count]
        done.put(slot)


class Feed:
    """Worker processes drawing scenes 0, 1, 2, ... of a series. Make it before the process first uses a GPU: it forks."""

    def __init__(self, workers: int, seed: int) -> None:
        context = mp.get_context("fork")
        count = 2 * workers
        self._slots = _Slots.make(count)
        self._tasks, self._done = context.SimpleQueue(), context.SimpleQueue()
        self._next = 0
        arguments = (self._slots, seed, self._tasks, self._done)
        self._workers = [context.Process(target=_draw, args=arguments, daemon=True) for _ in range(workers)]
        for worker in self._workers:
            worker.start()
        for slot in range(count):
            self._ask(slot)

    def _ask(self, slot: int) -> None:
        self._tasks.put((slot, self._next))
        self._next += CHUNK

    def pour(self, ring: Ring, *, wait: bool) -> int:
        """Move the chunks that are ready into the ring, at least one if `wait`; the number of scenes moved.

        Raises RuntimeError if every worker has died.
        """
        while wait and self._done.empty():
            if not any(worker.is_alive() for worker in self._workers):
                raise RuntimeError("every scene-drawing process has ended; its error is above")
            time.sleep(0.01)
        moved = 0
        while not self._done.empty():
            slot = self._done.get()
            s = self._slots
            ring.add(s.images[slot], s.sizes[slot], s.boxes[slot], s.labels[slot])
            self._ask(slot)
            moved += CHUNK
        return moved

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join()


class Ring:
    """The newest `capacity` scenes, on the device."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.device = device
        self.capacity = max(CHUNK, capacity - capacity % CHUNK)
        self.images = torch.empty((self.capacity, CANVAS, CANVAS, 3), dtype=torch.uint8, device=device)
        self.sizes = torch.empty((self.capacity, 2), device=device)
        self.boxes = torch.empty((self.capacity, MOST_PARTS, 4), device=device)
        self.labels = torch.empty((self.capacity, MOST_PARTS), dtype=torch.int64, device=device)
        self.filled = 0
        self._at = 0
        self._turn = 0
        self._staging: list[tuple[list[Tensor], Any]] = []
        if device.type == "cuda":
            for _ in range(8):
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                pinned = [torch.empty((CHUNK, *kept.shape[1:]), dtype=kept.dtype, pin_memory=True) for kept in self._kept()]
                self._staging.append((pinned, event))

    def _kept(self) -> tuple[Tensor, ...]:
        return self.images, self.sizes, self.boxes, self.labels

    def add(
        self, images: NDArray[np.uint8], sizes: NDArray[np.float32], boxes: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> None:
        """Store one chunk over the oldest; the arrays may be reused on return."""
        place = slice(self._at, self._at + CHUNK)
        chunk = [torch.from_numpy(array) for array in (images, sizes, boxes, labels)]
        if self._staging:  # pinned copies in turn: the transfers then never wait for the kernels queued before them
            pinned, event = self._staging[self._turn]
            event.synchronize()
            for staging, array in zip(pinned, chunk, strict=True):
                staging.copy_(array)
            chunk = pinned
            self._turn = (self._turn + 1) % len(self._staging)
        for kept, array in zip(self._kept(), chunk, strict=True):
            kept[place].copy_(array, non_blocking=True)
        if self._staging:
            event.record()
        self._at = (self._at + CHUNK) % self.capacity
        self.filled = min(self.filled + CHUNK, self.capacity)

    def batch(self, count: int, size: int, *, exact: float) -> tuple[Tensor, Targets]:
        """`count` random scenes as (count, 3, size, size) float32 pixels 0..255 with their boxes.

        A share `exact` of them is letterboxed as at deployment; the others are also zoomed and moved. All may be flipped.
        """
        pick = torch.randint(self.filled, (count,), device=self.device)
        frame = _frame(self.sizes[pick], size, exact)
        images = _recolour(_sample(self.images[pick], frame, size), frame.covered)
        return images, _targets(self.boxes[pick], self.labels[pick], frame, size)


@dataclass(frozen=True, slots=True)
class _Frame:
    """How each source lies in the input: input = source (after flip) * scale + offset. All (N, 2), x before y."""

    extent: Tensor
    scale: Tensor
    offset: Tensor
    flip: Tensor
    covered: Tensor
    """(N, 1, size, size) bool: the pixel shows the source, not the fill."""


def _frame(sizes: Tensor, size: int, exact: float) -> _Frame:
    extent = sizes.flip(1)
    number, device = len(extent), extent.device
    free = torch.rand(number, 1, device=device) >= exact
    zoom = torch.exp(torch.empty(number, 1, device=device).uniform_(-0.5, 0.45))
    stretch = torch.exp(torch.empty(number, 2, device=device).uniform_(-0.08, 0.08))
    scale = size / extent.amax(1, keepdim=True) * torch.where(free, zoom * stretch, 1.0)
    spare = size - extent * scale
    offset = torch.where(free, torch.rand(number, 2, device=device) * spare, 0.0)
    flip = torch.rand(number, 2, device=device) < 0.5
    line = torch.arange(size, device=device) + 0.5
    shown = (line > offset[..., None]) & (line < (offset + extent * scale)[..., None])
    return _Frame(extent, scale, offset, flip, (shown[:, 1, :, None] & shown[:, 0, None, :])[:, None])


def _sample(images: Tensor, frame: _Frame, size: int) -> Tensor:
    """Bilinear, edges repeated inside the source, `FILL` outside."""
    line = torch.arange(size, device=images.device) + 0.5
    source = (line - frame.offset[..., None]) / frame.scale[..., None]
    source = torch.where(frame.flip[..., None], frame.extent[..., None] - source, source)
    source = torch.minimum(source.clamp(min=0.5), frame.extent[..., None] - 0.5) * (2.0 / CANVAS) - 1
    x = source[:, 0, None, :].expand(-1, size, -1)
    y = source[:, 1, :, None].expand(-1, -1, size)
    planes = images.permute(0, 3, 1, 2).float()
    return F.grid_sample(planes, torch.stack([x, y], dim=-1), mode="bilinear", padding_mode="border", align_corners=False)


def _recolour(images: Tensor, covered: Tensor) -> Tensor:
    """Half of the images get other channel gains, contrast, channel order and noise; the fill stays `FILL`."""
    number, device = len(images), images.device
    half = (torch.rand(number, 1, 1, 1, device=device) < 0.5).float()
    gain = torch.exp(torch.empty(number, 3, 1, 1, device=device).uniform_(-0.15, 0.15) * half)
    gain = gain * torch.exp(torch.empty(number, 1, 1, 1, device=device).uniform_(-0.35, 0.25) * half)
    order = torch.rand(number, 3, device=device).argsort(1)
    keep = torch.rand(number, 1, device=device) < 0.75
    order = torch.where(keep, torch.arange(3, device=device), order)
    images = images.gather(1, order[:, :, None, None].expand_as(images)) * gain
    middle = images.mean((2, 3), keepdim=True)
    contrast = torch.exp(torch.empty(number, 1, 1, 1, device=device).uniform_(-0.25, 0.2) * half)
    noise = torch.empty(number, 1, 1, 1, device=device).uniform_(0, 6) * half
    images = middle + (images - middle) * contrast + noise * torch.randn_like(images)
    return torch.where(covered, images.clamp(0, 255), FILL)


def _targets(boxes: Tensor, labels: Tensor, frame: _Frame, size: int) -> Targets:
    """Boxes in the input; what lost too much of itself beyond the edge, or is tiny, is no target."""
    corners = boxes.reshape(len(boxes), -1, 2, 2)
    extent = frame.extent[:, None, None]
    corners = torch.where(frame.flip[:, None, None], extent - corners, corners)
    corners = corners * frame.scale[:, None, None] + frame.offset[:, None, None]
    moved = torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
    clipped = moved.clamp(0, size)
    sides, full = clipped[..., 2:] - clipped[..., :2], moved[..., 2:] - moved[..., :2]
    good = (sides.prod(-1) >= VISIBLE_SHARE * full.prod(-1)) & (sides.amin(-1) >= 3)
    return Targets(clipped, torch.where(good, labels, -1))
