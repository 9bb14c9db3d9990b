"""Short quantisation-aware fine-tuning by nvidia-modelopt: the bundled demo detector, for INT8 that loses less.

    pip install "redline[torch,ort,quantize]"
    python examples/quantisation_aware.py --out trained --minutes 3

1. modelopt puts a fake quantiser before every convolution's input and weight and calibrates them (`INT8_DEFAULT_CFG`:
   symmetric, weights per channel, activations per tensor: the places and the form of redline's INT8).
2. The detector trains on with its own loss, batch statistics frozen, at a small falling rate: gradients pass the rounding
   unchanged (straight through), and weights move to where rounding costs least.
3. The quantisers are dropped and the weights saved. To redline they are weights like any: it calibrates and rounds them itself,
   `[model] weights = "trained/demo_qat.safetensors"`.

Printed and written to accuracy.json: mAP on generated scenes of a series of their own, INT8 before and after, each with its
drop from the FP32 of the ORIGINAL weights and the drop's 95 % interval (a run of redline compares with the FP32 of the weights
it is given, which training has moved too).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from redline.data import load_dataset, read_bytes
from redline.demo.feed import Feed, Ring
from redline.demo.loss import loss
from redline.demo.scenes import write_dataset
from redline.export import export_onnx
from redline.model.load import load_detector
from redline.parity import ground_truth, observe
from redline.parity.bootstrap import map_drop
from redline.quantizing import calibrate, table_of
from redline.records import DataRef, Dataset, Detections, Head, ModelSpec, Preprocess
from redline.sensitivity import Scales, choose_calibrator
from redline.vision import decode
from redline.zoo import demo

SIDE = 320
TRAIN_SEED, CALIBRATE_SEED, EVALUATE_SEED = 9_000_000, 9_100_000, 9_200_000
"""Series of scenes apart from each other and from all that the weights were trained and measured on."""
CALIBRATION, WEIGHED = 64, 8
BATCH, RING = 16, 512
RATE, CLIP_NORM = 1e-4, 10.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="folder for weights and accuracy")
    options.add_argument("--minutes", type=float, default=3.0, help="of training")
    options.add_argument("--scenes", type=int, default=1000, help="to evaluate on")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    weights = given.out / "demo_qat.safetensors"
    steps = fine_tuned(weights, 60 * given.minutes)
    with tempfile.TemporaryDirectory(prefix="redline-") as folder:
        scenes = Scenes.made(Path(folder), given.scenes)
        before = seen(scenes, None, Path(folder) / "before")
        after = seen(scenes, weights, Path(folder) / "after")
    rows = {name: drop(scenes.evaluate, before.wide, found) for name, found in {
        "INT8, original weights": before.narrow, "FP32, trained on": after.wide, "INT8, trained on": after.narrow,
    }.items()}  # fmt: skip
    record = {
        "steps": steps,
        "minutes": given.minutes,
        "scenes": given.scenes,
        "calibrators": [before.by, after.by],
        "rows": rows,
    }
    (given.out / "accuracy.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, row in rows.items():
        low, high = row["relative_low_pct"], row["relative_high_pct"]
        print(f"{name:<24} mAP {row['candidate_ap']:.4f}  drop {row['relative_pct']:.2f} % [{low:.2f}, {high:.2f}]")


def fine_tuned(path: Path, seconds: float) -> int:
    """Train for `seconds`, write the weights to `path`; the number of steps."""
    import modelopt.torch.quantization as mtq

    torch.manual_seed(0)
    network, feed, ring = demo(), Feed(1, TRAIN_SEED), Ring(RING, torch.device("cpu"))
    try:
        while ring.filled < min(RING, CALIBRATION * 4):
            feed.pour(ring, wait=True)
        network.eval()

        def look(model: nn.Module) -> None:
            for _ in range(CALIBRATION // BATCH):
                model(ring.batch(BATCH, SIDE, exact=1.0)[0])

        with torch.no_grad():
            network = mtq.quantize(network, mtq.INT8_DEFAULT_CFG, look)
        steps = _train(network, feed, ring, seconds)
    finally:
        feed.close()
    state = network.state_dict()
    save_file({n: v.contiguous() for n, v in state.items() if "quantizer" not in n and v.is_floating_point()}, path)
    return steps


def _train(network: nn.Module, feed: Feed, ring: Ring, seconds: float) -> int:
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # deployed, its statistics are constants
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.0)
    start, steps, told = time.monotonic(), 0, 0.0
    while (spent := time.monotonic() - start) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * spent / seconds))
        images, targets = ring.batch(BATCH, SIDE, exact=0.8)
        found = loss(network(images), targets)
        optimiser.zero_grad(set_to_none=True)
        found.total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimiser.step()
        feed.pour(ring, wait=False)
        steps += 1
        if spent - told > 10:
            told = spent
            print(f"{spent:5.0f} s  step {steps}  loss {found.total.item():.3f}", flush=True)
    return steps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenes:
    calibrate: Dataset
    evaluate: Dataset

    @staticmethod
    def made(folder: Path, count: int) -> Scenes:
        return Scenes(
            calibrate=_written(folder / "calibrate", CALIBRATION, CALIBRATE_SEED),
            evaluate=_written(folder / "evaluate", count, EVALUATE_SEED),
        )


def _written(folder: Path, count: int, seed: int) -> Dataset:
    write_dataset(folder, count, seed)
    return load_dataset(DataRef(images=str(folder / "images"), annotations=str(folder / "instances.json")))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    wide: list[Detections]
    narrow: list[Detections]
    by: str
    """Calibrator of least loss."""


def seen(scenes: Scenes, weights: Path | None, folder: Path) -> Seen:
    """Detections of every scene in FP32 and in INT8, as redline deploys them: ONNX, its own ranges, its own rounding."""
    folder.mkdir()
    spec = ModelSpec(
        factory="redline.zoo:demo",
        weights=None if weights is None else str(weights),
        head=Head(kind="yolox"),
        preprocess=Preprocess(size=(SIDE, SIDE), channels="rgb"),
    )
    detector = load_detector(spec)
    network = export_onnx(detector, folder, input_hw=(SIDE, SIDE))
    ranges = calibrate(network, detector, [Path(image.path) for image in scenes.calibrate.images])
    few = [decode(read_bytes(image), name=image.path) for image in scenes.calibrate.images[:WEIGHED]]
    method = choose_calibrator(Scales(network, detector, few, folder), ranges)[0].method
    images = [decode(read_bytes(image), name=image.path) for image in scenes.evaluate.images]
    scales = Scales(network, detector, images, folder)
    return Seen(wide=scales.detections(None), narrow=scales.detections(table_of(network, ranges, method)), by=method)


def drop(dataset: Dataset, reference: list[Detections], found: list[Detections]) -> dict[str, Any]:
    truth = ground_truth(dataset, reference, "index")
    before, after = (observe(truth, detections).evaluation for detections in (reference, found))
    lost = map_drop(before, after, resamples=2000, budget_pct=0.5)
    kept = ("reference_ap", "candidate_ap", "relative_pct", "relative_low_pct", "relative_high_pct")
    return {key: getattr(lost, key) for key in kept}


if __name__ == "__main__":
    main()
