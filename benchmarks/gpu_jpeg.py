"""JPEG decoding on the GPU: pixels against the reference decoder, a broken file in a batch, and rates; see gpu_preprocess."""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from redline.errors import RedlineError
from redline.kernels.jpeg import Engine, JpegDecoder
from redline.records import DeviceImage
from redline.vision import decode

SECONDS = 0.7
"""Of one measurement."""
CALLS = ((1, 1), (32, 4), (8, 4), (32, 1), (32, 12))
"""(batch, host threads); the first two alone without fancy upsampling."""
CHAINS: dict[str, tuple[Engine, ...]] = {
    "hardware": ("hardware",), "cuda": ("cuda",), "hybrid": ("hybrid",), "hardware then cuda": ("hardware", "cuda", "hybrid"),
}  # fmt: skip

Chain = tuple[str, tuple[Engine, ...], bool]


def main(given: argparse.Namespace, notes: Any) -> None:
    photographs = [path.read_bytes() for path in sorted(given.data.glob("*.jpg"))] if given.data else made_up()
    notes.note(photographs=len(photographs), source="given" if given.data else "made up", mean_kb=mean_kb(photographs))
    large = mosaics(photographs)
    notes.note(large=len(large), size="1080 x 1920", mean_kb=mean_kb(large))
    reference = [decode(data, name="x") for data in photographs]
    works, disturbed = [], []
    for name, engines in CHAINS.items():
        for fancy in (True, False):
            try:
                decoder = JpegDecoder(0, engines=engines, fancy_upsampling=fancy, threads=4)
            except RedlineError as exc:
                notes.note(engines=name, fancy=fancy, failed=exc.line())
                continue
            found = differences(decoder, photographs, reference)
            notes.note(engines=name, fancy=fancy, **found)
            disturbed += [] if alone(decoder, photographs, notes, name) else [name]
            decoder.close()
            if found["by_device"]:
                works.append((name, engines, fancy))
    table = list(rates(works, {"1080p": large, "photographs": photographs}, notes))
    notes.note(host="reference decoder, one thread", **{f"{name}_per_s": host_rate(files) for name, files in
                                                          (("1080p", large), ("photographs", photographs))})  # fmt: skip
    heads = f"{'fancy':>6}{'batch':>6}{'threads':>8}{'images/s':>10}{'p50 ms':>9}{'p95 ms':>9}{'cpu ms/image':>14}"
    print(f"\n{'files':12}{'engines':20}{heads}")
    for row in table:
        what = f"{row['files']:12}{row['engines']:20}{row['fancy']!s:>6}{row['batch']:6}{row['threads']:8}"
        latency = f"{row['p50_ms']:9.2f}{row['p95_ms']:9.2f}{row['cpu_ms_per_image']:14.3f}"
        print(f"{what}{row['images_per_s']:10.0f}{latency}")
    if disturbed:
        raise AssertionError(f"a broken file was not alone in its failure: {disturbed}")


def rates(works: Sequence[Chain], files: dict[str, list[bytes]], notes: Any) -> Iterator[dict[str, Any]]:
    for name, engines, fancy in works:
        for kind, these in files.items():
            for batch, threads in CALLS if fancy else CALLS[:2]:
                row = {"files": kind, "engines": name, "fancy": fancy, "batch": batch, "threads": threads}
                try:
                    row |= rate(JpegDecoder(0, engines=engines, fancy_upsampling=fancy, threads=threads), these, batch)
                except Exception as exc:  # one chain's failure is a row
                    notes.note(**row, failed=repr(exc)[:300])
                    continue
                notes.note(**row)
                yield row
        if not fancy:
            continue
        for lanes in (2, 4):  # decoders of their own, each a thread: does one leave the engines idle?
            row = {"files": "1080p", "engines": name, "fancy": fancy, "batch": 8, "threads": 2, "lanes": lanes}
            notes.note(**row, **parallel(engines, fancy, files["1080p"], lanes))


def rate(decoder: JpegDecoder, files: Sequence[bytes], batch: int) -> dict[str, Any]:
    """Latency of calls one after another, from the call to the pixels complete, and until it returned; CPU of all threads."""
    stream = torch.cuda.Stream()
    calls = [[files[(start + index) % len(files)] for index in range(batch)] for start in range(0, len(files), batch)]
    for call in calls[:4]:
        decoder.decode(call, stream=stream.cuda_stream)
    stream.synchronize()
    returned, complete, device, on_device = [], [], [], 0
    cpu, begun = time.process_time(), time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start = time.perf_counter()
        before.record(stream)
        results = decoder.decode(calls[len(complete) % len(calls)], stream=stream.cuda_stream)
        returned.append(time.perf_counter() - start)
        after.record(stream)
        stream.synchronize()
        complete.append(time.perf_counter() - start)
        device.append(before.elapsed_time(after))
        on_device += sum(1 for result in results if result.by == "device")
    cpu = time.process_time() - cpu
    count = len(complete) * batch
    decoder.close()
    p50, p95, p99 = (float(value) * 1e3 for value in np.percentile(complete, (50, 95, 99)))
    return {
        "images_per_s": count / sum(complete), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "calls": len(complete),
        "returned_p50_ms": float(np.median(returned)) * 1e3, "stream_p50_ms": float(np.median(device)),
        "cpu_ms_per_image": cpu * 1e3 / count, "on_device_pct": 100 * on_device / count,
    }  # fmt: skip


