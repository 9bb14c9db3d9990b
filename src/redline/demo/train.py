"""Trains the demo detector on generated scenes within a given wall time, on a GPU or a CPU, and measures it on held-out ones.

    python -m redline.demo.train --out DIR --minutes 8

writes demo.safetensors (averaged weights, float32), train_log.jsonl and accuracy.json. Needs torch, numpy, OpenCV, Pillow,
safetensors and faster-coco-eval.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redline.demo.feed import Feed, Ring
from redline.demo.loss import Losses, loss
from redline.demo.scenes import write_dataset
from redline.demo.score import HeldOut, evaluate
from redline.zoo.demo_net import demo

HELD_OUT_SEED = 1_000_003
"""The series of the held-out scenes; training refuses it."""
SIZES = (256, 288, 320, 352, 384, 416)
DEPLOYED = 320
FINAL_SHARE = 0.2
"""The last share of the time trains mostly as deployed: size and letterbox."""
EMA_DECAY = 0.999
SUBSET = 60
"""The accuracy on the first so many held-out scenes is recorded too, for a quick check."""
CLIP_NORM = 10.0
LIBRARIES = ("torch", "numpy", "opencv-python-headless", "pillow", "safetensors", "faster-coco-eval")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    out: Path
    minutes: float
    seed: int
    batch: int
    learning_rate: float
    decay: float
    warmup: int
    workers: int
    ring: int
    held_out: int
    evaluate_every_s: float
    device: str
    sizes: tuple[int, ...]
    channels_last: bool


class Log:
    """Prints a line and appends it as JSON."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._start

    def write(self, event: str, **values: Any) -> None:
        row = {"t_s": round(self.elapsed, 2), "event": event, **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    def close(self) -> None:
        self._file.close()


class Average:
    """Exponential moving average of a network's parameters and batch statistics; short memory at the start."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval()
        self._ours, self._theirs = _floats(self.network), _floats(network)
        self._steps = 0

    def update(self) -> None:
        self._steps += 1
        decay = EMA_DECAY * (1 - math.exp(-self._steps / 2000))
        torch._foreach_lerp_(self._ours, self._theirs, 1 - decay)


def _floats(network: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in network.state_dict().values() if tensor.is_floating_point()]


class Trainer:
    def __init__(self, options: Options, device: torch.device) -> None:
        self.options = options
        self.device = device
        self.network: nn.Module = demo(weights=False).to(device).train()
        if options.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Average(self.network)
        weights = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": weights, "weight_decay": options.decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=device.type == "cuda")
        self.steps = 0

    def step(self, ring: Ring, size: int, exact: float, progress: float) -> Losses:
        """One update at `progress` (0..1) of the time."""
        rate = self.options.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
        rate *= min(1.0, (self.steps + 1) / self.options.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        images, targets = ring.batch(self.options.batch, size, exact=exact)
        if self.options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            levels = self.network(images)
        losses = loss(levels, targets)
        self.optimiser.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM, foreach=True)
        self.optimiser.step()
        self.average.update()
        self.steps += 1
        return losses


def run(options: Options) -> HeldOut:
    """Train, write the three files into `options.out` and give the held-out accuracy.

    Raises ValueError if the seed is the held-out one, OSError if a file cannot be written.
    """
    if options.seed == HELD_OUT_SEED:
        raise ValueError(f"seed {HELD_OUT_SEED} is the held-out series: train on another")
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "train_log.jsonl")
    feed = Feed(options.workers, options.seed)
    try:
        device = torch.device(options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(options.seed)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # accuracy is float32's; training is bfloat16 anyway
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
        settings["out"] = options.out.name
        log.write("start", **environment(device), options=settings)
        with tempfile.TemporaryDirectory() as folder:
            held_out = Path(folder)
            write_dataset(held_out, options.held_out, HELD_OUT_SEED)
            log.write("held-out", scenes=options.held_out, seed=HELD_OUT_SEED)
            trainer = Trainer(options, device)
            log.write("network", parameters=sum(p.numel() for p in trainer.network.parameters()))
            _loop(trainer, feed, log, held_out)
            return _finish(trainer, log, held_out)
    finally:
        feed.close()
        log.close()


def _loop(trainer: Trainer, feed: Feed, log: Log, held_out: Path) -> None:
    options = trainer.options
    ring = Ring(options.ring, trainer.device)
    seen = 0
    while ring.filled < min(1024, ring.capacity):
        seen += feed.pour(ring, wait=True)
    log.write("ring", scenes=ring.filled)
    reserve = 4.0 + 0.06 * options.held_out if trainer.device.type == "cuda" else 6.0 + 0.1 * options.held_out
    start, end = log.elapsed, 60 * options.minutes - reserve
    reported, reported_steps, judged = start, 0, start
    generator = torch.Generator().manual_seed(options.seed)
    while (now := log.elapsed) < end:
        progress = (now - start) / max(end - start, 1e-6)
        late = progress > 1 - FINAL_SHARE
        plain = float(torch.rand((), generator=generator)) < (0.75 if late else 0.4)
        size = DEPLOYED if plain else options.sizes[int(torch.randint(len(options.sizes), (), generator=generator))]
        losses = trainer.step(ring, size, 0.8 if late else 0.5, progress)
        seen += feed.pour(ring, wait=False)
        if now - reported > 5 or trainer.steps == 1:
            speed = options.batch * (trainer.steps - reported_steps) / max(log.elapsed - reported, 1e-6)
            log.write("step", **_progress(trainer, losses), images_per_s=round(speed), scenes=seen)
            reported, reported_steps = log.elapsed, trainer.steps
        if now - judged > options.evaluate_every_s:
            part = evaluate(trainer.average.network, held_out, trainer.device, limit=min(100, options.held_out))
            log.write("held-out", step=trainer.steps, scenes=part.scenes, ap=round(part.ap, 4), ap50=round(part.ap50, 4))
            _save(trainer, options.out)
            judged = log.elapsed


def _progress(trainer: Trainer, losses: Losses) -> dict[str, Any]:
    values = {"loss": losses.total, "box": losses.box, "objectness": losses.objectness, "classes": losses.classes}
    shown = {name: round(value.item(), 4) for name, value in values.items()}
    rate = trainer.optimiser.param_groups[0]["lr"]
    return {"step": trainer.steps, "lr": round(rate, 6), **shown, "anchors_per_box": round(losses.positives.item(), 2)}


def _save(trainer: Trainer, out: Path) -> Path:
    """The averaged weights as float32; step counters of batch norms are left out (loading sets them to 0)."""
    from safetensors.torch import save

    state = trainer.average.network.state_dict()
    path = out / "demo.safetensors"
    path.write_bytes(save({name: value.cpu().contiguous() for name, value in state.items() if value.is_floating_point()}))
    return path


def _finish(trainer: Trainer, log: Log, held_out: Path) -> HeldOut:
    options = trainer.options
    path = _save(trainer, options.out)
    final = evaluate(trainer.average.network, held_out, trainer.device)
    part = evaluate(trainer.average.network, held_out, trainer.device, limit=min(SUBSET, options.held_out))
    record = {
        **asdict(final),
        "subset": {"scenes": part.scenes, "ap": part.ap},
        "held_out_seed": HELD_OUT_SEED,
        "train_seed": options.seed,
        "input": [DEPLOYED, DEPLOYED],
        "steps": trainer.steps,
        "images": trainer.steps * options.batch,
        "seconds": round(log.elapsed, 1),
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "weight_bytes": path.stat().st_size,
        "environment": environment(trainer.device),
    }
    (options.out / "accuracy.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    log.write("end", ap=round(final.ap, 4), ap50=round(final.ap50, 4), per_class=final.per_class, steps=trainer.steps)
    return final


def environment(device: torch.device) -> dict[str, Any]:
    installed = {item.metadata["Name"].lower(): item.version for item in metadata.distributions()}
    versions = {name: installed.get(name, "unknown") for name in LIBRARIES}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"python": platform.python_version(), "device": name, "cores": os.cpu_count(), "libraries": versions}


def options(arguments: list[str] | None = None) -> Options:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m redline.demo.train", description="Train the demo detector.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, log and accuracy")
    parser.add_argument("--minutes", type=float, default=8.0, help="wall time, final evaluation included")
    parser.add_argument("--seed", type=int, default=1, help="series of the training scenes")
    parser.add_argument("--batch", type=int, default=256 if gpu else 16)
    parser.add_argument("--learning-rate", type=float, default=4e-3 if gpu else 1.5e-3)
    parser.add_argument("--decay", type=float, default=0.03, help="weight decay of convolutions")
    parser.add_argument("--warmup", type=int, default=400 if gpu else 40, help="steps of linear warm-up")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="scene-drawing processes")
    parser.add_argument("--ring", type=int, default=20_480 if gpu else 512, help="scenes kept on the device")
    parser.add_argument("--held-out", type=int, default=400, help="held-out scenes")
    parser.add_argument("--evaluate-every-s", type=float, default=60.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="input sides, multiples of 32")
    given = vars(parser.parse_args(arguments))
    return Options(**{**given, "sizes": tuple(given["sizes"])}, channels_last=gpu)


if __name__ == "__main__":
    result = run(options())
    print(f"held-out mAP@[.5:.95] {result.ap:.4f} on {result.scenes} scenes")
