"""Short quantisation-aware fine-tuning by nvidia-modelopt: the bundled demo detector, for INT8 that loses less.

    pip install "redline[torch,ort,quantize]"
    python examples/quantisation_aware.py --out trained --minutes 3

1. modelopt puts a fake quantiser before every convolution's input and weight and calibrates them (`INT8_DEFAULT_CFG`:
   symmetric, weights per channel, activations per tensor: the places and the form of redline's INT8).
2. The rounded detector learns to answer as its own FP32 does: no labels and no training loss of its own, only images. Batch
   statistics are frozen, the rate is small and falls; gradients pass the rounding unchanged (straight through), and weights
   move to where rounding costs least.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from redline.data import load_dataset, read_bytes
from redline.demo import loss as yolox
from redline.demo.feed import Feed, Ring
from redline.demo.scenes import write_dataset
from redline.doctor import inspect_machine
from redline.export import export_onnx
from redline.model.load import load_detector
from redline.parity import ground_truth, observe
from redline.parity.bootstrap import map_drop
from redline.quantizing import calibrate, table_of
from redline.records import DataRef, Dataset, Detections, Head, ModelSpec, Preprocess
from redline.sensitivity import Scales, choose_calibrator
from redline.store import dump
from redline.vision import decode
from redline.zoo import demo

SIDE = 320
TRAIN_SEED, CALIBRATE_SEED, EVALUATE_SEED = 9_000_000, 9_100_000, 9_200_000
"""Series of scenes apart from each other and from all that the weights were trained and measured on."""
CALIBRATION, WEIGHED = 64, 8
BATCH, RING = 8, 512
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
        "environment": json.loads(dump(inspect_machine())),
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
    ring = _scenes()
    teacher, network = demo().eval(), demo().eval()

    def look(model: nn.Module) -> None:
        for _ in range(CALIBRATION // BATCH):
            model(ring.batch(BATCH, SIDE, exact=1.0)[0])

    with torch.no_grad():
        network = mtq.quantize(network, mtq.INT8_DEFAULT_CFG, look)
    steps = _train(network, teacher, ring, seconds)
    state = network.state_dict()
    save_file({n: v.contiguous() for n, v in state.items() if "quantizer" not in n and v.is_floating_point()}, path)
    return steps


def _scenes() -> Ring:
    feed, ring = Feed(2, TRAIN_SEED), Ring(RING, torch.device("cpu"))
    try:
        while ring.filled < ring.capacity:
            feed.pour(ring, wait=True)
    finally:
        feed.close()
    return ring


def _train(network: nn.Module, teacher: nn.Module, ring: Ring, seconds: float) -> int:
    for model in (teacher, network):
        _per_level(model)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.0)
    start, steps, told = time.monotonic(), 0, 0.0
    while (spent := time.monotonic() - start) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * spent / seconds))
        images, _ = ring.batch(BATCH, SIDE, exact=0.8)
        with torch.no_grad():
            wanted = teacher(images)
        loss = distance(network(images), wanted)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimiser.step()
        steps += 1
        if spent - told > 10:
            told = spent
            print(f"{spent:5.0f} s  step {steps}  loss {loss.item():.4f}", flush=True)
    return steps


def _per_level(network: nn.Module) -> None:
    """Training mode, which gives the logits of each level; batch statistics stay the constants they are deployed as."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """How far two sets of per-level logits are from the same detections, 0 where they are equal.

    The terms of YOLOX's loss with the other's answers in place of labels: generalised IoU of the boxes, cross-entropy of
    objectness and classes above the answers' own entropy; an anchor counts as much as the other believes in it.
    """
    (ours, grid), (theirs, _) = yolox.flatten(found), yolox.flatten(wanted)
    belief = theirs[..., 4].sigmoid()
    number = belief.sum().clamp(min=1)
    _, overlap = yolox.iou(yolox.decode(ours, grid), yolox.decode(theirs, grid))
    box = ((1 - overlap) * belief).sum() / number
    objectness = _divergence(ours[..., 4], theirs[..., 4]).sum() / number
    classes = (_divergence(ours[..., 5:], theirs[..., 5:]) * belief[..., None]).sum() / number
    return yolox.BOX_WEIGHT * box + objectness + classes


def _divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler, of two-valued answers given as logits."""
    answer = wanted.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits
    return entropy(found, answer, reduction="none") - entropy(wanted, answer, reduction="none")


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
