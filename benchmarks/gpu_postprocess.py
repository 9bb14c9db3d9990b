"""Post-processing kernels on a GPU: equal to the numpy reference, the same every time, and how long each stage takes.

    PYTHONPATH=src python benchmarks/gpu_postprocess.py --out DIR [--sweep]
    PYTHONPATH=src compute-sanitizer --tool memcheck python benchmarks/gpu_postprocess.py --out DIR --check-only

Results go to <out>/gpu_postprocess.json as they come. Times are GPU times of CUDA graphs: one of REPEATS launches back to back
("warm": the raw outputs lie in L2 if they fit), and one with the L2 overwritten before each launch, less the time of the
overwriting ("cold"). A stage's time is that of all stages up to it less that of those before.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from gpu_postprocess_cases import Case, cases, torch_postprocess
from redline.kernels.postprocess import Capacity, PostprocessKernels, Tiles
from redline.records import Detections

PREDICTIONS = {
    "written": "before the first run on a GPU, from a copy bandwidth of 4.2 TB/s, 132 SMs at 1.7 GHz, 2 us a kernel in a graph",
    "retinanet-1pct b1 warm us": {
        "reset": 2, "filter": 15, "select": 26, "decode": 6, "overlap": 10, "suppress": 25, "all": 84,
    },
    "retinanet-1pct b1 cold us": 92,
    "retinanet-10pct b1 warm us": {"filter": 18, "select": 38, "all": 100},
    "retinanet-1pct b8 warm us": {"filter": 100, "select": 45, "decode": 30, "overlap": 60, "suppress": 30, "all": 270},
    "yolox b1 warm us": {"filter": 4, "select": 14, "decode": 6, "overlap": 10, "suppress": 30, "all": 65},
    "filter, share of copy bandwidth, retinanet b8 cold": 0.4,
    "why": "filter: 21.9 MB are 5.2 us at the copy's rate, but 5 blocks an SM hold 10,240 scores, and a block lives 2.2 us:"
    " load, scan, atomic and store wait for one another;"
    " select: 7 launches, all at work where float16 makes many scores equal; decode: 5,000 x 5,000 comparisons;"
    " overlap: 12.5 M pairs of 25 instructions; suppress: about 8 blocks of 64 ranks, 2 to 3 us each, one SM an image",
    "torch eager with torchvision b1 ms": 2.5,
    "target": "post-processing <= 250 us at batch 1, of the 350 us that it has together with preprocessing",
}  # fmt: skip
REPEATS = 10
BOX_PX, SCORE = 0.05, 1e-3
Timed = Callable[[], object]


class Results:
    """One JSON file, rewritten after each result."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "gpu_postprocess.json"
        self.rows: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {"predictions": PREDICTIONS, "torch": torch.__version__}

    def note(self, **row: Any) -> None:
        self.rows.append(row)
        self.path.write_text(json.dumps({"facts": self.facts, "results": self.rows}, indent=1))
        print(json.dumps(row), flush=True)


def kernels(case: Case, device: str, *, tiles: Tiles | None = None, survivors: float = 0.125) -> PostprocessKernels:
    capacity = Capacity(images=case.images, survivors=survivors)
    made = PostprocessKernels(case.head, case.post, case.input_hw, case.classes, capacity, device=device, tiles=tiles)
    made.place(case.placements)
    return made


def unmatched(found: Detections, wanted: Detections) -> int:
    """Detections of `wanted` without their like in `found`, one to one: label, score within SCORE, box within BOX_PX."""
    free = np.ones(len(found.scores), bool)
    missing = 0
    for box, score, label in zip(wanted.boxes, wanted.scores, wanted.labels, strict=True):
        like = free & (found.labels == label) & (np.abs(found.scores - score) <= SCORE)
        like &= np.abs(found.boxes - box).max(axis=1, initial=0) <= BOX_PX
        if like.any():
            free[np.argmax(like)] = False
        else:
            missing += 1
    return missing


