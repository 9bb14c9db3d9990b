"""A detector of red blobs in five small convolutions, its scenes and its spec: engines of it are built in seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

SIDE, CHANNELS = 16, 16
SIZES = ((128, 96), (96, 128), (128, 128))
SPEC = """
[model]
factory = "blob_net:blobs"
head = {{ kind = "yolox", strides = [16] }}
[model.preprocess]
size = [128, 128]
{preprocess}
[model.postprocess]
score = 0.05
iou = 0.5
max_detections = 50
[data]
evaluate = {{ images = "val", annotations = "val.json" }}
[objective]
p95_ms = 30
throughput = 100
map_evidence = "point"
[target]
precisions = {precisions}
server = "none"
[budget]
minutes = {minutes}
"""


class Blobs(nn.Module):
    """(N, 3, H, W) -> (N, A, 6), A cells of 16 x 16: the first channel averages red, the others only cost time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [3, CHANNELS, CHANNELS, CHANNELS, CHANNELS]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.last = nn.Conv2d(CHANNELS, 6, 1)
        with torch.no_grad():
            for layer in (*self.down, self.last):
                layer.weight.mul_(0.2)
                layer.bias.zero_()
            for layer in self.down:
                layer.weight[0].zero_()
                layer.weight[0, 0] = 0.25
            self.last.weight.zero_()
            self.last.weight[4, 0] = 1 / 25
            self.last.bias[:] = torch.tensor([0.5, 0.5, 0.0, 0.0, -5.0, 3.0])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for layer in self.down:
            images = torch.relu(layer(images))
        found = self.last(images)
        found = torch.cat([found[:, :4], torch.sigmoid(found[:, 4:])], 1)
        return found.flatten(2).transpose(1, 2)


def blobs() -> nn.Module:
    return Blobs()


def project(
    folder: Path,
    *,
    scenes: int = 24,
    sizes: Sequence[tuple[int, int]] = SIZES,
    preprocess: str = "",
    precisions: tuple[str, ...] = ("fp32", "tf32", "fp16"),
    minutes: float = 1.0,
) -> Path:
    """Write scenes of `sizes` with their labels, and a spec; its path."""
    rng, images, boxes = np.random.default_rng(5), [], []
    (folder / "val").mkdir(parents=True, exist_ok=True)
    for index in range(scenes):
        height, width = sizes[index % len(sizes)]
        pixels = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
        cells = rng.permutation((height // SIDE) * (width // SIDE))[: int(rng.integers(1, 6))]
        for cell in cells.tolist():
            y, x = SIDE * (cell // (width // SIDE)), SIDE * (cell % (width // SIDE))
            pixels[y : y + SIDE, x : x + SIDE, 0] = 250
            box = {"id": len(boxes) + 1, "image_id": index + 1, "category_id": 1, "bbox": [x, y, SIDE, SIDE]}
            boxes.append({**box, "area": SIDE * SIDE, "iscrowd": 0})
        Image.fromarray(pixels).save(folder / "val" / f"{index}.png")
        images.append({"id": index + 1, "file_name": f"{index}.png", "height": height, "width": width})
    labels = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "blob"}]}
    (folder / "val.json").write_text(json.dumps(labels), encoding="utf-8")
    spec = folder / "detector.toml"
    asked = json.dumps(list(precisions))
    spec.write_text(SPEC.format(preprocess=preprocess, precisions=asked, minutes=minutes), encoding="utf-8")
    return spec
