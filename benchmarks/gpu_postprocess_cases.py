"""Inputs of the post-processing benchmark, and the same work by torch and torchvision operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from redline import vision
from redline.records import Detections, Head, Placement, Postprocess, Preprocess
from redline.vision.geometry import resized_size
from redline.vision.levels import LARGEST_LOG_RATIO, level_anchors, retinanet_anchors, yolox_grid

RETINANET = Head(
    kind="retinanet",
    strides=(8, 16, 32, 64, 128),
    activation="sigmoid",
    anchor_sizes=tuple(tuple(float(int(size * 2 ** (third / 3))) for third in range(3)) for size in (32, 64, 128, 256, 512)),
    aspect_ratios=(0.5, 1.0, 2.0),
)
RETINANET_POST = Postprocess(score=0.05, iou=0.5, max_detections=300, candidates_per_level=1000)
YOLOX = Head(kind="yolox", activation="sigmoid")
YOLOX_POST = Postprocess(score=0.001, iou=0.65, max_detections=300)
SPREAD = 0.5
"""Standard deviation of background logits: with 1 % above 0.05 their mean is -4.1, near the prior of 1 % that such heads start
from, and in float16 thousands of them are equal, as real ones are."""


@dataclass(frozen=True)
class Case:
    """One network's raw outputs, synthesised: normal logits of which `share` pass the threshold, and `objects` an image on top,
    each seen by every anchor that overlaps it by half, with its class at a logit of about 1 and its box nearly right."""

    name: str
    head: Head
    post: Postprocess
    input_hw: tuple[int, int]
    classes: int
    images: int
    share: float
    half: bool = True
    objects: int = 30
    seed: int = 7

    @cached_property
    def anchors(self) -> int:
        return sum(level_anchors(self.head, self.input_hw))

    @cached_property
    def placements(self) -> list[Placement]:
        sources = [(1080, 1920), (480, 640), (640, 427), (1333, 800)]
        preprocess = Preprocess(size=self.input_hw)
        return [vision.place(sources[index % len(sources)], preprocess, "fixed") for index in range(self.images)]

    def outputs(self, device: str) -> list[torch.Tensor]:
        """Raw heads on `device`, the same for the same seed on one device."""
        made = [self._image(index, device) for index in range(self.images)]
        return [torch.stack(parts).contiguous() for parts in zip(*made, strict=True)]

    def _image(self, index: int, device: str) -> list[torch.Tensor]:
        rng = torch.Generator(device=device).manual_seed(self.seed + index)
        dtype = torch.float16 if self.half else torch.float32

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=rng, device=device)

        bound = float(np.log(self.post.score / (1 - self.post.score)))
        yolox = self.head.kind == "yolox"
        mean = bound + SPREAD * NormalDist().inv_cdf(self.share)
        scores, codes = mean + SPREAD * normal(self.anchors, self.classes), 0.2 * normal(self.anchors, 4)
        bases = self.bases(device)
        side = min(self.input_hw)
        centre = torch.rand((self.objects, 2), generator=rng, device=device) * side
        size = side * (0.04 + 0.5 * torch.rand((self.objects, 2), generator=rng, device=device) ** 2)
        things = torch.cat((centre - size / 2, centre + size / 2), dim=1)
        labels = torch.randint(self.classes, (self.objects,), generator=rng, device=device)
        overlap, which = _overlaps(bases, things).max(dim=1)
        near = overlap > 0.5
        scores[near, labels[which[near]]] = 1 + 0.5 * normal(int(near.sum()))
        codes[near] = self._encode(things[which[near]], bases[near]) + 0.05 * codes[near]
        if not yolox:
            return [scores.to(dtype), codes.to(dtype)]
        objectness = torch.where(near, 1.0, 0.0)[:, None] + 2 + 0.5 * normal(self.anchors, 1)
        return [torch.cat((codes, objectness, scores), dim=1).to(dtype)]

    def bases(self, device: str) -> torch.Tensor:
        """Anchors; for yolox a box of four strides about each cell's centre."""
        if self.head.kind == "retinanet":
            return torch.from_numpy(np.array(retinanet_anchors(self.head, self.input_hw))).to(device)
        grid, strides = yolox_grid(self.head.strides, self.input_hw)
        centre = (grid + 0.5) * strides
        return torch.from_numpy(np.concatenate((centre - 2 * strides, centre + 2 * strides), axis=1)).to(device)

    def _encode(self, boxes: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
        size, base = boxes[:, 2:] - boxes[:, :2], bases[:, 2:] - bases[:, :2]
        shift = (boxes[:, :2] + boxes[:, 2:] - bases[:, :2] - bases[:, 2:]) / 2
        if self.head.kind == "retinanet":
            return torch.cat((shift / base, torch.log(size / base)), dim=1)
        stride = base / 4
        return torch.cat((shift / stride + 0.5, torch.log(size / stride)), dim=1)

    def reference(self, outputs: Sequence[torch.Tensor], images: int) -> list[Detections]:
        """The numpy reference on the first images."""
        arrays = [output[:images].float().cpu().numpy() for output in outputs]
        return vision.postprocess(arrays, self.head, self.post, self.placements[:images])


def cases(images: int, *, small: bool = False) -> list[Case]:
    """RetinaNet with 1 % and 10 % of the scores above the threshold and in float32, and YOLOX."""
    side = 256 if small else 800
    retina = Case("retinanet-1pct", RETINANET, RETINANET_POST, (side, side), 91, images, 0.01)
    yolox = Case("yolox", YOLOX, YOLOX_POST, (min(side, 640),) * 2, 80, images, 0.005)
    return [
        retina,
        replace(retina, name="retinanet-10pct", share=0.1),
        replace(retina, name="retinanet-1pct-fp32", half=False),
        yolox,
        replace(yolox, name="yolox-10x", share=0.05),
    ]


def _overlaps(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    inner = torch.minimum(first[:, None, 2:], second[None, :, 2:]) - torch.maximum(first[:, None, :2], second[None, :, :2])
    common = inner.clamp(min=0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (first, second)]
    return common / (areas[0][:, None] + areas[1][None, :] - common)


def torch_postprocess(case: Case, outputs: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    """The same steps as torchvision's detectors take them, image by image, level by level, eager on the GPU."""
    from torchvision.ops import batched_nms

    device = str(outputs[0].device)
    levels = level_anchors(case.head, case.input_hw) if case.post.candidates_per_level else (case.anchors,)
    found = []
    for index, place in enumerate(case.placements):
        boxes, scores, labels, start = [], [], [], 0
        for count in levels:
            part = slice(start, start + count)
            score = _scores(case, outputs[0][index, part]).flatten()
            kept = torch.where(score > case.post.score)[0]
            limit = min(case.post.candidates_per_level or len(kept), len(kept))
            best, order = score[kept].topk(limit)
            chosen = kept[order]
            anchors = start + chosen // case.classes
            boxes.append(_boxes(case, outputs, index, anchors, device, place))
            scores.append(best)
            labels.append(chosen % case.classes)
            start += count
        every, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        keep = batched_nms(every, score, label, case.post.iou)[: case.post.max_detections]
        scale = torch.tensor(place.scale_yx[::-1] * 2, device=device)
        found.append((every[keep] / scale, score[keep], label[keep]))
    return found


def _scores(case: Case, raw: torch.Tensor) -> torch.Tensor:
    if case.head.kind == "retinanet":
        return torch.sigmoid(raw).float()
    return (torch.sigmoid(raw[:, 5:]) * torch.sigmoid(raw[:, 4:5])).float()


def _boxes(
    case: Case, outputs: Sequence[torch.Tensor], index: int, anchors: torch.Tensor, device: str, place: Placement
) -> torch.Tensor:
    key = (case.head, case.input_hw, device)
    if key not in _TABLES:
        _TABLES[key] = _table(case, device)
    base = _TABLES[key][anchors]
    if case.head.kind == "yolox":
        codes = outputs[0][index, anchors, :4].float()
        centre, half = (codes[:, :2] + base[:, :2]) * base[:, 2:], torch.exp(codes[:, 2:]) * base[:, 2:] * 0.5
        return torch.cat((centre - half, centre + half), dim=1)
    codes = outputs[1][index, anchors].float()
    size = base[:, 2:] - base[:, :2]
    centre = codes[:, :2] * size + base[:, :2] + 0.5 * size
    half = 0.5 * torch.exp(codes[:, 2:].clamp(max=LARGEST_LOG_RATIO)) * size
    height, width = resized_size(place)
    boxes = torch.cat((centre - half, centre + half), dim=1)
    return torch.stack((boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)), dim=2).flatten(1)


_TABLES: dict[Any, torch.Tensor] = {}


def _table(case: Case, device: str) -> torch.Tensor:
    if case.head.kind == "retinanet":
        return case.bases(device)
    grid, strides = yolox_grid(case.head.strides, case.input_hw)
    return torch.from_numpy(np.concatenate((grid, strides, strides), axis=1)).to(device)