def check(case: Case, outputs: Sequence[torch.Tensor], made: PostprocessKernels, images: int) -> dict[str, Any]:
    """Against the reference; also how far scores and boxes are apart where the order is the same."""
    made.launch(outputs)
    found, wanted = made.detections(case.images)[:images], case.reference(outputs, images)
    missing = sum(unmatched(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
    extra = sum(unmatched(theirs, ours) for ours, theirs in zip(found, wanted, strict=True))
    same = [a.labels.tolist() == b.labels.tolist() for a, b in zip(found, wanted, strict=True)]
    gaps = [
        [float(np.abs(a.scores - b.scores).max(initial=0)), float(np.abs(a.boxes - b.boxes).max(initial=0))]
        for a, b, equal in zip(found, wanted, same, strict=True)
        if equal
    ]
    return {
        "correct": missing == extra == 0, "missing": missing, "extra": extra, "checked_images": images,
        "detections": sum(len(one.scores) for one in wanted), "same_order_images": sum(same),
        "score_gap": max((gap[0] for gap in gaps), default=None), "box_gap_px": max((gap[1] for gap in gaps), default=None),
        "above_threshold": made.found.sum(dim=1).tolist()[:4], "candidates": made.chosen_count.tolist()[:4],
    }  # fmt: skip


def check_all(device: str, results: Results, *, small: bool) -> bool:
    """Every case at a batch of two, also with a list too short for the survivors."""
    good = True
    for case in cases(2, small=small):
        outputs = case.outputs(device)
        for survivors in (0.125, 0.0005):
            row = check(case, outputs, kernels(case, device, survivors=survivors), 2)
            good = good and row["correct"]
            results.note(what="check", case=case.name, survivors=survivors, **row)
    return good


def graph_of(work: Sequence[Timed], repeats: int) -> torch.cuda.CUDAGraph:
    """`repeats` rounds of `work`, captured after two that compile and warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for one in work:
                one()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for one in work:
                one()
    return graph


def graph_us(work: Sequence[Timed], samples: int = 15) -> float:
    """GPU microseconds of one round: the median of `samples` replays over REPEATS."""
    graph = graph_of(work, REPEATS)
    times = []
    for sample in range(samples + 2):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        if sample >= 2:
            times.append(1000 * start.elapsed_time(stop) / REPEATS)
    return median(times)


def copy_bytes_s() -> float:
    """Bytes read and written a second by a device-to-device copy of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    taken = []
    for _ in range(20):  # not in a graph, where large copies are slower
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end))
    return 2e3 * 2**30 / median(taken)


def time_case(outputs: Sequence[torch.Tensor], made: PostprocessKernels, results: Results) -> dict[str, Any]:
    """All stages together, warm and cold, and each alone; unique bytes over the cold time as a share of the copy's rate."""
    stages = made.stages(outputs)
    flood = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    wash = lambda: flood.fill_(1)  # noqa: E731
    washing = graph_us([wash])
    row: dict[str, Any] = {"warm_us": graph_us([lambda: made.launch(outputs)])}
    row["cold_us"] = graph_us([wash, lambda: made.launch(outputs)]) - washing
    warm, cold, before = {}, {}, (0.0, 0.0)
    for count, (name, _) in enumerate(stages, 1):
        work = [stage for _, stage in stages[:count]]
        now = (graph_us(work), graph_us([wash, *work]) - washing)
        warm[name], cold[name] = now[0] - before[0], now[1] - before[1]
        before = now
    read = outputs[0].numel() * outputs[0].element_size()
    row |= {"warm_stages_us": warm, "cold_stages_us": cold, "raw_score_bytes": read}
    rate = results.facts["copy_bytes_s"]
    row["floor_us"] = 1e6 * read / rate
    row["filter_share_of_copy_cold"] = read / (cold["filter"] * 1e-6) / rate
    row["filter_share_of_copy_warm"] = read / (warm["filter"] * 1e-6) / rate
    return row


def repeats_equal(outputs: Sequence[torch.Tensor], made: PostprocessKernels, count: int) -> dict[str, int]:
    """Of `count` replays, between which other raw outputs are put in place and taken away, those that differ in any bit."""
    graph = graph_of([lambda: made.launch(outputs)], 1)
    kept = [output.clone() for output in outputs]
    graph.replay()
    torch.cuda.synchronize()
    first = [tensor.clone() for tensor in (made.boxes, made.scores, made.labels, made.counts, made.found)]
    different = 0
    for turn in range(count):
        if turn % 10 == 5:
            for output, original in zip(outputs, kept, strict=True):
                output.copy_(original.roll(turn, dims=1))
            graph.replay()
            for output, original in zip(outputs, kept, strict=True):
                output.copy_(original)
        graph.replay()
        torch.cuda.synchronize()
        now = (made.boxes, made.scores, made.labels, made.counts, made.found)
        different += not all(torch.equal(a, b) for a, b in zip(now, first, strict=True))
    return {"repeats": count, "different": different}


def wall_ms(work: Timed, count: int = 20) -> float:
    """Host milliseconds from launch to synchronised, median."""
    for _ in range(3):
        work()
    times = []
    for _ in range(count):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def compare(case: Case, outputs: Sequence[torch.Tensor], made: PostprocessKernels) -> dict[str, Any]:
    """The same by torch and torchvision, by the numpy reference, and by the kernels without a graph."""
    row: dict[str, Any] = {"kernels_eager_ms": wall_ms(lambda: made.launch(outputs))}
    start = time.perf_counter()
    case.reference(outputs, 1)
    row["numpy_ms_an_image"] = 1000 * (time.perf_counter() - start)
    row["torch_ms"] = wall_ms(lambda: torch_postprocess(case, outputs), 10)
    theirs = torch_postprocess(case, outputs)
    ours = made.detections(case.images)
    row["torch_missing"] = sum(
        unmatched(Detections(boxes=b.cpu().numpy(), scores=s.cpu().numpy(), labels=n.cpu().numpy()), one)
        for (b, s, n), one in zip(theirs, ours, strict=True)
    )
    return row


