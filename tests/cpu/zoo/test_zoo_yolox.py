"""YOLOX against the published figures and against a published ONNX file on real images."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from redline import zoo
from redline.zoo.fold import fold_batchnorm
from redline.zoo.yolox import YOLOX, yolox

SHARED = Path(__file__).parents[3].parent / "shared"
NANO = SHARED / "models" / "yolox_nano_coco"
IMAGES = SHARED / "data" / "coco_val61" / "images"
ONNX_TOLERANCE = 5e-4  # absolute, raw predictions in pixels 0-255: float32 rounding in another order


@pytest.fixture
def folded_state() -> dict[str, Any]:
    path = NANO / "yolox_nano_fused_state_dict.pt"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return dict(torch.load(path, weights_only=True))


def small(num_classes: int = 3) -> YOLOX:
    torch.manual_seed(0)
    net = yolox(0.33, 0.125, num_classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "millions"),
    [("nano", 0.91), ("tiny", 5.06), ("s", 8.97), ("m", 25.3), ("l", 54.2), ("x", 99.1)],
)
def test_parameter_counts_are_the_published_ones(name: str, millions: float) -> None:
    with torch.device("meta"):
        net = getattr(zoo, f"yolox_{name}")()
    count = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.05 if millions > 10 else 0.006)


def letterboxed(path: Path, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    import cv2

    image = cv2.imread(str(path))
    ratio = min(size / image.shape[0], size / image.shape[1])
    resized = cv2.resize(image, (int(image.shape[1] * ratio), int(image.shape[0] * ratio)))
    canvas = np.full((size, size, 3), 114, np.uint8)
    canvas[: resized.shape[0], : resized.shape[1]] = resized
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None]).astype(np.float32)


def test_equals_the_published_onnx_file_on_real_images(folded_state: dict[str, Any]) -> None:
    import onnxruntime as ort

    net = zoo.yolox_nano().eval()
    assert not net.load_state_dict(folded_state).missing_keys
    session = ort.InferenceSession(str(NANO / "yolox_nano.onnx"), providers=["CPUExecutionProvider"])
    images = sorted(IMAGES.iterdir())[::8]
    assert len(images) == 8
    for path in images:
        batch = letterboxed(path, 416)
        (expected,) = session.run(None, {"images": batch})
        with torch.no_grad():
            got = net(torch.from_numpy(batch)).numpy()
        assert got.shape == (1, 3549, 85)
        np.testing.assert_allclose(got, expected, rtol=0, atol=ONNX_TOLERANCE, err_msg=path.name)


def test_folded_state_has_no_batch_norm_left(folded_state: dict[str, Any]) -> None:
    net = zoo.yolox_nano()
    net.load_state_dict({"model": folded_state})
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert set(net.state_dict()) == set(folded_state)
    assert len(folded_state) == 226


def test_folding_changes_nothing_but_rounding() -> None:
    net = small().double()
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64) * 255
    folded = fold_batchnorm(copy.deepcopy(net))
    with torch.no_grad():
        torch.testing.assert_close(folded(images), net(images), rtol=1e-10, atol=1e-10)


def test_unfolded_checkpoint_names_and_strict_loading() -> None:
    net = zoo.yolox_s()
    names = set(net.state_dict())
    for name in (
        "backbone.backbone.stem.conv.conv.weight",
        "backbone.backbone.stem.conv.bn.running_mean",
        "backbone.backbone.dark5.1.conv2.bn.weight",
        "backbone.lateral_conv0.conv.weight",
        "backbone.C3_n4.m.0.conv2.conv.weight",
        "head.stems.0.conv.weight",
        "head.cls_convs.2.1.bn.bias",
        "head.cls_preds.0.bias",
        "head.obj_preds.2.weight",
    ):
        assert name in names
    other = small()
    other.load_state_dict({"model": small().state_dict()}, strict=True)
    with pytest.raises(RuntimeError, match="size mismatch"):
        small(num_classes=4).load_state_dict(small().state_dict())


def test_train_mode_gives_the_same_predictions_by_level() -> None:
    net = small()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        flat = net(images)
        for module in net.modules():
            module.training = module is net  # raw levels, but batch norms stay in eval mode
        levels = net(images)
    assert [tuple(level.shape) for level in levels] == [(2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]
    rows = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
    torch.testing.assert_close(flat[..., :4], rows[..., :4], rtol=0, atol=1e-6)
    torch.testing.assert_close(flat[..., 4:], rows[..., 4:].sigmoid(), rtol=0, atol=1e-6)


def test_initial_scores_are_the_prior() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        scores = yolox(0.33, 0.125, 3).eval()(torch.zeros(1, 3, 64, 64))[..., 4:]
    assert scores.mean().item() == pytest.approx(0.01, rel=0.2)
