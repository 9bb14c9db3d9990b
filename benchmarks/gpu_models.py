"""The detectors that the GPU benchmark runs, their graphs, and RetinaNet variants that its moonshot tries."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redline.export import export_onnx
from redline.export.half import export_half
from redline.model.load import load_detector
from redline.records import Detector, Head, ModelSpec, OnnxModel, Postprocess, Preprocess
from redline.store import dump, load
from redline.zoo import retinanet as zoo

IMAGENET = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "channels": "rgb"}
TORCHVISION = Postprocess(score=0.05, iou=0.5, max_detections=300, candidates_per_level=1000)


def spec(name: str, weights: Path) -> ModelSpec:
    """retina91: random weights, speed only; retina4: BCCD; yolox640, yolox416: COCO."""
    if name.startswith("yolox"):
        size = int(name[5:])
        return ModelSpec(
            factory="redline.zoo:yolox_nano",
            weights=str(weights / "yolox_nano_fused_state_dict.pt"),
            head=Head(kind="yolox"),
            preprocess=Preprocess(size=(size, size), channels="bgr"),
        )
    head = Head(
        kind="retinanet",
        strides=zoo.STRIDES,
        anchor_sizes=zoo.ANCHOR_SIZES,
        aspect_ratios=zoo.ASPECT_RATIOS,
        activation="sigmoid",
    )
    random = name == "retina91"
    size = (800, 800) if random else (639, 853)
    preprocess = Preprocess(resize="shortest-side", size=size, round_to_uint8=False, fill=(0, 0, 0), **IMAGENET)  # type: ignore[arg-type]
    return ModelSpec(
        factory="redline.zoo:retinanet_resnet50_fpn",
        arguments=(("num_classes", 91 if random else 4),),
        weights=None if random else str(weights / "model.safetensors"),
        head=head,
        labels="category-id",
        preprocess=preprocess,
        postprocess=TORCHVISION,
    )


def detector(name: str, weights: Path) -> Detector:
    torch.manual_seed(0)
    return load_detector(spec(name, weights))


def graph(name: str, weights: Path, folder: Path, half: bool) -> OnnxModel:
    """Exported once to `folder`, FP32 and FP16."""
    record = folder / name / ("half.json" if half else "full.json")
    if not record.exists():
        full, lower = prepared(name, detector("retina91" if name in VARIANTS else name, weights), folder / name)
        (folder / name / "full.json").write_bytes(dump(full))
        (folder / name / "half.json").write_bytes(dump(lower))
    return load(OnnxModel, record.read_bytes())


def prepared(name: str, source: Detector, folder: Path) -> tuple[OnnxModel, OnnxModel]:
    folder.mkdir(parents=True, exist_ok=True)
    hw = {"retina4": (640, 864)}.get(name, source.preprocess.size)
    if name in VARIANTS:
        full = fixed(VARIANTS[name](source.module).eval(), source, folder, (1, 3, *hw))
    else:
        full = export_onnx(source, folder, input_hw=hw)
    return full, export_half(full, folder)


def fixed(module: nn.Module, source: Detector, folder: Path, shape: tuple[int, ...]) -> OnnxModel:
    """A variant's graph at one shape, compared with the original on random input."""
    import hashlib

    from redline.export.exporters import quiet
    from redline.records import TensorFact

    path, images = folder / "network.onnx", torch.rand(shape)
    with torch.no_grad(), quiet():
        pairs = list(zip(source.module(images), module(images), strict=True))
        worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
        names = [fact.name for fact in source.facts.outputs]
        torch.onnx.export(
            module,
            (images,),
            str(path),
            input_names=["images"],
            output_names=names,
            opset_version=18,
            dynamo=True,
            external_data=False,
        )
    if worst > 1e-3:
        raise SystemExit(f"{folder.name} does not compute what RetinaNet computes: {worst:.2g}")
    outputs = tuple(TensorFact(name=n, dtype="float32", shape=tuple(a.shape)) for n, (a, _) in zip(names, pairs, strict=True))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    image = TensorFact(name="images", dtype="float32", shape=shape)
    return OnnxModel(
        path=str(path), digest=digest, exporter="torch.export", opset=18, input=image, outputs=outputs, dynamic=False, checks=()
    )


class Packed(nn.Module):
    """RetinaNet whose head runs once over one canvas of all pyramid levels, with a zero cell between neighbours.

    Row 0 holds P3; below it P4 to P7 lie side by side. The gaps are made zero again before every convolution, so that each
    level sees the zero padding that it would have alone. One shape only (800 x 800): the layout is fixed.
    """

    def __init__(self, network: nn.Module, sizes: tuple[int, ...] = (100, 50, 25, 13, 7)) -> None:
        super().__init__()
        net: Any = network
        inner = net if hasattr(net, "backbone") else next(part for part in net.children() if hasattr(part, "backbone"))
        self.backbone, self.head, self.sizes = inner.backbone, inner.head, sizes
        first, rest = sizes[0], sizes[1:]
        mask = torch.zeros(1, 1, first + 1 + rest[0], first)
        self.places = [(0, 0), *((first + 1, sum(rest[:i]) + i) for i in range(len(rest)))]
        for size, (top, left) in zip(sizes, self.places, strict=True):
            mask[:, :, top : top + size, left : left + size] = 1
        self.register_buffer("mask", mask)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.backbone(images)
        first, gap = self.sizes[0], nn.functional.pad
        row = torch.cat(
            [
                gap(x, (0, 1 if i < 3 else first - sum(self.sizes[1:]) - 3, 0, self.sizes[1] - x.shape[2]))
                for i, x in enumerate(levels[1:])
            ],
            3,
        )
        canvas = torch.cat([gap(levels[0], (0, 0, 0, 1)), row], 2)
        heads = (self.head.classification_head, self.head.regression_head)
        return self._run(canvas, heads[0].conv, heads[0].cls_logits), self._run(canvas, heads[1].conv, heads[1].bbox_reg)

    def _run(self, canvas: Tensor, tower: nn.Module, last: nn.Module) -> Tensor:
        mask: Any = self.mask
        for layer in tower:  # type: ignore[attr-defined]
            canvas = layer(canvas) * mask
        found, columns = last(canvas), last.out_channels // zoo.ANCHORS
        rows = []
        for size, (top, left) in zip(self.sizes, self.places, strict=True):
            rows.append(zoo._rows(found[:, :, top : top + size, left : left + size], columns))
        return torch.cat(rows, 1)


VARIANTS: dict[str, Any] = {"packed": Packed}

if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Export graphs ahead of the benchmark.")
    options.add_argument("names", nargs="+")
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "redline-gpu")
    given = options.parse_args()
    for wanted in given.names:
        print(wanted, graph(wanted, given.weights, given.work, half=True).digest, file=sys.stderr, flush=True)
