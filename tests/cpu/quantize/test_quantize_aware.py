"""The example of quantisation-aware fine-tuning runs from the bundled weights to accuracies before and after."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("modelopt.torch.quantization", reason='pip install "redline[quantize]"', exc_type=ImportError)
EXAMPLE = Path(__file__).parents[3] / "examples" / "quantisation_aware.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("quantisation_aware", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "quantisation_aware", module)  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    for name, value in {"SIDE": 96, "CALIBRATION": 8, "WEIGHED": 2, "BATCH": 4, "RING": 32}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.filterwarnings("ignore")  # modelopt's, of what it would like to have installed
def test_weights_move_and_int8_before_and_after_is_compared_with_the_original_fp32(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file

    from redline.zoo import demo

    monkeypatch.setattr(sys, "argv", ["example", "--out", str(tmp_path), "--minutes", "0.05", "--scenes", "12"])
    example.main()
    trained = load_file(tmp_path / "demo_qat.safetensors")
    before = {name: value.numpy() for name, value in demo().state_dict().items() if value.is_floating_point()}
    assert trained.keys() == before.keys(), "nothing of the quantisers stays in the weights"
    moved = [name for name in trained if not np.array_equal(trained[name], before[name])]
    assert any(name.endswith("weight") for name in moved)
    assert not any("running" in name for name in moved), "batch statistics are frozen"
    largest = max(float(np.abs(trained[name] - before[name]).max()) for name in moved)
    assert 0 < largest < 0.1
    record = json.loads((tmp_path / "accuracy.json").read_text())
    assert record["steps"] >= 1
    rows = record["rows"]
    assert set(rows) == {"INT8, original weights", "FP32, trained on", "INT8, trained on"}
    assert len({row["reference_ap"] for row in rows.values()}) == 1, "all are compared with the FP32 of the original weights"
    assert all(row["relative_low_pct"] <= row["relative_pct"] <= row["relative_high_pct"] for row in rows.values())
    assert rows["INT8, original weights"]["candidate_ap"] != rows["INT8, original weights"]["reference_ap"]


def test_the_distance_is_none_between_equal_answers_and_grows_with_what_is_believed(example: Any) -> None:
    import torch

    torch.manual_seed(0)
    levels = [torch.randn(2, 8, side, side) for side in (12, 6, 3)]
    assert example.distance(levels, levels).item() == pytest.approx(0, abs=1e-5)
    others = [level + 0.1 * torch.randn_like(level) for level in levels]
    near, far = (example.distance([a + step * (b - a) for a, b in zip(levels, others, strict=True)], levels) for step in (1, 5))
    assert 0 < near.item() < far.item()
    doubted = [level.clone() for level in levels]
    for level in doubted:
        level[:, 4] -= 20  # nothing is believed in, so boxes and classes that differ do not matter
    moved = [level.clone() for level in doubted]
    for level in moved:
        level[:, [0, 1, 2, 3, 5, 6, 7]] += 1
    assert example.distance(moved, doubted).item() == pytest.approx(0, abs=1e-3)
