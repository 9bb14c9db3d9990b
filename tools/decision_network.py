"""Figures of the pages that rest on the roofline: INT8, dynamic shapes, a memory-bound operator."""

from __future__ import annotations

from typing import Any

from decision_model import (
    P95_MS,
    RATE,
    RETINANET,
    SIZES,
    TITLES,
    YOLOX,
    costs,
    expected_ms,
    mb,
    ms,
    network,
    number,
    pct,
    published,
    result,
    seen_on_h200,
    table,
    times,
)
from redline.plan.devices import device
from redline.plan.efficiency import shipped_table
from redline.plan.profiles import EXACT_MOST
from redline.records import FusionGroup, LatencyCurve, Objective

PAIRS = (
    (RETINANET, "t4"),
    (RETINANET, "a100-80"),
    (RETINANET, "h100-sxm"),
    (YOLOX, "t4"),
    (YOLOX, "a100-80"),
    (YOLOX, "h100-sxm"),
)
HEADS = ("cls_logits", "bbox_reg")
ACCURACY = "2026-11-25-h100-tensorrt-accuracy.json"
BUCKETS = "2026-11-25-shape-buckets.json"
CORRIDOR = "2026-11-23-cpu-yolox-nano-416.json"
PREDICTIONS = "2026-11-25-h100-plan-predictions.json"
PACKED = "2026-11-25-h100-tensorrt-builds.json"
PROVED = "2026-11-25-h100-tensorrt-retinanet-proved.json"
LETTERBOX, CPU_SIZE = 640, 416
QUEUED = 8
"""Requests that wait together, as in the result file of the buckets."""


def int8() -> dict[str, Any]:
    facts = published()
    gains = {(model, gpu, batch): _gain(model, gpu, batch) for model, gpu in PAIRS for batch in (1, 8)}
    rows = []
    for model, gpu in PAIRS:
        cells = [f"{TITLES[model]} {SIZES[model]}", device(gpu).title.removeprefix("NVIDIA ")]
        for batch in (1, 8):
            half, narrow = (expected_ms(model, gpu, arithmetic, batch) for arithmetic in ("fp16", "int8"))
            cells += [f"{ms(half)} -> {ms(narrow)}", times(half / narrow)]
        rows.append(cells)
    speed = []
    for row in sorted(facts["int8_speed"], key=_published_gain, reverse=True):
        measured = f"{row['fp16']:,} -> {row['int8']:,} {row['unit']}"
        speed.append((row["case"], measured, times(_published_gain(row)), row["source"]))
    accuracy = []
    for row in facts["int8_map"]:
        drop = 1 - row["after"] / row["before"]
        accuracy.append((row["case"], f"{row['before']} -> {row['after']}", pct(drop, 2), row["source"]))
    measured_fp16 = {row["model"]: row for row in result(ACCURACY)["rows"]}
    yolox, retina = (measured_fp16[name] for name in ("yolox640", "retina4"))
    launch = network(YOLOX, "h100-sxm", "fp16")
    bound = sum(group.expected_us for group in launch.groups if group.bound == "launch") / launch.expected_us
    mixed = _mixed_ms()
    half, narrow = (expected_ms(RETINANET, "h100-sxm", arithmetic) for arithmetic in ("fp16", "int8"))
    return {
        **seen_on_h200(),
        "expected": table(("network", "GPU", "batch 1, FP16 -> INT8 ms", "gain", "batch 8, ms", "gain"), rows),
        "speed": table(("measured by others", "FP16 -> INT8", "gain", "source"), speed),
        "accuracy": table(("calibration", "mAP", "relative drop", "source"), accuracy),
        "limit": Objective(p95_ms=P95_MS, throughput=RATE).map_drop_pct,
        "retina_published": times(
            next(_published_gain(row) for row in facts["int8_speed"] if row["case"].startswith("RetinaNet"))
        ),
        "retina_expected": times(gains[RETINANET, "a100-80", 1]),
        "small_gain": times(gains[YOLOX, "h100-sxm", 1]),
        "large_gain": times(gains[RETINANET, "h100-sxm", 8]),
        "launch_bound": pct(bound),
        "images": yolox["images"],
        "interval": f"{yolox['drop']['relative_low_pct']:+.2f} to {yolox['drop']['relative_high_pct']:+.2f} %",
        "retina_images": retina["images"],
        "retina_interval": f"{retina['drop']['relative_low_pct']:+.2f} to {retina['drop']['relative_high_pct']:+.2f} %",
        "mixed": f"{ms(mixed)} ms against {ms(narrow)} all in INT8 and {ms(half)} in FP16",
        "kept": f"{(half - mixed) / (half - narrow):.0%}".replace("%", " %"),
        "accuracy_file": ACCURACY,
    }


