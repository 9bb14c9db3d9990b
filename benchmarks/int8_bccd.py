"""INT8 of RetinaNet-R50 on BCCD's test images, by ONNX Runtime on a CPU: the drop with its interval, and how much is in INT8.

    python benchmarks/int8_bccd.py --shared DIR --work DIR [--output FILE] [--layers]

Scales and places are those of benchmarks/int8/retina4.json (24 images of the train split, none of them evaluated on). The graph
is the one that an engine would be built from; here every tensor is rounded where it says so, and sums are exact.

--layers writes benchmarks/int8/kept/retina4.json instead: each group of layers left out of INT8 by itself, weighed by the
detections on 8 calibration images, and those that bring them nearest to FP32's per operation, up to `MOST` of all operations.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from gpu_accuracy import data_of, drop
from gpu_models import TABLES, detector, graph
from redline.data import read_bytes
from redline.data.calibration import choose_calibration
from redline.data.coco import load_dataset
from redline.doctor import inspect_machine
from redline.engine.graph_facts import node_facts, read_graph
from redline.export.quantized import export_int8
from redline.quantize.groups import layer_groups
from redline.quantizing import narrowed
from redline.records import Detector, OnnxModel
from redline.records.quantize import QuantTable
from redline.records.spec import DataRef
from redline.sensitivity import Scales
from redline.store import Store, dump, load
from redline.vision import decode

NAME, SHAPE = "retina4", (1, 3, 640, 864)
WEIGHED, GROUPS, MOST = 8, 40, 0.03
"""Images, groups, and the share of the operations that may stay in FP16: the engine itself leaves some 2 % more."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shared", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--output", type=Path)
    options.add_argument("--layers", action="store_true")
    given = options.parse_args()
    weights = given.shared / "models" / "retinanet_r50_bccd"
    network, source, dataset = graph(NAME, weights, given.work, False), detector(NAME, weights), data_of(NAME, given.shared)
    if given.layers:
        layers(network, source, given)
        return
    images = [decode(read_bytes(image), name=image.path) for image in dataset.images]
    scales = Scales(network, source, images, given.work)
    table = load(QuantTable, (TABLES / f"{NAME}.json").read_bytes())
    narrow = export_int8(network, given.work, table, name="bccd")
    started = time.monotonic()
    row = drop(NAME, dataset, "int8", scales.detections(None), scales.seen_by(narrow))
    result: dict[str, Any] = {
        "environment": json.loads(dump(inspect_machine())),
        "protocol": (__doc__ or "").split("\n\n")[2],
        "seconds": time.monotonic() - started,
        "int8_share_of_convolutions": share(narrow.path),
        "row": row,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=1))
    if given.output is not None:
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def layers(network: OnnxModel, source: Detector, given: argparse.Namespace) -> None:
    place = given.shared / "data" / "bccd"
    data = DataRef(images=str(place / "images"), annotations=str(place / "instances_train.json"))
    held = load_dataset(data, role="calibrate")
    chosen = choose_calibration(held, 24, evaluate=data_of(NAME, given.shared)).images[:WEIGHED]
    images = [decode(read_bytes(image), name=image.path) for image in chosen]
    scales = Scales(network, source, images, given.work, store=Store(given.work / "store"))
    table = load(QuantTable, (TABLES / f"{NAME}.json").read_bytes())
    flop = {fact.name: fact.flop for fact in node_facts(scales.model, SHAPE)}
    total, base, rows = sum(flop.values()), scales.divergence(table), []
    for group in layer_groups(scales.model, GROUPS):
        left = scales.divergence(narrowed(scales.model, table, group.nodes))
        rows.append(
            {"group": group.name, "gain": base - left, "share": sum(map(flop.__getitem__, group.nodes)) / total,
             "nodes": group.nodes}
        )  # fmt: skip
        print(rows[-1], flush=True)
    kept: list[str] = []
    used = 0.0
    for row in sorted(rows, key=lambda row: -row["gain"] / row["share"]):
        if row["gain"] > 0 and used + row["share"] <= MOST:
            used += row["share"]
            kept += row["nodes"]
    order = [node.name for node in scales.model.graph.node]
    result = {
        "environment": json.loads(dump(inspect_machine())), "divergence": base, "groups": rows, "kept": kept, "share": used,
        "places": [order.index(name) for name in kept],
    }  # fmt: skip
    (TABLES / "kept" / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def share(path: str) -> float:
    """Of the convolutions' operations at `SHAPE`, those whose input and weight are both INT8."""
    found = [fact for fact in node_facts(read_graph(path), SHAPE) if fact.operator == "Conv"]
    return sum(fact.flop for fact in found if fact.type == "int8") / sum(fact.flop for fact in found)


if __name__ == "__main__":
    main()
