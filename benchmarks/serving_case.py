"""What the serving benchmarks share: a finished run on YOLOX-Nano COCO or the demo detector, its server and its environment."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from redline import api
from redline.data import load_dataset, load_traffic
from redline.doctor import inspect_machine
from redline.live import mix_of
from redline.prepare import Graphs, Subject, run_id
from redline.records import Candidate, Dataset, Detector, RunRecord, Serving, Spec, Traffic
from redline.releasing import choice_to_serve
from redline.serve.environment import find_environment
from redline.served import Host, ServedLive, open_served
from redline.store import Store

YOLOX = """
[model]
factory = "redline.zoo:yolox_nano"
weights = "{shared}/models/yolox_nano_coco/yolox_nano_fused_state_dict.pt"
head = "yolox"
[model.preprocess]
size = [416, 416]
channels = "bgr"
[data]
evaluate = {{ images = "{shared}/data/coco_val61/images", annotations = "{shared}/data/coco_val61/instances.json" }}
[objective]
p95_ms = 150.0
throughput = 20.0
map_evidence = "point"
[budget]
minutes = {minutes}
[serve]
name = "yolox"
hold_s = 5.0
canary_requests = 60
{serve}
"""


@dataclass(frozen=True)
class Case:
    """A finished run: `subject` has no torch module, only what a server needs."""

    name: str
    spec: Spec
    runs: Path
    record: RunRecord
    subject: Subject
    graphs: Graphs

    @property
    def dataset(self) -> Dataset:
        return self.subject.dataset

    def served_candidate(self, **knobs: Any) -> Candidate:
        """The run's choice as it is served, with other knobs."""
        chosen, _ = choice_to_serve(self.record)
        return replace(chosen, **knobs)

    def fused(self, **knobs: Any) -> Candidate:
        return Candidate(**{"runner": "onnxruntime", "serving": Serving(), **knobs})

    @property
    def traffic(self) -> Traffic:
        return self.subject.traffic

    @contextlib.contextmanager
    def served(self, candidate: Candidate) -> Iterator[ServedLive]:
        """The candidate on an embedded server of its own."""
        host = Host(find_environment())
        try:
            yield open_served(host, self.subject, self.graphs, candidate, mix_of(self.dataset, self.traffic))
        finally:
            host.close()


def parser(text: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--work", type=Path, required=True, help="folder of the runs; a finished run in it is used again")
    found.add_argument("--shared", type=Path, help="folder of data/ and models/; without it only the demo detector is measured")
    found.add_argument("--output", type=Path, help="result file")
    found.add_argument("--minutes", type=float, default=1.0, help="budget of the run")
    return found


def cases(options: argparse.Namespace) -> Iterator[Case]:
    yield demo_case(options.work, options.minutes)
    if options.shared is not None:
        yield yolox_case(options.work, options.shared, options.minutes)


def demo_case(work: Path, minutes: float) -> Case:
    spec = work / "demo" / "detector.toml"
    if not spec.exists():
        api.init_demo(spec.parent)
        text = spec.read_text(encoding="utf-8").replace("minutes = 0.5 ", f"minutes = {minutes} ")
        spec.write_text(text, encoding="utf-8")
    return _case("demo", spec, work / "runs")


def yolox_case(work: Path, shared: Path, minutes: float, serve: str = "") -> Case:
    spec = work / "yolox.toml"
    work.mkdir(parents=True, exist_ok=True)
    spec.write_text(YOLOX.format(shared=shared.resolve(), minutes=minutes, serve=serve), encoding="utf-8")
    return _case("yolox-nano-416", spec, work / "runs")


def _case(name: str, path: Path, runs: Path) -> Case:
    spec = api.load_spec(path)
    finished = (runs / run_id(spec) / "run.json").exists()
    record = api.read_run(runs / run_id(spec)) if finished else api.run(path, runs=runs)
    dataset = load_dataset(spec.data.evaluate)
    assert record.onnx is not None
    network = replace(record.onnx, path=str(Store(runs / "store").path(record.onnx.digest)))
    model = spec.model
    detector = Detector(
        module=None,
        onnx_path=network.path,
        facts=record.model,
        head=model.head,
        preprocess=model.preprocess,
        postprocess=model.postprocess,
    )
    subject = Subject(spec=spec, dataset=dataset, traffic=load_traffic(spec.data.traffic, dataset), detector=detector)
    graphs = Graphs(network=network, network_failure=None, end_to_end=None, end_to_end_failure="not needed")
    return Case(name=name, spec=spec, runs=runs, record=record, subject=subject, graphs=graphs)


def stolen() -> float:
    """CPU seconds that the hypervisor gave to others, since the machine started."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


@contextlib.contextmanager
def watched(result: dict[str, Any]) -> Iterator[None]:
    """Adds what the machine did meanwhile: on shared cores it decides what a number is worth."""
    before, began, busy = stolen(), time.monotonic(), psutil.cpu_times()
    yield
    seconds, after = time.monotonic() - began, psutil.cpu_times()
    cores = os.cpu_count() or 1
    idle = (after.idle - busy.idle) / (cores * seconds)
    result["machine"] = {
        "seconds": round(seconds, 1),
        "steal_share": round((stolen() - before) / (cores * seconds), 4),
        "busy_share": round(1 - idle, 3),
    }


def write(options: argparse.Namespace, results: dict[str, Any]) -> None:
    environment = inspect_machine()
    server = find_environment()
    document = {
        "environment": {
            "cpu": environment.cpu,
            "cores": environment.cores,
            "python": environment.python,
            "commit": environment.commit,
            "libraries": {library.name: library.version for library in environment.libraries if library.version},
            "server": dict(server.versions),
        },
        "results": results,
    }
    text = json.dumps(document, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
