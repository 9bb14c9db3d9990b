"""`redline run`: spec -> data and model -> graphs -> candidates -> parity, load and search -> choice -> report.

Every stage is remembered by the digest of its inputs, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from redline.records import SCHEMA_VERSION, DataFacts, RunRecord, Spec
from redline.store import Journal, Store, dump
from redline.store.disk import write_file

if TYPE_CHECKING:
    from rich.console import Console

    from redline.doctor import Ability
    from redline.plan.candidates import Abilities


def run(spec: Spec, *, runs: Path, fresh: bool, console: Console | None) -> RunRecord:
    """Do the whole job for `spec` and leave runs/<id>/ with run.json, report.html and journal.jsonl.

    `fresh` measures everything again. Raises BadInput for what the user can mend, StoreError if the folder cannot be written.
    """
    from redline import doctor, prepare
    from redline.plan.candidates import space
    from redline.progress import Progress
    from redline.report import write_report
    from redline.tune.choose import choose
    from redline.tune.search import search
    from redline.workbench import Workbench

    started, clock = datetime.now(timezone.utc), time.perf_counter()
    progress = Progress(console)
    environment = doctor.inspect_machine()
    folder = runs / prepare.run_id(spec)
    store, journal = Store(runs / "store", on_wait=progress.note), Journal(folder / "journal.jsonl")

    subject = prepare.subject(spec, progress)
    graphs = prepare.graphs(subject, store, journal, progress)
    candidates = space(
        spec,
        environment,
        _abilities(doctor.abilities(environment)),
        onnx=graphs.network,
        network_failure=graphs.network_failure,
        graph_failure=graphs.end_to_end_failure,
        is_torch=subject.detector.module is not None,
    )
    salt = started.isoformat() if fresh else ""
    bench = Workbench(
        subject,
        graphs,
        baseline=candidates.baseline,
        store=store,
        journal=journal,
        environment=environment,
        progress=progress,
        salt=salt,
    )
    notes: list[str] = []
    try:
        trials = search(candidates, bench, spec.objective, notes.append)
        choice, trials = choose(trials, bench, spec.objective, bench.noise)
        trials, pictures = bench.complete(trials), bench.pictures(choice)
    finally:
        bench.close()

    dataset = subject.dataset
    boxes = sum(len(truth.boxes) for truth in dataset.truths) if dataset.truths is not None else None
    record = RunRecord(
        schema_version=SCHEMA_VERSION,
        id=folder.name,
        started=started.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - clock,
        spec=spec,
        environment=environment,
        model=subject.detector.facts,
        data=DataFacts(
            name=dataset.name, images=len(dataset.images), boxes=boxes, digest=dataset.digest, traffic=subject.traffic
        ),
        onnx=graphs.network,
        noise=bench.noise,
        baseline=trials[0],
        trials=trials,
        refusals=candidates.refusals,
        choice=choice,
        pictures=pictures,
        notes=tuple(notes),
    )
    write_file(folder / "run.json", dump(record, indent=2), store.scratch)
    write_report(record, folder)
    return record


def _abilities(found: tuple[Ability, ...]) -> Abilities:
    from redline.plan.candidates import Abilities

    by_name = {ability.name: ability for ability in found}
    compiling = by_name["torch-compile"]
    return Abilities(
        torch_compile=compiling.available,
        torch_compile_reason=compiling.detail,
        onnxruntime=by_name["onnxruntime"].available,
    )