SWEEP = [
    {"filter": 2048, "filter_warps": 4},
    {"filter": 4096, "filter_warps": 8},
    *({"filter": 8192, "filter_warps": warps} for warps in (4, 8)),
    *({"programs": count} for count in (64, 128, 512)),
    *({"listed": tile, "listed_warps": warps} for tile, warps in ((1024, 4), (1024, 8), (4096, 8), (4096, 16))),
    *({"ranked": rows, "ranked_against": against} for rows, against in ((8, 256), (16, 128), (16, 512), (32, 256))),
    *({"overlapped": rows, "words": words} for rows, words in ((16, 4), (16, 8), (32, 2), (32, 8), (64, 2))),
    *({"suppressed": 32, "suppressed_warps": warps} for warps in (4, 8)),
    *({"suppressed": 64, "suppressed_warps": warps} for warps in (4, 16)),
    *({"suppressed": 128, "suppressed_warps": warps} for warps in (8, 16)),
]  # fmt: skip
"""One change at a time."""


def sweep(results: Results, batches: Sequence[int], part: Sequence[int]) -> None:
    """Changes `part[0]`, `part[0] + part[1]`, ... of those that there are."""
    for images in batches:
        case = cases(images)[0]
        outputs = case.outputs("cuda")
        for change in ({}, *SWEEP)[part[0] :: part[1]]:
            guarded(results, "sweep", case, partial(_swept, case, outputs, change), change=change)


def _swept(case: Case, outputs: Sequence[torch.Tensor], change: dict[str, int]) -> dict[str, Any]:
    made = kernels(case, "cuda", tiles=replace(Tiles(), **change))
    return {"warm_us": graph_us([lambda: made.launch(outputs)])}


def guarded(results: Results, what: str, case: Case, work: Callable[[], dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A failure is a row too, and the rest goes on."""
    try:
        row = work()
    except Exception as exc:
        row = {"error": repr(exc), "trace": traceback.format_exc()[-1500:]}
    results.note(what=what, case=case.name, images=case.images, **more, **row)
    return row


def measure(results: Results, batches: Sequence[int]) -> list[tuple[Case, dict[str, Any]]]:
    table = []
    for images in batches:
        for case in cases(images)[: 2 if images > 8 else None]:
            torch.cuda.empty_cache()
            outputs = case.outputs("cuda")
            made = kernels(case, "cuda")
            row = guarded(results, "check", case, partial(check, case, outputs, made, min(images, 8)))
            row |= guarded(results, "time", case, partial(time_case, outputs, made, results))
            row |= guarded(results, "repeats", case, partial(repeats_equal, outputs, made, 100))
            row |= guarded(results, "others", case, partial(compare, case, outputs, made))
            table.append((case, row))
    return table


def show(table: Sequence[tuple[Case, dict[str, Any]]]) -> None:
    print(
        f"{'case':22}{'b':>3}{'correct':>8}{'differ':>7}{'warm us':>9}{'cold us':>9}{'filter':>8}{'select':>8}{'decode':>8}",
        end="",
    )
    print(f"{'overlap':>8}{'suppr.':>8}{'% copy':>8}{'torch ms':>9}{'numpy ms':>9}")
    for case, row in table:
        stages = row.get("warm_stages_us", {})
        cells = [
            row.get("warm_us"),
            row.get("cold_us"),
            *(stages.get(n) for n in ("filter", "select", "decode", "overlap", "suppress")),
        ]
        share = row.get("filter_share_of_copy_cold")
        print(f"{case.name:22}{case.images:3}{row.get('correct')!s:>8}{row.get('different')!s:>7}", end="")
        print("".join(f"{'-' if x is None else format(x, '.1f'):>{9 if i < 2 else 8}}" for i, x in enumerate(cells)), end="")
        print(f"{'-' if share is None else format(100 * share, '.0f'):>8}", end="")
        print("".join(f"{'-' if row.get(k) is None else format(row[k], '.2f'):>9}" for k in ("torch_ms", "numpy_ms_an_image")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--check-only", action="store_true", help="a small input, no graphs, no times: for compute-sanitizer")
    parser.add_argument("--sweep", action="store_true", help="every block size, one change at a time, and nothing else")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), help="of the sweep: so that several processes compile it")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    given = parser.parse_args()
    results = Results(given.out)
    if given.check_only:
        good = check_all(given.device, results, small=True)
        print("all correct" if good else "NOT CORRECT")
        return 0 if good else 1
    results.facts |= {"gpu": torch.cuda.get_device_name(0), "copy_bytes_s": copy_bytes_s(), "tiles": asdict(Tiles())}
    if given.sweep:
        sweep(results, given.batches, given.part)
        return 0
    good = check_all("cuda", results, small=False)
    table = measure(results, given.batches)
    show(table)
    return 0 if good and all(row.get("correct") for _, row in table) else 1


if __name__ == "__main__":
    raise SystemExit(main())
