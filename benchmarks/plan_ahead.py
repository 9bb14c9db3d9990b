"""What the plan says of a GPU before it is measured, written to a file; and that file beside the measurement, later.

    python benchmarks/plan_ahead.py --weights DIR --work DIR --out AHEAD.json                      # before
    python benchmarks/plan_ahead.py --out AHEAD.json --results benchmarks/results/*h200-*.json --compared OUT.json   # after

The second reads only what the first wrote: neither graph nor table, so that nothing can be fitted in between.
"""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from plan_points import RESULTS, Case, Point, errors, points
from redline.doctor import inspect_machine
from redline.plan.devices import device
from redline.plan.efficiency import shipped_table
from redline.plan.ladder import Image, ladder
from redline.store.codec import plain

LEFT_OUT = "2026-11-25-h100-plan-predictions.json"
FP16 = "tensorrt fp16 graph"
WANTED = [
    *(("retina91", (n, 3, 800, 800), FP16) for n in (1, 4, 8, 16, 32)),
    ("retina91", (1, 3, 800, 800), "tensorrt fp16 stream"),
    ("retina91", (1, 3, 800, 1344), FP16),
    ("retina91", (1, 3, 800, 800), "tensorrt fp32 graph"),
    ("retina91", (1, 3, 800, 800), "tensorrt tf32 graph"),
    *(("yolox640", (n, 3, size, size), FP16) for size in (640, 416) for n in (1, 32)),
    *(("yolox640", (1, 3, size, size), "tensorrt fp16 stream") for size in (640, 416)),
    ("retina4", (1, 3, 640, 864), FP16),
    ("retina91", (1, 3, 800, 800), "tensorrt int8 graph"),
    ("retina91", (32, 3, 800, 800), "tensorrt int8 graph"),
    *(("retina91", (1, 3, 800, 800), f"torch eager {kind}") for kind in ("fp32", "tf32", "fp16")),
    *(("yolox640", (1, 3, size, size), f"torch eager {kind}") for size in (640, 416) for kind in ("fp32", "tf32")),
    ("retina4", (1, 3, 640, 864), "torch eager fp32"),
]
NOTES = [
    "Network alone, input and outputs on the device, as benchmarks/tensorrt_gpu.py times it. Engines: from the graph they are "
    "built from and the packaged efficiency table. Eager torch: the ladder's network_ms from the FP32 graph.",
    "The table was fitted on FP16 engines at batch 1 on an H100, on nothing else: FP32, TF32 and INT8 engines take FP16's "
    "shares of their own roofs. INT8: every tensor in one byte, Q/DQ free, from the FP16 graph. The ladder's share for FP16 "
    "eager comes from another RetinaNet on an H200.",
    "YOLOX-Nano at 416 x 416 is the graph of yolox640 at that size, and result files name it so.",
]


def expected(case: Case, point: Point) -> dict[str, Any]:
    row: dict[str, Any] = {"model": point.model, "shape": point.shape, "how": point.how}
    if point.how.startswith("torch"):
        image = Image(height=point.shape[2], width=point.shape[3])
        step = next(
            step
            for step in ladder(case.costs(point.model, False), device(point.device), image)
            if step.key == f"{point.arithmetic}-eager"
        )
        assert step.network_ms is not None, step.evidence
        return row | {"expected_us": round(1000 * step.network_ms, 1), "roof_us": round(1000 * (step.roof_ms or 0.0), 1)}
    found = case.predict(point, shipped_table())
    launch = sum(group.expected_us for group in found.groups if group.bound == "launch")
    return row | {
        "expected_us": round(found.expected_us, 1), "roof_us": round(found.roof_us, 1), "kernels": len(found.groups),
        "launch_bound_share": round(launch / found.expected_us, 3),
        "images_per_s": round(1e6 * point.shape[0] / found.expected_us, 1),
    }  # fmt: skip


def ahead(given: argparse.Namespace) -> None:
    case = Case(given.weights, given.work, ())
    found = [expected(case, Point(given.device, *wanted)) for wanted in WANTED]
    table = shipped_table()
    report = {
        "device": given.device, "written": datetime.now(timezone.utc).isoformat(timespec="seconds"), "notes": NOTES,
        "errors_of_this_method": json.loads((RESULTS / LEFT_OUT).read_text("utf-8"))["errors"] | {"file": LEFT_OUT},
        "environment": plain(inspect_machine()), "predicted": found, "table": plain(table),
    }  # fmt: skip
    given.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    for row in found:
        print(f"{row['model']:10} {'x'.join(map(str, row['shape'])):15} {row['how']:22} {row['expected_us']:10.1f} us")


def compare(given: argparse.Namespace) -> None:
    """Each prediction beside the median of its quiet measurements, and what nobody predicted or measured."""
    read = json.loads(given.out.read_text("utf-8"))
    told = {(read["device"], row["model"], tuple(row["shape"]), row["how"]): row for row in read["predicted"]}
    seen = {point.key: point for how in ("tensorrt", "torch eager") for point in points(given.results, how)}
    found = [
        told[key]
        | {
            "measured_us": round(seen[key].us, 1), "measurements": len(seen[key].p50_ms), "files": seen[key].files,
            "error_pct": round(100 * (told[key]["expected_us"] / seen[key].us - 1), 1),
        }
        for key in told
        if key in seen
    ]  # fmt: skip
    kinds = {
        kind: [row["error_pct"] for row in found if row["how"].startswith(kind)]
        for kind in ("tensorrt fp16", "tensorrt", "torch")
    }
    report = {
        "device": read["device"], "predicted_in": given.out.name, "predicted_at": read["written"],
        "errors": {kind: errors(sizes) for kind, sizes in kinds.items() if sizes}, "rows": found,
        "not_measured": [" ".join(map(str, key[1:])) for key in told if key not in seen],
        "not_predicted": [" ".join(map(str, key[1:])) for key in seen if key[0] == read["device"] and key not in told],
    }  # fmt: skip
    given.compared.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    for row in found:
        what = f"{row['model']:10} {'x'.join(map(str, row['shape'])):15} {row['how']:22}"
        print(f"{what} {row['expected_us']:9.1f} {row['measured_us']:9.1f} {row['error_pct']:+6.1f} %")
    print(json.dumps(report["errors"]))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--weights", type=Path)
    options.add_argument("--work", type=Path)
    options.add_argument("--device", default="h200-sxm")
    options.add_argument("--out", type=Path, default=RESULTS / "2026-11-29-h200-plan-predicted.json")
    options.add_argument("--results", type=Path, nargs="+", help="compare with these files instead of predicting")
    options.add_argument("--compared", type=Path, default=RESULTS / "2026-11-29-h200-plan-compared.json")
    given = options.parse_args()
    compare(given) if given.results else ahead(given)


if __name__ == "__main__":
    main()
