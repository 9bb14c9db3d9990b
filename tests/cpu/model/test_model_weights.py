"""Weights files: kinds, wrappers, mismatches, damage, and pickles that would run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from redline.errors import BadInput
from redline.model.load import load_detector
from redline.model.weights import digest
from redline.records import Head, ModelSpec, Preprocess

SHARED = Path(__file__).parents[3].parent / "shared"


class Net(nn.Module):
    """A yolox head of stride 16 behind a convolution with batch norm."""

    def __init__(self, classes: int = 2, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 16, 16, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 5 + classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.bn(self.conv(images)).relu()).flatten(2).permute(0, 2, 1)


def spec(weights: Path, **arguments: Any) -> ModelSpec:
    return ModelSpec(
        factory=f"{__name__}:Net",
        arguments=tuple(sorted(arguments.items())),
        weights=str(weights),
        head=Head(kind="yolox", strides=(16,)),
        preprocess=Preprocess(size=(64, 64), stride=16),
    )


def refused(weights: Path, **arguments: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        load_detector(spec(weights, **arguments))
    return caught.value


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(Net(seed=7).state_dict())


@pytest.mark.parametrize("wrap", [(), ("model",), ("state_dict",), ("ema",), ("ema", "module")])
def test_state_dicts_are_found_in_their_wrappers(tmp_path: Path, state: dict[str, Tensor], wrap: tuple[str, ...]) -> None:
    content: Any = state
    for key in reversed(wrap):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "weights.pt")
    detector = load_detector(spec(tmp_path / "weights.pt"))
    assert detector.facts.digest == digest(Net(seed=7)) != digest(Net(seed=8))
    assert detector.facts.notes == ()


def test_safetensors_half_precision_and_data_parallel(tmp_path: Path, state: dict[str, Tensor]) -> None:
    halved = {f"module.{k}": v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(halved, tmp_path / "weights.safetensors")
    net = load_detector(spec(tmp_path / "weights.safetensors")).module.net
    assert net.conv.weight.dtype == torch.float32
    torch.testing.assert_close(net.conv.weight, state["conv.weight"], rtol=1e-3, atol=1e-6)


def test_counters_may_be_missing(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state["bn.num_batches_tracked"]
    torch.save(state, tmp_path / "old.pth")
    assert load_detector(spec(tmp_path / "old.pth")).facts.digest == digest(Net(seed=7))


def test_folded_weights_fold_the_network(tmp_path: Path, state: dict[str, Tensor]) -> None:
    scale = state["bn.weight"] / (state["bn.running_var"] + 1e-5).sqrt()
    folded = {
        "conv.weight": state["conv.weight"] * scale[:, None, None, None],
        "conv.bias": state["bn.bias"] - state["bn.running_mean"] * scale,
        "last.weight": state["last.weight"],
        "last.bias": state["last.bias"],
    }
    torch.save(folded, tmp_path / "folded.pt")
    images = torch.rand(1, 3, 32, 32)
    detector = load_detector(spec(tmp_path / "folded.pt"))
    with torch.no_grad():
        torch.testing.assert_close(detector.module(images)[0], Net(seed=7).eval()(images), rtol=1e-5, atol=1e-6)


def test_mismatches_name_the_keys_and_count_them(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state["last.bias"], state["bn.weight"]
    state |= {f"extra.{i}": torch.zeros(1) for i in range(9)}
    state["conv.weight"] = torch.zeros(8, 3, 3, 3)
    torch.save(state, tmp_path / "other.pt")
    error = refused(tmp_path / "other.pt")
    assert error.code == "weights-mismatch"
    got = str(error.got)
    assert "2 missing (bn.weight, last.bias)" in got
    assert "9 unexpected (extra.0, extra.1, extra.2, extra.3, extra.4, ...)" in got
    assert "1 wrong shape (conv.weight: (8, 3, 3, 3) in the file, (8, 3, 16, 16) in the network)" in got


def test_another_number_of_classes_is_a_mismatch(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "weights.pt")
    error = refused(tmp_path / "weights.pt", classes=5)
    assert error.code == "weights-mismatch"
    assert "last.weight: (7, 8, 1, 1) in the file, (10, 8, 1, 1) in the network" in str(error.got)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.98])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_truncated_files_are_said_to_be_damaged(tmp_path: Path, state: dict[str, Tensor], name: str, kept: float) -> None:
    path = tmp_path / name
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    error = refused(path)
    assert error.code == "weights-file"
    assert "damaged or cut short" in error.what
    assert f"{path.stat().st_size} bytes" in str(error.got)


class Payload:
    """Unpickled without care, this makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, state: dict[str, Tensor], plain: bool
) -> None:
    path, target = tmp_path / "weights.pt", tmp_path / "ran"
    content = {**state, "extra": Payload(target)}
    if plain:
        path.write_bytes(pickle.dumps(content["extra"]))
    else:
        torch.save(content, path)
    error = refused(path)
    assert error.code == "weights-unsafe"
    assert "would run code" in error.what
    assert "mkdir" in str(error.got)
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))
    assert target.is_dir()  # the payload is real


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "module.pth")
    assert refused(tmp_path / "module.pth").code == "weights-unsafe"


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "log.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    (tmp_path / "weights.h5").write_bytes(b"HDF")
    for name, said in (
        ("log.pt", "a dictionary of epoch, lr"),
        ("list.pt", "list"),
        ("weights.h5", ".h5"),
        ("none.pt", "no such file"),
    ):
        error = refused(tmp_path / name)
        assert error.code == "weights-file"
        assert said in str(error.got)
    assert "a folder" in str(refused(tmp_path).got)


def test_the_digest_knows_code_and_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from torch import nn\nclass Coded(nn.Sequential):\n    pass\n"
    (tmp_path / "coded_module.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    from coded_module import Coded  # type: ignore[import-not-found]

    first = digest(Coded(nn.ReLU()))
    assert digest(Coded(nn.ReLU())) == first
    assert digest(Coded(nn.SiLU())) != first
    (tmp_path / "coded_module.py").write_text(source + "    slope = 2\n")
    assert digest(Coded(nn.ReLU())) != first


def test_nan_weights_load_and_are_noted(tmp_path: Path, state: dict[str, Tensor]) -> None:
    state["conv.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    facts = load_detector(spec(tmp_path / "nan.pt")).facts
    assert "1 weight tensor" in facts.notes[0]
    assert "conv.weight" in facts.notes[0]


def test_published_folded_weights_load_into_the_zoo() -> None:
    path = SHARED / "models" / "yolox_nano_coco" / "yolox_nano_fused_state_dict.pt"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    model = ModelSpec(factory="redline.zoo:yolox_nano", weights=str(path), head=Head(kind="yolox"))
    facts = load_detector(model).facts
    assert facts.parameters == 904_463
    assert facts.classes == 80
