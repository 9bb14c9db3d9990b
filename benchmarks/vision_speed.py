"""Preprocessing against the same steps written with OpenCV, decoding against Pillow, and NMS on 3,549 x 80 scores.

    python benchmarks/vision_speed.py [--repeats 200] [--model yolox_nano.onnx --images FOLDER] [--json FILE]

Ratios of medians from one run; variants are interleaved, one thread. NMS times are of the whole post-process: thresholding,
decoding the candidates, suppression, mapping back. Invented scores have about 760 (typical of YOLOX-Nano on COCO) or 3,500 (its
most crowded image) candidates above 0.001; with --model and --images, real outputs are timed too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from PIL import Image

from redline import vision
from redline.records import Head, Placement, Postprocess, Preprocess

Array = np.ndarray[Any, Any]
IMAGENET = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CASES = {
    "letterbox 416, 480x640, bgr": ((480, 640), Preprocess(size=(416, 416), channels="bgr")),
    "letterbox 640, 1080x1920, bgr": ((1080, 1920), Preprocess(size=(640, 640), channels="bgr")),
    "letterbox 640, 480x640, normalised": ((480, 640), Preprocess(size=(640, 640), **IMAGENET)),
    "shortest side 640, 480x640, float": (
        (480, 640),
        Preprocess(resize="shortest-side", size=(640, 853), round_to_uint8=False, fill=(0.0, 0.0, 0.0), **IMAGENET),
    ),
}


def by_hand(image: Array, preprocess: Preprocess, placement: Placement) -> Array:
    """The steps as one writes them with OpenCV: resize, cvtColor, copyMakeBorder, float, normalise, HWC to CHW."""
    height, width = (round(side * scale) for side, scale in zip(placement.source_hw, placement.scale_yx, strict=True))
    source = image if preprocess.round_to_uint8 else image.astype(np.float32)
    resized = cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR)
    if preprocess.channels == "bgr":
        resized = cv2.cvtColor(resized, cv2.COLOR_RGB2BGR)
    below, right = placement.input_hw[0] - height, placement.input_hw[1] - width
    padded = cv2.copyMakeBorder(resized, 0, below, 0, right, cv2.BORDER_CONSTANT, value=preprocess.fill)
    planes = np.ascontiguousarray(padded.astype(np.float32).transpose(2, 0, 1))
    if preprocess.scale != 1 or preprocess.mean != (0, 0, 0) or preprocess.std != (1, 1, 1):
        planes *= np.float32(preprocess.scale)
        planes -= np.array(preprocess.mean, np.float32).reshape(3, 1, 1)
        planes /= np.array(preprocess.std, np.float32).reshape(3, 1, 1)
    return planes


def medians(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """Median milliseconds of each call, interleaved."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 5):
        for call, kept in zip(calls, times, strict=True):
            start = perf_counter()
            call()
            kept.append(1e3 * (perf_counter() - start))
    return [statistics.median(kept[5:]) for kept in times]


def photograph(height: int, width: int) -> Array:
    """A smooth invented scene with some noise, so that JPEG has about the density of a photograph."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
    noise = rng.normal(0, 6, (height, width, 3))
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + noise, 0, 255).astype(np.uint8)


def crowd(candidates: int) -> Array:
    """YOLOX output (1, 3549, 85) with clustered boxes and log-normal scores, `candidates` of them above 0.001."""
    rng = np.random.default_rng(candidates)
    raw = rng.normal(0, 0.3, (1, 3549, 85)).astype(np.float32)
    raw[..., 2:4] += 1.0
    popular = rng.permutation(80) ** 2 / 900
    logs = rng.normal(-9, 2, (3549, 1)) + rng.normal(0, 1.5, (3549, 80)) - popular
    cut = np.sort(logs.reshape(-1))[-candidates]
    raw[0, :, 4] = 1
    raw[0, :, 5:] = np.exp(np.minimum(logs - cut + np.log(0.001), np.log(0.95)))
    return raw


def measure(repeats: int) -> dict[str, Any]:
    results: dict[str, Any] = {"preprocess": {}, "decode": {}, "nms": {}}
    for name, (size, preprocess) in CASES.items():
        image = photograph(*size)
        tensor, placement = vision.prepare(image, preprocess, "fixed")
        worst = float(np.abs(tensor - by_hand(image, preprocess, placement)).max())
        ours, hand = medians(
            repeats,
            lambda image=image, p=preprocess: vision.prepare(image, p, "fixed"),
            lambda image=image, p=preprocess, at=placement: by_hand(image, p, at),
        )
        results["preprocess"][name] = {"ms": ours, "by_hand_ms": hand, "ratio": ours / hand, "largest_difference": worst}
    for size in ((480, 640), (1080, 1920)):
        stream = io.BytesIO()
        Image.fromarray(photograph(*size)).save(stream, "JPEG", quality=90)
        data = stream.getvalue()
        ours, pillow = medians(
            repeats,
            lambda data=data: vision.decode(data, name="x"),
            lambda data=data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        )
        results["decode"][f"JPEG {size[0]}x{size[1]}"] = {"ms": ours, "pillow_ms": pillow, "ratio": ours / pillow}
    head, post = Head(kind="yolox"), Postprocess()
    placement = vision.place((480, 640), Preprocess(size=(416, 416)), "fixed")
    for candidates in (760, 3500):
        raw = crowd(candidates)
        (ms,) = medians(repeats, lambda raw=raw: vision.postprocess([raw], head, post, [placement]))
        kept = len(vision.postprocess([raw], head, post, [placement])[0].scores)
        results["nms"][f"{candidates} candidates"] = {"ms": ms, "kept": kept, "target_ms": 5.0}
    return results


def measure_real(model: Path, images: Path, repeats: int) -> dict[str, float]:
    """Post-process of YOLOX-Nano's outputs at 416: median and slowest image, each the median of its repeats."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1  # idle threads of a pool would spin while post-processing is timed
    session = ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    head, post, preprocess = Head(kind="yolox"), Postprocess(), Preprocess(size=(416, 416), channels="bgr")
    times = []
    for path in sorted(images.iterdir()):
        tensor, placement = vision.prepare(vision.decode(path.read_bytes(), name=path.name), preprocess, "fixed")
        outputs = session.run(None, {session.get_inputs()[0].name: tensor[None]})
        times += medians(repeats, lambda o=outputs, at=placement: vision.postprocess(o, head, post, [at]))
    return {"ms": statistics.median(times), "slowest_image_ms": max(times), "images": len(times), "target_ms": 5.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--model", type=Path, help="YOLOX-Nano, ONNX, 416 x 416")
    parser.add_argument("--images", type=Path, help="folder of images for --model")
    parser.add_argument("--json", type=Path, help="result file")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    results = measure(options.repeats)
    if options.model and options.images:
        results["nms"]["real images"] = measure_real(options.model, options.images, max(options.repeats // 10, 5))
    for group, rows in results.items():
        for name, row in rows.items():
            print(f"{group:10} {name:36} " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    if options.json:
        environment = {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "load_average_1min": os.getloadavg()[0],
            "libraries": {name: version(name) for name in ("numpy", "pillow", "opencv-python-headless")},
        }
        options.json.write_text(json.dumps({"environment": environment, "results": results}, indent=2) + "\n")
    close = all(row["ratio"] <= 1.5 for row in results["preprocess"].values())
    fast = all(row.get("slowest_image_ms", row["ms"]) <= 5 for row in results["nms"].values())
    return 0 if close and fast else 1


if __name__ == "__main__":
    sys.exit(main())