def parallel(engines: tuple[Engine, ...], fancy: bool, files: Sequence[bytes], lanes: int) -> dict[str, Any]:
    decoders = [JpegDecoder(0, engines=engines, fancy_upsampling=fancy, threads=2) for _ in range(lanes)]
    with ThreadPoolExecutor(lanes) as pool:
        found = list(pool.map(lambda decoder: rate(decoder, files, 8), decoders))
    return {"images_per_s": sum(row["images_per_s"] for row in found), "p95_ms": max(row["p95_ms"] for row in found)}


def differences(decoder: JpegDecoder, files: Sequence[bytes], reference: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    """Absolute differences of pixel levels from the reference decoder's over all photographs."""
    histogram = np.zeros(256, np.int64)
    by_device, worst = 0, 0.0
    for start in range(0, len(files), 8):
        results = decoder.decode(files[start : start + 8], stream=torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        for result, wanted in zip(results, reference[start : start + 8], strict=True):
            if result.by == "host" or result.image is None:
                continue
            by_device += 1
            off = np.abs(pixels(result.image).astype(np.int16) - wanted)
            histogram += np.bincount(off.ravel(), minlength=256)
            worst = max(worst, float(off.mean()))
    total = max(int(histogram.sum()), 1)
    levels = np.arange(256)
    squared = float((histogram * levels**2).sum()) / total
    return {
        "images": len(files), "by_device": by_device, "mean": float((histogram * levels).sum()) / total,
        "worst_image_mean": worst, "max": int(levels[histogram > 0].max(initial=0)),
        "share_over_2_pct": 100 * float(histogram[3:].sum()) / total,
        "share_over_8_pct": 100 * float(histogram[9:].sum()) / total,
        "psnr_db": 10 * float(np.log10(255**2 / squared)) if squared else None,
    }  # fmt: skip


def alone(decoder: JpegDecoder, files: Sequence[bytes], notes: Any, name: str) -> bool:
    """Files cut, empty, and with their middle overwritten, between good ones: whether the good ones notice nothing."""
    good = list(files[:3])
    middle = len(good[0]) // 2
    spoiled = good[0][:middle] + bytes(range(256)) * 4 + good[0][middle + 1024 :]
    before = [pixels(result.image) for result in decoder.decode(good) if result.image]
    torch.cuda.synchronize()
    mixed = [good[0], good[1][: len(good[1]) // 3], good[1], b"", spoiled, good[2]]
    results = decoder.decode(mixed, names=[f"file {index}" for index in range(len(mixed))])
    torch.cuda.synchronize()
    same = [bool(np.array_equal(pixels(results[place].image), wanted)) for place, wanted in zip((0, 2, 5), before, strict=True)]
    said = [getattr(result.failure, "code", None) for result in results]
    notes.note(engines=name, broken_batch=said, by=[result.by for result in results], good_ones_equal=same)
    return all(same) and said[1] is not None and said[3] is not None


class _Memory:
    """Device memory as torch takes it."""

    def __init__(self, image: DeviceImage) -> None:
        self.__cuda_array_interface__ = {
            "shape": (image.height, image.width, 3), "strides": (image.row_bytes, 3, 1), "typestr": "|u1", "version": 3,
            "data": (image.pointer, False),
        }  # fmt: skip


def pixels(image: DeviceImage | None) -> NDArray[np.uint8]:
    assert image is not None
    found: NDArray[np.uint8] = torch.as_tensor(_Memory(image), device="cuda").cpu().numpy()
    return found


def host_rate(files: Sequence[bytes]) -> float:
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        np.ascontiguousarray(decode(files[count % len(files)], name="x"))
        count += 1
    return count / (time.perf_counter() - start)


def mean_kb(files: Sequence[bytes]) -> float:
    return sum(map(len, files)) / len(files) / 1e3


def mosaics(files: Sequence[bytes]) -> list[bytes]:
    """1080 x 1920, nine photographs each, so that they have as much detail as photographs; quality 90, 4:2:0."""
    made = []
    for start in range(8):
        sheet = Image.new("RGB", (1920, 1080))
        for place in range(9):
            with Image.open(io.BytesIO(files[(9 * start + place) % len(files)])) as photograph:
                sheet.paste(photograph.convert("RGB").resize((640, 360)), (640 * (place % 3), 360 * (place // 3)))
        stream = io.BytesIO()
        sheet.save(stream, "JPEG", quality=90, subsampling=2)
        made.append(stream.getvalue())
    return made


def made_up() -> list[bytes]:
    """Where no photographs are given: smooth noise of their sizes."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(24):
        small = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((640, 480 - index), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90, subsampling=2)
        made.append(stream.getvalue())
    return made
