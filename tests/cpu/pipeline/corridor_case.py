"""A small project on generated scenes with the bundled detector, and models that misbehave, for the pipeline's tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from redline import workbench
from redline.demo.scenes import write_dataset

# Shorter loads: these tests are about what is measured and kept, not about the figures.
BRIEF = {"SCREEN_S": 0.5, "SHORTEST_S": 0.5, "OBJECTIVE_REQUESTS": 40, "STEP_REQUESTS": 20, "WARM_UP_S": 0.5}

SPEC = """
[model]
{model}
[model.preprocess]
size = [320, 320]
{preprocess}
[data]
evaluate = {{ images = "val/images"{annotations} }}
[objective]
p95_ms = {p95_ms}
throughput = {throughput}
map_evidence = "{evidence}"
[target]
server = "none"
[budget]
minutes = {minutes}
"""
DEMO = 'factory = "redline.zoo:demo"\nhead = "yolox"'


def project(
    folder: Path,
    *,
    model: str = DEMO,
    scenes: int = 12,
    p95_ms: float = 1000,
    throughput: float = 25,
    minutes: float = 0.05,
    labelled: bool = True,
    evidence: str = "interval",
    preprocess: str = "",
) -> Path:
    """Write `folder`/detector.toml and its scenes; the objective is one that any machine meets."""
    write_dataset(folder / "val", scenes, 7)
    annotations = ', annotations = "val/instances.json"' if labelled else ""
    spec = folder / "detector.toml"
    spec.write_text(
        SPEC.format(
            model=model,
            annotations=annotations,
            p95_ms=p95_ms,
            throughput=throughput,
            minutes=minutes,
            evidence=evidence,
            preprocess=preprocess,
        ),
        encoding="utf-8",
    )
    return spec


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Shorter loads in this process."""
    for name, value in BRIEF.items():
        patch.setattr(workbench, name, value)


def journal(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()]


def nan_demo() -> nn.Module:
    """The bundled detector with one weight spoiled."""
    from redline.zoo import demo

    net = demo()
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = float("nan")
    return net


def raising() -> nn.Module:
    raise RuntimeError("the weights server is on holiday")


class Boxes(nn.Module):
    """A detector that returns final boxes, as DETR-style ones do: a fixed grid, scored by brightness."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (4, 4)).flatten(1)
        scores = torch.sigmoid(pooled / 128 - 1)
        cell = torch.arange(16, device=images.device)
        x, y = (cell % 4) / 4.0, (cell // 4) / 4.0
        boxes = torch.stack([x, y, x + 0.25, y + 0.25], dim=1).expand(images.shape[0], -1, -1)
        return {"boxes": boxes, "scores": scores, "labels": torch.zeros_like(scores, dtype=torch.int64)}


def boxes() -> nn.Module:
    return Boxes()


if __name__ == "__main__":  # `redline` with shorter loads, for the tests that need a process of its own
    from redline.cli import main

    for name, value in BRIEF.items():
        setattr(workbench, name, value)
    main()
