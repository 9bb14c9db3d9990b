"""The bundled demo detector: a small plain-convolution YOLOX, trained on generated scenes by `redline.demo.train`."""

from __future__ import annotations

from pathlib import Path

from redline.errors import BadInput
from redline.zoo.yolox import YOLOX

WEIGHTS = Path(__file__).resolve().parent.parent / "demo" / "demo.safetensors"
NUM_CLASSES = 6


def demo(weights: bool = True) -> YOLOX:
    """The demo network in eval mode: 0.71 M parameters, channels multiples of 8, no depthwise convolutions.

    Trained for RGB pixels 0..255, letterbox to the top-left corner, fill 114; raw output as YOLOX's. `weights` False: random
    weights. Raises BadInput (weights-missing) if the installed package has no weights file.
    """
    network = YOLOX(stem=8, blocks=1, head=48, num_classes=NUM_CLASSES, depthwise=False)
    if weights:
        from safetensors.torch import load_file

        if not WEIGHTS.is_file():
            raise BadInput(
                "weights-missing",
                "The demo detector's weights are not installed",
                got=WEIGHTS,
                fix="install redline again, or train them: python -m redline.demo.train --out FOLDER",
            )
        network.load_state_dict(load_file(WEIGHTS), strict=True)
    return network.eval()
