"""INT8 of RetinaNet-R50 on BCCD's test images, by ONNX Runtime on a CPU: the drop with its interval, and how much is in INT8.

    python benchmarks/int8_bccd.py --shared DIR --work DIR [--output FILE]

Scales and places are those of benchmarks/int8/retina4.json (24 images of the train split, none of them evaluated on). The graph
is the one that an engine would be built from; here every tensor is rounded where it says so, and sums are exact.
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
from redline.doctor import inspect_machine
from redline.engine.graph_facts import node_facts, read_graph
from redline.export.quantized import export_int8
from redline.records.quantize import QuantTable
from redline.sensitivity import Scales
from redline.store import dump, load
from redline.vision import decode

NAME, SHAPE = "retina4", (1, 3, 640, 864)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shared", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--output", type=Path)
    given = options.parse_args()
    weights = given.shared / "models" / "retinanet_r50_bccd"
    network, source, dataset = graph(NAME, weights, given.work, False), detector(NAME, weights), data_of(NAME, given.shared)
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


def share(path: str) -> float:
    """Of the convolutions' operations at `SHAPE`, those whose input and weight are both INT8."""
    found = [fact for fact in node_facts(read_graph(path), SHAPE) if fact.operator == "Conv"]
    return sum(fact.flop for fact in found if fact.type == "int8") / sum(fact.flop for fact in found)


if __name__ == "__main__":
    main()
