"""A cold build in pieces: processes time the tactics of a graph's pieces side by side, and the build of the whole finds them.

TensorRT 8.6 times layer after layer in one thread, and compiles each pointwise kernel before it times it: a network with SiLU
after each convolution waits for a compiler. Here the graph, its shape fixed, is cut at tensors that lie in memory anyway; each
piece is built by a process of its own for its timings alone; the timings joined are the cache that the whole is built with.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from gpu_builds import LIBRARIES, like
from redline.engine.cuts import GIVEN, Wiring, choose_cuts, split_graph, wire
from redline.engine.graph_facts import infer
from redline.engine.tensorrt_builder import build_plan
from redline.engine.tensorrt_store import _timings, place_of
from redline.engine.tensorrt_versions import find
from redline.errors import RedlineError
from redline.records import BuildOptions, EngineProfile, OnnxModel
from redline.store.disk import write_file

if TYPE_CHECKING:
    from tensorrt_gpu import Bench, Shape

Piece = tuple[str, tuple[int, ...]]
"""A file, and the shape of its first input."""


def fixed(model: OnnxModel, shape: tuple[int, ...], folder: Path) -> OnnxModel:
    """The graph for inputs of `shape` alone."""
    graph = onnx.load(model.path)
    for dim, size in zip(graph.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    del graph.graph.value_info[:]
    shapes = {value.name: value for value in infer(graph)}
    for value in graph.graph.output:
        value.CopyFrom(shapes[value.name])
    data = graph.SerializeToString(deterministic=True)
    path = folder / f"fixed_{'x'.join(map(str, shape))}_{hashlib.sha256(data).hexdigest()[:12]}.onnx"
    path.write_bytes(data)
    return replace(model, path=str(path), digest=hashlib.sha256(data).hexdigest())


def pieces(path: str, most: int, folder: Path) -> list[Piece]:
    """At most `most` and outputs' many pieces of a graph of fixed shape, heaviest first; of equal ones one."""
    model = onnx.load(path)
    wiring = wire(model)
    cuts = choose_cuts(wiring, wiring.outputs, (), wiring.seams, most)
    values = {value.name: value.type.tensor_type for value in infer(model)}
    found: dict[str, tuple[int, Piece]] = {}
    for number, cut in enumerate((*cuts, *wiring.outputs)):
        split = split_graph(model, wiring, [_rounded(wiring, cut)], [other for other in cuts if other != cut])
        for value in (*split.graph.input, *split.graph.output):
            value.type.tensor_type.shape.CopyFrom(values[value.name.removesuffix(GIVEN)].shape)
        file = folder / f"piece_{Path(path).stem}_{number:03d}.onnx"
        onnx.save(split, file)
        first = tuple(dim.dim_value for dim in split.graph.input[0].type.tensor_type.shape.dim)
        found.setdefault(_kind(split), (len(split.graph.node), (str(file), first)))
    return [piece for _, piece in sorted(found.values(), reverse=True)]


def _rounded(wiring: Wiring, cut: str) -> str:
    """A tensor that is rounded where it is read, rounded: its maker's kernel then writes integers, as in the whole."""
    for reader in wiring.readers.get(cut, ()):
        node = wiring.nodes[reader]
        if node.op_type == "QuantizeLinear":
            return str(wiring.nodes[wiring.readers[node.output[0]][0]].output[0])
    return cut


def _kind(model: onnx.ModelProto) -> str:
    """Equal for graphs that differ in names and weights alone, which no timing depends on."""
    typed = {value.name: value.type.SerializeToString(deterministic=True) for value in infer(model)}
    held = {weight.name: (weight.data_type, tuple(weight.dims)) for weight in model.graph.initializer}
    place = {name: (at, index) for at, node in enumerate(model.graph.node) for index, name in enumerate(node.output)}
    parts = [
        (node.op_type, sorted(a.SerializeToString(deterministic=True) for a in node.attribute),
         [(place.get(name), held.get(name), typed.get(name)) for name in node.input])
        for node in model.graph.node
    ]  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def timings_of(piece: Piece, options: BuildOptions, how: str, begin: bytes) -> tuple[bytes, float]:
    """Build one piece, in a process of its own: (timing cache, seconds). Nothing if it cannot be built alone."""
    path, first = piece
    profile = EngineProfile(index=0, minimum=first, optimum=first, maximum=first)
    library = like(LIBRARIES[how], find("tensorrt"))
    started = time.perf_counter()
    try:
        plan = build_plan(path, replace(options, profiles=(profile,)), library, timing_cache=begin)
    except RedlineError as error:
        print(Path(path).name, error.line(), flush=True)
        return b"", time.perf_counter() - started
    return plan.timing_cache, plan.seconds


def time_pieces(bench: Bench, models: list[OnnxModel], options: BuildOptions, *, most: int = 64, seconds: float = 420) -> Path:
    """Fill this GPU's timing cache with the pieces of all `models`; it is written after each piece that ends."""
    folder = bench.given.work / "pieces"
    folder.mkdir(exist_ok=True)
    cut = [pieces(model.path, most, folder) for model in models]
    todo = [piece for rank in range(max(map(len, cut))) for ends in cut for piece in ends[rank : rank + 1]]
    known = _timings(bench.store, bench.library, place_of(options, 0))
    begin = known.read_bytes() if known.exists() else b""
    builder = bench.library.module.Builder(bench.library.module.Logger())
    config = builder.create_builder_config()
    joined = config.create_timing_cache(begin)
    act = partial(timings_of, options=options, how=bench.given.how, begin=begin)
    started, spent = time.perf_counter(), list[float]()
    pool = ProcessPoolExecutor(max(1, len(os.sched_getaffinity(0)) - 1), get_context("spawn"))
    jobs = [pool.submit(act, piece) for piece in todo]
    try:
        for job in as_completed(jobs, timeout=seconds):
            cache, took = job.result()
            spent.append(took)
            if cache and joined.combine(config.create_timing_cache(cache), False):
                write_file(known, bytes(joined.serialize()), bench.store.scratch)
    except TimeoutError:
        print(f"{len(spent)} of {len(todo)} pieces in {seconds} s", flush=True)
    for process in pool._processes.values():
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)
    bench.note(
        what="pieces", models=[Path(model.path).stem for model in models], level=options.optimization_level,
        pieces=len(todo), ended=len(spent), seconds=time.perf_counter() - started, seconds_of_all=math.fsum(spent),
        longest_s=max(spent, default=0.0), cache_mb=known.stat().st_size / 1e6 if known.exists() else 0.0,
    )  # fmt: skip
    return known


def exact(bench: Bench, name: str, shape: Shape, level: int) -> tuple[OnnxModel, Any]:
    """The graph of one fixed shape and the options of its build."""
    profile = EngineProfile(index=0, minimum=shape, optimum=shape, maximum=shape)
    options = BuildOptions(precision="fp16", profiles=(profile,), optimization_level=level)
    return fixed(bench.graph(name, True), shape, bench.given.work), options
