"""Each alert fires where it must and not where it must not, by promtool's own evaluation of the generated file."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_case import find_prometheus, promtool, rule_test

from redline.observe.rules import make_rules, rules_yaml
from redline.records import Objective, ServeSpec

OBJECTIVE, POLICY = Objective(p95_ms=20.0, throughput=30.0), ServeSpec()
MINE, RELEASE = 'service="detector"', 'service="detector",release="4",entry="bytes"'
TICKET, PAGE = (f'severity="{severity}",{MINE}' for severity in ("ticket", "page"))
ALERTS = {
    rule["alert"] for group in make_rules("detector", OBJECTIVE, POLICY)["groups"] for rule in group["rules"] if "alert" in rule
}
SIX_HOURS = 1500
"""Samples at 15 s."""


@pytest.fixture(scope="module")
def programs() -> Path:
    try:
        return find_prometheus()
    except RuntimeError as error:
        pytest.skip(f"no promtool: {error}")


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "detector.rules.yml"
    path.write_text(rules_yaml("detector", OBJECTIVE, POLICY))
    return path


def traffic(slow_pct: float = 2.0, failed_pct: float = 0.0, samples: int = SIX_HOURS, replicas: int = 2) -> dict[str, str]:
    """450 requests in 15 s at each replica. The bucket above the objective holds the slow ones."""
    made: dict[str, str] = {f'up{{job="redline-detector",instance="{one}"}}': f"1x{samples}" for one in range(replicas)}
    for one in range(replicas):
        at = f'instance="{one}"'
        for edge, share in (("0.01", 50 - slow_pct / 2), ("0.02", 100 - slow_pct), ("0.2", 100), ("+Inf", 100)):
            made[f'redline_request_seconds_bucket{{{RELEASE},{at},le="{edge}"}}'] = f"0+{4.5 * share:g}x{samples}"
        made[f"redline_request_seconds_count{{{RELEASE},{at}}}"] = f"0+450x{samples}"
        made[f'redline_requests_total{{{RELEASE},{at},code="200"}}'] = f"0+{4.5 * (100 - failed_pct):g}x{samples}"
        made[f'redline_requests_total{{{RELEASE},{at},code="400"}}'] = f"0+300x{samples}"
        if failed_pct:
            made[f'redline_requests_total{{{RELEASE},{at},code="503"}}'] = f"0+{4.5 * failed_pct:g}x{samples}"
    return made


def fired(alert: str, severity: str, extra: str = "") -> str:
    return f'ALERTS{{alertname="{alert}",alertstate="firing",severity="{severity}",{MINE}{extra}}}'


def check(programs: Path, rules: Path, series: dict[str, str], at: str, expected: dict[str, str], tmp_path: Path) -> None:
    """Exactly the alerts `expected` (name to labels of the one that fires) are firing at `at`, of all that there are."""
    test = tmp_path / "test.yml"
    test.write_text(
        rule_test(rules, series, [(at, alert, [expected[alert]] if alert in expected else []) for alert in sorted(ALERTS)])
    )
    code, said = promtool(programs, "test", "rules", str(test))
    assert code == 0, said


def test_promtool_accepts_the_file_and_refuses_a_broken_one(programs: Path, rules: Path) -> None:
    code, said = promtool(programs, "check", "rules", str(rules))
    assert code == 0, said
    assert "25 rules found" in said
    rules.write_text(rules.read_text().replace("histogram_quantile(", "histogram_quantil(", 1))
    assert promtool(programs, "check", "rules", str(rules))[0] != 0


def test_the_test_itself_can_fail(programs: Path, rules: Path, tmp_path: Path) -> None:
    test = tmp_path / "test.yml"
    test.write_text(
        rule_test(rules, traffic(samples=60), [("10m", "RedlineLatencyBurnFast", [fired("RedlineLatencyBurnFast", "page")])])
    )
    assert promtool(programs, "test", "rules", str(test))[0] != 0


def test_nothing_fires_for_a_healthy_service_without_a_gpu(programs: Path, rules: Path, tmp_path: Path) -> None:
    healthy = traffic(slow_pct=2.0, failed_pct=0.05) | {
        f"redline_server_up{{{MINE}}}": f"1x{SIX_HOURS}",
        f"redline_server_restarts_total{{{MINE}}}": f"2x{SIX_HOURS}",
        f"redline_lost_requests_total{{{MINE}}}": f"7x{SIX_HOURS}",
        f'redline_switches_total{{{MINE},cause="promote"}}': f"1x700 2x{SIX_HOURS - 700}",
        f'redline_switches_total{{{MINE},cause="automatic"}}': f"1x{SIX_HOURS}",
        f'redline_shadow_boxes_total{{{MINE},release="4",outcome="same"}}': f"0+97x{SIX_HOURS}",
        f'redline_shadow_boxes_total{{{MINE},release="4",outcome="differing"}}': f"0+3x{SIX_HOURS}",
        'nv_inference_queue_duration_us{model="detector_r4",version="4"}': f"0+900000x{SIX_HOURS}",
        'nv_inference_request_success{model="detector_r4",version="4"}': f"0+450x{SIX_HOURS}",
    }
    check(programs, rules, healthy, "6h10m", {}, tmp_path)


def test_nothing_fires_without_traffic(programs: Path, rules: Path, tmp_path: Path) -> None:
    series = {name: values if name.startswith("up") else "100x300" for name, values in traffic(samples=300).items()}
    check(programs, rules, series, "1h", {}, tmp_path)


def test_p95_is_of_the_buckets_of_all_replicas(programs: Path, rules: Path, tmp_path: Path) -> None:
    """2 % over 20 ms, 49 % up to 10 ms: rank 95 % lies (95 - 49) / 49 within the bucket from 10 to 20 ms."""
    value = 0.01 + 0.01 * (95 - 49) / 49
    queries = [
        {
            "expr": "round(service_release:redline_request_seconds:p95_5m, 0.000001)",
            "eval_time": "30m",
            "exp_samples": [{"labels": f'{{{MINE},release="4"}}', "value": round(value, 6)}],
        },
        {
            "expr": "round(service:redline_slow:ratio_1h, 0.0001)",
            "eval_time": "30m",
            "exp_samples": [{"labels": f"{{{MINE}}}", "value": 0.02}],
        },
    ]
    test = tmp_path / "test.yml"
    test.write_text(rule_test(rules, traffic(samples=200), [], promql_expr_test=queries))
    code, said = promtool(programs, "test", "rules", str(test))
    assert code == 0, said


@pytest.mark.parametrize(
    ("slow_pct", "failed_pct", "expected"),
    [
        (
            90.0,
            0.0,
            {
                "RedlineLatencyBurnFast": fired("RedlineLatencyBurnFast", "page"),
                "RedlineLatencyBurnSlow": fired("RedlineLatencyBurnSlow", "ticket"),
                "RedlineP95OverObjective": fired("RedlineP95OverObjective", "ticket", ',release="4"'),
            },
        ),
        (
            40.0,
            0.0,
            {
                "RedlineLatencyBurnSlow": fired("RedlineLatencyBurnSlow", "ticket"),
                "RedlineP95OverObjective": fired("RedlineP95OverObjective", "ticket", ',release="4"'),
            },
        ),
        (8.0, 0.0, {"RedlineP95OverObjective": fired("RedlineP95OverObjective", "ticket", ',release="4"')}),
        (
            2.0,
            5.0,
            {
                "RedlineErrorBurnFast": fired("RedlineErrorBurnFast", "page"),
                "RedlineErrorBurnSlow": fired("RedlineErrorBurnSlow", "ticket"),
            },
        ),
        (2.0, 1.0, {"RedlineErrorBurnSlow": fired("RedlineErrorBurnSlow", "ticket")}),
    ],
)
def test_the_objective_is_burnt(
    slow_pct: float, failed_pct: float, expected: dict[str, str], programs: Path, rules: Path, tmp_path: Path
) -> None:
    check(programs, rules, traffic(slow_pct, failed_pct, samples=300), "1h", expected, tmp_path)


def test_an_alert_ends_soon_after_the_trouble(programs: Path, rules: Path, tmp_path: Path) -> None:
    """All slow for an hour, then none: ten minutes later the long window still burns and the short one does not."""
    series = traffic(100.0, samples=240)
    for name, values in series.items():
        if name.startswith("redline") and 'le="0.0' in name:
            series[name] = "0x240 450+450x80"
        elif name.startswith("redline"):
            series[name] = values.replace("x240", "x320")
        else:
            series[name] = "1x320"
    firing = {"RedlineLatencyBurnSlow": fired("RedlineLatencyBurnSlow", "ticket")}
    both = firing | {
        "RedlineLatencyBurnFast": fired("RedlineLatencyBurnFast", "page"),
        "RedlineP95OverObjective": fired("RedlineP95OverObjective", "ticket", ',release="4"'),
    }
    check(programs, rules, series, "59m", both, tmp_path)
    check(programs, rules, series, "70m", firing, tmp_path)


SERVER = {
    "RedlineServerDown": ({f"redline_server_up{{{MINE}}}": "1x20 0x20"}, "7m", PAGE),
    "RedlineServerRestarted": ({f"redline_server_restarts_total{{{MINE}}}": "0x20 1x40"}, "10m", TICKET),
    "RedlineRequestsLost": ({f"redline_lost_requests_total{{{MINE}}}": "0x20 4x40"}, "10m", TICKET),
    "RedlineAutomaticRollback": (
        {f'redline_switches_total{{{MINE},cause="automatic"}}': "0x20 1x40"},
        "8m",
        f'{TICKET},cause="automatic"',
    ),
    "RedlineDisagreement": (
        {
            f'redline_shadow_boxes_total{{{MINE},release="4",outcome="same"}}': "0+8x60",
            f'redline_shadow_boxes_total{{{MINE},release="4",outcome="differing"}}': "0+2x60",
        },
        "14m",
        f'{PAGE},release="4"',
    ),
    "RedlineQueueing": (
        {
            'nv_inference_queue_duration_us{model="detector_r4",version="4"}': "0+5400000x60",
            'nv_inference_request_success{model="detector_r4",version="4"}': "0+450x60",
        },
        "12m",
        f'{TICKET},model="detector_r4"',
    ),
}


@pytest.mark.parametrize("alert", SERVER)
def test_the_server_is_in_trouble(alert: str, programs: Path, rules: Path, tmp_path: Path) -> None:
    series, at, labels = SERVER[alert]
    expected = {alert: f'ALERTS{{alertname="{alert}",alertstate="firing",{labels}}}'}
    check(programs, rules, traffic(samples=60) | series, at, expected, tmp_path)


def test_few_boxes_say_nothing(programs: Path, rules: Path, tmp_path: Path) -> None:
    series = {
        f'redline_shadow_boxes_total{{{MINE},release="4",outcome="same"}}': "0+1x60",
        f'redline_shadow_boxes_total{{{MINE},release="4",outcome="differing"}}': "0+1x60",
    }
    check(programs, rules, traffic(samples=60) | series, "14m", {}, tmp_path)


def test_a_server_that_keeps_crashing(programs: Path, rules: Path, tmp_path: Path) -> None:
    series = traffic(samples=60) | {f"redline_server_restarts_total{{{MINE}}}": "0x10 1x10 2x10 3x30"}
    expected = {
        name: fired(name, severity)
        for name, severity in (("RedlineServerRestarted", "ticket"), ("RedlineServerCrashLoop", "page"))
    }
    check(programs, rules, series, "14m", expected, tmp_path)


def test_a_gateway_that_is_down_or_not_scraped(programs: Path, rules: Path, tmp_path: Path) -> None:
    down = {'up{job="redline-detector",instance="0"}': "1x10 0x30"}
    labels = f'{PAGE},job="redline-detector"'
    expected = f'ALERTS{{alertname="RedlineGatewayDown",alertstate="firing",{labels},instance="0"}}'
    check(programs, rules, down, "6m", {"RedlineGatewayDown": expected}, tmp_path)
    expected = f'ALERTS{{alertname="RedlineGatewayDown",alertstate="firing",{labels}}}'
    check(programs, rules, {"other": "1x40"}, "6m", {"RedlineGatewayDown": expected}, tmp_path)


def gpu(used: float, watt: float, samples: str) -> dict[str, str]:
    at = 'gpu_uuid="GPU-a",instance="0"'
    return {
        f"nv_gpu_memory_total_bytes{{{at}}}": f"100{samples}",
        f"nv_gpu_memory_used_bytes{{{at}}}": f"{used:g}{samples}",
        f"nv_gpu_power_usage{{{at}}}": f"{watt:g}{samples}",
        f"nv_gpu_power_limit{{{at}}}": f"400{samples}",
    }


@pytest.mark.parametrize(
    ("used", "watt", "samples", "alerts"),
    [
        (60, 300, "x160", ()),
        (97, 300, "x160", (("RedlineGpuMemory", "ticket"),)),
        (60, 398, "x160", (("RedlineGpuPowerLimit", "ticket"),)),
        (97, 398, "x80 _x80", (("RedlineGpuGone", "page"),)),
    ],
)
def test_gpus(
    used: float, watt: float, samples: str, alerts: tuple[tuple[str, str], ...], programs: Path, rules: Path, tmp_path: Path
) -> None:
    """Healthy, full, at its power limit, and gone after 20 minutes."""
    expected = {name: fired(name, severity, ',gpu_uuid="GPU-a",instance="0"') for name, severity in alerts}
    check(programs, rules, traffic(samples=160) | gpu(used, watt, samples), "30m", expected, tmp_path)


def test_what_an_alert_says(programs: Path, rules: Path, tmp_path: Path) -> None:
    alert = {
        "eval_time": "1h",
        "alertname": "RedlineErrorBurnFast",
        "exp_alerts": [
            {
                "exp_labels": {"severity": "page", "service": "detector"},
                "exp_annotations": {
                    "summary": "detector: 5% of the requests fail",
                    "description": "0.1 % may be; over 5m and 1h it was more than 1.44 %.",
                },
            }
        ],
    }
    test = tmp_path / "test.yml"
    test.write_text(rule_test(rules, traffic(failed_pct=5.0, samples=300), [], alert_rule_test=[alert]))
    code, said = promtool(programs, "test", "rules", str(test))
    assert code == 0, said


def test_every_alert_was_seen_firing() -> None:
    """By the cases above; a new alert needs one."""
    named = set(SERVER) | {
        "RedlineServerCrashLoop",
        "RedlineGatewayDown",
        "RedlineGpuMemory",
        "RedlineGpuPowerLimit",
        "RedlineGpuGone",
    }
    named |= {f"Redline{kind}Burn{speed}" for kind in ("Latency", "Error") for speed in ("Fast", "Slow")} | {
        "RedlineP95OverObjective"
    }
    assert named == ALERTS
