"""Figures of the pages that rest on the queueing model and on `decide`: batches, MIG, several GPUs, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from decision_model import (
    P95_MS,
    RATE,
    RETINANET,
    SIZES,
    TITLES,
    YOLOX,
    at_rate,
    case,
    costs,
    expected_ms,
    highest,
    mb,
    ms,
    network,
    number,
    path,
    pct,
    published,
    rate,
    result,
    seen_on_h200,
    table,
    times,
)
from redline.plan.decide import decide
from redline.plan.devices import device
from redline.plan.efficiency import shipped_table
from redline.plan.limits import node_limits
from redline.plan.queueing.rate import capacity
from redline.plan.roofline import roofline
from redline.records import DeviceFacts, LatencyCurve, Node, NodeLimits, Price

PAIR = "2026-11-25-h100-tensorrt-pair.json"
GPU = "h100-sxm"
LOADS = (0.5, 0.7, 0.8, 0.9, 0.95)
ACTIVATIONS = ("backbone.body.layer2", "backbone.body.layer3", "backbone.body.layer4")
FOUR = ("a100-80", "h100-sxm", "h200-sxm")


def batching() -> dict[str, Any]:
    curve = case(RETINANET, GPU).curve()
    found = {(batch, delay): highest(path(curve, max_batch=batch, delay_ms=delay)) for batch, delay in _KNOBS}
    rows = []
    for (batch, delay), answer in found.items():
        rows.append((str(batch), f"{delay:g}", ms(curve.ms(batch)), rate(answer.rate_per_s.value), f"{answer.mean_batch:.1f}"))
    best_key = max(found, key=lambda key: found[key].rate_per_s.value)
    best = found[best_key].rate_per_s.value
    full = capacity(path(curve, max_batch=best_key[0]))
    loads, tails = [], {}
    for share in LOADS:
        seen = at_rate(curve, share * full, max_batch=best_key[0], delay_ms=best_key[1])
        tails[share] = seen.p95_ms.value
        figures = [rate(share * full), *(ms(one.value) for one in (seen.p50_ms, seen.p95_ms, seen.p99_ms))]
        loads.append((pct(share), *figures, f"{seen.mean_batch:.1f}", f"{share * full * seen.mean_ms / 1000:.1f}"))
    facts = published()
    pool, triton = facts["pooling"], facts["triton"]
    servers = [row for row in facts["server"] if row["p95_ms"] <= P95_MS]
    knees = [
        (row["source"], f"{row['rate_per_s']:,}", f"{row['p95_ms']:g}", f"{row['offline_share_pct']:g} %") for row in servers
    ]
    sharing = highest(path(curve, max_batch=best_key[0], instances=2, slowdown=(1.0, 2.0)))
    longest = max(delay for _, delay in _KNOBS)
    return {
        **seen_on_h200(),
        "size": SIZES[RETINANET],
        "settings": table(("batch up to", "queue delay ms", "full batch ms", "highest rate/s", "mean batch"), rows),
        "loads": table(("load", "rate/s", "P50 ms", "P95 ms", "P99 ms", "mean batch", "requests inside"), loads),
        "knees": table(("system", "rate/s a GPU", "P95 ms", "of its offline rate"), knees),
        "one": rate(found[1, 0.0].rate_per_s.value),
        "best": rate(best),
        "best_batch": best_key[0],
        "gain": times(best / found[1, 0.0].rate_per_s.value),
        "delayed": rate(found[8, longest].rate_per_s.value),
        "delay": f"{longest:g}",
        "undelayed": rate(found[8, 0.0].rate_per_s.value),
        "best_share": pct(best / full),
        "knee_from": pct(LOADS[2]),
        "knee_to": pct(LOADS[-1]),
        "knee_low": ms(tails[LOADS[2]]),
        "knee_high": ms(tails[LOADS[-1]]),
        "two_instances": rate(sharing.rate_per_s.value),
        "full": rate(full),
        "p95_ms": f"{P95_MS:g}",
        "pool_rate": f"{pool['rate_per_s']:,}",
        "pool_gpus": pool["gpus"],
        "pool_one": f"{pool['one_p95_ms']:g}",
        "pool_all": f"{pool['pooled_p95_ms']:g}",
        "pool_source": pool["source"],
        "triton": triton,
    }


_KNOBS = ((1, 0.0), (2, 0.0), (4, 0.0), (8, 0.0), (16, 0.0), (8, 2.0), (8, 5.0))


def mig() -> dict[str, Any]:
    facts = published()["mig"]
    whole, one = facts["whole"], facts["slice"]
    batch = whole["offline_batch"]
    last = (batch, 1000 * batch / whole["offline_per_s"])
    cv = case(RETINANET, "a100-80").curve().cv  # of both: the whole GPU's single-stream tail of that round is its software's
    curve = LatencyCurve(points=((1, whole["single_p50_ms"]), (8, whole["eight_ms"]), last), cv=cv)
    small = LatencyCurve(points=((1, one["single_p50_ms"]), (8, one["eight_ms"])), cv=cv)
    profile = next(found for found in device("a100-80").mig if found.name == facts["profile"])
    count = profile.count
    rows, held = [], {}
    for limit in (P95_MS, 50.0, 100.0):
        held[limit] = (
            _best(curve, limit, (8, batch)),
            _best(small, limit, (1, 2), slices=count),
            _best(small, limit, (1, 2)),
        )
        together, shared, alone = held[limit]
        rows.append((f"{limit:g}", rate(together), rate(shared), rate(alone), rate(count * alone)))
    checked = at_rate(small, facts["slice_server_per_s"], max_batch=2)
    sizes = [_slice_row(*key, count) for key in ((RETINANET, 1), (RETINANET, 8), (YOLOX, 1), (YOLOX, 8))]
    heavy = _slice_ms(RETINANET, 1, "int8") / expected_ms(RETINANET, "a100-80", "int8")
    mps = published()["mps"]
    near, far = mps["even_together_ms"]
    return {
        "rates": table(_MIG_HEAD, rows),
        "predicted": table(("network, FP16", "batch", "whole ms", "slice ms", "slower", f"{count} slices over whole"), sizes),
        "count": count,
        "profile": facts["profile"],
        "offline": f"{count} x {one['offline_per_s']:g} = {count * one['offline_per_s']:.0f} img/s",
        "offline_whole": f"{whole['offline_per_s']:g}",
        "share": pct(count * one["offline_per_s"] / whole["offline_per_s"]),
        "p95": f"{one['single_p95_ms']:g} against {whole['single_p95_ms']:g} ms",
        "slower_p95": times(one["single_p95_ms"] / whole["single_p95_ms"]),
        "slower_p50": times(one["single_p50_ms"] / whole["single_p50_ms"]),
        "predicted_slower": times(heavy),
        "source": facts["source"],
        "p95_ms": f"{P95_MS:g}",
        "whole_rate": rate(held[P95_MS][0]),
        "slice_rate": rate(held[P95_MS][2]),
        "checked_rate": facts["slice_server_per_s"],
        "checked_seen": f"{facts['slice_server_p95_ms']:g}",
        "checked_simulated": ms(checked.p95_ms.value),
        "mps": mps,
        "mps_even": f"{near:g} and {far:g}",
        "mps_small": mps["uneven_more_pct"][0],
        "mps_large": mps["uneven_more_pct"][1],
        "mps_share": mps["uneven_shares"][0],
        "triton": published()["triton"],
    }


_MIG_HEAD = ("P95 ms", "whole GPU, /s", "all slices, one queue, /s", "one slice by itself, /s", "slices with a queue each, /s")


def _best(curve: LatencyCurve, p95_ms: float, batches: tuple[int, ...], slices: int = 1) -> float:
    return max(highest(path(curve, max_batch=batch, slices=slices), p95_ms).rate_per_s.value for batch in batches)


def _slice_ms(model: str, batch: int, arithmetic: Any) -> float:
    """The plan's, on one slice: its share of the multiprocessors for compute, of eight memory slices one for the bandwidth."""
    whole = device("a100-80")
    cores = whole.mig[0].sms / (whole.sms.value or math.nan)
    peaks = tuple((kind, replace(peak, value=(peak.value or math.nan) * cores)) for kind, peak in whole.peaks)
    bandwidth = replace(whole.bandwidth_gb_s, value=(whole.bandwidth_gb_s.value or math.nan) / 8)
    one = replace(whole, peaks=peaks, bandwidth_gb_s=bandwidth)
    size = (batch, SIZES[model], SIZES[model])
    return roofline(costs(model), one, arithmetic, *size, table=shipped_table()).expected_us / 1000


