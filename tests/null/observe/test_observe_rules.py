"""Rules and dashboard as files: every series they ask for exists, edges are the gateway's, panels are what Grafana reads."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from observe_case import GPU, TRITON_AFTER, FakeGateway

from redline.errors import BadInput, StoreError
from redline.observe.burn import FAST, SLOW, threshold
from redline.observe.dashboard import COLUMNS, make_dashboard
from redline.observe.export import export_monitoring
from redline.observe.rules import Windows, edge_label, make_rules, rules_yaml
from redline.records import Objective, Routes, ServeSpec
from redline.serve.gateway.metrics import edges_s
from redline.store import dump

OBJECTIVE, POLICY = Objective(p95_ms=20.0, throughput=30.0), ServeSpec()
GIVEN = {"up", "model", "service", "release", "instance"}


def rules(**policy: float) -> dict[str, dict[str, Any]]:
    made = make_rules("detector", OBJECTIVE, ServeSpec(**policy))  # type: ignore[arg-type]
    return {rule.get("alert") or rule["record"]: rule for group in made["groups"] for rule in group["rules"]}


def expressions() -> list[str]:
    panels = [
        target["expr"]
        for panel in make_dashboard("detector", OBJECTIVE, POLICY)["panels"]
        for target in panel.get("targets", [])
    ]
    return panels + [rule["expr"] for rule in rules().values()]


def known_series() -> set[str]:
    """Names of real expositions: of the gateway after each kind of event, of Triton's recorded text, of a GPU's."""
    gateway = FakeGateway(Routes(active=4))
    gateway.serve(4, 1)
    gateway.metrics.compared(4, 1, 1)
    gateway.metrics.switched("automatic")
    lines = (gateway.text() + TRITON_AFTER + GPU).splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if line and not line.startswith("#")}


def test_every_series_that_is_asked_for_exists() -> None:
    recorded = {name for name, rule in rules().items() if "record" in rule}
    asked = {
        name
        for expr in expressions()
        for name in re.findall(r"\b(?:redline|nv|service)[a-z0-9_]*(?::[a-z0-9_]+)*\b(?!-)", expr)
    }
    asked = {name for name in asked if name not in GIVEN}
    assert asked - recorded - known_series() == set()
    assert recorded <= asked


@given(st.floats(0.05, 600_000.0))
def test_the_slow_are_counted_at_the_gateways_own_edge(p95_ms: float) -> None:
    from prometheus_client.utils import floatToGoString

    seconds = p95_ms / 1000
    assert seconds in edges_s(seconds)
    assert edge_label(seconds) == floatToGoString(seconds)


def test_thresholds_are_the_workbooks() -> None:
    """Table 5-8: 14.4 over 1 h and 5 min, 6 over 6 h and 30 min; of 5 % slow and of 0.1 % errors."""
    made = rules()
    assert made["RedlineLatencyBurnFast"]["expr"] == (
        'service:redline_slow:ratio_5m{service="detector"} > 0.72 and service:redline_slow:ratio_1h{service="detector"} > 0.72'
    )
    assert "ratio_30m" in made["RedlineErrorBurnSlow"]["expr"]
    assert "> 0.006" in made["RedlineErrorBurnSlow"]["expr"]
    assert made["RedlineErrorBurnFast"]["labels"]["severity"] == "page"


@given(st.floats(0.0, 0.999))
def test_every_objective_can_be_missed(allowed: float) -> None:
    for pair in (FAST, SLOW):
        assert allowed <= threshold(pair, allowed) < 1
    assert threshold(FAST, 0.05) == pytest.approx(0.72)


def test_an_objective_without_errors_still_has_a_threshold() -> None:
    assert "> 0.00144" in rules(error_pct=0.0)["RedlineErrorBurnFast"]["expr"]


def test_the_file_is_yaml_and_the_same_again() -> None:
    text = rules_yaml("detector", OBJECTIVE, POLICY)
    assert yaml.safe_load(text) == make_rules("detector", OBJECTIVE, POLICY)
    assert text == rules_yaml("detector", OBJECTIVE, POLICY)
    assert text.startswith("# Rules of the service detector: P95 within 20 ms")


def test_windows_can_be_shortened_for_tests() -> None:
    assert [Windows()(name) for name in ("5m", "6h")] == ["5m", "6h"]
    assert [Windows(1 / 60)(name) for name in ("15s", "5m", "6h")] == ["250ms", "5000ms", "360000ms"]


@pytest.mark.parametrize("service", ["", 'a"b', "a b", "1a", "ä"])
def test_a_name_that_would_break_an_expression_is_refused(service: str) -> None:
    with pytest.raises(BadInput):
        make_rules(service, OBJECTIVE, POLICY)


def panels() -> list[dict[str, Any]]:
    return list(make_dashboard("detector", OBJECTIVE, POLICY)["panels"])


def test_panels_do_not_overlap_and_are_told_apart() -> None:
    places = [panel["gridPos"] for panel in panels()]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert all(place["x"] + place["w"] <= COLUMNS for place in places)
    assert len({panel["id"] for panel in panels()}) == len(places)
    for panel in panels():
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(letters)) == len(letters)
        assert panel["type"] == "row" or letters


def test_a_machine_without_a_gpu_is_told_so() -> None:
    gpu = [panel for panel in panels() if any("nv_gpu" in target["expr"] for target in panel.get("targets", []))]
    assert len(gpu) == 3
    assert {panel["fieldConfig"]["defaults"]["noValue"] for panel in gpu} == {"no GPU is reported"}


def test_grafana_reads_every_field() -> None:
    """Through the types of Grafana 10.1's own schema: a field that they do not know would be lost, or raise."""
    sdk = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="the SDK needs Python 3.11")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder").JSONEncoder
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins")
    plugins.register_default_plugins()
    given_ = make_dashboard("detector", OBJECTIVE, POLICY)
    read = json.loads(json.dumps(sdk.Dashboard.from_json(json.loads(json.dumps(given_))), cls=encoder))
    assert lost(given_, read) == []
    spoilt = {**given_, "panels": [{**panel, "titel": "x"} for panel in given_["panels"]]}
    again = json.loads(json.dumps(sdk.Dashboard.from_json(json.loads(json.dumps(spoilt))), cls=encoder))
    assert lost(spoilt, again)


