"""The plan's step latencies beside what engines took on GPUs, and how far off they are for a network left out of the fit.

Reads result files of tensorrt_gpu.py and gpu_int8.py (`--results`; default: all); exports the same networks again for their
costs (`--weights` as there; times do not depend on their values). Writes the predictions, and with `--table` the table that is
fitted on all.
What a plan said before a GPU was measured is plan_ahead.py's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from plan_points import RESULTS, Case, Point, errors, points
from redline.plan import roofline
from redline.plan.devices import device
from redline.plan.efficiency import BELIEF, PUBLISHED
from redline.records.cost import EfficiencyTable
from redline.store.codec import plain

MADE = RESULTS / "2026-11-29-plan-predictions-second.json"
READ = sorted(path for kind in ("h100-tensorrt", "h200-tensorrt", "h200-int8") for path in RESULTS.glob(f"*{kind}*.json"))
NOTES = [
    "error_pct: expected / measured - 1. left_out: the table that predicts a row saw no measurement of its model (family: of "
    "any network of its family). fitted: by the table fitted on all of them. published_only: by no measurement.",
    "Engines of optimisation level 0, where the library takes the first kernel that works, are neither fitted on nor counted; "
    "their errors are listed as level 0. YOLOX-Nano's other engines are of level 2 (one image) and 1 (32): 288 and 297 "
    "kernels ran, a third of which move data, where 175 are predicted.",
    "Five choices were made after predictions were seen. A SiLU behind a depthwise convolution is a kernel of its own, as in "
    "all of 8.6's engines: without that the worst error, YOLOX-Nano's, is 45 %. Blocks of 8,192 results: see errors_by_block, "
    "where 1 stands for no waves at all. FP32, which runs on ordinary cores, takes the default share instead of FP16's. "
    "Unmeasured depthwise kernels take a convolution's efficiency: without that the left-out errors of the H100's, before "
    "there were waves, are 12.8 % median and 24.4 % worst. Published figures count as one measured kernel, not three: "
    "errors_by_belief shows what hangs on it.",
    "A table that has seen YOLOX-Nano alone knows nothing of RetinaNet: its convolutions never fill the device, so that a "
    "share fitted on them says little (left_out_family). Published figures alone do better.",
    "Rows measured while other processes used the GPU are left out. Eager and compiled torch are not predicted.",
]
BLOCKS = (1, 4096, 8192, 16384)
"""Results of a block of a convolution; 1: as if every wave were full."""
BELIEFS = (0.3, 1.0, 3.0)
"""How much the fit trusts published figures: nobody knows, so what hangs on it is shown."""
HELD: dict[str, Callable[[Point], str]] = {
    "model": lambda point: point.model,
    "family": lambda point: point.family,
    "device": lambda point: point.device,
}


def table(case: Case, found: Sequence[Point], held: Callable[[Point], str], belief: float = BELIEF) -> list[dict[str, Any]]:
    """Each point predicted from those that `held` names otherwise."""
    fits: dict[str, EfficiencyTable] = {}
    made = []
    for point in found:
        known = [one for one in found if held(one) != held(point) and one.level != 0]
        if held(point) not in fits:
            fits[held(point)] = case.fit(known, "left out", belief)
        row = score(case, point, fits[held(point)])
        made.append(row | {"files": point.files, "fitted_on": sorted({one.model for one in known})})
    return made


def by_block(case: Case, found: Sequence[Point], results: int) -> dict[str, dict[str, float]]:
    """Errors for a model left out of the fit, if blocks had so many results."""
    with mock.patch.object(roofline, "BLOCK", results):
        rows = table(case, found, HELD["model"])
    return {"model": of(timed(rows)), "model, level 0": of(untimed(rows))}


def timed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the engines whose kernels the library took untimed: no plan of what is fastest foretells those."""
    return [row for row in rows if row["level"] != 0]


def untimed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["level"] == 0]


def of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return errors([row["error_pct"] for row in rows])


def score(case: Case, point: Point, table: EfficiencyTable) -> dict[str, Any]:
    guess = case.predict(point, table)
    return {
        "device": point.device, "model": point.model, "family": point.family, "shape": point.shape, "how": point.how,
        "measured_us": round(point.us, 1), "expected_us": round(guess.expected_us, 1), "roof_us": round(guess.roof_us, 1),
        "kernels": len(guess.groups), "error_pct": round(100 * (guess.expected_us / point.us - 1), 1),
        "measurements": len(point.p50_ms), "level": point.level,
    }  # fmt: skip


def source(case: Case, found: Sequence[Point]) -> str:
    names = sorted({file for point in found for file in point.files})
    count = sum(len(case.kernels(model, on)) for model, on in {(point.model, point.device) for point in found})
    kinds = "/".join(sorted({point.arithmetic.upper() for point in found}))
    titles = " and ".join(f"an {device(name).title.removeprefix('NVIDIA ')}" for name in sorted({p.device for p in found}))
    return (
        f"{len(found)} {kinds} step latencies and {count} kernel groups of TensorRT engines on {titles}, "
        f"drawn towards published figures ({PUBLISHED.source}): benchmarks/results/{', '.join(names)}"
    )


def coverage(found: Sequence[Point]) -> str:
    """What was measured: nothing else was fitted or checked."""
    kinds = sorted({(point.arithmetic.upper(), point.shape[0]) for point in found})
    batches = ", ".join(f"{kind} at batch {batch}" for kind, batch in kinds)
    families = len({point.family for point in found})
    return (
        f"{families} families, {len({point.model for point in found})} networks, {len(found)} points: {batches}, nothing else."
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--results", type=Path, nargs="+", default=READ)
    options.add_argument("--out", type=Path, default=MADE)
    options.add_argument("--table", type=Path, help="also write the table fitted on all points")
    given = options.parse_args()
    case, found = Case(given.weights, given.work, given.results), points(given.results)
    best = [point for point in found if point.level != 0]
    full = rounded(replace(case.fit(best, ""), source=source(case, best)))
    ways = {name: by for name, by in HELD.items() if len({by(point) for point in found}) > 1}
    held = {name: table(case, found, by) for name, by in ways.items()}
    beliefs = {
        f"{belief:g}": {name: of(timed(table(case, found, by, belief))) for name, by in ways.items()} for belief in BELIEFS
    }
    none, own = ([score(case, point, known) for point in found] for known in (PUBLISHED, full))
    report = {
        "devices": sorted({point.device for point in found}),
        "notes": [*NOTES, coverage(found)],
        "errors": {f"left_out_{name}": of(timed(rows)) for name, rows in held.items()}
        | {f"left_out_{name}, level 0": of(untimed(rows)) for name, rows in held.items() if untimed(rows)}
        | {"published_only": of(timed(none)), "fitted": of(timed(own))},
        "errors_by_belief": beliefs,
        "errors_by_block": {str(results): by_block(case, found, results) for results in BLOCKS},
        **{f"left_out_{name}": rows for name, rows in held.items()},
        "published_only": none,
        "fitted": own,
        "table": plain(full),
    }
    given.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if given.table:
        given.table.write_text(json.dumps(plain(full), indent=1) + "\n", "utf-8")
    print(json.dumps(report["errors"], indent=1))


def rounded(table: EfficiencyTable) -> EfficiencyTable:
    """To what a few engines can tell."""
    shares = tuple(replace(row, share=round(row.share, 3)) for row in table.shares)
    floors = tuple(replace(row, us=round(row.us, 2)) for row in table.floors)
    return replace(table, shares=shares, floors=floors, step_us=round(table.step_us, 1), stream_us=round(table.stream_us, 2))


if __name__ == "__main__":
    main()