def _slice_row(model: str, batch: int, count: int) -> tuple[str, ...]:
    whole, small = expected_ms(model, "a100-80", "fp16", batch), _slice_ms(model, batch, "fp16")
    name = f"{TITLES[model]} {SIZES[model]}"
    return name, str(batch), ms(whole), ms(small), times(small / whole), times(count * whole / small)


def several() -> dict[str, Any]:
    rows, shown, off = [], {}, []
    for row in (one for one in result(PAIR)["phases"]["pair"] if one["what"] == "pair" and one["gpus"] != "last"):
        load = row["under_load"]
        shown[row["input"], row["count"]] = row
        simulated = "-"
        if row["input"] == "resident":
            alone = 1000 / shown["resident", 1]["capacity"]["images_per_s"]
            curve = LatencyCurve(points=((1, alone),), cv=case(RETINANET, GPU).curve().cv)
            lanes = row["lanes_each"]
            slower = tuple(float(n + 1) for n in range(lanes))
            seen = at_rate(curve, load["offered_per_s"], gpus=row["count"], instances=lanes, slowdown=slower)
            off.append(seen.p95_ms.value / load["p95_ms"] - 1)
            simulated = f"{ms(seen.p50_ms.value)} / {ms(seen.p95_ms.value)}"
        cells = (row["input"], str(row["count"]), rate(row["capacity"]["images_per_s"]), times(row["times_the_first"]))
        rows.append((*cells, rate(load["offered_per_s"]), f"{ms(load['p50_ms'])} / {ms(load['p95_ms'])}", simulated))
    head = ("input", "GPUs", "capacity/s", "times one", "offered/s", "P50 / P95 ms", "simulated")
    one = shown["resident", 1]
    return {
        "size": SIZES[RETINANET],
        "pair": table(head, rows),
        "pair_file": PAIR,
        "load": pct(one["load"]),
        "measured_requests": f"{sum(one['under_load']['by_gpu']):,}",
        "off_one": f"{100 * off[0]:+.0f} %",
        "off_two": f"{100 * off[1]:+.0f} %",
        "fed_one": _fed(shown, 1),
        "fed_two": _fed(shown, 2),
        **_shards(),
        **_ensemble(),
    }


