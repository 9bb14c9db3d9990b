"""RetinaNet against a published checkpoint of torchvision's layout and that model's own recorded detections."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from redline import zoo
from redline.zoo.fold import fold_batchnorm
from redline.zoo.retinanet import RetinaNet, retinanet

SHARED = Path(__file__).parents[3].parent / "shared"
BCCD = SHARED / "models" / "retinanet_r50_bccd"


def test_parameter_counts() -> None:
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in net.parameters())
            for net in (
                zoo.retinanet_resnet50_fpn(4),
                zoo.retinanet_resnet50_fpn(),
                zoo.retinanet_resnet34_fpn(),
                zoo.retinanet_resnet18_fpn(),
            )
        ]
    # 32,263,304: the checkpoint's README; 34,068,119: as above plus 87 classes x 9 anchors x (256 x 9 + 1).
    assert counts[:2] == [32_263_304, 32_263_304 + 87 * 9 * (256 * 9 + 1)]
    # ResNet-34 and -18 without classifier (21,284,672 and 11,176,512) plus the same pyramid (narrower laterals) and head.
    assert counts[2] - counts[3] == 21_284_672 - 11_176_512


def test_names_are_torchvisions() -> None:
    with torch.device("meta"):
        names = set(retinanet(18, 4).state_dict())
    assert {
        "backbone.body.conv1.weight",
        "backbone.body.bn1.num_batches_tracked",
        "backbone.body.layer2.0.downsample.1.running_var",
        "backbone.fpn.inner_blocks.0.0.weight",
        "backbone.fpn.layer_blocks.2.0.bias",
        "backbone.fpn.extra_blocks.p6.weight",
        "head.classification_head.conv.3.0.weight",
        "head.classification_head.cls_logits.bias",
        "head.regression_head.bbox_reg.weight",
    } <= names


@pytest.mark.parametrize(("height", "width"), [(64, 96), (100, 75)])
def test_shapes_follow_the_input(height: int, width: int) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        logits, deltas = retinanet(18, 3).eval()(torch.rand(2, 3, height, width))
    anchors = 9 * sum(-(-height // stride) * -(-width // stride) for stride in (8, 16, 32, 64, 128))
    assert tuple(logits.shape) == (2, anchors, 3)
    assert tuple(deltas.shape) == (2, anchors, 4)
    assert logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.05)


def test_rows_are_cell_then_anchor() -> None:
    torch.manual_seed(0)
    net = retinanet(18, 2).eval()
    with torch.no_grad():
        levels = net.backbone(torch.rand(1, 3, 64, 96))
        head = net.head.classification_head
        raw = head.cls_logits(head.conv(levels[0]))[0]  # (anchors * classes, 8, 12)
        rows = head(levels)[0]
    y, x, anchor, label = 3, 7, 5, 1
    assert rows[(y * 12 + x) * 9 + anchor, label] == raw[anchor * 2 + label, y, x]


def test_folding_changes_nothing_but_rounding() -> None:
    torch.manual_seed(0)
    net = retinanet(50, 2).double().eval()
    folded = fold_batchnorm(copy.deepcopy(net))
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(folded(images), net(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert len(folded.state_dict()) < len(net.state_dict())


@pytest.fixture(scope="module")
def trained() -> RetinaNet:
    path = BCCD / "model.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    from safetensors.torch import load_file

    net = zoo.retinanet_resnet50_fpn(num_classes=4)
    result = net.load_state_dict(load_file(path), strict=True)
    assert result.missing_keys == result.unexpected_keys == []
    return net.eval()


def test_highest_scores_are_the_recorded_ones(trained: RetinaNet) -> None:
    import cv2

    data = SHARED / "data" / "bccd"
    image = json.loads((data / "instances_test.json").read_text())["images"][0]
    pixels = cv2.imread(str(data / "images" / image["file_name"]))[..., ::-1].astype(np.float32) / 255
    scaled = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    batch = torch.zeros(1, 3, 640, 864)
    batch[..., :639, :853] = torch.nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])), size=(639, 853), mode="bilinear"
    )
    with torch.no_grad():
        best = trained(batch)[0][0].sigmoid().amax(dim=0)
    found = json.loads((BCCD / "test_detections_fp32.json").read_text())
    for label in (1, 2, 3):
        recorded = [box["score"] for box in found if box["image_id"] == image["id"] and box["category_id"] == label]
        expected = max(recorded, default=0.0)
        if expected > 0.05:
            assert best[label].item() == pytest.approx(expected, abs=1e-3)
        else:
            assert best[label].item() < 0.06
