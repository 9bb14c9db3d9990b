"""Scenes for training: processes draw them into a shared file, a ring on the device keeps the newest, and batches are cut
out of it with random geometry and colour on the device. Knows nothing of the network.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from redline.demo.draw import CANVAS, CHUNK, MOST_PARTS, SLOT
from redline.demo.loss import Targets
from redline.demo.scenes import VISIBLE_SHARE

FILL = 114.0


class Feed:
    """Processes drawing scenes 0, 1, 2, ... of a series. They end when closed, or when this process ends."""

    def __init__(self, workers: int, seed: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "slots"
        self._slots: Any = np.memmap(path, dtype=SLOT, mode="w+", shape=(2 * workers,))
        command = [sys.executable, "-m", "redline.demo.draw", str(path), str(seed)]
        self._workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(workers)]
        self._next = 0
        self._answers = selectors.DefaultSelector()
        for index, worker in enumerate(self._workers):
            self._answers.register(cast("IO[bytes]", worker.stdout), selectors.EVENT_READ, worker)
            self._ask(worker, 2 * index)
            self._ask(worker, 2 * index + 1)

    def _ask(self, worker: subprocess.Popen[bytes], slot: int) -> None:
        stdin = cast("IO[bytes]", worker.stdin)
        stdin.write(f"{slot} {self._next}\n".encode())
        stdin.flush()
        self._next += CHUNK

    def pour(self, ring: Ring, *, wait: bool) -> int:
        """Move the chunks that are ready into the ring, at least one if `wait`; the number of scenes moved.

        Raises RuntimeError if a process has died.
        """
        moved = 0
        for key, _ in self._answers.select(None if wait else 0):
            answer = os.read(key.fd, 4096)  # unbuffered: a line kept in a buffer would not wake the next select
            if not answer:
                raise RuntimeError("a scene-drawing process has ended; its error is above")
            for slot in map(int, answer.split()):
                chunk = self._slots[slot]
                ring.add(chunk["images"], chunk["sizes"], chunk["boxes"], chunk["labels"])
                self._ask(key.data, slot)
                moved += CHUNK
        return moved

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.communicate()
        self._answers.close()
        self._folder.cleanup()


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
