"""Rules, dashboard and scrape configuration of one service, as files for Prometheus and Grafana."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from redline.observe.dashboard import make_dashboard
from redline.observe.rules import rules_yaml, to_yaml
from redline.records import Objective, ServeSpec
from redline.store.disk import write_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Files that were written."""

    rules: Path
    dashboard: Path
    prometheus: Path


def export_monitoring(
    folder: Path,
    service: str,
    objective: Objective,
    policy: ServeSpec,
    *,
    gateways: tuple[str, ...],
    tritons: tuple[str, ...] = (),
) -> Exported:
    """Write redline-<service>.rules.yml, redline-<service>.dashboard.json and a prometheus.yml that scrapes the endpoints.

    `gateways` and `tritons` are addresses of metrics endpoints, one a replica. Raises BadInput for a service name that cannot
    be used, or where PyYAML is not installed; StoreError if the folder cannot be written.
    """
    folder = Path(folder)
    made = Exported(
        rules=folder / f"redline-{service}.rules.yml",
        dashboard=folder / f"redline-{service}.dashboard.json",
        prometheus=folder / "prometheus.yml",
    )
    rules = rules_yaml(service, objective, policy)
    configuration = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "15s"},
        "rule_files": [made.rules.name],
        "scrape_configs": [
            _job(name, addresses)
            for name, addresses in ((f"redline-{service}", gateways), (f"triton-{service}", tritons))
            if addresses
        ],
    }
    dashboard = json.dumps(make_dashboard(service, objective, policy), indent=2) + "\n"
    for path, text in ((made.rules, rules), (made.dashboard, dashboard), (made.prometheus, to_yaml(configuration))):
        write_file(path, text.encode(), folder)
    return made


def _job(name: str, addresses: tuple[str, ...]) -> dict[str, object]:
    parts = [urlsplit(address) for address in addresses]
    return {
        "job_name": name,
        "metrics_path": parts[0].path or "/metrics",
        "scheme": parts[0].scheme,
        "static_configs": [{"targets": [part.netloc for part in parts]}],
    }
