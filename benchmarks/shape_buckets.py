"""What shape buckets save: padding and inferences by number of buckets, and how close the local search is to the exact one.

    python benchmarks/shape_buckets.py --shared FOLDER [--json FILE]

Traffic: the sizes of 61 COCO photographs at 416 and 640, and of 200 demo scenes at 320. For each number of buckets (their price
0), for the default choice, and for the policies "fixed" and "minimal": the padding in percent of the network's pixels, expected
from the traffic and measured over the 256 requests that every load repeats; and how many inferences 8 successive requests of
these need on average, when those of one shape share one. All of it is arithmetic on sizes: the machine does not matter.
FOLDER holds data/ as the tests expect it beside the checkout.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from redline import vision
from redline.data import load_dataset, load_traffic, request_order
from redline.demo.scenes import write_dataset
from redline.live import LOAD_IMAGES
from redline.plan.buckets import Problem, choose_buckets, exact, greedy, waste
from redline.plan.candidates import MOST_BUCKETS
from redline.records import DataRef, Preprocess, ShapePolicy

QUEUED = 8
PROBLEMS = 400


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="result file")
    options = parser.parse_args()
    coco = options.shared / "data" / "coco_val61"
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), 200, 7)
        result = {
            "coco-416": case(coco, 416),
            "coco-640": case(coco, 640),
            "demo-320": case(Path(folder), 320),
            "greedy": gaps(),
        }
    environment = {"python": platform.python_version(), "libraries": {name: version(name) for name in ("numpy", "redline")}}
    text = json.dumps({"environment": environment, "results": result}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


def case(folder: Path, size: int) -> dict[str, Any]:
    dataset = load_dataset(DataRef(images=str(folder / "images"), annotations=str(folder / "instances.json")))
    traffic, preprocess = load_traffic(None, dataset), Preprocess(size=(size, size))
    order = request_order(dataset, traffic, LOAD_IMAGES, 0)
    mix = [(dataset.images[index].height, dataset.images[index].width) for index in order]

    def row(shapes: ShapePolicy) -> dict[str, Any]:
        expected = waste(traffic, preprocess, shapes)
        sizes = [vision.input_size(source, preprocess, shapes) for source in mix]
        groups = [len(set(sizes[at : at + QUEUED])) for at in range(0, len(sizes), QUEUED)]
        return {
            "buckets": [f"{height} x {width}" for height, width in shapes] if not isinstance(shapes, str) else None,
            "shapes": len({vision.input_size((s.height, s.width), preprocess, shapes) for s in traffic.shapes}),
            "waste": round(expected, 4),
            "padding_pct_expected": round(100 * expected / (1 + expected), 2),
            "padding_pct_measured": round(vision.padding_pct(mix, preprocess, shapes), 2),
            f"inferences_per_{QUEUED}": round(statistics.mean(groups), 2),
        }

    found: dict[str, Any] = {"fixed": row("fixed"), "minimal": row("minimal")}
    for most in range(1, MOST_BUCKETS + 1):
        chosen = choose_buckets(traffic, preprocess, most=most, switch_cost=0.0)
        found[f"at most {most}"] = {**row(chosen.policy), "exact": chosen.exact}
    chosen = choose_buckets(traffic, preprocess, most=MOST_BUCKETS)
    return {**found, "default": {**row(chosen.policy), "exact": chosen.exact}}


def gaps() -> dict[str, Any]:
    """Cost of the local search over the least, for canvases anywhere in 640 x 640: harder than those that a resize gives."""
    dice, excess = random.Random(0), []
    for _ in range(PROBLEMS):
        shapes: set[tuple[int, int]] = set()
        count = dice.randint(4, 20)
        while len(shapes) < count:
            shapes.add((32 * dice.randint(1, 20), 32 * dice.randint(1, 20)))
        weights = [dice.random() ** 2 for _ in shapes]
        problem = Problem(
            canvases=tuple(sorted(shapes)),
            shares=tuple(weight / sum(weights) for weight in weights),
            largest=((640, 640),),
            most=dice.randint(2, 6),
            switch_cost=0.0,
        )
        found = greedy(problem)
        best = exact(problem, found)
        if best is not None:
            excess.append(problem.cost(found) / problem.cost(best) - 1)
    return {
        "problems": PROBLEMS,
        "solved_exactly": len(excess),
        "greedy_optimal": sum(value < 1e-9 for value in excess),
        "excess_pct_mean": round(100 * statistics.mean(excess), 2),
        "excess_pct_p95": round(100 * sorted(excess)[int(0.95 * len(excess))], 2),
        "excess_pct_max": round(100 * max(excess), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
