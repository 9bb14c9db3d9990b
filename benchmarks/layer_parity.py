"""Every layer of the zoo's detectors spoiled in turn: is it found and named, and is nobody accused where nothing is wrong?

    python benchmarks/layer_parity.py --out FILE.json [--most N] [demo yolox retinanet ...]

The engine is ONNX Runtime on the FP16 graph, once as it is and once with noise as of sums kept in float16. The fault: one
node's weights times 1.05.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cpu"))

from detector_graphs import LARGEST, Graphs, compiled, export_both, narrow_sums, planted

from redline.doctor import inspect_machine
from redline.engine.cuts import wire
from redline.engine.segments import run_segments
from redline.layers import compare_layers
from redline.store import dump


def sweep(graphs: Graphs, engine: str, most: int, folder: Path) -> dict[str, Any]:
    model = onnx.load(graphs.full.path)
    wiring = wire(model)
    if engine == "narrow sums":
        outputs = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
        values = run_segments(model, wiring, outputs, {}, graphs.batch)
        sizes = {name: np.sqrt((array.astype(np.float64) ** 2).mean((0, 2, 3))) for name, array in values.items()}

    def build(node: str) -> Any:
        if engine == "narrow sums":
            return lambda cut: narrow_sums(cut, sizes, node)
        return planted(node) if node else compiled

    def look(node: str) -> Any:
        return compare_layers(graphs.full, graphs.half, build(node), graphs.batch, "fp16", folder=folder)

    clean = look("")
    indices = sorted(wiring.layers)
    tried = indices if most <= 0 or most >= len(indices) else sorted(random.Random(0).sample(indices, most))
    rows = []
    for index in tried:
        name, started = wiring.nodes[index].name, time.perf_counter()
        found = look(name)
        named = [fault.nodes for fault in found.faults]
        first = found.faults[0] if found.faults else None
        rows.append(
            {
                "node": name,
                "named": bool(named) and named[0] == (name,),
                "only": named == [(name,)],
                "others": [nodes for nodes in named if nodes != (name,)],
                "excess": first.local / first.explained if first else 0.0,
                "looks": found.looks,
                "seconds": time.perf_counter() - started,
            }
        )
        print(graphs.name, engine, json.dumps(rows[-1]), flush=True)
    return {
        "detector": graphs.name,
        "engine": engine,
        "layers": len(indices),
        "tried": len(rows),
        "named": sum(row["named"] for row in rows),
        "named_alone": sum(row["only"] for row in rows),
        "accused_without_a_fault": [fault.nodes for fault in clean.faults],
        "largest_excess_without_a_fault": max(point.excess for point in clean.points),
        "smallest_excess_of_a_fault": min((row["excess"] for row in rows if row["named"]), default=0.0),
        "looks": sorted({row["looks"] for row in rows}),
        "seconds_median": float(np.median([row["seconds"] for row in rows])),
        "rows": rows,
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", default=list(LARGEST))
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--most", type=int, default=0, help="layers tried of each, 0: all")
    given = options.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as place:
        for wanted in given.names:
            graphs = export_both(wanted, Path(place) / wanted)
            for engine in ("as it is", "narrow sums"):
                results.append(sweep(graphs, engine, given.most, Path(place)))
                machine = json.loads(dump(inspect_machine()))
                given.out.write_text(json.dumps({"environment": machine, "fault": 1.05, "results": results}, indent=1) + "\n")
    for result in results:
        print({key: value for key, value in result.items() if key != "rows"})
