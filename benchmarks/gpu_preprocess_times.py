"""Times of both preprocessing kernels, cold L2, against the copy bandwidth; see gpu_preprocess."""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from preprocess_cases import IMAGENET, Case

from gpu_preprocess_values import Setup, kernel_for
from preprocess_bytes import input_bytes, summed
from redline.kernels.table import constants
from redline.plan.occupancy import occupancy
from redline.records import Preprocess, PreprocessTile

YOLOX = Preprocess(size=(640, 640), channels="bgr")
RETINANET = Preprocess(resize="shortest-side", size=(800, 1333), round_to_uint8=False, fill=(0.0, 0.0, 0.0), **IMAGENET)
HD, UHD, VGA = (1080, 1920), (2160, 3840), (480, 640)
Timed = tuple[str, Preprocess, tuple[int, int], int, str]
"""Name, preprocessing, (height, width) of every image, batch, output type."""
CASES: tuple[Timed, ...] = (
    ("yolox 640", YOLOX, HD, 8, "fp16"),
    ("yolox 640", YOLOX, UHD, 8, "fp16"),
    ("retinanet 800", RETINANET, HD, 8, "fp16"),
    ("retinanet 800", RETINANET, UHD, 8, "fp16"),
    ("yolox 640", YOLOX, HD, 8, "fp32"),
    ("yolox 640", YOLOX, UHD, 8, "fp32"),
    ("yolox 640", YOLOX, VGA, 1, "fp16"),
    ("yolox 640", YOLOX, VGA, 8, "fp16"),
    ("retinanet 800", RETINANET, VGA, 1, "fp16"),
    ("retinanet 800", RETINANET, VGA, 8, "fp16"),
    ("yolox 640", YOLOX, HD, 1, "fp16"),
    ("yolox 640, antialias", Preprocess(size=(640, 640), antialias=True), HD, 8, "fp16"),
)
CUDA_TILES = tuple(PreprocessTile(columns=columns, rows=rows, warps=warps) for columns, rows, warps in (
    (1, 1, 8), (1, 2, 8), (1, 4, 8), (2, 1, 8), (2, 2, 8), (2, 4, 8), (4, 1, 8), (4, 2, 8), (8, 1, 8),
    (1, 2, 4), (2, 1, 4), (2, 2, 4), (4, 1, 4), (8, 1, 4),
))  # fmt: skip
TRITON_TILES = tuple(PreprocessTile(columns=columns, rows=rows, warps=warps) for columns, rows, warps in (
    (32, 4, 4), (64, 2, 4), (64, 4, 4), (64, 8, 4), (128, 1, 4), (128, 2, 4), (128, 4, 4), (128, 4, 8),
    (256, 1, 4), (256, 2, 8),
))  # fmt: skip
Tiles = Mapping[str, Sequence[PreprocessTile | None]]
TILES: Tiles = {"cuda": CUDA_TILES, "triton": TRITON_TILES}
SWEPT = 4
"""Cases for which all tiles are tried; the others get those that won one of them."""
COLD = 4
"""Times the L2 cache that the sets together exceed."""
REPLAYS, CALLS = 15, 200


def main(given: argparse.Namespace, notes: Any) -> None:
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    copy_rate = copied(2**30, l2)
    notes.note(copy="1 GiB", gb_s=copy_rate / 1e9, l2_mb=l2 / 1e6)
    table: list[list[dict[str, Any]]] = []
    for index, case in enumerate(CASES):
        tiles = TILES if index < SWEPT else {kind: won(table, kind) for kind in TILES}
        table.append(case_rows(case, {kind: [None] for kind in TILES} if given.fixed else tiles, notes, l2, copy_rate))
    print(f"\ncopy {copy_rate / 1e9:.0f} GB/s; share of it by unique bytes (sectors + output); same: a copy of as many bytes")
    print(f"{'case':46}{'MB':>7}{'same':>7}{'cuda us':>9}{'share':>7}{'triton us':>10}{'share':>7}  best tiles")
    for rows in table:
        print(line(rows))


