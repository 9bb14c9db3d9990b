"""The whole job on real detectors: YOLOX-Nano on COCO images at 416 and 640, RetinaNet-R50-FPN on BCCD.

Protocol: for each case a spec is written to a scratch folder and `redline.run` does everything, fresh. The result file keeps
what the run found: accuracy of the reference and of every family with its paired interval, parity with the reference, and
speeds as ratios to the FP32 eager baseline of the same run (absolute milliseconds of a shared CPU mean little).

    python benchmarks/corridor.py --shared FOLDER [--case yolox-416 ...] [--minutes 5] [--output benchmarks/results/NAME.json]

FOLDER holds data/ and models/ as the tests expect them beside the checkout.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import redline
from redline.records import RunRecord, Trial

YOLOX = """
[model]
factory = "redline.zoo:yolox_nano"
weights = "{shared}/models/yolox_nano_coco/yolox_nano_fused_state_dict.pt"
head = "yolox"
[model.preprocess]
resize = "letterbox"
size = [{size}, {size}]
channels = "bgr"
[data]
evaluate = {{ images = "{shared}/data/coco_val61/images", annotations = "{shared}/data/coco_val61/instances.json" }}
[objective]
p95_ms = 150.0
throughput = {rate}
[budget]
minutes = {minutes}
"""

RETINANET = """
[model]
factory = "redline.zoo:retinanet_resnet50_fpn"
weights = "{shared}/models/retinanet_r50_bccd/model.safetensors"
head = "retinanet"
labels = "category-id"
arguments = {{ num_classes = 4 }}
[model.preprocess]
resize = "shortest-side"
size = [640, 853]
round_to_uint8 = false
scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
fill = [123.675, 116.28, 103.53]
[model.postprocess]
score = 0.05
iou = 0.5
max_detections = 300
candidates_per_level = 1000
[data]
evaluate = {{ images = "{shared}/data/bccd/images", annotations = "{shared}/data/bccd/instances_test.json" }}
[objective]
p95_ms = 10000.0
throughput = 0.2
[budget]
minutes = {minutes}
"""

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "yolox-416": (YOLOX, {"size": 416, "rate": 20.0}),
    "yolox-640": (YOLOX, {"size": 640, "rate": 5.0}),
    "retinanet-bccd": (RETINANET, {}),
}


def spec_text(case: str, shared: Path, minutes: float) -> str:
    template, values = CASES[case]
    return template.format(shared=shared.resolve(), minutes=minutes, **values)


def summary(record: RunRecord) -> dict[str, Any]:
    """What a reader needs of a run, with speeds relative to the baseline."""
    base = record.baseline
    reference = base.screen.achieved_per_s if base.screen else None
    return {
        "model": record.model.name,
        "objective": {"p95_ms": record.spec.objective.p95_ms, "throughput": record.spec.objective.throughput},
        "verdict": record.choice.verdict.answer,
        "reason": record.choice.verdict.reason,
        "chosen": record.choice.candidate.name if record.choice.candidate else None,
        "notes": [*record.choice.notes, *record.notes],
        "noise_relative": record.noise.relative if record.noise else None,
        "export": record.onnx.exporter if record.onnx else None,
        "export_max_abs": max((check.max_abs for check in record.onnx.checks), default=None) if record.onnx else None,
        "refusals": {refusal.what: refusal.reason for refusal in record.refusals},
        "trials": [_trial(trial, reference) for trial in record.trials],
    }


def _trial(trial: Trial, reference: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"candidate": trial.candidate.name, "build_seconds": trial.build_seconds}
    if trial.failure is not None:
        row["failure"] = {"stage": trial.failure.stage, "code": trial.failure.code}
    if trial.parity is not None:
        drop = trial.parity.drop
        row["ap"] = drop.candidate_ap
        row["drop_pct"] = [drop.relative_pct, drop.relative_low_pct, drop.relative_high_pct]
        row["tensor_max_rel"] = max((delta.max_rel for delta in trial.parity.tensors), default=None)
        row["boxes"] = {"matched": trial.parity.boxes.matched, "missing": trial.parity.boxes.missing}
        row["accuracy"] = trial.parity.verdict.answer
    if trial.screen is not None and reference:
        row["capacity_over_baseline"] = trial.screen.achieved_per_s / reference
    if trial.objective_load is not None:
        row["p95_ms_at_objective"] = trial.objective_load.p95_ms
    if trial.knee is not None:
        row["knee_per_s"] = trial.knee.rate_per_s
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--case", action="append", choices=sorted(CASES))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for case in options.case or sorted(CASES):
        with tempfile.TemporaryDirectory() as folder:
            spec = Path(folder) / f"{case}.toml"
            spec.write_text(spec_text(case, options.shared, options.minutes), encoding="utf-8")
            record = redline.run(spec, runs=Path(folder) / "runs", progress=True)
            found[case] = summary(record)
            environment = record.environment
    libraries = {library.name: library.version for library in environment.libraries if library.version}
    machine = {"cpu": environment.cpu, "cores": environment.cores, "python": environment.python, "commit": environment.commit}
    document = {"environment": {**machine, "libraries": libraries}, "cases": found}
    text = json.dumps(document, indent=2)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
