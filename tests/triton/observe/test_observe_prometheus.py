"""The generated files in a real Prometheus that scrapes a real service: its gateway and its Triton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_case import Prometheus, find_prometheus, promtool, running, wait
from service_case import CUSTOM, Case, Stream, promoted, serving

from redline import watching
from redline.observe.dashboard import make_dashboard
from redline.observe.export import Exported, export_monitoring
from redline.observe.rules import P95, Windows, make_rules, ratio_name, rules_yaml
from redline.records import ServeSpec

SCALE = 1 / 120
"""An hour is half a minute."""
SCRAPE = "500ms"
ABSENT = {"Utilization", "Memory", "Power", "Answers other than 200", "Boxes that differ"}
"""Panels without data: no GPU, no failure, nothing shadowed."""
RATE = 20.0


@pytest.fixture(scope="module")
def programs() -> Path:
    try:
        return find_prometheus()
    except RuntimeError as error:
        pytest.skip(f"no prometheus: {error}")


@pytest.fixture(scope="module")
def case(environment: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """A service with one release, which has a head that can be told to be slow."""
    made = Case(tmp_path_factory.mktemp("observed"), head=CUSTOM, p95_ms=200.0, throughput=RATE)
    with serving(made) as service:
        promoted(service, made.add())
        yield made


@pytest.fixture(scope="module")
def exported(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """As `redline watch --export` writes them, but with an hour as half a minute."""
    watched = watching.own(case.spec, case.service)
    made = watching.export(watched, tmp_path_factory.mktemp("monitoring"))
    assert watched.triton is not None
    spec = case.spec
    again = export_monitoring(
        made.rules.parent / "same",
        spec.serve.name,
        spec.objective,
        spec.serve,
        gateways=(watched.gateway,),
        tritons=(watched.triton,),
    )
    assert made.rules.read_text() == again.rules.read_text()
    assert made.dashboard.read_text() == again.dashboard.read_text()
    made.rules.write_text(rules_yaml(spec.serve.name, spec.objective, spec.serve, windows=Windows(SCALE)))
    configuration = yaml.safe_load(made.prometheus.read_text())
    configuration["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": "250ms"}
    made.prometheus.write_text(yaml.safe_dump(configuration))
    return made


@pytest.fixture(scope="module")
def prometheus(programs: Path, exported: Exported) -> Iterator[Prometheus]:
    code, said = promtool(programs, "check", "config", str(exported.prometheus))
    assert code == 0, said
    with running(programs, exported.prometheus, exported.prometheus.parent) as server:
        yield server


@pytest.fixture(scope="module")
def images(case: Case) -> Path:
    return Path(case.expected.dataset.images[0].path).parent


def expressions(case: Case) -> list[tuple[str, str]]:
    """(title, expression) of every panel; Grafana itself fills in the interval."""
    dashboard = make_dashboard(case.spec.serve.name, case.spec.objective, case.spec.serve)
    panels: list[dict[str, Any]] = dashboard["panels"]
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "5s"))
        for panel in panels
        for target in panel.get("targets", [])
    ]


def empty_panels(case: Case, prometheus: Prometheus) -> set[str]:
    """Raises if an expression cannot be evaluated."""
    return {title for title, expr in expressions(case) if not prometheus.query(expr)}


def test_every_rule_is_healthy_and_every_panel_has_its_data(case: Case, prometheus: Prometheus, images: Path) -> None:
    name, objective = case.spec.serve.name, case.spec.objective
    with Stream(case.service.info.gateway_port, images, RATE) as stream:
        wait(lambda: prometheus.query(f"{P95} >= 0"), 20, lambda: prometheus.ask("targets"))
        wait(lambda: prometheus.query(f"{ratio_name('slow', '6h')} < 0.5"), 20, lambda: prometheus.ask("rules"))
        targets = {target["labels"]["job"]: target["health"] for target in prometheus.ask("targets")["activeTargets"]}
        assert targets == {f"redline-{name}": "up", f"triton-{name}": "up"}
        made = [rule for group in make_rules(name, objective, ServeSpec())["groups"] for rule in group["rules"]]
        wait(lambda: all(rule["health"] == "ok" for rule in prometheus.rules().values()), 20, prometheus.rules)
        assert set(prometheus.rules()) == {rule.get("alert") or rule["record"] for rule in made}
        wait(lambda: empty_panels(case, prometheus) == ABSENT, 20, lambda: empty_panels(case, prometheus) ^ ABSENT)
        rate = dict(expressions(case))["Requests per second"]
        wait(lambda: prometheus.query(f"abs({rate} - {RATE}) < {0.2 * RATE}"), 20, lambda: prometheus.query(rate))
        answered = {title: prometheus.query(expr) for title, expr in expressions(case)}
        assert prometheus.firing() == set()
    stream.stop()
    assert stream.failures == []
    (p95,) = answered["P95 of the active release"]
    seen = sorted(answer.latency_s for answer in stream.answers)[int(0.95 * len(stream.answers))]
    assert 0 < float(p95["value"][1]) <= max(1.155 * seen, 0.02)
    for title in ("Queue", "Compute", "Batch", "Instances at work"):
        assert {found["metric"]["model"] for found in answered[title]} == {f"{name}_r1"}


def test_a_watch_sees_the_same_service(case: Case, images: Path) -> None:
    with Stream(case.service.info.gateway_port, images, RATE) as stream:
        (state,) = watching.looks(watching.own(case.spec, case.service), interval_s=3.0, once=True)
    stream.stop()
    assert state.promise is not None
    assert state.promise.objective.p95_ms == case.spec.objective.p95_ms
    assert state.server_up is True
    (view,) = (one for one in state.releases if "active" in one.roles)
    assert view.requests_per_s == pytest.approx(RATE, rel=0.35)
    assert view.p95_ms is not None
    (model,) = state.models
    assert model.model == f"{case.spec.serve.name}_r1"
    assert model.batch is not None
    assert model.infer_ms is not None
    assert 0 < model.busy < 2
    assert [(one.source, one.to) for one in state.switches] == [(None, 1)]
    assert state.gpus == ()


def test_a_slow_release_fires_the_alerts(case: Case, prometheus: Prometheus, images: Path) -> None:
    """Over three quarters of the requests in a scaled hour: both windows burn, and P95 is over the objective."""
    case.order(1, "slow")
    expected = {"RedlineLatencyBurnFast", "RedlineP95OverObjective"}
    with Stream(case.service.info.gateway_port, images, 1.5) as stream:
        wait(lambda: expected <= prometheus.firing(), 100, prometheus.rules)
        assert "RedlineGatewayDown" not in prometheus.firing()
    stream.stop()
    assert not any("Error" in alert or "Gpu" in alert for alert in prometheus.firing())
