"""The trained weights in the package and the accuracy that is claimed for them."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch

from redline.demo.scenes import write_dataset
from redline.demo.score import evaluate
from redline.demo.train import HELD_OUT_SEED, SUBSET
from redline.zoo.demo_net import WEIGHTS, demo

ACCURACY = WEIGHTS.with_name("accuracy.json")
SAME_LIBRARY = 0.005
OTHER_LIBRARY = 0.03
"""AP on 60 scenes: another OpenCV version draws text and edges a little differently, so the scenes are not the same bytes."""

pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason="the demo detector has not been trained in this checkout")


def test_weights_are_small_float32_and_load_strictly() -> None:
    assert WEIGHTS.stat().st_size <= 4_000_000
    network = demo()
    assert not network.training
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert all(torch.isfinite(p).all() for p in network.parameters())


def test_claimed_accuracy_is_enough() -> None:
    claim = json.loads(ACCURACY.read_text())
    assert claim["ap"] >= 0.60
    assert claim["scenes"] >= 200
    assert claim["held_out_seed"] == HELD_OUT_SEED != claim["train_seed"]
    assert claim["parameters"] == sum(p.numel() for p in demo().parameters()) <= 950_000
    assert len((WEIGHTS.with_name("train_log.jsonl")).read_text().splitlines()) > 10


def test_claimed_accuracy_is_found_again_on_a_subset(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    claim = json.loads(ACCURACY.read_text())
    write_dataset(tmp_path, SUBSET, HELD_OUT_SEED)
    found = evaluate(demo(), tmp_path, torch.device("cpu"))
    drawn_with = claim["environment"]["libraries"]["opencv-python-headless"]
    same = drawn_with == metadata.version("opencv-python-headless")
    assert found.scenes == claim["subset"]["scenes"] == SUBSET
    assert found.ap == pytest.approx(claim["subset"]["ap"], abs=SAME_LIBRARY if same else OTHER_LIBRARY)
