"""INT8 + FP16 against FP16 on a GPU: engines and torch.compile in one process, with detections for accuracy.

    python benchmarks/gpu_int8.py --weights DIR --data DIR --out DIR PHASE ...

As tensorrt_gpu.py, whose options these are. What was expected before any run stands in PREDICTED, and beside what came out.
A build may take minutes: the phases that end in _build leave the engine in --work, and the others find it there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gpu_checks import accuracy, check, inspect
from gpu_fixed import exact, fixed
from gpu_models import TABLES, quantised
from gpu_phases import RETINA, pair_of_profiles
from redline.engine.graph_facts import read_graph
from redline.errors import TrialError
from redline.export.half import export_half
from redline.records import BuildOptions, EngineBuild, EngineProfile, OnnxModel
from tensorrt_gpu import Bench, Shape, images, main, time_engine, time_torch

NORMAL = 0.01
PREDICTED = {
    "retina91@32": {"int8_images_per_s": 1900, "over_fp16": 1.7},
    "retina91@1": {"int8_images_per_s": 780, "over_fp16": 1.15},
    "yolox640@1": {"over_fp16": 0.85},
    "yolox640@32": {"over_fp16": 1.1},
    "retina4@1": {"drop_pct": 0.3, "int8_share": 0.99},
}
"""By the roofline, MLPerf's INT8 rates and what INT8 did to depthwise networks elsewhere; written before the first run."""
LEVEL = 3


def one(shape: Shape) -> tuple[EngineProfile, ...]:
    return (EngineProfile(index=0, minimum=shape, optimum=shape, maximum=shape),)


def int8(
    bench: Bench,
    name: str,
    shape: Shape,
    table: str,
    wide: Callable[[Bench, str], Sequence[str]] | None = None,
    *,
    plain: bool = False,
) -> EngineBuild:
    """8.6 takes the FP32 graph and flags; later ones are typed by the graph and take the FP16 one."""
    model = int8_graph(bench, name, shape, table, wide, plain=plain)
    label = f"{table}{'' if wide is None else ' ' + wide.__name__}{' plain' if plain else ''}"
    options = BuildOptions(precision="int8", profiles=one(shape), optimization_level=LEVEL)
    return bench.build(f"{name} int8 {label}", model, options)


def int8_graph(
    bench: Bench,
    name: str,
    shape: Shape,
    table: str,
    wide: Callable[[Bench, str], Sequence[str]] | None,
    *,
    plain: bool = False,
) -> OnnxModel:
    kept = wide(bench, name) if wide else ()
    half = bool(bench.library.strongly_typed)
    model = quantised(name, bench.given.weights, bench.given.graphs, table, kept, half, plain=plain)
    return fixed(model, shape, bench.given.work) if name.startswith("yolox") else model


def fp16(bench: Bench, name: str, shape: Shape) -> EngineBuild:
    if not name.startswith("yolox"):
        return bench.engine(name, "fp16", [shape], level=LEVEL)
    model, options = exact(bench, name, shape, LEVEL)
    return bench.build(name, model, options)


