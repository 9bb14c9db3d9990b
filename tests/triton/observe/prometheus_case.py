"""A real Prometheus: Debian's package unpacked, rules tested by promtool, a server of the test's own on loopback."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import yaml

from redline.serve.server import free_ports

SCRIPT = Path(__file__).parents[3] / "tools" / "get_prometheus.sh"
START_S = 20.0


def find_prometheus() -> Path:
    """Folder of the programs. Raises RuntimeError with the reason if there are none."""
    done = subprocess.run(["sh", str(SCRIPT)], capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or "tools/get_prometheus.sh failed")
    return Path(done.stdout.strip().splitlines()[-1])


def promtool(programs: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([str(programs / "promtool"), *arguments], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def rule_test(rules: Path, series: Mapping[str, str], checks: Sequence[tuple[str, str, Sequence[str]]], **more: Any) -> str:
    """A unit test for promtool: `series` at 15 s; each check is (time, alert, labels) of what must fire then: a text of labels
    for each, none for an alert that must not."""
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertname="{alert}",alertstate="firing"}}',
                "eval_time": at,
                "exp_samples": [{"labels": labels, "value": 1} for labels in fired],
            }
            for at, alert, fired in checks
        ],
        **more,
    }
    return yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "15s", "tests": [test]}, sort_keys=False)


@dataclass(frozen=True)
class Prometheus:
    port: int

    def ask(self, path: str, **given: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(given)}"
        with build_opener(ProxyHandler({})).open(url, timeout=10) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        return body["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        return list(self.ask("query", query=expr)["result"])

    def rules(self) -> dict[str, dict[str, Any]]:
        return {rule["name"]: rule for group in self.ask("rules")["groups"] for rule in group["rules"]}

    def firing(self) -> set[str]:
        alerts = self.ask("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


@contextmanager
def running(programs: Path, configuration: Path, folder: Path) -> Iterator[Prometheus]:
    (port,) = free_ports(1)
    command = [
        str(programs / "prometheus"),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            server = Prometheus(port)
            wait(lambda: _ready(server), START_S, log.read_text)
            yield server
        finally:
            process.terminate()
            process.wait(20)


def wait(done: Callable[[], object], seconds: float, why: Callable[[], object]) -> None:
    """Until `done`; fails with `why` after `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


def _ready(server: Prometheus) -> bool:
    try:
        return bool(server.ask("targets"))
    except OSError:
        return False