def lost(given_: Any, read: Any, where: str = "") -> list[str]:
    """What is in `given_` and not in `read`, which may have more: defaults."""
    if isinstance(given_, dict):
        if not isinstance(read, dict):
            return [where]
        return [one for key, value in given_.items() for one in lost(value, read.get(key), f"{where}.{key}")]
    if isinstance(given_, list):
        if not isinstance(read, list) or len(read) != len(given_):
            return [where]
        return [one for i, (a, b) in enumerate(zip(given_, read, strict=True)) for one in lost(a, b, f"{where}[{i}]")]
    return [] if given_ == read else [where]


def test_the_files_of_an_export(tmp_path: Path) -> None:
    gateways = ("http://127.0.0.1:8080/metrics", "http://127.0.0.1:8081/metrics")
    made = export_monitoring(
        tmp_path / "new", "detector", OBJECTIVE, POLICY, gateways=gateways, tritons=("http://127.0.0.1:8002/metrics",)
    )
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "prometheus.yml",
        "redline-detector.dashboard.json",
        "redline-detector.rules.yml",
    ]
    assert json.loads(made.dashboard.read_text()) == make_dashboard("detector", OBJECTIVE, POLICY)
    configuration = yaml.safe_load(made.prometheus.read_text())
    assert configuration["rule_files"] == [made.rules.name]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in configuration["scrape_configs"]}
    assert jobs == {"redline-detector": ["127.0.0.1:8080", "127.0.0.1:8081"], "triton-detector": ["127.0.0.1:8002"]}
    assert dump(configuration)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        export_monitoring(tmp_path / "file" / "x", "detector", OBJECTIVE, POLICY, gateways=("http://a/metrics",))
