"""Factories: what they may return, and every way in which they fail."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redline.errors import BadInput
from redline.model.load import check_head, load_detector
from redline.model.outputs import TupleOutputs
from redline.records import Head, ModelSpec, Preprocess

YOLOX = Head(kind="yolox", strides=(16,))
STEPS = Preprocess(size=(128, 160), stride=16)


class Tiny(nn.Module):
    """A yolox head of stride 16 with `classes` classes."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5 + classes, 16, 16)
        self.norm = nn.BatchNorm2d(5 + classes)

    def forward(self, images: Tensor) -> Any:
        return self.norm(self.conv(images)).flatten(2).permute(0, 2, 1)


class Final(nn.Module):
    """Three detections an image, in the container `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Any:
        n = len(images)
        boxes, scores = torch.ones(n, 3, 4) * self.scale, torch.full((n, 3), 0.5)
        labels = torch.tensor([0, 1, 2]).expand(n, 3)
        if self.kind == "dict":
            return OrderedDict(logits=torch.zeros(n, 9), labels=labels, pred_boxes=boxes, scores=scores)
        if self.kind == "images":
            return [{"boxes": boxes[i, : i + 1], "labels": labels[i, : i + 1], "scores": scores[i, : i + 1]} for i in range(n)]
        if self.kind == "nested":
            return (boxes, [scores, labels])
        return "boxes"


class Fixed(Tiny):
    """Takes 128 x 160 only."""

    def forward(self, images: Tensor) -> Any:
        if images.shape[-2:] != (128, 160):
            raise ValueError("position embeddings are for 128 x 160")
        return super().forward(images)


def raising() -> nn.Module:
    raise RuntimeError("no such backbone")


def leaving() -> nn.Module:
    sys.exit("weights are not here")


def number() -> int:
    return 3


def spec(factory: str, head: Head = YOLOX, **arguments: Any) -> ModelSpec:
    return ModelSpec(
        factory=f"{__name__}:{factory}" if ":" not in factory else factory,
        arguments=tuple(sorted(arguments.items())),
        head=head,
        preprocess=STEPS,
    )


def refused(model: ModelSpec) -> BadInput:
    with pytest.raises(BadInput) as caught:
        load_detector(model)
    return caught.value


def test_a_module_comes_back_ready() -> None:
    detector = load_detector(spec("Tiny", classes=4))
    assert not detector.module.training
    assert detector.facts.classes == 4
    assert detector.facts.name == "Tiny"
    assert detector.facts.parameters == 9 * (3 * 16 * 16 + 1) + 2 * 9
    assert detector.facts.weight_bytes == 4 * (detector.facts.parameters + 2 * 9) + 8
    assert detector.facts.outputs[0].shape == ("N", "A", 9)
    assert detector.facts.outputs[0].name == "predictions"
    assert not any(parameter.requires_grad for parameter in detector.module.parameters())
    with torch.no_grad():
        outputs = detector.module(torch.rand(2, 3, 32, 48))
    assert isinstance(outputs, tuple)
    assert outputs[0].shape == (2, 6, 9)
    check_head(detector)


def test_half_precision_modules_become_float32() -> None:
    detector = load_detector(spec(f"{__name__}:half"))
    assert {parameter.dtype for parameter in detector.module.parameters()} == {torch.float32}


def half() -> nn.Module:
    return Tiny().half()


@pytest.mark.parametrize("kind", ["dict", "images", "nested"])
def test_every_container_becomes_boxes_scores_labels(kind: str) -> None:
    detector = load_detector(spec("Final", Head(kind="detections"), kind=kind))
    boxes, scores, labels = detector.module(torch.zeros(2, 3, 32, 32))
    assert (boxes.shape[0], boxes.shape[2]) == (2, 4)
    assert scores.shape == labels.shape == boxes.shape[:2]
    assert labels.dtype == torch.float32
    if kind == "images":  # the first image has one box: padded with score 0
        assert scores.tolist() == [[0.5, 0.0], [0.5, 0.5]]
    assert [fact.name for fact in detector.facts.outputs] == ["boxes", "scores", "labels"]
    assert detector.facts.classes is None


def test_dictionary_keys_of_retinanet_are_put_in_order() -> None:
    class Heads(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"bbox_regression": torch.zeros(1, 5, 4), "cls_logits": torch.ones(1, 5, 2)}

    logits, deltas = TupleOutputs(Heads(), "retinanet")(torch.zeros(1))
    assert logits.shape == (1, 5, 2)
    assert deltas.shape == (1, 5, 4)


def test_a_network_of_one_size_is_probed_there() -> None:
    assert load_detector(spec("Fixed")).facts.outputs[0].shape == ("N", 80, 7)
    other = ModelSpec(factory=f"{__name__}:Fixed", head=YOLOX, preprocess=Preprocess(size=(64, 64), stride=16))
    error = refused(other)
    assert error.code == "model-run"
    assert "position embeddings" in str(error.got)
    assert "1 x 3 x 64 x 64" in str(error.got)


def test_a_factory_that_raises_is_named_with_its_error_and_place() -> None:
    error = refused(spec("raising"))
    assert error.code == "model-factory"
    assert "RuntimeError: no such backbone" in str(error.got)
    assert f"{Path(__file__).name}:" in str(error.got)
    assert "SystemExit: weights are not here" in str(refused(spec("leaving")).got)


@pytest.mark.parametrize(
    ("factory", "arguments", "said"),
    [
        ("number", {}, "got:     int"),
        ("Tiny", {"clases": 3}, "unexpected keyword argument 'clases'"),
        ("Tiney", {}, ":Tiny?"),
        ("no_such_package_here.models:net", {}, "No module named"),
        ("STEPS", {}, "no callable"),
        (":net", {}, '"package.module:callable"'),
        ("package.module:", {}, '"package.module:callable"'),
        ("a b:c", {}, '"package.module:callable"'),
    ],
)
def test_unusable_factories(factory: str, arguments: dict[str, Any], said: str) -> None:
    error = refused(spec(factory, **arguments))
    assert error.code == "model-factory"
    assert said in error.text()


def test_modules_of_the_working_folder_are_found_and_the_path_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "factory_of_the_folder.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 7, 16, 16), nn.Flatten(2), Turn())\n"
        "class Turn(nn.Module):\n    def forward(self, x):\n        return x.permute(0, 2, 1)\n"
    )
    (tmp_path / "factory_with_a_fault.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_detector(spec("factory_of_the_folder:net")).facts.classes == 2
    assert "ZeroDivisionError: division by zero" in str(refused(spec("factory_with_a_fault:net")).got)
    assert sys.path == before


def test_outputs_that_fit_no_head() -> None:
    error = refused(spec("Tiny", Head(kind="retinanet", strides=(16,), anchor_sizes=((32.0,),), aspect_ratios=(1.0,))))
    assert error.code == "head-outputs"
    assert "(1, 24, 7)" in str(error.got)
    assert refused(spec("Tiny", Head(kind="yolox", strides=(8,)))).code == "head-outputs"
    assert "str" in refused(spec("Final", Head(kind="detections"), kind="text")).text()