def _gain(model: str, gpu: str, batch: int) -> float:
    return expected_ms(model, gpu, "fp16", batch) / expected_ms(model, gpu, "int8", batch)


def _published_gain(row: dict[str, Any]) -> float:
    gain: float = row["int8"] / row["fp16"]
    return gain if row["higher"] else 1 / gain


def _mixed_ms() -> float:
    """RetinaNet on an H100 in INT8, its first convolution and its heads' last ones in FP16."""
    modules = {layer.name: layer.module for layer in costs(RETINANET).layers}
    half, narrow = (network(RETINANET, "h100-sxm", arithmetic) for arithmetic in ("fp16", "int8"))
    total = narrow.expected_us
    for wide, small in zip(half.groups, narrow.groups, strict=True):
        module = modules[wide.name]
        if module.endswith((*HEADS, "body.conv1")) and wide.kind == "conv":
            total += wide.expected_us - small.expected_us
    return total / 1000


def shapes() -> dict[str, Any]:
    found = result(BUCKETS)["results"][f"coco-{LETTERBOX}"]
    policies = (("fixed", "fixed"), ("2 buckets", "at most 2"), ("4 buckets, the default", "default"), ("exact", "minimal"))
    rows = []
    queued: dict[tuple[str, str, str], float] = {}
    for name, key in policies:
        row, cells = found[key], [name]
        cells += [str(row["shapes"]), pct(row["padding_pct_expected"] / 100, 1), number(row["inferences_per_8"])]
        kept = (1 - found["fixed"]["padding_pct_expected"] / 100) / (1 - row["padding_pct_expected"] / 100)
        for model in (RETINANET, YOLOX):
            curve = _curve(model, kept)
            alone, together = curve.ms(1), _queued_ms(curve, row["inferences_per_8"])
            queued[name, model, "alone"], queued[name, model, "together"] = alone, together
            cells.append(f"{ms(alone)} / {ms(together)}")
        rows.append(cells)
    head = ("network input", "shapes", "padding", f"inferences for {QUEUED} queued", "RetinaNet-R50, ms", "YOLOX-Nano, ms")
    trials = {trial["candidate"]: trial for trial in result(CORRIDOR)["cases"][f"yolox-{CPU_SIZE}"]["trials"]}
    fixed, minimal = (trials[f"onnxruntime fp32 {policy} t2 b1 c1"] for policy in ("fixed", "minimal"))
    drop, low, high = minimal["drop_pct"]
    alone = {model: 1 - queued["exact", model, "alone"] / queued["fixed", model, "alone"] for model in (RETINANET, YOLOX)}
    heavy = {name: queued[name, RETINANET, "together"] for name, _ in policies}
    best = min(heavy, key=lambda name: heavy[name])
    return {
        "letterbox": LETTERBOX,
        "cpu_size": CPU_SIZE,
        "policies": table(head, rows),
        "queued": QUEUED,
        "heavy_alone": pct(alone[RETINANET]),
        "light_alone": pct(alone[YOLOX]),
        "light_together": times(queued["exact", YOLOX, "together"] / queued["fixed", YOLOX, "together"]),
        "best": best,
        "best_saves": pct(1 - heavy[best] / heavy["fixed"]),
        "exact_ms": ms(heavy["exact"]),
        "fixed_ms": ms(heavy["fixed"]),
        "buckets_file": BUCKETS,
        "corridor_file": CORRIDOR,
        "cpu_fixed": times(fixed["capacity_over_baseline"]),
        "cpu_minimal": times(minimal["capacity_over_baseline"]),
        "missing": minimal["boxes"]["missing"],
        "boxes": f"{minimal['boxes']['missing'] + minimal['boxes']['matched']:,}",
        "drop": f"{drop:+.2f} %, interval {low:+.2f} to {high:+.2f} %",
        "most_profiles": EXACT_MOST,
    }


def _curve(model: str, kept: float) -> LatencyCurve:
    """On an H100 in FP16, of canvases as wide as the letterbox that have `kept` of its pixels."""
    height = round(LETTERBOX * kept)
    return LatencyCurve(
        points=tuple((batch, expected_ms(model, "h100-sxm", "fp16", batch, (height, LETTERBOX))) for batch in (1, 2, 4, 8))
    )


def _queued_ms(curve: LatencyCurve, inferences: float) -> float:
    """Equal batches of what waits; between whole batches linear, as the curve is."""
    each = QUEUED / inferences
    low = int(each)
    return inferences * (curve.ms(low) + (each - low) * (curve.ms(low + 1) - curve.ms(low)))


