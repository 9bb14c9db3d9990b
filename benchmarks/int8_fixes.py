"""What remedies do to YOLOX-Nano with every layer in INT8, on ONNX Runtime's CPU: each alone, and each on top of those kept.

    python benchmarks/int8_fixes.py --shared DIR --work DIR --output FILE [--size 416] [--resume]

Divergence is of calibration images, the drop of AP with its interval of the evaluation images. Each row is written as it is
done, and what an earlier call weighed is taken from --work.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from int8_cpu import PROXY, Case
from redline.fixing import Fixing, is_negligible
from redline.quantize.placement import heavy_nodes
from redline.quantizing import calibrate, narrowed, table_of
from redline.records.quantize import FixOutcome, QuantTable
from redline.sensitivity import choose_calibrator
from redline.store import Store, dump

BUDGET_PCT = 0.5
"""Relative drop of AP allowed, which says from where on a run would try nothing more; here everything is tried."""


class Rows:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.held: list[dict[str, Any]] = case.known("rows") or []

    def add(self, title: str, table: QuantTable, outcome: FixOutcome | None = None) -> None:
        if any(row["title"] == title for row in self.held):
            return
        spread = {entry.node: max(entry.read) / min(entry.read) for entry in table.factors if entry.divide}
        row = {
            "title": title,
            "calibrator": table.method,
            "layers": len(table.weights),
            "divergence": self.case.proxy.divergence(table),
            **self.case.drop(table),
            "divided_inputs": len(spread),
            "largest_spread_of_peaks": max(spread.values(), default=None),
            "corrected_biases": len(table.biases),
            "outcome": None if outcome is None else json.loads(dump(outcome)),
        }
        self.held.append(row)
        self.case.note("rows", self.held)

    def print(self) -> None:
        print(f"{'':44s} {'divergence':>10s} {'drop %':>7s} {'low':>7s} {'high':>7s}")
        for row in self.held:
            drop = [row[name] for name in ("relative_pct", "relative_low_pct", "relative_high_pct")]
            print(f"{row['title']:44s} {row['divergence']:10.3f} " + " ".join(f"{value:7.2f}" for value in drop))


def measure(case: Case) -> Rows:
    rows = Rows(case)
    paths = [Path(image.path) for image in case.choice.images]
    ranges = calibrate(case.network, case.detector, paths, selector="cover", seed=case.choice.seed, threads=2)
    losses = choose_calibrator(case.proxy, ranges)
    case.note("calibrators", [json.loads(dump(loss)) for loss in losses])
    plain = table_of(case.network, ranges, losses[0].method)
    store = Store(case.given.work / "store")
    how: dict[str, Any] = {"threads": 2, "store": store, "selector": "cover", "seed": case.choice.seed}
    fixing = Fixing(case.proxy, case.detector, paths, **how)
    steps = (fixing.equalised, fixing.scaled, fixing.corrected, fixing.clipped)
    rows.add("plain", plain)
    for step in steps:
        table, outcome = step(plain)
        if outcome.after is None:
            case.note(f"{outcome.fix} alone", json.loads(dump(outcome)))
        else:
            rows.add(f"{outcome.fix} alone{'' if outcome.kept else ', not kept'}", table, outcome)
    table = plain
    for step in steps:
        table, outcome = step(table)
        if outcome.kept:
            rows.add(f"and {outcome.fix}", table, outcome)
    case.note("negligible_now", is_negligible(case.proxy.divergence(table), BUDGET_PCT))
    stem = heavy_nodes(case.proxy.model)[:2]
    rows.add("plain, first two layers wide", narrowed(case.proxy.model, plain, stem))
    rows.add("all that was kept, first two layers wide", narrowed(case.proxy.model, table, stem))
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shared", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--resume", action="store_true", help="what --output has is not measured again")
    options.add_argument("--size", type=int, default=416)
    case = Case(options.parse_args())
    case.result["what"] = f"remedies against the loss of INT8, YOLOX-Nano at {case.given.size} on ONNX Runtime CPU"
    case.note("images", {"evaluated": len(case.dataset.images), "calibration": len(case.choice.images), "weighed": PROXY})
    measure(case).print()


if __name__ == "__main__":
    main()
