"""The tables of scales in benchmarks/int8, which gpu_int8.py takes to a machine without the calibration images.

    python benchmarks/int8_tables.py --shared DIR --work DIR [NAME ...]

yolox640: 40 COCO images of train2017, with the remedies that bring the detections on 10 of them nearer (docs/int8.md);
retina4: 24 BCCD images of the train split; retina91: 2 of them, for random weights and speed alone. None is in an evaluation
set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gpu_accuracy import data_of
from gpu_models import TABLES, detector, graph
from redline.data.calibration import choose_calibration
from redline.data.coco import load_dataset, read_bytes
from redline.fixing import Fixing
from redline.quantizing import calibrate, table_of
from redline.records.quantize import Calibrator
from redline.records.spec import DataRef
from redline.sensitivity import Scales, choose_calibrator
from redline.store import Store, dump
from redline.vision import decode

COUNTS = {"yolox640": 40, "retina4": 24, "retina91": 2}
METHODS: dict[str, Calibrator] = {"retina4": "mse", "retina91": "max"}
"""Of the others, and whether anything is done beside, the detections decide."""
WEIGHED, DROP_PCT = 10, 0.5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", default=list(COUNTS), choices=list(COUNTS))
    options.add_argument("--shared", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True)
    given = options.parse_args()
    for name in given.names:
        weights = given.shared / "models" / ("yolox_nano_coco" if name == "yolox640" else "retinanet_r50_bccd")
        folder, file = ("coco_calib40", "instances.json") if name == "yolox640" else ("bccd", "instances_train.json")
        place = given.shared / "data" / folder
        held = load_dataset(DataRef(images=str(place / "images"), annotations=str(place / file)), role="calibrate")
        choice = choose_calibration(held, COUNTS[name], evaluate=data_of(name, given.shared))
        network, source = graph(name, weights, given.work, False), detector(name, weights)
        paths = [Path(image.path) for image in choice.images]
        ranges = calibrate(network, source, paths, selector="cover", seed=choice.seed)
        if name in METHODS:
            table = table_of(network, ranges, METHODS[name])
        else:
            few = [decode(read_bytes(image), name=image.path) for image in choice.images[:WEIGHED]]
            store = Store(given.work / "store")
            scales = Scales(network, source, few, given.work, threads=2, store=store)
            table = table_of(network, ranges, choose_calibrator(scales, ranges)[0].method)
            fixing = Fixing(scales, source, paths, threads=2, store=store, selector="cover", seed=choice.seed)
            table, outcomes = fixing.best(table, DROP_PCT)
            for outcome in outcomes:
                print(outcome, flush=True)
        (TABLES / f"{name}.json").write_bytes(dump(table) + b"\n")
        print(name, len(ranges.tensors), "ranges", choice.coverage.share, choice.warnings, flush=True)


if __name__ == "__main__":
    main()
