"""Networks to ONNX: dynamic, named, checked, the same bytes every time; and what happens where an exporter cannot."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from redline.errors import TrialError
from redline.export import check
from redline.export.network import export_onnx
from redline.model.load import load_detector
from redline.records import Detector, Head, ModelSpec, Preprocess
from redline.zoo.retinanet import ANCHOR_SIZES, ASPECT_RATIOS, STRIDES, retinanet
from redline.zoo.yolox import YOLOX, yolox

SHARED = Path(__file__).parents[3].parent / "shared"


class Two(nn.Module):
    """A yolox head of strides 8 and 16 with 2 classes."""

    def __init__(self, poison: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.down = nn.Sequential(nn.Conv2d(3, 8, 8, 8, bias=False), nn.BatchNorm2d(8), nn.SiLU(inplace=True))
        self.next = nn.Conv2d(8, 8, 3, 2, 1)
        self.heads = nn.ModuleList(nn.Conv2d(8, 7, 1) for _ in range(2))
        nn.init.uniform_(self.down[1].running_var, 0.5, 2)
        if poison:
            nn.init.constant_(self.next.bias, float("nan"))

    def forward(self, images: Tensor) -> Tensor:
        first = self.down(images)
        levels = (first, self.next(first))
        return torch.cat([head(level).flatten(2) for head, level in zip(self.heads, levels, strict=True)], dim=2).permute(
            0, 2, 1
        )


class Branching(Two):
    """Reads a value on the way, which torch.export cannot follow and tracing can."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (1.0 if float(images.sum()) < float("inf") else 0.0)


class Baked(Two):
    """Takes only 64 x 96: position embeddings of that size."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 3, 64, 96))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + self.position)


class Broken(Two):
    """No exporter can follow this: the arithmetic is numpy's."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(images.numpy().copy()) * float(images[0, 0, 0, 0] * 0 + 1))


