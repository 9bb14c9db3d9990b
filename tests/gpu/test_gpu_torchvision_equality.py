"""Our RetinaNet equals torchvision's, names and outputs. Needs torchvision beside the torch it was built for, not a GPU."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

TOLERANCE = 1e-4  # absolute, float32 on the CPU: the same operations on the same weights


def _torchvision() -> Any:
    try:
        import torchvision
        from torchvision.models.detection import retinanet
    except (ImportError, RuntimeError, OSError) as error:  # a mismatched build fails while registering its operators
        pytest.skip(f"torchvision does not import beside torch {torch.__version__}: {error}")
    del torchvision
    return retinanet


def theirs(depth: int, num_classes: int) -> Any:
    retinanet = _torchvision()
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(depth)
    if depth == 50:
        net = retinanet.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes)
    else:
        backbone = resnet_fpn_backbone(
            backbone_name=f"resnet{depth}",
            weights=None,
            norm_layer=torch.nn.BatchNorm2d,
            trainable_layers=5,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
        net = retinanet.RetinaNet(backbone, num_classes)
    for module in net.modules():  # fresh statistics would leave the batch norms untested
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize(("height", "width"), [(128, 192), (200, 131)])
def test_raw_head_outputs_are_equal(depth: int, height: int, width: int) -> None:
    from redline.zoo.retinanet import retinanet

    reference = theirs(depth, num_classes=5)
    ours = retinanet(depth, num_classes=5).eval()  # type: ignore[arg-type]
    assert list(ours.state_dict()) == list(reference.state_dict())
    ours.load_state_dict(reference.state_dict(), strict=True)
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        expected = reference.head(list(reference.backbone(images).values()))
        logits, deltas = ours(images)
    assert expected["cls_logits"].shape == logits.shape
    torch.testing.assert_close(logits, expected["cls_logits"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(deltas, expected["bbox_regression"], rtol=0, atol=TOLERANCE)


def test_anchor_constants_are_theirs() -> None:
    retinanet = _torchvision()
    from redline.zoo.retinanet import ANCHOR_SIZES, ASPECT_RATIOS

    generator = retinanet._default_anchorgen()
    assert tuple(tuple(sizes) for sizes in generator.sizes) == ANCHOR_SIZES
    assert all(tuple(ratios) == ASPECT_RATIOS for ratios in generator.aspect_ratios)
