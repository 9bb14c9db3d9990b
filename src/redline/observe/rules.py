"""Prometheus recording and alerting rules of one service, made from its objective and policy."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from redline.errors import BadInput
from redline.observe.burn import FAST, SLOW, Pair, threshold
from redline.observe.decide import LEAST_ALLOWED, SLOW_ALLOWED
from redline.records import Objective, ServeSpec

P95 = "service_release:redline_request_seconds:p95_5m"
LEAST_BOXES = 200
"""Fewer compared boxes than this say nothing about agreement."""
UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Windows:
    """Window names as durations. `scale` < 1 shortens all of them, for tests that cannot wait for hours."""

    scale: float = 1.0

    def __call__(self, name: str) -> str:
        """ "5m" as Prometheus takes it, scaled: in whole milliseconds where that is not 1."""
        if self.scale == 1:
            return name
        return f"{max(round(1000 * self.scale * float(name[:-1]) * UNITS_S[name[-1]]), 1)}ms"


def make_rules(service: str, objective: Objective, policy: ServeSpec, *, windows: Windows | None = None) -> dict[str, Any]:
    """The rule file as data: what `rules_yaml` writes. Recorded series keep the names of their unscaled windows.

    Raises BadInput if `service` cannot be a label value in an expression.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", service):
        what = "this service name cannot be used in monitoring rules"
        raise BadInput("watch.service", what, got=service, allowed="a letter, then letters, digits, _ and -", fix="rename it")
    within = windows or Windows()
    allowed_errors = max(policy.error_pct / 100, LEAST_ALLOWED)
    made = _Rules(service, objective, policy, within, allowed_errors)
    return {
        "groups": [
            {"name": f"redline-{service}-recorded", "interval": within("15s"), "rules": made.recorded()},
            {"name": f"redline-{service}-objective", "interval": within("15s"), "rules": made.objective_alerts()},
            {"name": f"redline-{service}-server", "interval": within("15s"), "rules": made.server_alerts()},
            {"name": f"redline-{service}-gpu", "interval": within("30s"), "rules": made.gpu_alerts()},
        ]
    }


def rules_yaml(service: str, objective: Objective, policy: ServeSpec, *, windows: Windows | None = None) -> str:
    """The rule file. Raises BadInput (also where PyYAML is not installed)."""
    head = (
        f"# Rules of the service {service}: P95 within {objective.p95_ms:g} ms, at most {policy.error_pct:g} % errors.\n"
        "# Made by redline watch --export. Load it with rule_files in prometheus.yml; check it with promtool check rules.\n"
    )
    return head + to_yaml(make_rules(service, objective, policy, windows=windows))


def to_yaml(value: object) -> str:
    """Raises BadInput where PyYAML is not installed."""
    try:
        import yaml
    except ImportError as error:
        raise BadInput("watch.library", "PyYAML is not installed", got=error, fix='pip install "redline[triton]"') from error
    return str(yaml.safe_dump(value, sort_keys=False, width=160, allow_unicode=True))


def edge_label(seconds: float) -> str:
    """A bucket's edge as the gateway writes it in `le`: prometheus-client's text of a float below a million."""
    return repr(float(seconds))


def ratio_name(what: str, window: str) -> str:
    """Recorded share of "slow" requests or "errors" of the service over a window."""
    return f"service:redline_{what}:ratio_{window}"