def _fed(shown: dict[tuple[str, int], dict[str, Any]], count: int) -> str:
    return ms(shown["fed", count]["under_load"]["p95_ms"])


def _crossing() -> int:
    """Bytes of one image, FP16, from the backbone's last three stages to the pyramid: where a network of two parts is cut."""
    last: dict[str, int] = {}
    for layer in costs(RETINANET).layers:
        for stage in ACTIVATIONS:
            if layer.module.startswith(stage):
                last[stage] = 2 * layer.output_elements.at(1, SIZES[RETINANET], SIZES[RETINANET])
    return sum(last[stage] for stage in ACTIVATIONS)


def _shards() -> dict[str, Any]:
    cut = _crossing()
    modules = {layer.name: layer.module for layer in costs(RETINANET).layers}
    found = network(RETINANET, GPU, "fp16")
    first = sum(group.expected_us for group in found.groups if modules[group.name].startswith("backbone.body"))
    rest = found.expected_us - first
    rows = []
    for name in FOUR:
        gpu = device(name)
        nvlink, pcie = (gpu.nvlink_gb_s.value or math.nan) / 2, gpu.pcie_gb_s.value or math.nan
        whole = expected_ms(RETINANET, name, "fp16")
        cells = [
            gpu.title.removeprefix("NVIDIA "),
            number(nvlink),
            f"{cut / nvlink / 1e3:.0f}",
            number(pcie, 2),
            f"{cut / pcie / 1e3:.0f}",
        ]
        rows.append((*cells, ms(whole), pct(cut / pcie / 1e6 / whole)))
    head = ("GPU", "NVLink GB/s, one way", "us", "PCIe GB/s", "us", "whole network ms", "PCIe of it")
    weights = 2 * costs(RETINANET).parameters
    memory = (device(GPU).memory_gib.value or math.nan) * 2**30
    return {
        "links": table(head, rows),
        "cut": mb(cut),
        "weights": mb(weights),
        "weights_share": pct(weights / memory, 2),
        "first_ms": ms(first / 1000),
        "rest_ms": ms(rest / 1000),
        "shards_gain": times(found.expected_us / max(first, rest)),
        "kernels": len(found.groups),
        "kernel_us": f"{found.expected_us / len(found.groups):.0f}",
        "whole_ms": ms(found.expected_us / 1000),
    }


