"""What Triton's own metrics say of each model and of the GPUs, if there are any."""

from __future__ import annotations

import re
from dataclasses import dataclass

from redline.observe.ledger import Increase
from redline.observe.scrape import Scrape


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelActivity:
    """One model of the server over a window. Times are means per request; None where nothing was executed."""

    model: str
    version: str
    requests_per_s: float
    failures_per_s: float
    batch: float | None
    """Inferences joined into one execution: inference count over execution count."""
    queue_ms: float | None
    input_ms: float | None
    infer_ms: float | None
    output_ms: float | None
    busy: float
    """Instances at work, on average: time spent executing per second. Triton's metrics do not tell how many there are."""
    pending: int
    """Requests that wait now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """One GPU now, as far as the driver tells."""

    uuid: str
    utilization: float | None
    """0 to 1."""
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    power_w: float | None
    power_limit_w: float | None


def models_of(scrape: Scrape, increase: Increase, service: str | None = None) -> tuple[ModelActivity, ...]:
    """Models that did or wait for something, those of `service` alone if it is given; by name.

    An ensemble executes nothing itself: its times are those of its steps.
    """
    mine = re.compile(rf"{re.escape(service)}(_r\d+)?(_\w+)?") if service is not None else re.compile(".*")
    keys = {
        (sample.labels["model"], sample.labels.get("version", ""))
        for sample in scrape.samples
        if sample.name.startswith("nv_inference_") and mine.fullmatch(sample.labels.get("model", ""))
    }
    found = [_model(scrape, increase, model, version) for model, version in sorted(keys)]
    return tuple(one for one in found if one.requests_per_s or one.failures_per_s or one.pending)


def _model(scrape: Scrape, increase: Increase, model: str, version: str) -> ModelActivity:
    def grew(name: str) -> float:
        return increase.total(f"nv_inference_{name}_total", model=model, version=version)

    seconds, requests, executions = increase.seconds, grew("request_success"), grew("exec_count")
    parts_us = [grew(f"compute_{part}_duration_us") for part in ("input", "infer", "output")]

    def mean_ms(total_us: float) -> float | None:
        return total_us / requests / 1000 if requests and executions else None

    # Each request of a batch is charged with the time of the whole batch, which was spent once.
    busy = sum(parts_us) / 1e6 / seconds * executions / requests if seconds and requests else 0.0
    input_ms, infer_ms, output_ms = (mean_ms(part) for part in parts_us)
    return ModelActivity(
        model=model,
        version=version,
        requests_per_s=requests / seconds if seconds else 0.0,
        failures_per_s=grew("request_failure") / seconds if seconds else 0.0,
        batch=grew("count") / executions if executions else None,
        queue_ms=mean_ms(grew("queue_duration_us")),
        input_ms=input_ms,
        infer_ms=infer_ms,
        output_ms=output_ms,
        busy=busy,
        pending=round(scrape.value("nv_inference_pending_request_count", model=model, version=version) or 0.0),
    )


def gpus_of(scrape: Scrape) -> tuple[GpuUse, ...]:
    """Every GPU that the server reports; none on a machine without one, or with --allow-gpu-metrics=false."""
    uuids = {sample.labels["gpu_uuid"] for sample in scrape.samples if "gpu_uuid" in sample.labels}

    def gpu(uuid: str) -> GpuUse:
        def value(name: str) -> float | None:
            return scrape.value(f"nv_gpu_{name}", gpu_uuid=uuid)

        return GpuUse(
            uuid=uuid,
            utilization=value("utilization"),
            memory_used_bytes=value("memory_used_bytes"),
            memory_total_bytes=value("memory_total_bytes"),
            power_w=value("power_usage"),
            power_limit_w=value("power_limit"),
        )

    return tuple(gpu(uuid) for uuid in sorted(uuids))
