"""Bad releases planted behind a good one: what refuses each of them, and how soon one that goes bad later is rolled back.

Protocol: a good release is active. Before promotion: `redline.release` gets the same detector with wrong normalisation (pixels
scaled by 1/255), with a head that takes 50 ms longer, and with a NaN in its weights; each must be refused and the good one
serve on. After promotion: the head turns slow (50 ms), wrong (boxes shifted by 40 pixels) or broken (an exception) while the
gateway gets 20 requests/s; the time from the fault to the switch back is measured, at most 10 s allowed. P95 objective:
twice the P95 of the good release, but at least 60 ms and at most 50 ms above its median.

    python benchmarks/served_planted.py --work FOLDER [--shared FOLDER] [--output FILE]
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import planted_head
from redline import releasing
from redline.data import read_bytes
from redline.measure.load import open_loop
from redline.progress import Progress
from redline.records import Head, RunRecord, Spec
from redline.serve.admin import running_service
from redline.serve.client import Endpoint
from redline.serve.daemon import stop_service
from redline.serving import service_folder
from redline.store import Store
from serving_case import Case, cases, parser, watched, write

LIMIT_S = 10.0
RATE_PER_S = 20.0
HOLD_S = 60.0


def main() -> int:
    given = parser(__doc__).parse_args()
    results = {case.name: measure(case) for case in cases(given)}
    write(given, results)
    refused = all(row["refused"] for one in results.values() for row in one["before_promotion"])
    times = [row["seconds"] for one in results.values() for row in one["after_promotion"]]
    back = all(seconds is not None and seconds <= LIMIT_S for seconds in times)
    return 0 if refused and back else 1


def measure(case: Case) -> dict[str, Any]:
    planted_head.FAULT.unlink(missing_ok=True)
    spec = good_spec(case)
    result: dict[str, Any] = {"objective_p95_ms": spec.objective.p95_ms, "rate_per_s": spec.objective.throughput}
    with service_of(case, spec), watched(result):
        first = roll(case, spec, case.record)
        if first.verdict.answer == "fail":
            raise SystemExit(f"the good release was refused: {first.verdict.reason}")
        result["before_promotion"] = [
            refused(case, "wrong normalisation", normalised(spec), case.record),
            refused(case, "50 ms more", spec, case.record, fault="slow *"),
            refused(case, "NaN weights", spec, poisoned(case)),
        ]
        result["after_promotion"] = [after(case, spec, fault) for fault in ("slow", "wrong", "broken")]
    return result


def good_spec(case: Case) -> Spec:
    trial = next(t for t in (case.record.served or case.record).trials if t.objective_load is not None)
    assert trial.objective_load is not None
    # Between what the release has and what it has with 50 ms more at its median.
    p95_ms = max(60.0, min(2.0 * trial.objective_load.p95_ms, 50.0 + trial.objective_load.p50_ms))
    objective = replace(case.spec.objective, p95_ms=p95_ms, throughput=RATE_PER_S)
    serve = replace(case.spec.serve, name=f"{case.spec.serve.name}-planted", hold_s=HOLD_S, canary_requests=60)
    head = Head(kind="custom", function="planted_head:decode")
    return replace(case.spec, objective=objective, serve=serve, model=replace(case.spec.model, head=head))


def normalised(spec: Spec) -> Spec:
    wrong = replace(spec.model.preprocess, scale=1 / 255)
    return replace(spec, model=replace(spec.model, preprocess=wrong))


def poisoned(case: Case) -> RunRecord:
    """The run with a network that has one NaN among its weights."""
    assert case.record.onnx is not None
    assert case.graphs.network is not None
    model = onnx.load(case.graphs.network.path)
    weight = max(model.graph.initializer, key=lambda one: int(np.prod(one.dims)) if one.data_type == 1 else 0)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nan.onnx"
        onnx.save(model, str(path))
        digest = Store(case.runs / "store").put_file(path, kind="onnx", stage="planted")
    return replace(case.record, onnx=replace(case.record.onnx, digest=digest))


def roll(case: Case, spec: Spec, record: RunRecord, *, hold: bool = False) -> releasing.Outcome:
    return releasing.release(spec, record, runs=case.runs, progress=Progress(None), hold=hold, probe=False)


def refused(case: Case, what: str, spec: Spec, record: RunRecord, *, fault: str = "") -> dict[str, Any]:
    service = running_service(service_folder(spec, case.runs))
    assert service is not None
    before = service.status().state.routes.active
    if fault:
        planted_head.FAULT.write_text(fault)
    started = time.monotonic()
    try:
        outcome = roll(case, spec, record)
        reason = outcome.verdict.reason
    finally:
        planted_head.FAULT.unlink(missing_ok=True)
    active = service.status().state.routes.active
    return {"plant": what, "refused": active == before, "seconds": time.monotonic() - started, "reason": reason}


def after(case: Case, spec: Spec, fault: str) -> dict[str, Any]:
    """A good release is promoted; then it turns bad, and only it."""
    service = running_service(service_folder(spec, case.runs))
    assert service is not None
    roll(case, spec, case.record)
    number = service.status().state.routes.active
    with traffic(service.info.gateway_port, spec.serve.name, case):
        time.sleep(2.0)
        planted_head.FAULT.write_text(f"{fault} {number}")
        began, seconds, reason = time.monotonic(), None, ""
        while time.monotonic() - began < 3 * LIMIT_S:
            state = service.status().state
            if state.routes.active != number:
                seconds, reason = time.monotonic() - began, state.switches[-1].reason
                break
            time.sleep(0.05)
        planted_head.FAULT.unlink(missing_ok=True)
    return {"fault": fault, "seconds": seconds, "reason": reason}


@contextlib.contextmanager
def traffic(port: int, model: str, case: Case) -> Iterator[None]:
    encoded, endpoint, stop = [read_bytes(image) for image in case.dataset.images], Endpoint(port, model), threading.Event()

    def send(requests: Any) -> None:
        for request in requests:
            endpoint.send(encoded[request % len(encoded)])

    def run() -> None:
        while not stop.is_set():
            open_loop(send, rate_per_s=RATE_PER_S, seconds=1.0, concurrency=16)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def service_of(case: Case, spec: Spec) -> Iterator[None]:
    try:
        yield
    finally:
        stop_service(service_folder(spec, case.runs))


if __name__ == "__main__":
    sys.exit(main())
