"""Where an inference's time goes: host enqueue, copies, GPU, gaps; and the time of each layer."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

from redline.engine.cuda import Event
from redline.records.engine import Anatomy, LayerTime

if TYPE_CHECKING:
    from redline.engine.tensorrt_runner import Lane, TensorRTRunner
    from redline.records import LayerFact
    from redline.records.detect import Tensor


def anatomy(runner: TensorRTRunner, batch: Tensor, *, repeats: int = 200, warm_up: int = 20) -> Anatomy:
    """Medians over `repeats` inferences through pinned memory, ms. `gap_ms`: wall time that none of the parts explains."""
    with runner.lane() as lane:
        marks = [Event() for _ in range(4)]
        rows = [_once(lane, batch, marks) for _ in range(warm_up + repeats)][warm_up:]
        for mark in marks:
            mark.close()
    fill, enqueue, upload, network, download, wall = (median(column) for column in zip(*rows, strict=True))
    return Anatomy(
        fill_ms=fill,
        enqueue_ms=enqueue,
        upload_ms=upload,
        gpu_ms=network,
        download_ms=download,
        gap_ms=max(0.0, wall - fill - upload - network - download),
        wall_ms=wall,
        repeats=repeats,
    )


def layer_times(
    runner: TensorRTRunner, batch: Tensor, layers: tuple[LayerFact, ...], *, repeats: int = 50
) -> tuple[LayerTime, ...]:
    """Median time of each layer by TensorRT's profiler, slowest first: without a graph, and with its own cost in each."""
    module = runner.library.module
    times: dict[str, list[float]] = {}
    base = module.IProfiler

    class Profiler(base):  # type: ignore[misc, valid-type, unused-ignore]
        def __init__(self) -> None:
            base.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    nodes = {layer.name: layer.nodes for layer in layers}
    with runner.lane() as lane:
        context = lane.context_beside(batch)
        context.profiler = profiler = Profiler()
        for _ in range(repeats + 5):
            context.execute_async_v3(lane.stream.address)
            lane.stream.wait()
        del context, profiler
    found = [
        LayerTime(name=name, ms=median(seen[5:] or seen), nodes=nodes.get(name.split(" [profile")[0], ()))
        for name, seen in times.items()
    ]
    return tuple(sorted(found, key=lambda layer: -layer.ms))


def _once(lane: Lane, batch: Tensor, marks: list[Any]) -> tuple[float, float, float, float, float, float]:
    start = time.perf_counter()
    buffer = lane.buffers[lane.input]
    buffer.view(batch.shape, lane.dtypes[lane.input])[...] = batch
    filled = time.perf_counter()
    marks[0].record(lane.stream)
    lane.stream.to_device(buffer, batch.size * lane.dtypes[lane.input].itemsize)
    marks[1].record(lane.stream)
    before = time.perf_counter()
    shapes = lane.compute(batch.shape)
    after = time.perf_counter()
    marks[2].record(lane.stream)
    for name, shape in zip(lane.outputs, shapes, strict=True):
        lane.stream.to_host(lane.buffers[name], lane.buffers[name].view(shape, lane.dtypes[name]).nbytes)
    marks[3].record(lane.stream)
    lane.stream.wait()
    wall = (time.perf_counter() - start) * 1000
    parts = [marks[index + 1].since(marks[index]) for index in range(3)]
    return (filled - start) * 1000, (after - before) * 1000, parts[0], parts[1], parts[2], wall
