"""The built-in detectors by name. Importing this loads nothing heavy: each factory imports its network when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redline.zoo.retinanet import RetinaNet
    from redline.zoo.yolox import YOLOX

__all__ = [
    "demo",
    "retinanet_resnet18_fpn",
    "retinanet_resnet34_fpn",
    "retinanet_resnet50_fpn",
    "yolox_l",
    "yolox_m",
    "yolox_nano",
    "yolox_s",
    "yolox_tiny",
    "yolox_x",
]


def yolox_nano(num_classes: int = 80) -> YOLOX:
    """YOLOX-Nano (depthwise), 0.91 M parameters with 80 classes; randomly initialised, as all of these but `demo`."""
    from redline.zoo import yolox

    return yolox.yolox_nano(num_classes)


def yolox_tiny(num_classes: int = 80) -> YOLOX:
    """YOLOX-Tiny, 5.06 M parameters with 80 classes."""
    from redline.zoo import yolox

    return yolox.yolox_tiny(num_classes)


def yolox_s(num_classes: int = 80) -> YOLOX:
    """YOLOX-S, 8.97 M parameters with 80 classes."""
    from redline.zoo import yolox

    return yolox.yolox_s(num_classes)


def yolox_m(num_classes: int = 80) -> YOLOX:
    """YOLOX-M, 25.3 M parameters with 80 classes."""
    from redline.zoo import yolox

    return yolox.yolox_m(num_classes)


def yolox_l(num_classes: int = 80) -> YOLOX:
    """YOLOX-L, 54.2 M parameters with 80 classes."""
    from redline.zoo import yolox

    return yolox.yolox_l(num_classes)


def yolox_x(num_classes: int = 80) -> YOLOX:
    """YOLOX-X, 99.1 M parameters with 80 classes."""
    from redline.zoo import yolox

    return yolox.yolox_x(num_classes)


def retinanet_resnet18_fpn(num_classes: int = 91) -> RetinaNet:
    """RetinaNet with a ResNet-18 backbone; class 0 is unused, as in torchvision."""
    from redline.zoo.retinanet import retinanet

    return retinanet(18, num_classes)


def retinanet_resnet34_fpn(num_classes: int = 91) -> RetinaNet:
    """RetinaNet with a ResNet-34 backbone."""
    from redline.zoo.retinanet import retinanet

    return retinanet(34, num_classes)


def retinanet_resnet50_fpn(num_classes: int = 91) -> RetinaNet:
    """RetinaNet with a ResNet-50 backbone (torchvision's retinanet_resnet50_fpn)."""
    from redline.zoo.retinanet import retinanet

    return retinanet(50, num_classes)


def demo() -> YOLOX:
    """The bundled demo detector with its trained weights, in eval mode."""
    from redline.zoo.demo_net import demo as load

    return load()
