"""A Grafana dashboard of one service, as the JSON that Grafana imports (schema of 10.1 and newer).

Plain data, as the library for it (grafana-foundation-sdk) needs Python 3.11; the tests hold every panel against its types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redline.observe.burn import FAST, SLOW
from redline.observe.decide import LEAST_ALLOWED, SLOW_ALLOWED
from redline.observe.rules import P95, ratio_name
from redline.records import Objective, ServeSpec

SOURCE = {"type": "prometheus", "uid": "${source}"}
COLUMNS = 24
"""Grafana's grid."""
HEIGHT, STAT_HEIGHT = 8, 4
SCHEMA_VERSION = 38
"""Grafana 10.1's; newer ones migrate it."""
GREEN, YELLOW, RED = "green", "yellow", "red"
Step = tuple[float | None, str]
"""From this value on, this colour; None: from the lowest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel; `queries` are expressions with their legends."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    width: int = 8
    kind: str = "timeseries"
    text: str = ""
    steps: tuple[Step, ...] = ()
    none: str = ""
    """Shown where there is no series at all."""
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...] = field(default=())


def make_dashboard(service: str, objective: Objective, policy: ServeSpec) -> dict[str, Any]:
    """The dashboard; it rests on the series that `rules.make_rules` records."""
    rows = (
        Row("Objective", (*_stats(service, objective, policy), *_objective(service, objective, policy))),
        Row("Releases", _releases(service, policy)),
        Row("Triton", _triton(service)),
        Row("GPU", _gpu()),
    )
    return {
        "uid": f"redline-{service}"[:40],
        "title": f"redline: {service}",
        "description": f"P95 within {objective.p95_ms:g} ms at {objective.throughput:g} requests/s.",
        "tags": ["redline"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "schemaVersion": SCHEMA_VERSION,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [{"name": "source", "type": "datasource", "label": "Prometheus", "query": "prometheus"}]},
        "panels": _laid_out(rows),
    }


def _stats(service: str, objective: Objective, policy: ServeSpec) -> tuple[Panel, ...]:
    mine = f'{{service="{service}"}}'
    active = f'redline_release_role{{service="{service}",role="active"}} == 1'
    limit_s = objective.p95_ms / 1000
    allowed = max(policy.error_pct / 100, LEAST_ALLOWED)
    return (
        Panel(title="Active release", queries=((active, "{{release}}"),), kind="stat", width=4, text="name", none="none"),
        Panel(
            title="P95 of the active release",
            queries=((f"{P95}{mine} and on (service, release) ({active})", "P95"),),
            unit="s",
            kind="stat",
            width=4,
            steps=((None, GREEN), (limit_s, RED)),
        ),
        Panel(
            title="Requests per second",
            queries=((f"sum(rate(redline_request_seconds_count{mine}[$__rate_interval]))", "requests"),),
            unit="reqps",
            kind="stat",
            width=4,
        ),
        Panel(
            title="Errors, 5 min",
            queries=((f"{ratio_name('errors', FAST.short)}{mine}", "errors"),),
            unit="percentunit",
            kind="stat",
            width=4,
            steps=((None, GREEN), (allowed, RED)),
        ),
        Panel(
            title="Triton",
            queries=((f"redline_server_up{mine}", "up"),),
            unit="bool_on_off",
            kind="stat",
            width=4,
            steps=((None, RED), (1, GREEN)),
        ),
        Panel(
            title="Restarts, 24 h",
            queries=((f"increase(redline_server_restarts_total{mine}[24h])", "restarts"),),
            kind="stat",
            width=4,
            steps=((None, GREEN), (1, YELLOW), (3, RED)),
        ),
    )


def _objective(service: str, objective: Objective, policy: ServeSpec) -> tuple[Panel, ...]:
    mine = f'{{service="{service}"}}'
    allowed = {"slow": SLOW_ALLOWED, "errors": max(policy.error_pct / 100, LEAST_ALLOWED)}
    burns = tuple(
        (f"{ratio_name(what, window)}{mine} / {share:g}", f"{'latency' if what == 'slow' else what} {window}")
        for what, share in allowed.items()
        for window in (FAST.short, FAST.long, SLOW.long)
    )
    buckets = f"sum by (le) (increase(redline_request_seconds_bucket{mine}[$__rate_interval]))"
    return (
        Panel(
            title="P95 by release",
            queries=((f"{P95}{mine}", "release {{release}}"), (f"redline_objective_seconds{mine}", "objective")),
            unit="s",
            text="Over 5 minutes, from the buckets of all replicas.",
            steps=((None, GREEN), (objective.p95_ms / 1000, RED)),
        ),
        Panel(
            title="Burn rate",
            queries=burns,
            text=f"1: the objective is just met. Alerts at {SLOW.rate:g} and {FAST.rate:g}.",
            steps=((None, GREEN), (1, YELLOW), (SLOW.rate, RED)),
        ),
        Panel(title="Latencies", queries=((buckets, "{{le}}"),), unit="s", kind="heatmap", text="Requests by bucket."),
    )


def _releases(service: str, policy: ServeSpec) -> tuple[Panel, ...]:
    mine = f'service="{service}"'
    boxes = f"sum by (release) (increase(redline_shadow_boxes_total{{{mine}%s}}[10m]))"
    differing = boxes % ',outcome="differing"'
    return (
        Panel(
            title="Requests by release",
            queries=((f"sum by (release) (rate(redline_request_seconds_count{{{mine}}}[$__rate_interval]))", "{{release}}"),),
            unit="reqps",
        ),
        Panel(
            title="Answers other than 200",
            queries=((f'sum by (code) (rate(redline_requests_total{{{mine},code!="200"}}[$__rate_interval]))', "{{code}}"),),
            unit="reqps",
            none="none",
        ),
        Panel(
            title="Boxes that differ",
            queries=((f"{differing} / {boxes % ''}", "release {{release}}"),),
            unit="percentunit",
            text="Of shadowed requests, 10 minutes.",
            steps=((None, GREEN), (policy.disagreement_pct / 100, RED)),
            none="nothing was compared",
        ),
        Panel(
            title="Roles",
            queries=((f"redline_release_role{{{mine}}} == 1", "{{release}} {{role}}"),),
            kind="state-timeline",
            width=12,
        ),
        Panel(
            title="Switches and lost requests",
            queries=(
                (f"increase(redline_switches_total{{{mine}}}[$__rate_interval])", "{{cause}}"),
                (f"increase(redline_lost_requests_total{{{mine}}}[$__rate_interval])", "lost"),
            ),
            width=12,
        ),
    )


def _triton(service: str) -> tuple[Panel, ...]:
    models = f'{{model=~"{service}(_r[0-9]+)?(_[a-z]+)?"}}'

    def rate(name: str) -> str:
        return f"sum by (model) (rate(nv_inference_{name}{models}[$__rate_interval]))"

    computing = " + ".join(rate(f"compute_{part}_duration_us") for part in ("input", "infer", "output"))
    # What is idle has no mean, and would be a line of NaN.
    requests, runs = f"({rate('request_success')} > 0)", f"({rate('exec_count')} > 0)"
    return (
        Panel(title="Queue", queries=((f"{rate('queue_duration_us')} / {requests} / 1e6", "{{model}}"),), unit="s", width=6),
        Panel(title="Compute", queries=((f"({computing}) / {requests} / 1e6", "{{model}}"),), unit="s", width=6),
        Panel(title="Batch", queries=((f"{rate('count')} / {runs}", "{{model}}"),), width=6, text="Inferences per execution."),
        Panel(
            title="Instances at work",
            queries=((f"({computing}) / 1e6 * {runs} / {requests}", "{{model}}"),),
            width=6,
            text="Time spent executing per second.",
        ),
        Panel(
            title="Waiting requests",
            queries=((f"nv_inference_pending_request_count{models}", "{{model}}"),),
            width=12,
        ),
        Panel(
            title="Failures in Triton",
            queries=(
                (
                    f"sum by (model, reason) (rate(nv_inference_request_failure{models}[$__rate_interval]))",
                    "{{model}} {{reason}}",
                ),
            ),
            unit="reqps",
            width=12,
        ),
    )


def _gpu() -> tuple[Panel, ...]:
    none = "no GPU is reported"
    return (
        Panel(title="Utilization", queries=(("nv_gpu_utilization", "{{gpu_uuid}}"),), unit="percentunit", none=none, most=1),
        Panel(
            title="Memory",
            queries=(("nv_gpu_memory_used_bytes / nv_gpu_memory_total_bytes", "{{gpu_uuid}}"),),
            unit="percentunit",
            none=none,
            most=1,
        ),
        Panel(
            title="Power",
            queries=(("nv_gpu_power_usage", "{{gpu_uuid}}"), ("nv_gpu_power_limit", "limit of {{gpu_uuid}}")),
            unit="watt",
            none=none,
        ),
    )


def _laid_out(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Panels from left to right, each row under its title."""
    made: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        made.append({"id": len(made) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": []})
        made[-1]["gridPos"] = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        y, x, tallest = y + 1, 0, 0
        for panel in row.panels:
            height = STAT_HEIGHT if panel.kind == "stat" else HEIGHT
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            position = {"x": x, "y": y, "w": panel.width, "h": height}
            made.append({"id": len(made) + 1, **_panel(panel), "gridPos": position})
            x, tallest = x + panel.width, max(tallest, height)
        y += tallest
    return made


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.steps:
        steps = [{"value": value, "color": color} for value, color in panel.steps]
        defaults |= {"thresholds": {"mode": "absolute", "steps": steps}}
    if panel.none:
        defaults["noValue"] = panel.none
    if panel.most is not None:
        defaults |= {"min": 0, "max": panel.most}
    if panel.kind == "timeseries":
        defaults["custom"] = {"lineWidth": 2, "fillOpacity": 8, "showPoints": "never"}
        if panel.steps:
            defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expr, "legendFormat": legend, "range": True}
        for index, (expr, legend) in enumerate(panel.queries)
    ]
    made = {"type": panel.kind, "title": panel.title, "datasource": SOURCE, "targets": targets}
    if panel.text and panel.kind != "stat":
        made["description"] = panel.text
    if panel.kind == "stat":
        made["options"] = {"textMode": panel.text or "auto", "colorMode": "value", "reduceOptions": {"calcs": ["lastNotNull"]}}
    if panel.kind == "heatmap":
        targets[0]["format"] = "heatmap"
        made["options"] = {"calculate": False, "yAxis": {"unit": panel.unit}}
    return {**made, "fieldConfig": {"defaults": defaults, "overrides": []}}