def _ensemble() -> dict[str, Any]:
    """Two networks of one cost on every image, on two GPUs: one network on each, or both on both."""
    curve = case(RETINANET, GPU).curve()
    split = max(highest(path(curve, max_batch=batch)).rate_per_s.value for batch in (4, 8))
    both = max(highest(path(curve.scaled(2), max_batch=batch, gpus=2)).rate_per_s.value for batch in (2, 4))
    replicas = max(highest(path(curve, max_batch=batch, gpus=2)).rate_per_s.value for batch in (4, 8))
    rows = (("one network, a replica on each", rate(replicas)), ("two networks, one on each", rate(split)))
    return {
        "ensemble": table(
            ("two H100", f"images/s within P95 {P95_MS:g} ms"), (*rows, ("two networks, both on each, one queue", rate(both)))
        ),
        "p95_ms": f"{P95_MS:g}",
    }


def cost() -> dict[str, Any]:
    gpus = {name: device(name) for name in FOUR}
    decision = decide(case(RETINANET, FOUR[0]), [gpus[name] for name in FOUR[1:]], _limits, most=8)
    order = {(name, arithmetic): at for at, (name, arithmetic) in enumerate((n, a) for n in FOUR for a in ("fp16", "int8"))}
    answers = sorted(decision.devices, key=lambda answer: order[answer.device, answer.arithmetic])
    rows, used = [], {}
    for answer in answers:
        title = answer.title.removeprefix("NVIDIA ")
        p95 = "-" if answer.p95_ms is None else ms(answer.p95_ms)
        hourly, million = (
            f"{value:.2f}" if value is not None else "-" for value in (answer.usd_per_hour, answer.usd_per_million)
        )
        full = (answer.usd_per_hour or math.nan) / (answer.gpus or math.nan) / (3600 * _each(answer)) * 1e6
        used[answer.device, answer.arithmetic] = full
        cells = (title, answer.arithmetic.upper(), rate(_each(answer)), str(answer.gpus), p95, hourly, million, f"{full:.2f}")
        rows.append(cells)
    asked = [[price.usd_per_hour for price in gpu.prices] for gpu in gpus.values()]
    counts = {(answer.device, answer.arithmetic): answer.gpus or 0 for answer in answers}
    prices = [_price_row(gpu, counts) for gpu in gpus.values()]
    seen = [_published_row(row) for row in _best_published()]
    own = {answer.device: answer for answer in answers if answer.arithmetic == "int8"}
    cheap = min(used, key=lambda key: used[key])
    own_gflop = 2 * costs(RETINANET).macs(1, SIZES[RETINANET], SIZES[RETINANET]) / 1e9
    operations = published()["mlperf_network"]["gflop"]
    heaviest = decision.assumptions[0]
    measured = max(
        r["capacity"]["images_per_s"] for r in result(PAIR)["phases"]["pair"] if r["what"] == "pair" and r["count"] == 1
    )
    return {
        **seen_on_h200(),
        "size": SIZES[RETINANET],
        "devices": table(_COST_HEAD, rows),
        "prices": table(("GPU", "lowest USD/h", "a million, FP16 / INT8", "highest USD/h", "a million"), prices),
        "servers": table(("GPU", "GPUs", "rate/s a GPU", "P95 ms", "source"), seen),
        "p95_ms": f"{P95_MS:g}",
        "rate": f"{RATE:,.0f}",
        "answer": decision.answer,
        "reason": decision.reason,
        "assumption": f"{heaviest.name}, {heaviest.changed} instead of {heaviest.taken}: {heaviest.effect}",
        "cheapest": decision.devices[0].title.removeprefix("NVIDIA "),
        "cheapest_as": decision.devices[0].arithmetic.upper(),
        "cheapest_usd": f"{decision.devices[0].usd_per_million:.2f}",
        "h100_gain": times(_each(own["h100-sxm"]) / _each(own["a100-80"])),
        "h200_gain": times(_each(own["h200-sxm"]) / _each(own["h100-sxm"])),
        "mlperf_gflop": f"{operations:.0f}",
        "gflop": f"{own_gflop:.0f}",
        "h100_scaled": rate(_each(own["h100-sxm"]) * own_gflop / operations),
        "h100_published": rate(_most_published("h100-sxm")),
        "spread": times(max(max(ask) / min(ask) for ask in asked)),
        "h200_published": times(_most_published("h200-sxm") / _most_published("h100-sxm")),
        "h100_int8": rate(_each(own["h100-sxm"])),
        "full_cheapest": device(cheap[0]).title.removeprefix("NVIDIA "),
        "full_cheapest_as": cheap[1].upper(),
        "full_cheapest_usd": f"{used[cheap]:.2f}",
        "measured_one": rate(measured),
        "batch_one": rate(1000 / expected_ms(RETINANET, GPU, "fp16")),
        "pair_file": PAIR,
    }