class TopThree(nn.Module):
    """Final detections: the three best places of a map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.map = nn.Conv2d(3, 6, 16, 16)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        rows = self.map(images / 255).flatten(2).transpose(1, 2)
        scores, places = rows[..., 0].sigmoid().topk(3, dim=1)
        boxes = rows[..., 1:5].gather(1, places[..., None].expand(-1, -1, 4))
        return {"labels": places % 2, "boxes": boxes, "scores": scores}


def small_yolox() -> YOLOX:
    torch.manual_seed(3)
    return yolox(0.33, 0.0625, 2)


def small_retinanet() -> nn.Module:
    torch.manual_seed(4)
    return retinanet(18, 2)


HEAD = Head(kind="yolox", strides=(8, 16))
STEPS = Preprocess(size=(64, 96), stride=16)


def load(factory: str, head: Head = HEAD, preprocess: Preprocess = STEPS, **arguments: Any) -> Detector:
    model = ModelSpec(
        factory=f"{__name__}:{factory}", arguments=tuple(sorted(arguments.items())), head=head, preprocess=preprocess
    )
    return load_detector(model)


def run(path: str, batch: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    return list(ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": batch}))


def test_a_network_is_exported_dynamic_named_and_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    detector = load("Two")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = export_onnx(detector, tmp_path, input_hw=(60, 90))
    assert (model.exporter, model.dynamic, model.opset, model.fallback_reason) == ("torch.export", True, 18, None)
    assert [entry.shape for entry in model.checks] == [
        (1, 3, 16, 16), (1, 3, 64, 96), (1, 3, 32, 96), (1, 3, 64, 48), (3, 3, 32, 64)
    ]  # fmt: skip
    assert all(entry.max_abs < 1e-3 for entry in model.checks)
    assert capfd.readouterr().out == ""
    graph = onnx.load(model.path).graph
    onnx.checker.check_model(model.path, full_check=True)
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (*graph.input, *graph.output)
    ]
    assert shapes == [["N", 3, "H", "W"], ["N", "A", 7]]
    assert [value.name for value in (*graph.input, *graph.output)] == ["images", "predictions"]
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert not any(node.doc_string for node in graph.node)
    assert {entry.key for node in graph.node for entry in node.metadata_props} == {"redline.module"}
    batch = check.pictures(STEPS, (5, 3, 112, 208))  # a shape no exporter saw
    with torch.no_grad():
        expected = detector.module(torch.from_numpy(batch))[0].numpy()
    np.testing.assert_allclose(run(model.path, batch)[0], expected, rtol=1e-4, atol=1e-3)


def test_the_same_network_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from pathlib import Path\nimport {__name__} as t\n"
        f"print(t.export_onnx(t.load('Two'), Path({str(tmp_path)!r}), input_hw=(64, 96)).digest)"
    )
    (tmp_path / "here").mkdir()
    here = export_onnx(load("Two"), tmp_path / "here", input_hw=(64, 96)).digest
    again = export_onnx(load("Two"), tmp_path / "here", input_hw=(64, 96)).digest
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
    assert here == again == there


def test_the_legacy_exporter_is_the_recorded_fallback(tmp_path: Path) -> None:
    model = export_onnx(load("Branching"), tmp_path, input_hw=(64, 96))
    assert (model.exporter, model.dynamic) == ("torchscript", True)
    assert str(model.fallback_reason).startswith("torch.export: ")
    assert len(model.checks) == 5
    batch = check.pictures(STEPS, (2, 3, 96, 48))
    with torch.no_grad():
        expected = load("Branching").module(torch.from_numpy(batch))[0].numpy()
    np.testing.assert_allclose(run(model.path, batch)[0], expected, rtol=1e-4, atol=1e-3)


def test_a_network_of_one_size_keeps_it(tmp_path: Path) -> None:
    model = export_onnx(load("Baked"), tmp_path, input_hw=(64, 96))
    assert not model.dynamic
    assert model.input.shape == ("N", 3, 64, 96)
    assert [entry.shape for entry in model.checks] == [(1, 3, 64, 96)]
    assert run(model.path, np.zeros((2, 3, 64, 96), np.float32))[0].shape == (2, 120, 7)


def test_a_network_nobody_can_export_fails_with_every_reason(tmp_path: Path) -> None:
    with pytest.raises(TrialError) as caught:
        export_onnx(load("Broken"), tmp_path, input_hw=(64, 96))
    assert caught.value.code == "export-failed"
    for way in ("torch.export: ", "torchscript: ", "torch.export, fixed size: ", "torch.export, fixed size and batch: "):
        assert way in str(caught.value.got)


def test_a_graph_that_computes_something_else_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = load("Two")
    real = check.torch_outputs
    monkeypatch.setattr(check, "torch_outputs", lambda *given: [array * 1.01 for array in real(*given) or []])
    with pytest.raises(TrialError, match="computes something else"):
        export_onnx(detector, tmp_path, input_hw=(64, 96))


def test_nan_weights_are_exported(tmp_path: Path) -> None:
    model = export_onnx(load("Two", poison=True), tmp_path, input_hw=(64, 96))
    assert np.isnan(run(model.path, np.zeros((1, 3, 64, 96), np.float32))[0]).any()


def test_final_detections_keep_their_order_and_names(tmp_path: Path) -> None:
    detector = load("TopThree", Head(kind="detections"))
    model = export_onnx(detector, tmp_path, input_hw=(64, 96))
    assert [fact.name for fact in model.outputs] == ["boxes", "scores", "labels"]
    assert model.outputs[0].shape == ("N", 3, 4)
    boxes, scores, labels = run(model.path, check.pictures(STEPS, (2, 3, 96, 64)))
    assert boxes.shape == (2, 3, 4)
    assert scores.shape == labels.shape == (2, 3)
    assert labels.dtype == np.float32


RETINA = Head(kind="retinanet", strides=STRIDES, anchor_sizes=ANCHOR_SIZES, aspect_ratios=ASPECT_RATIOS, activation="sigmoid")


@pytest.mark.parametrize(("factory", "head"), [("small_yolox", Head(kind="yolox")), ("small_retinanet", RETINA)])
def test_the_zoo_is_dynamic(tmp_path: Path, factory: str, head: Head) -> None:
    detector = load(factory, head, Preprocess(size=(96, 128)))
    model = export_onnx(detector, tmp_path, input_hw=(96, 128))
    assert (model.exporter, model.dynamic) == ("torch.export", True)
    assert max(entry.max_abs for entry in model.checks) < 1e-3
    operators = {node.op_type for node in onnx.load(model.path).graph.node}
    assert not operators & {"BatchNormalization", "Loop", "If", "Scan", "NonZero", "Identity"}
    assert any(isinstance(module, nn.BatchNorm2d) for module in detector.module.modules())  # folded in a copy only