def memory_bound() -> dict[str, Any]:
    gpu = device("h100-sxm")
    bandwidth, peak = gpu.bandwidth_gb_s.value or 0.0, gpu.peak("fp16") or 0.0
    found = network(RETINANET, gpu.name, "fp16")
    groups = {group.name: group for group in costs(RETINANET).groups}
    modules = {layer.name: layer.module for layer in costs(RETINANET).layers}
    times_of = {time.name: time for time in found.groups}
    listed = _measured_us()
    rows = []
    for time in (times_of[name] for name in KERNELS):
        cells = [
            KERNELS[time.name],
            modules[time.name],
            f"{_unfused_bytes(groups[time.name]) / 1e6:.1f}",
            f"{time.bytes / 1e6:.1f}",
            f"{time.intensity:.0f}",
        ]
        cells += [f"{time.work_us:.1f}", f"{time.expected_us:.1f}", f"{listed[time.name]:.1f}"]
        rows.append(cells)
    head = ("kernel", "module", "MB unfused", "MB fused", "FLOP/byte", "roof us", "expected us", "measured us")
    stem, residual, _, transpose = (times_of[name] for name in KERNELS)
    unfused = _unfused_bytes(groups[residual.name])
    share = {limit: sum(t.expected_us for t in found.groups if t.bound == limit) / found.expected_us for limit in _BOUNDS}
    yolox = next(r for r in result(PREDICTIONS)["left_out_model"] if r["model"] == "yolox640" and r["how"].endswith("graph"))
    return {
        "size": SIZES[RETINANET],
        "kernels": table(head, rows),
        "balance": f"{peak * 1e12 / (bandwidth * 1e9):.0f}",
        "bandwidth": number(bandwidth, 4),
        "peak": number(peak, 3),
        "kernels_count": len(found.groups),
        "memory_share": pct(share["memory"]),
        "launch_share": pct(share["launch"]),
        "compute_share": pct(share["compute"]),
        "unfused_us": f"{unfused / (bandwidth * 1e9) * 1e6:.0f}",
        "fused_us": f"{residual.work_us:.0f}",
        "unfused_mb": mb(unfused),
        "fused_mb": mb(residual.bytes),
        "all_fused": mb(found.bytes),
        "all_unfused": mb(found.unfused_bytes),
        "floor_us": f"{shipped_table().floor_us('conv'):.1f}",
        "packed_ms": ms(_graph_p50(PACKED, "packed_native")),
        "packed_file": PACKED,
        "plain_ms": ms(_graph_p50(PROVED, "retina")),
        "timing_us": f"{_timing_us():.1f}",
        "residual_ratio": times(listed[residual.name] / residual.expected_us),
        "stem_ratio": times(listed[stem.name] / stem.expected_us),
        "stem_reason": stem.no_tensor_core,
        "transpose_ratio": times(listed["node_permute"] / transpose.expected_us),
        "transpose_share": pct(transpose.bytes / (bandwidth * 1e9) / ((listed["node_permute"] - _timing_us()) * 1e-6)),
        "yolox_kernels": f"{yolox['kernels']}",
        "yolox_expected": ms(yolox["expected_us"] / 1000),
        "yolox_measured": ms(yolox["measured_us"] / 1000),
        "proved_file": PROVED,
        "predictions_file": PREDICTIONS,
    }


KERNELS = {
    "node_Conv_82": "first convolution, ReLU",
    "node_Conv_89": "1x1 convolution, residual add, ReLU",
    "node_Conv_94": "1x1 convolution, ReLU",
    "node_permute": "transpose of the largest class logits",
}
"""Kernels that the engine has as the plan has them, by their first layer."""
_BOUNDS = ("compute", "memory", "launch")


def _unfused_bytes(group: FusionGroup) -> int:
    """In FP16, one image of the network's size, if every layer were a kernel."""
    size = (1, SIZES[RETINANET], SIZES[RETINANET])
    return 2 * (group.unfused_elements.at(*size) + group.weight_elements) + group.fixed_bytes.at(*size)


def _phase() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = result(PROVED)["phases"]["retina"]
    return rows


def _graph_p50(file: str, phase: str) -> float:
    """The engine's first measurement under a CUDA graph."""
    rows = result(file)["phases"][phase]
    found: float = next(row["p50_ms"] for row in rows if row.get("how") == "tensorrt fp16 graph")
    return found


def _measured_us() -> dict[str, float]:
    """By the first layer of each kernel of the engine."""
    row = next(row for row in _phase() if row["what"] == "layers")
    return {name.split(" + ")[0]: us for name, us, *_ in row["layers"]}


def _timing_us() -> float:
    """What timing every layer by itself adds to each, on average."""
    rows = {row["what"]: row for row in _phase()}
    layers, anatomy = rows["layers"], rows["anatomy"]
    extra: float = 1000 * (layers["sum_ms"] - anatomy["gpu_ms"]) / layers["count"]
    return extra