_COST_HEAD = ("GPU", "precision", "img/s of one alone", "GPUs", "P95 ms", "USD/h", "USD per million", "one alone, full")


def _best_published() -> list[dict[str, Any]]:
    """Of each device the highest rate within the P95; where none is within it, all."""
    rows = published()["server"]
    within = {row["device"] for row in rows if row["p95_ms"] <= P95_MS}
    return [r for r in rows if r["device"] not in within or r["rate_per_s"] == _most_published(r["device"])]


def _most_published(gpu: str) -> float:
    """The highest published rate within the P95."""
    return max(float(row["rate_per_s"]) for row in published()["server"] if row["device"] == gpu and row["p95_ms"] <= P95_MS)


def _each(answer: Any) -> float:
    found: float = answer.rate_per_gpu or math.nan
    return found


def _price_row(gpu: DeviceFacts, counts: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    """The lowest and the highest price of the table, and what a million images cost at it."""
    cells = [gpu.title.removeprefix("NVIDIA ")]
    for pick in (min, max):
        price = pick(gpu.prices, key=lambda price: price.usd_per_hour)
        both = " / ".join(_million(price, counts[gpu.name, kind]) for kind in ("fp16", "int8"))
        cells += [f"{price.usd_per_hour:.2f} ({price.offer}, {price.date})", both]
    return tuple(cells)


def _million(price: Price, gpus: int) -> str:
    return f"{price.usd_per_hour * gpus / (3600 * RATE) * 1e6:.2f}"


def _published_row(row: dict[str, Any]) -> tuple[str, ...]:
    title = device(row["device"]).title.removeprefix("NVIDIA ")
    return title, str(row["gpus"]), f"{row['rate_per_s']:,}", f"{row['p95_ms']:g}", row["source"]


def _limits(gpu: DeviceFacts, gpus: int, each: float) -> NodeLimits:
    pixels = 3 * SIZES[RETINANET] * SIZES[RETINANET]
    node = Node(gpus=gpus, request_bytes=pixels, input_bytes=pixels, output_bytes=0, decode="none", network_per_s=each)
    return node_limits(gpu, node)