def depthwise(bench: Bench, name: str) -> list[str]:
    """Depthwise layers and the stem stay in FP16."""
    nodes = [node for node in read_graph(bench.graph(name, False).path).graph.node if node.op_type == "Conv"]
    grouped = [node.name for node in nodes if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    return [nodes[0].name, *grouped]


def stem(bench: Bench, name: str) -> list[str]:
    """The first two layers stay in FP16: the second, depthwise, loses most of all to the range of its whole input."""
    nodes = read_graph(bench.graph(name, False).path).graph.node
    return [node.name for node in nodes if node.op_type == "Conv"][:2]


def heads(bench: Bench, name: str) -> list[str]:
    """The last convolutions, those whose results leave the graph through no other layer, stay in FP16."""
    graph = read_graph(bench.graph(name, False).path).graph
    makers = {tensor: node for node in graph.node for tensor in node.output}
    found, waiting = [], [value.name for value in graph.output]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.op_type == "Conv":
            found.append(node.name)
        elif node is not None and node.op_type != "Shape":
            waiting += node.input
    return sorted(set(found))


def sensitive(bench: Bench, name: str) -> list[str]:
    """What int8_bccd.py --layers found to bring the detections nearer for the fewest operations, up to 3 % of them."""
    chosen = json.loads((TABLES / "kept" / f"{name}.json").read_text(encoding="utf-8"))
    here = [node.name for node in read_graph(bench.graph(name, False).path).graph.node]
    return [here[place] for place in chosen["places"]]


def compare(bench: Bench, name: str, builds: dict[str, EngineBuild], shape: Shape, scale: float, seconds: float = 6) -> None:
    """Each engine, torch.compile, and each engine again in the reverse order: drift shows as a difference of the two."""
    for label, build in builds.items():
        time_engine(bench, name, build.options.precision, build, shape, scale=scale, label=label)
    time_torch(bench, name, "fp16", shape, scale=scale, compiled=True, seconds=seconds)
    for label, build in reversed(builds.items()):
        time_engine(bench, name, build.options.precision, build, shape, scale=scale, label=label)
    rows = [row for row in bench.rows if row.get("what") == "latency" and row["model"] == name and row["shape"] == list(shape)]
    best = {kind: min(row["p50_ms"] for row in rows if kind in row["how"]) for kind in ("int8", "fp16")}
    bench.note(
        model=name, what="verdict", shape=list(shape), int8_ms=best["int8"], fastest_fp16_ms=best["fp16"],
        times_faster=best["fp16"] / best["int8"], int8_images_per_s=1000 * shape[0] / best["int8"],
        predicted=PREDICTED.get(f"{name}@{shape[0]}"),
    )  # fmt: skip


def retina(bench: Bench, count: int) -> None:
    shape = (count, 3, 800, 800)
    # The FP16 engine is that of gpu_phases' retina_two: batch 1, and 2 to 32.
    builds = {"int8": int8(bench, "retina91", shape, "retina91"), "fp16": pair_of_profiles(bench, "retina91", RETINA)}
    compare(bench, "retina91", builds, shape, NORMAL)
    for label, build in builds.items():
        inspect(bench, "retina91", build, images(shape, NORMAL), f"retina91-{label}-{count}")
    if count == 1:
        check(bench, "retina91", builds["int8"], images(shape, NORMAL))


def retina_half_outputs(bench: Bench) -> None:
    """Batch 32 with FP16 outputs on both sides: the heads' results are the largest tensors there are."""
    from gpu_builds import HalfOutputs, like

    shape, kept = (32, 3, 800, 800), bench.library
    folder = bench.given.work / "half_outputs"
    folder.mkdir(exist_ok=True)
    narrow = export_half(bench.graph("retina91", False), folder, keep_outputs=False)
    builds = {"fp16": bench.build("retina91 fp16 outputs", narrow, BuildOptions(precision="fp16", profiles=one(shape)))}
    bench.library = like(HalfOutputs, kept)
    try:
        builds = {"int8": int8(bench, "retina91", shape, "retina91"), **builds}
        compare(bench, "retina91", builds, shape, NORMAL)
    finally:
        bench.library = kept


def retina_plain(bench: Bench) -> None:
    """Batch 32: what it gives to round residual branches, pooling and Resize beside the layers."""
    shape = (32, 3, 800, 800)
    builds = {
        "int8": int8(bench, "retina91", shape, "retina91"),
        "int8 plain": int8(bench, "retina91", shape, "retina91", plain=True),
    }
    for label, build in (*builds.items(), *reversed(builds.items())):
        time_engine(bench, "retina91", "int8", build, shape, scale=NORMAL, label=label)
    inspect(bench, "retina91", builds["int8 plain"], images(shape, NORMAL), "retina91-int8-plain-32")


def yolox_build(bench: Bench, count: int, label: str) -> EngineBuild:
    shape = (count, 3, 640, 640)
    return fp16(bench, "yolox640", shape) if label == "fp16" else int8(bench, "yolox640", shape, "yolox640", WIDE[label])


def built_or_refused(bench: Bench, count: int, label: str) -> EngineBuild | None:
    """What a library cannot build is a row, and the others are measured."""
    try:
        return yolox_build(bench, count, label)
    except TrialError as error:
        bench.note(model="yolox640", what="refused", built_as=label, batch=count, error=error.text())
        return None


def yolox(bench: Bench, count: int) -> None:
    shape = (count, 3, 640, 640)
    tried = {label: built_or_refused(bench, count, label) for label in (*WIDE, "fp16")}
    builds = {label: build for label, build in tried.items() if build is not None}
    compare(bench, "yolox640", builds, shape, 1.0)
    for label, build in builds.items():
        inspect(bench, "yolox640", build, images(shape, 1.0), f"yolox640-{label}-{count}")
        if count == 1 and label != "fp16":
            accuracy(bench, "yolox640", "coco", build, label)


def bccd_build(bench: Bench, label: str) -> EngineBuild:
    shape = (1, 3, 640, 864)
    wide = {"int8-heads-wide": heads, "int8-sensitive-wide": sensitive}.get(label)
    return fp16(bench, "retina4", shape) if label == "fp16" else int8(bench, "retina4", shape, "retina4", wide)


def bccd(bench: Bench) -> None:
    """RetinaNet at 640 x 864: every layer, all but the last convolutions, and all but what detections are most sensitive to."""
    builds = {label: bccd_build(bench, label) for label in BCCD}
    for label, build in builds.items():
        accuracy(bench, "retina4", "bccd", build, label)
    compare(bench, "retina4", builds, (1, 3, 640, 864), NORMAL)


WIDE = {"int8": None, "int8-stem": stem, "int8-dense": depthwise}
"""What stays in FP16."""
BCCD = ("int8", "int8-heads-wide", "int8-sensitive-wide", "fp16")
PHASES: dict[str, Any] = {
    "retina_32": lambda bench: retina(bench, 32),
    "retina_1": lambda bench: retina(bench, 1),
    "retina_half_outputs": retina_half_outputs,
    "yolox_1": lambda bench: yolox(bench, 1),
    "yolox_32": lambda bench: yolox(bench, 32),
    "bccd": bccd,
    **{f"bccd_{label}_build": partial(bccd_build, label=label) for label in BCCD},
    **{f"yolox_{n}_{label}_build": partial(yolox_build, count=n, label=label) for n in (1, 32) for label in (*WIDE, "fp16")},
    "retina_plain": retina_plain,
    **{f"retina_{n}_int8_build": partial(int8, name="retina91", shape=(n, 3, 800, 800), table="retina91") for n in (1, 32)},
    **{f"retina_{n}_fp16_build": partial(fp16, name="retina91", shape=(n, 3, 800, 800)) for n in (1, 32)},
}

if __name__ == "__main__":
    main(PHASES, __doc__)
