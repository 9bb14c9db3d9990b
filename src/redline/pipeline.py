"""`redline run`: spec -> data and model -> graphs -> candidates -> parity, load and search -> choice -> report.

Every stage is remembered by the digest of its inputs, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from redline.accounting import hold_to_account, plan_run
from redline.bounding import bounds
from redline.doctor import abilities, inspect_machine
from redline.errors import BadInput
from redline.gpus import GpuHost, open_gpus
from redline.mixing import mixer
from redline.plan.candidates import Abilities, Space, space
from redline.plan.gpu import Int8Choices
from redline.plan.serving import served_space
from redline.prepare import Graphs, Subject, export_graphs, load_subject, run_id
from redline.progress import Progress
from redline.records import SCHEMA_VERSION, Choice, DataFacts, Environment, Pruned, Refusal, RunRecord, Served, Spec, Trial
from redline.report import write_report
from redline.serve.environment import SERVER_VERSION
from redline.served import Host
from redline.steering import by_plan, by_trials
from redline.store import Journal, Store, dump
from redline.store.disk import write_file
from redline.tune.choose import choose
from redline.tune.search import search

if TYPE_CHECKING:
    from rich.console import Console

    from redline.workbench import Workbench


SERVED_SHARE = 0.4
"""Share of the budget for the search through a server, where there is one."""


def run(spec: Spec, *, runs: Path, fresh: bool, console: Console | None) -> RunRecord:
    """Do the whole job for `spec` and leave runs/<id>/ with run.json, report.html and journal.jsonl.

    `fresh` measures everything again. Raises BadInput for what the user can mend, StoreError if the folder cannot be written.
    """
    from redline.workbench import Workbench

    started, clock = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.perf_counter()
    progress = Progress(console)
    environment = inspect_machine()
    folder = runs / run_id(spec)
    store, journal = Store(runs / "store", on_wait=progress.note), Journal(folder / "journal.jsonl")

    with ThreadPoolExecutor(1) as aside:  # torch's OpenMP pool ends with the thread, and does not slow the runners' own
        subject = aside.submit(load_subject, spec, progress).result()
        gpus, no_gpu = open_gpus(spec, environment, store, journal, progress)
        typed = gpus is None or gpus.foundry is None or gpus.foundry.library.strongly_typed
        no_fp8 = None if gpus is None or gpus.foundry is None else gpus.foundry.no_fp8()
        mix = mixer(environment, runs, spec, store, journal) if gpus is not None else None
        export = partial(export_graphs, for_gpu=gpus is not None, typed=typed, no_fp8=no_fp8, mix=mix)
        graphs = aside.submit(export, subject, store, journal, progress).result()
    planned = plan_run(spec, graphs, folder, runs, environment, progress, on_gpu=gpus is not None)
    candidates = _candidates(subject, graphs, environment, gpus, no_gpu)
    salt = started if fresh else ""
    host, no_server = _host(spec, on_gpu=gpus is not None)
    candidates = replace(candidates, refusals=(*candidates.refusals, *no_server))
    minutes = spec.budget.minutes * (1 - SERVED_SHARE if host is not None else 1.0)
    baseline = candidates.baseline
    bench = Workbench(subject, graphs, baseline, store, journal, environment, progress, salt, minutes=minutes, gpus=gpus)
    notes, pruned = list[str](), list[Pruned]()
    guide = by_plan(spec, candidates, folder, runs, environment) if gpus is not None else None
    try:
        trials = search(candidates, bench, spec.objective, notes.append, guide=guide, prune=pruned.append)
        choice, trials = choose(trials, bench, spec.objective, bench.noise)
        trials = bench.complete(trials)
        served = _through_server(bench, host, trials, choice, spec, environment) if host is not None else None
        chosen = (choice,) if served is None else (choice, served.choice)
        found = bounds(subject, bench, trials, chosen, notes.append)
        record = _record(subject, graphs, candidates, bench, environment, trials, choice, tuple(notes))
        record = replace(record, bounds=found)
    finally:
        bench.close()
        if host is not None:
            host.close()
    seconds = time.perf_counter() - clock
    record = replace(record, served=served, id=folder.name, started=started, seconds=seconds, pruned=tuple(pruned))
    write_file(folder / "run.json", dump(record, indent=2), store.scratch)
    checks = hold_to_account(planned, record, folder, store) if planned is not None else ()
    write_report(record, folder, planned, checks)
    return record


def _host(spec: Spec, *, on_gpu: bool) -> tuple[Host | None, tuple[Refusal, ...]]:
    """A server to measure through, or why there is none."""
    from redline.serve.environment import find_environment

    what = "serving through Triton"
    if on_gpu:
        reason = "a server's own knobs are searched on the CPU alone; redline release verifies an engine through the server"
        return None, (Refusal(what=what, reason=reason),)
    if spec.target.server != "embedded":
        reason = f'[target] server = "{spec.target.server}": nothing is measured through a server here'
        return None, (Refusal(what=what, reason=reason),)
    try:
        return Host(find_environment()), ()
    except BadInput as error:
        return None, (Refusal(what=what, reason=f"{error.what}: {error.fix}"),)


def _through_server(
    bench: Workbench, host: Host, trials: tuple[Trial, ...], choice: Choice, spec: Spec, environment: Environment
) -> Served | None:
    """The same search over what only a server has, each request through it; None if nothing found can be served."""
    space = served_space(trials, choice.candidate, spec.objective, environment.cores)
    if space is None:
        return None
    notes, pruned = list[str](), list[Pruned]()
    bench.through(host, SERVED_SHARE * spec.budget.minutes)
    guide = by_trials(spec.objective, trials)
    found = search(space, bench, spec.objective, notes.append, climbs=1, guide=guide, prune=pruned.append)
    best, found = choose(found, bench, spec.objective, bench.noise)
    winner = next((trial for trial in trials if trial.digest == choice.trial), None)
    return Served(
        server=f"tritonserver {SERVER_VERSION}, embedded",
        trials=bench.complete(found),
        choice=best,
        in_process=None if winner is None else winner.confirmation or winner.objective_load,
        notes=tuple(notes),
        pruned=tuple(pruned),
    )


def _candidates(subject: Subject, graphs: Graphs, environment: Environment, gpus: GpuHost | None, no_gpu: str) -> Space:
    by_name = {ability.name: ability for ability in abilities(environment)}
    compiling = by_name["torch-compile"]
    return space(
        subject.spec,
        subject.traffic,
        environment,
        Abilities(
            torch_compile=compiling.available,
            torch_compile_reason=compiling.detail,
            onnxruntime=by_name["onnxruntime"].available,
            gpu=gpus.abilities() if gpus is not None else None,
            no_gpu=no_gpu,
        ),
        onnx=graphs.network,
        network_failure=graphs.network_failure,
        graph_failure=graphs.end_to_end_failure,
        is_torch=subject.detector.module is not None,
        half_failure=graphs.half_failure,
        int8=Int8Choices(failure=graphs.int8.failure, kept=graphs.int8.kept),
        fp8=Int8Choices(failure=graphs.fp8.failure, kept=graphs.fp8.kept),
        images=tuple((image.height, image.width) for image in subject.dataset.images),
    )


def _record(
    subject: Subject,
    graphs: Graphs,
    candidates: Space,
    bench: Workbench,
    environment: Environment,
    trials: tuple[Trial, ...],
    choice: Choice,
    notes: tuple[str, ...],
) -> RunRecord:
    dataset = subject.dataset
    boxes = sum(len(truth.boxes) for truth in dataset.truths) if dataset.truths is not None else None
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        id="",
        started="",
        seconds=0.0,
        spec=subject.spec,
        environment=environment,
        model=subject.detector.facts,
        data=DataFacts(
            name=dataset.name, images=len(dataset.images), boxes=boxes, digest=dataset.digest, traffic=subject.traffic
        ),
        onnx=graphs.network,
        noise=bench.noise,
        baseline=next(trial for trial in trials if trial.candidate == candidates.baseline),
        trials=trials,
        refusals=candidates.refusals,
        choice=choice,
        buckets=candidates.buckets,
        engines=bench.engines(trials),
        int8=graphs.int8.recorded(trials),
        pictures=bench.pictures(choice),
        notes=notes,
    )