def case_rows(case: Timed, tiles: Tiles, notes: Any, l2: int, rate: float) -> list[Any]:
    """Rows of the best tile of either kernel; all are noted."""
    name, preprocess, size, batch, dtype = case
    sets = image_sets(preprocess, size, batch, dtype, l2)
    moved = moved_bytes(sets[0])
    same = copied(moved["unique"] // 2, l2)
    label = f"{name}, {size[0]} x {size[1]}, batch {batch}, {dtype}"
    best: list[dict[str, Any]] = []
    for kind in tiles:
        rows = []
        for tile in tiles[kind]:
            try:
                seconds, facts = timed(sets, kind, tile)
            except Exception as exc:  # a tile that does not compile is a row, not the end
                notes.note(case=label, kernel=kind, tile=str(tile), failed=repr(exc)[:300])
                continue
            rows.append({
                "case": label, "kernel": kind, "tile": [tile.columns, tile.rows, tile.warps] if tile else "default",
                "chosen": tile,
                "us": seconds * 1e6, "gb_s": moved["unique"] / seconds / 1e9, "share_of_copy": moved["unique"] / seconds / rate,
                "share_needed": (moved["input_needed"] + moved["output"]) / seconds / rate,
                "share_all": (moved["input_all"] + moved["output"]) / seconds / rate,
                "share_of_copy_of_same_size": moved["unique"] / seconds / same, "copy_of_same_size_gb_s": same / 1e9,
                **moved, **facts, "sets": len(sets),
            })  # fmt: skip
        if rows:
            best.append(min(rows, key=lambda row: row["us"]))
            others = {str(row["tile"]): round(row["us"], 2) for row in rows}
            notes.note(**{key: value for key, value in best[-1].items() if key != "chosen"}, all_tiles_us=others)
    return best


def won(table: Sequence[Sequence[dict[str, Any]]], kind: str) -> list[PreprocessTile | None]:
    """Tiles that were the best of a case, and the default."""
    best = [row["chosen"] for rows in table for row in rows if row["kernel"] == kind]
    return list(dict.fromkeys([*best, None]))


def moved_bytes(each: Setup) -> dict[str, Any]:
    pairs = zip(each.images, each.placements, strict=True)
    counts = [input_bytes(image, placement, each.case.preprocess) for image, placement in pairs]
    return summed(counts, each.out.numel() * each.out.element_size())


def image_sets(preprocess: Preprocess, size: tuple[int, int], batch: int, dtype: Any, l2: int) -> list[Setup]:
    """So many that what one launch touches is out of the cache when its turn comes again."""
    sizes = (size,) * batch
    shapes: Any = "minimal" if preprocess.resize == "shortest-side" else "fixed"
    made: list[Setup] = []
    touched = 0
    while touched < COLD * l2 or len(made) < 2:
        case = Case(name="time", preprocess=preprocess, sizes=sizes, shapes=shapes, dtype=dtype, seed=len(made) % 3)
        made.append(Setup(case, extra=0, packed=True))
        counts = [
            input_bytes(image, place, preprocess) for image, place in zip(made[-1].images, made[-1].placements, strict=True)
        ]
        touched += summed(counts, made[-1].out.numel() * made[-1].out.element_size())["unique"]
    return made


def timed(sets: Sequence[Setup], kind: str, tile: PreprocessTile | None) -> tuple[float, dict[str, Any]]:
    """(seconds of one launch, what is known of the kernel)."""
    kernel = kernel_for(sets[0], kind, tile)
    compiled = kernel(sets[0])
    torch.cuda.synchronize()
    return in_graph([partial(kernel, each) for each in sets]), facts_of(compiled, kind, sets[0])


def in_graph(runs: Sequence[Callable[[], Any]]) -> float:
    """Seconds of one call among all, in turn, in a graph of about CALLS calls; median of replays."""
    rounds = max(1, CALLS // len(runs))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in itertools.chain.from_iterable([runs] * rounds):
            run()
    graph.replay()
    taken = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3 / (rounds * len(runs)))
    return statistics.median(taken)


def facts_of(compiled: Any, kind: str, setup: Setup) -> dict[str, Any]:
    """Registers, spilled bytes, shared memory and theoretical occupancy."""
    if kind == "triton":
        registers, spilled, shared = compiled.n_regs, compiled.n_spills * 4, compiled.metadata.shared
        threads = 32 * compiled.metadata.num_warps
    else:
        facts = compiled.facts()
        registers, spilled, shared = facts.registers, facts.local_bytes, facts.shared_bytes
        threads = 32 * compiled.tile.warps
    seen = torch.cuda.get_device_capability()
    found: dict[str, Any] = {"registers": registers, "local_bytes": spilled, "shared_bytes": shared, "threads": threads}
    found["sampling"] = constants(setup.case.preprocess).sampling
    try:
        held = occupancy(seen, threads_per_block=threads, registers_per_thread=registers, shared_bytes_per_block=shared)
        found |= {"occupancy": held.share, "limiters": list(held.limiters)}
    except Exception as exc:
        found["occupancy"] = repr(exc)
    return found


def copied(size: int, l2: int) -> float:
    """Bytes read and written a second by device-to-device copies of `size` bytes, cold, in a graph."""
    size = max(size // 16 * 16, 16)
    count = max(2, -(-COLD * l2 // (2 * size)))
    pairs = [(torch.zeros(size, dtype=torch.uint8, device="cuda"), torch.empty(size, dtype=torch.uint8, device="cuda"))
             for _ in range(count)]  # fmt: skip
    runs = [lambda pair=pair: pair[1].copy_(pair[0]) for pair in pairs]
    if size >= 2**29:
        runs[0]()
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(10):
            runs[0]()
            runs[1]()
        end.record()
        end.synchronize()
        return 20 * 2 * size / (start.elapsed_time(end) / 1e3)
    return 2 * size / in_graph(runs)


def line(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no tile ran"
    first = rows[0]
    text = f"{first['case']:46}{first['unique'] / 1e6:7.1f}{first['copy_of_same_size_gb_s']:7.0f}"
    for row in rows:
        text += f"{row['us']:9.2f}{100 * row['share_of_copy']:6.0f}% "
    return text + " " + " ".join(f"{row['kernel']} {row['tile']} {row['registers']} registers" for row in rows)