@dataclass(frozen=True, slots=True)
class _Rules:
    service: str
    objective: Objective
    policy: ServeSpec
    within: Windows
    allowed_errors: float

    @property
    def selector(self) -> str:
        return f'service="{self.service}"'

    def recorded(self) -> list[dict[str, Any]]:
        """P95 from buckets added over replicas and entries, and the shares that burn rates need, over their four windows."""
        buckets = (
            f"sum by (le, service, release) (rate(redline_request_seconds_bucket{{{self.selector}}}[{self.within('5m')}]))"
        )
        found = [{"record": P95, "expr": f"histogram_quantile(0.95, {buckets})"}]
        for window in (FAST.short, SLOW.short, FAST.long, SLOW.long):
            found.append({"record": ratio_name("slow", window), "expr": self._slow(self.within(window))})
            found.append({"record": ratio_name("errors", window), "expr": self._errors(self.within(window))})
        return found

    def objective_alerts(self) -> list[dict[str, Any]]:
        found = []
        for pair, severity in ((FAST, "page"), (SLOW, "ticket")):
            found.append(self._burns("Latency", "slow", pair, severity, SLOW_ALLOWED))
            found.append(self._burns("Error", "errors", pair, severity, self.allowed_errors))
        limit_s = edge_label(self.objective.p95_ms / 1000)
        found.append(
            self._alert(
                "P95OverObjective",
                f"{P95}{{{self.selector}}} > {limit_s}",
                "ticket",
                "P95 of release {{ $labels.release }} is {{ $value | humanizeDuration }}",
                f"The objective is {self.objective.p95_ms:g} ms. redline watch shows which part of a request is slow.",
                hold="5m",
            )
        )
        boxes = f"sum by (service, release) (increase(redline_shadow_boxes_total{{{self.selector}%s}}[{self.within('10m')}]))"
        compared, differing = boxes % "", boxes % ',outcome="differing"'
        found.append(
            self._alert(
                "Disagreement",
                f"({differing} / {compared}) > {self.policy.disagreement_pct / 100:g} and {compared} > {LEAST_BOXES}",
                "page",
                "{{ $value | humanizePercentage }} of the boxes of release {{ $labels.release }} differ",
                f"At most {self.policy.disagreement_pct:g} % may differ from the release that was served before.",
            )
        )
        found.append(
            self._alert(
                "AutomaticRollback",
                f'increase(redline_switches_total{{{self.selector},cause="automatic"}}[{self.within("10m")}]) > 0',
                "ticket",
                "A release was rolled back by itself",
                "It breached its objective while it was on probation. redline release --status has the reason.",
            )
        )
        return found

    def server_alerts(self) -> list[dict[str, Any]]:
        job, models = f'up{{job="redline-{self.service}"}}', f'model=~"{self.service}(_r[0-9]+)?(_[a-z]+)?"'
        restarts = f"increase(redline_server_restarts_total{{{self.selector}}}[{self.within('15m')}])"
        queue = [
            f"sum by (model) (rate(nv_inference_{name}{{{models}}}[{self.within('5m')}]))"
            for name in ("queue_duration_us", "request_success")
        ]
        half_us = 1000 * self.objective.p95_ms / 2
        return [
            self._alert(
                "GatewayDown",
                f"{job} == 0 or absent({job})",
                "page",
                "The gateway does not answer",
                "Nothing is served, or Prometheus does not scrape it: the scrape job must be named as in prometheus.yml here.",
                hold="1m",
            ),
            self._alert(
                "ServerDown",
                f"redline_server_up{{{self.selector}}} == 0",
                "page",
                "Triton is down behind the gateway",
                "It is restarted by itself; this alert means that the restart does not succeed.",
                hold="30s",
            ),
            self._alert(
                "ServerRestarted",
                f"{restarts} > 0",
                "ticket",
                "Triton was restarted",
                "It ended by itself. Its log (triton.log in the service's folder) says why; three in 15 minutes page.",
            ),
            self._alert(
                "ServerCrashLoop",
                f"{restarts} >= 3",
                "page",
                "Triton keeps crashing",
                "Roll back by hand if the active release is new: redline rollback.",
            ),
            self._alert(
                "RequestsLost",
                f"increase(redline_lost_requests_total{{{self.selector}}}[{self.within('15m')}]) > 0",
                "ticket",
                "Requests were lost with Triton",
                "Their clients got an error and may send them again.",
            ),
            self._alert(
                "Queueing",
                f"{queue[0]} / {queue[1]} > {half_us:g}",
                "ticket",
                "Requests of {{ $labels.model }} wait for half of the objective or more",
                "The rate is near what the machine can do: add a replica, or raise batch or instances.",
                hold="5m",
            ),
        ]

    def gpu_alerts(self) -> list[dict[str, Any]]:
        """Where no GPU reports anything, each of these has no series and stays silent."""
        gone = f"count by (instance, gpu_uuid) (nv_gpu_memory_total_bytes offset {self.within('15m')})"
        return [
            self._alert(
                "GpuMemory",
                "nv_gpu_memory_used_bytes / nv_gpu_memory_total_bytes > 0.95",
                "ticket",
                "GPU {{ $labels.gpu_uuid }} has {{ $value | humanizePercentage }} of its memory in use",
                "The next release is loaded beside the active one and may not fit.",
                hold="5m",
            ),
            self._alert(
                "GpuPowerLimit",
                "nv_gpu_power_usage / nv_gpu_power_limit > 0.98",
                "ticket",
                "GPU {{ $labels.gpu_uuid }} runs at its power limit",
                "Its clocks fall, and latency rises with the load.",
                hold="15m",
            ),
            self._alert(
                "GpuGone",
                f"{gone} unless count by (instance, gpu_uuid) (nv_gpu_memory_total_bytes)",
                "page",
                "GPU {{ $labels.gpu_uuid }} is not reported any more",
                "It was 15 minutes ago. The driver's log (dmesg, Xid) says whether it fell off the bus.",
            ),
        ]

    def _slow(self, window: str) -> str:
        """Share of requests over the objective: exact, as the objective is a bucket's edge."""
        edge = edge_label(self.objective.p95_ms / 1000)
        rate = f"sum by (service) (rate(redline_request_seconds_%s{{{self.selector}%s}}[{window}]))"
        return f"1 - {rate % ('bucket', f',le={json.dumps(edge)}')} / {rate % ('count', '')}"

    def _errors(self, window: str) -> str:
        """Share of server errors among requests that were no client's error; 0 where there was none."""
        rate = f"sum by (service) (rate(redline_requests_total{{{self.selector},code%s}}[{window}]))"
        answered, failed = rate % '!~"4.."', rate % '=~"5.."'
        return f"({failed} or 0 * {answered}) / {answered}"

    def _burns(self, name: str, what: str, pair: Pair, severity: str, allowed: float) -> dict[str, Any]:
        share = threshold(pair, allowed)
        limit = f"{share:.6g}"
        both = " and ".join(f"{ratio_name(what, window)}{{{self.selector}}} > {limit}" for window in (pair.short, pair.long))
        kind = "requests are slow" if what == "slow" else "requests fail"
        return self._alert(
            f"{name}Burn{pair.name.capitalize()}",
            both,
            severity,
            f"{{{{ $value | humanizePercentage }}}} of the {kind}",
            f"{100 * allowed:g} % may be; over {pair.short} and {pair.long} it was more than {100 * share:.4g} %.",
        )

    def _alert(self, name: str, expr: str, severity: str, summary: str, text: str, hold: str | None = None) -> dict[str, Any]:
        waiting = {} if hold is None else {"for": self.within(hold)}
        labels = {"severity": severity, "service": self.service}
        annotations = {"summary": f"{self.service}: {summary}", "description": text}
        return {"alert": f"Redline{name}", "expr": expr, **waiting, "labels": labels, "annotations": annotations}
