"""Triton's administration over HTTP: load, unload, readiness of a version, statistics. One short connection a call.

The tritonclient package is for inference; its HTTP client runs on gevent, which a load in one thread lets stall the others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote

from redline.errors import StoreError, TrialError

ADMIN_HEADER = "x-redline-admin"
LOAD_TIMEOUT_S = 120.0
"""Loading runs the models' warm-up on every instance."""
QUICK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """Of one version of a model, since it was loaded. Durations are sums over `requests` or `executions`, nanoseconds."""

    requests: int
    """Answered well, warm-up included."""
    failures: int
    inferences: int
    executions: int
    queue_ns: int
    compute_ns: int
    batches: tuple[tuple[int, int, int], ...] = ()
    """(batch, executions, nanoseconds that instances were held by them: input, compute and output), ascending."""

    @property
    def mean_batch(self) -> float:
        return self.inferences / self.executions if self.executions else 0.0


class Control:
    """Of the server at 127.0.0.1:`port`. `key`: what its restricted administration asks for."""

    def __init__(self, port: int, key: str) -> None:
        self._port, self._key = port, key

    def live(self) -> bool:
        return self._alive("/v2/health/live")

    def ready(self, model: str, version: int) -> bool:
        return self._alive(f"/v2/models/{quote(model)}/versions/{version}/ready")

    def load(self, model: str) -> None:
        """(Re)load a model from its repository folder; versions that are gone stop. Raises TrialError with the reason."""
        self._ask("POST", f"/v2/repository/models/{quote(model)}/load", LOAD_TIMEOUT_S)

    def unload(self, model: str) -> None:
        self._ask("POST", f"/v2/repository/models/{quote(model)}/unload", LOAD_TIMEOUT_S)

    def register_memory(self, name: str, size: int) -> None:
        """Make the system shared memory /`name` of `size` bytes known to the server."""
        given = {"key": f"/{name}", "offset": 0, "byte_size": size}
        self._ask("POST", f"/v2/systemsharedmemory/region/{quote(name)}/register", QUICK_TIMEOUT_S, given)

    def unregister_memory(self, name: str) -> None:
        self._ask("POST", f"/v2/systemsharedmemory/region/{quote(name)}/unregister", QUICK_TIMEOUT_S)

    def index(self) -> dict[tuple[str, int], str]:
        """{(model, version): state} of what the repository holds and was ever asked for."""
        found = self._ask("POST", "/v2/repository/index", QUICK_TIMEOUT_S)
        return {(row["name"], int(row["version"])): row.get("state", "") for row in found if "version" in row}

    def statistics(self, model: str, version: int) -> ModelStatistics:
        found = self._ask("GET", f"/v2/models/{quote(model)}/versions/{version}/stats", QUICK_TIMEOUT_S)
        one = found["model_stats"][0]
        inference = one["inference_stats"]
        return ModelStatistics(
            requests=inference["success"]["count"],
            failures=inference["fail"]["count"],
            inferences=one["inference_count"],
            executions=one["execution_count"],
            queue_ns=inference["queue"]["ns"],
            compute_ns=inference["compute_infer"]["ns"],
            batches=tuple(sorted(map(_batch, one.get("batch_stats", ())))),
        )

    def _alive(self, path: str) -> bool:
        try:
            return self._call("GET", path, QUICK_TIMEOUT_S)[0] == 200
        except (OSError, HTTPException):
            return False

    def _ask(self, method: str, path: str, timeout_s: float, given: dict[str, Any] | None = None) -> Any:
        try:
            status, body = self._call(method, path, timeout_s, given)
        except (OSError, HTTPException) as error:
            raise StoreError("serve.unreachable", "the server does not answer", got=f"{method} {path}: {error!r}") from error
        if status == 200:
            return json.loads(body) if body.strip() else None
        raise TrialError("serve.refused", "the server refused a request", got=f"{method} {path}: {status} {_reason(body)}")

    def _call(self, method: str, path: str, timeout_s: float, given: dict[str, Any] | None = None) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=timeout_s)
        try:
            headers = {ADMIN_HEADER: self._key, "Content-Type": "application/json"}
            connection.request(method, path, json.dumps(given or {}).encode() if method == "POST" else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _batch(row: dict[str, Any]) -> tuple[int, int, int]:
    parts = ("compute_input", "compute_infer", "compute_output")
    # Integers of 64 bits may be texts in the server's JSON.
    return int(row["batch_size"]), int(row["compute_infer"]["count"]), sum(int(row[part]["ns"]) for part in parts)


def _reason(body: bytes) -> str:
    """The server's own words, one line each."""
    try:
        found = json.loads(body)
        return str(found["error"]) if isinstance(found, dict) and "error" in found else body.decode(errors="replace")
    except ValueError:
        return body.decode(errors="replace")[:2000]
