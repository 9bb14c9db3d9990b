"""INT8 of YOLOX-Nano on ONNX Runtime's CPU: calibrators and placements with the drop's interval, sensitivity, the mixed search.

    python benchmarks/int8_cpu.py --shared DIR --work DIR --output FILE [--times FILE] [--size 640]

`--times`: JSON of a GPU benchmark with a row of layers in FP16 (tensorrt_gpu.py, gpu_int8.py), which the search's times rest
on. Each part is written as it is done, and what an earlier call weighed is taken from --work.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu_accuracy import data_of, drop
from gpu_models import detector, graph
from int8_demo import faster
from redline.data.calibration import choose_calibration
from redline.data.coco import load_dataset, read_bytes
from redline.doctor import inspect_machine
from redline.engine.graph_facts import node_facts
from redline.export.quantized import export_int8
from redline.quantize.groups import layer_groups
from redline.quantize.placement import heavy_nodes
from redline.quantize.search import GroupCost, MixedSearch
from redline.quantizing import calibrate, narrowed, table_of
from redline.records.quantize import CALIBRATORS, LayerGroup, QuantTable
from redline.records.spec import DataRef
from redline.sensitivity import Scales, choose_calibrator, kept_nodes
from redline.store import Store, dump
from redline.vision import decode, prepare

INT8_SHARE = {"dense": 0.55, "depthwise": 1.0}
"""Assumed time of a layer in INT8 over that in FP16 where no INT8 engine was profiled: half the bytes, the same launch."""
RUNS = 40
PROXY = 20
"""Calibration images that calibrators and groups are weighed on."""


class Case:
    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.name = given, f"yolox{given.size}"
        weights = given.shared / "models" / "yolox_nano_coco"
        self.detector = detector(self.name, weights)
        self.network = graph(self.name, weights, given.work, False)
        self.dataset = data_of(self.name, given.shared)
        place = given.shared / "data" / "coco_calib40"
        held = load_dataset(DataRef(images=str(place / "images"), annotations=str(place / "instances.json")), role="calibrate")
        self.choice = choose_calibration(held, 40, evaluate=self.dataset)
        store = Store(given.work / "store")
        calibration, evaluation = (
            [decode(read_bytes(image), name=image.path) for image in images]
            for images in (self.choice.images, self.dataset.images)
        )
        self.proxy = Scales(self.network, self.detector, calibration[:PROXY], given.work, threads=2, store=store)
        self.scored = Scales(self.network, self.detector, evaluation, given.work, threads=2)
        self.reference = self.scored.detections(None)
        self.result: dict[str, Any] = {
            "what": f"INT8 of YOLOX-Nano at {given.size} on ONNX Runtime CPU",
            "environment": json.loads(dump(inspect_machine())),
        }  # fmt: skip

        if given.resume and given.output.exists():
            self.result = json.loads(given.output.read_text())

    def known(self, part: str, count: int = 1) -> Any:
        """What an earlier call wrote of this part, if it was done with it."""
        found = self.result.get(part)
        return found if found is not None and (not isinstance(found, list) or len(found) >= count) else None

    def note(self, part: str, value: Any) -> None:
        self.result[part] = value
        self.given.output.write_text(json.dumps(self.result, indent=1) + "\n")
        print(part, json.dumps(value)[:600], flush=True)

    def drop(self, table: QuantTable) -> dict[str, Any]:
        found = drop(self.name, self.dataset, "int8", self.reference, self.scored.detections(table))["drop"]
        return {
            k: found[k] for k in ("candidate_ap", "relative_pct", "relative_low_pct", "relative_high_pct", "images_to_decide")
        }


def placements(case: Case, groups: Sequence[LayerGroup]) -> dict[str, tuple[str, ...]]:
    """Layers kept wide: defaults that recur in public reports, as candidates."""
    model = case.scored.model
    nodes = {node.name: node for node in model.graph.node}
    heavy = heavy_nodes(model)
    deep = [name for group in groups if group.name.endswith("depthwise") for name in group.nodes]
    last = [name for name in heavy if "_preds" in nodes[name].input[1]]
    return {
        "all": (),
        "head's last layers wide": tuple(last),
        "stem pair wide": heavy[:2],
        "depthwise wide": tuple(deep),
        "stem and depthwise wide": (heavy[0], *deep),
        "stem, depthwise and head's last wide": (heavy[0], *deep, *last),
    }


def group_costs(case: Case, groups: Sequence[LayerGroup], losses: dict[str, float]) -> tuple[list[GroupCost], float, str]:
    """Microseconds of each group: of recorded layers where given, else operations over an FP16 peak of 400 TFLOP/s."""
    times = {node: 0.0 for group in groups for node in group.nodes}
    fixed = 0.0
    if case.given.times is not None:
        held = json.loads(case.given.times.read_text())
        rows = [row for phase in held.get("phases", {"": held.get("rows", [])}).values() for row in phase]
        held = next(row for row in rows if row.get("what") == "layers" and "int8" not in str(row.get("built_as", "")))
        for layer in held["layers"]:
            mine = [node for node in re.findall(r"node_\w+", layer[0]) if node in times]
            fixed += 0.0 if mine else layer[1]
            for node in mine:
                times[node] += layer[1] / len(mine)
        origin = f"FP16 layers of {case.given.times.name}"
    else:
        facts = node_facts(case.scored.model, (1, 3, case.given.size, case.given.size))
        times |= {fact.name: fact.flop / 400e6 for fact in facts if fact.name in times}
        origin = "operations at 400 TFLOP/s"
    costs = []
    for group in groups:
        wide = sum(times[node] for node in group.nodes)
        share = INT8_SHARE["depthwise" if group.name.endswith("depthwise") else "dense"]
        costs.append(GroupCost(name=group.name, loss=losses[group.name], int8_us=wide * share, fp16_us=wide))
    return costs, fixed, f"{origin}; INT8 assumed at {INT8_SHARE} of it"


def ranks(values: Sequence[float]) -> Any:
    order = np.argsort(values, kind="stable")
    found = np.empty(len(values))
    found[order] = np.arange(len(values))
    return found


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def sensitivity(case: Case, table: QuantTable, groups: Sequence[LayerGroup]) -> dict[str, float]:
    every, rows = heavy_nodes(case.scored.model), case.known("sensitivity", len(groups)) or []
    for group in groups[len(rows) :]:
        alone = narrowed(case.scored.model, table, [name for name in every if name not in group.nodes])
        rows.append(
            {"group": group.name, "layers": len(group.nodes), "divergence": case.proxy.divergence(alone), **case.drop(alone)}
        )
        case.note("sensitivity", rows)
    correlation = spearman([row["divergence"] for row in rows], [row["relative_pct"] for row in rows])
    case.note("rank_correlation", {"spearman": correlation, "groups": len(rows), "proxy_images": PROXY})
    return {row["group"]: row["divergence"] for row in rows}


def search(case: Case, table: QuantTable, groups: Sequence[LayerGroup], losses: dict[str, float]) -> None:
    costs, fixed, origin = group_costs(case, groups, losses)
    seeking, exhaustive = (MixedSearch(costs, fixed_us=fixed) for _ in range(2))
    front = seeking.frontier()
    row: dict[str, Any] = {"times": origin, "groups": len(groups), "evaluations": seeking.evaluations, "frontier": []}
    if len(groups) <= 18:
        best = exhaustive.exhaustive()
        worse = [min(p.predicted_us for p in front if p.predicted_loss <= b.predicted_loss) / b.predicted_us - 1 for b in best]
        row |= {"exhaustive_evaluations": exhaustive.evaluations, "worst_above_exhaustive": max(worse)}
    step = max(1, len(front) // 8)
    for point in [*front[::step], front[-1]]:
        entry = json.loads(dump(point))
        kept = kept_nodes(groups, point.kept)
        entry |= case.drop(narrowed(case.scored.model, table, kept)) if len(kept) < len(table.weights) else {}
        row["frontier"].append(entry)
        case.note("search", row)


def speed(case: Case, tables: dict[str, QuantTable]) -> None:
    """Medians of runs in turn on one image, as ratios to FP32 in the same process."""
    tensor, _ = prepare(decode(read_bytes(case.dataset.images[0]), name="image"), case.detector.preprocess, "fixed")
    paths = {"fp32": case.network.path}
    paths |= {
        n: export_int8(case.network, case.given.work, t, name=f"speed-{i}").path for i, (n, t) in enumerate(tables.items())
    }
    case.note(
        "speed", {"runs": RUNS, "threads": 1, "times_faster_than_fp32": faster(paths, tensor, threads=1, runs=RUNS, skipped=3)}
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shared", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--times", type=Path)
    options.add_argument("--resume", action="store_true", help="what --output has is not measured again")
    options.add_argument("--size", type=int, default=640)
    given = options.parse_args()
    case = Case(given)
    groups = layer_groups(case.scored.model)
    case.note("calibration", json.loads(dump(case.choice.coverage)) | {"warnings": case.choice.warnings})
    paths = [Path(image.path) for image in case.choice.images]
    ranges = calibrate(case.network, case.detector, paths, selector="cover", threads=2)
    losses = choose_calibrator(case.proxy, ranges)
    case.note("calibrators", [json.loads(dump(loss)) for loss in losses])
    rows = case.known("placements", 12) or []
    tables = {title: table_of(case.network, ranges, "mse", keep_wide=kept) for title, kept in placements(case, groups).items()}
    for title, kept in placements(case, groups).items():
        for method in CALIBRATORS if title in ("all", "stem and depthwise wide") else ("mse",):
            if any((row["placement"], row["calibrator"]) == (title, method) for row in rows):
                continue
            table = table_of(case.network, ranges, method, keep_wide=kept)
            rows.append({"placement": title, "calibrator": method, "layers": len(table.weights), **case.drop(table)})
            case.note("placements", rows)
    for row in rows:
        if "divergence" not in row:
            kept = placements(case, groups)[row["placement"]]
            row["divergence"] = case.proxy.divergence(table_of(case.network, ranges, row["calibrator"], keep_wide=kept))
            case.note("placements", rows)
    case.note("rank_correlation_of_placements", spearman([r["divergence"] for r in rows], [r["relative_pct"] for r in rows]))
    if case.known("speed") is None:
        speed(case, {f"{title}, mse": table for title, table in tables.items()})
    search(case, tables["all"], groups, sensitivity(case, tables["all"], groups))


if __name__ == "__main__":
    main()
