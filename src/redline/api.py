"""The verbs as functions: what the command line does, with records as results. Everything is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redline import store
    from redline.building import Built, Replayed
    from redline.doctor import Ability
    from redline.observe.export import Exported
    from redline.observe.watch import WatchState
    from redline.progress import Progress
    from redline.records import (
        Candidate,
        Ceilings,
        EfficiencyTable,
        Environment,
        PlanRecord,
        ProfileKind,
        RunRecord,
        Spec,
        Switch,
    )
    from redline.records.spec import Precision
    from redline.releasing import Outcome
    from redline.serve.admin import Service, Status
    from redline.serve.environment import ServerEnvironment
    from redline.serve.state import ServiceInfo
    from redline.spec import Written
    from redline.store import Lineage, Reclaimed
    from redline.watching import Watched

RUNS = Path("runs")
STORE = "store"
RECORD = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What this machine is, what it can do, and what will make trouble."""

    environment: Environment
    abilities: tuple[Ability, ...]
    cautions: tuple[str, ...]
    ceilings: Ceilings | None = None
    """Where it was asked to measure."""


def load_spec(path: Path | str) -> Spec:
    """Read and check a spec file. Raises BadInput that names every problem of the file."""
    from redline import spec

    return spec.load_spec(path)


def run(spec_path: Path | str, *, runs: Path = RUNS, fresh: bool = False, progress: bool = True) -> RunRecord:
    """The whole job: baseline, candidates, export, parity, load, choice, report; leaves `runs`/<id>/.

    A run that was stopped goes on where it was, unless `fresh`. Raises BadInput for what the user can mend and StoreError
    if `runs` cannot be written; an objective that is not met is a result, in `RunRecord.choice.verdict`.
    """
    from rich.console import Console

    from redline import pipeline
    from redline.doctor import require_platform

    require_platform()
    spec = load_spec(spec_path)
    return pipeline.run(spec, runs=Path(runs), fresh=fresh, console=Console(stderr=True) if progress else None)


def init(
    output: Path,
    *,
    images: Path,
    factory: str | None = None,
    onnx: Path | None = None,
    annotations: Path | None = None,
    weights: Path | None = None,
    head: str | None = None,
    force: bool = False,
) -> Written:
    """Write a commented spec file for a model and a folder of images. Raises BadInput if it would not load."""
    from redline import spec

    return spec.write_spec(
        output, images=images, factory=factory, onnx=onnx, annotations=annotations, weights=weights, head=head, force=force
    )


def init_demo(folder: Path, *, force: bool = False, confirm: int = 0) -> Written:
    """The demo project: scenes in `folder`/val, detector.toml, and `confirm` scenes more for a run to check its choice on."""
    from redline import demo_project

    return demo_project.make(Path(folder), force=force, confirm=confirm)


def doctor(*, measure: bool = False, output: Path | None = None, progress: bool = True) -> Diagnosis:
    """Look at this machine; of the libraries it reports only TensorRT is imported, to ask what this version can do.

    `measure` the first GPU's ceilings too, or the CPU's where there is none, with torch, and write them as JSON to `output`.
    Raises BadInput (doctor.no-torch) without torch, and StoreError if `output` cannot be written.
    """
    from redline.doctor import abilities, cautions, inspect_machine, measure_ceilings, write_ceilings
    from redline.engine.devices import tensorrt_facts

    environment, ceilings = inspect_machine(), None
    if measure:
        with _progress(progress).build("ceilings") as phases:
            ceilings = measure_ceilings(phases)
        if output is not None:
            write_ceilings(ceilings, Path(output))
    return Diagnosis(
        environment=environment,
        abilities=abilities(environment, tensorrt_facts()),
        cautions=cautions(environment),
        ceilings=ceilings,
    )


def plan(
    spec_path: Path | str,
    *,
    runs: Path = RUNS,
    device: str | None = None,
    gpus: int = 8,
    facts: Path | None = None,
    cores: int | None = None,
    nic_gbit_s: float | None = None,
    rate: float | None = None,
    progress: bool = True,
) -> PlanRecord:
    """What each step should give on a device and whether the objective can be met; leaves plan.json and plan.md in the run.

    `device`: as "a100-80"; None: this machine's GPU, or the A100 80 GB. `gpus`: the most of a node. `facts`: costs.json of the
    network from elsewhere: no torch is needed. `rate`: requests/s of a fleet, to be counted and priced. Raises BadInput.
    """
    from redline import planning
    from redline.doctor import inspect_machine

    asked = planning.Asked(device=device, gpus=gpus, facts=facts, cores=cores, nic_gbit_s=nic_gbit_s, rate=rate)
    spec, environment = load_spec(spec_path), inspect_machine()
    return planning.plan(spec, asked, runs=Path(runs), environment=environment, progress=_progress(progress))


def calibrate(folders: Sequence[Path | str], *, runs: Path = RUNS) -> EfficiencyTable:
    """Refit what kernels reach of the roof from finished runs; later plans under `runs` take it. Raises BadInput."""
    from redline import accounting

    return accounting.recalibrate([Path(folder) for folder in folders], Path(runs))


def build(
    spec_path: Path | str,
    *,
    runs: Path = RUNS,
    precision: Precision | None = None,
    profiles: ProfileKind = "exact",
    minimal: bool = False,
    batched: bool = False,
    level: int | None = None,
    capabilities: tuple[str, ...] = (),
    wide: tuple[str, ...] = (),
    layers: bool = False,
    progress: bool = True,
) -> Built:
    """Build the TensorRT engine of a spec into the store of `runs`, unless it is there, and prove its precision.

    `precision`: None takes the narrowest that the spec names. `profiles` "exact" is of fixed shapes, or with `minimal` of the
    stride's; `batched` takes up to the largest batch of a run instead of one image. `capabilities`, such as "8.9": ahead of
    time by TensorRT-RTX, without a GPU. `wide`: ONNX nodes that an FP16 engine computes in FP32, or that stay out
    of INT8 or FP8. An engine that can run here is run at every boundary shape of its profiles, and with `layers` compared layer
    by layer. What is wrong is a result, in `Built.verdict`.
    Raises BadInput for what cannot be asked, TrialError if there is no engine, StoreError if `runs` cannot be written.
    """
    from redline import building

    wanted = building.Wanted(
        precision=precision,
        profiles=profiles,
        minimal=minimal,
        batched=batched,
        level=level,
        capabilities=capabilities,
        wide=wide,
        layers=layers,
    )
    return building.build(load_spec(spec_path), wanted, runs=Path(runs), progress=_progress(progress))


def replay(digest: str, *, runs: Path = RUNS, progress: bool = True) -> Replayed:
    """Build an engine again from its record and compare; `digest` may be its first 6 characters or more.

    A difference is a result, in `Replayed.verdict`. Raises BadInput if the store of `runs` has no such engine, TrialError if
    this is not the machine that it was built on.
    """
    from redline import building

    return building.replay(_store(runs), digest, progress=_progress(progress))


def _progress(wanted: bool) -> Progress:
    from rich.console import Console

    from redline.progress import Progress

    return Progress(Console(stderr=True) if wanted else None)


def read_run(folder: Path) -> RunRecord:
    """The record of a finished run. Raises BadInput if there is none, or if another version of redline wrote it."""
    import json

    from redline.errors import BadInput
    from redline.records import SCHEMA_VERSION, RunRecord
    from redline.store import load

    path = Path(folder) / RECORD
    try:
        data = path.read_bytes()
    except OSError as error:
        fix = "name the folder of a finished run: runs/<id>"
        raise BadInput("run.absent", f"cannot read {path}", got=error.strerror, fix=fix) from error
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            "run.damaged", f"{path} is not JSON", got=error, fix="run again: what was measured is not lost"
        ) from error
    version = whole.get("schema_version") if isinstance(whole, dict) else None
    if version != SCHEMA_VERSION:
        fix = "read it with the version of redline that wrote it"
        raise BadInput("run.schema", f"{path} has another schema version", got=version, allowed=SCHEMA_VERSION, fix=fix)
    return load(RunRecord, data)


def report(run_folder: Path) -> Path:
    """Draw report.html of a finished run again; returns its path."""
    from redline.accounting import read_plan
    from redline.report import write_report

    return write_report(read_run(run_folder), Path(run_folder), *read_plan(Path(run_folder)))


def release(
    spec_path: Path | str,
    *,
    runs: Path = RUNS,
    hold: bool = True,
    probe: bool = True,
    progress: bool = True,
    candidate: Candidate | None = None,
) -> Outcome:
    """Verify the choice of the spec's run through the server beside what is served, promote it, hold it to the objective.

    `candidate`: another of the run's candidates instead of its choice; it is verified all the same.
    A release that is refused or rolled back is a result, in `Outcome.verdict`. Raises BadInput if there is no run, if it
    found nothing to release, or if another release is under way; StoreError if the service cannot be written.
    """
    from rich.console import Console

    from redline.errors import BadInput
    from redline.prepare import run_id
    from redline.progress import Progress
    from redline.releasing import release as roll_out

    spec = load_spec(spec_path)
    folder = Path(runs) / run_id(spec)
    if not (folder / RECORD).exists():
        what = f"no finished run of {spec_path} in {runs}"
        raise BadInput("release.no-run", what, got=f"no {folder}", fix=f"redline run {spec_path}")
    record = read_run(folder)
    console = Console(stderr=True) if progress else None
    return roll_out(spec, record, runs=Path(runs), progress=Progress(console), hold=hold, probe=probe, candidate=candidate)


def rollback(spec_path: Path | str, *, runs: Path = RUNS, to: int | None = None) -> Switch:
    """Back to the release before, or to release `to`. Raises BadInput if there is none or no service runs."""
    return _service(spec_path, runs).rollback(to=to, reason="asked for")


def service_status(spec_path: Path | str, *, runs: Path = RUNS) -> Status:
    """The service as it is now. Raises BadInput if none runs."""
    return _service(spec_path, runs).status()


def serve(spec_path: Path | str, *, runs: Path = RUNS, ready: Callable[[ServiceInfo], None] = lambda _: None) -> None:
    """Serve what was released, in this process, until it is told to stop."""
    from redline import serving

    serving.serve(serving.prepare_service(load_spec(spec_path), Path(runs)), ready)


def start_service(spec_path: Path | str, *, runs: Path = RUNS) -> ServiceInfo:
    """Start the service as a process of its own, unless it runs; returns where it answers."""
    from redline.serve.daemon import start_detached
    from redline.serving import prepare_service

    return start_detached(prepare_service(load_spec(spec_path), Path(runs))).info


def stop_service(spec_path: Path | str, *, runs: Path = RUNS) -> bool:
    """End the service; False if none ran."""
    from redline.serve.daemon import stop_service as stop
    from redline.serving import service_folder

    return stop(service_folder(load_spec(spec_path), Path(runs)))


def install_server() -> ServerEnvironment:
    """Install Triton and its own Python beside redline's, unless they are there.

    On a machine with an NVIDIA GPU its Python gets redline's TensorRT too, so that engines can be released.
    """
    from redline.doctor import inspect_machine
    from redline.serve.environment import gpu_packages, install_environment

    return install_environment(more=gpu_packages() if inspect_machine().gpus else ())


def watch(
    spec_path: Path | str | None = None,
    *,
    url: str | None = None,
    triton: str | None = None,
    runs: Path = RUNS,
    interval_s: float = 1.0,
    once: bool = False,
) -> Iterator[WatchState]:
    """Look at the service of a spec, or at the gateway at `url`, every `interval_s` seconds; `once`: over one interval.

    Raises BadInput if no service runs; one that stops answering later is a look that says so.
    """
    from redline import watching

    return watching.looks(_watched(spec_path, url, triton, runs), interval_s=interval_s, once=once)


def export_monitoring(
    folder: Path, spec_path: Path | str | None = None, *, url: str | None = None, triton: str | None = None, runs: Path = RUNS
) -> Exported:
    """Write Prometheus rules, scrape configuration and a Grafana dashboard of a running service into `folder`."""
    from redline import watching

    return watching.export(_watched(spec_path, url, triton, runs), Path(folder))


def _watched(spec_path: Path | str | None, url: str | None, triton: str | None, runs: Path) -> Watched:
    from redline import watching
    from redline.errors import BadInput

    if (spec_path is None) == (url is None):
        raise BadInput("cli.option", "name a spec file or --url, one of them", fix="redline watch detector.toml")
    if spec_path is None:
        return watching.elsewhere(str(url), triton)
    return watching.own(load_spec(spec_path), _service(spec_path, runs), triton)


def _service(spec_path: Path | str, runs: Path) -> Service:
    from redline.errors import BadInput
    from redline.serve.admin import running_service
    from redline.serving import service_folder

    spec = load_spec(spec_path)
    service = running_service(service_folder(spec, Path(runs)))
    if service is None:
        fix = f"redline serve {spec_path} starts it, redline release {spec_path} makes its first release"
        raise BadInput("serve.not-running", f"the service {spec.serve.name} does not run", fix=fix)
    return service


def explain(digest: str, runs: Path = RUNS) -> Lineage:
    """Where an object of the store came from; `digest` may be its first 6 characters or more."""
    from redline import store

    return store.explain(_store(runs), digest)


def gc(runs: Path = RUNS, dry_run: bool = False) -> Reclaimed:
    """Remove from the store of `runs` what none of its runs needs. Delete a run's folder first to free what it holds."""
    from redline import store
    from redline.store.lineage import ROOT_FILES

    found = _store(runs)
    folders = sorted(path for path in Path(runs).iterdir() if any((path / name).exists() for name in ROOT_FILES))
    return store.collect(found, folders, dry_run=dry_run)


def _store(runs: Path) -> store.Store:
    from redline import store
    from redline.errors import BadInput

    root = Path(runs) / STORE
    if not root.is_dir():
        raise BadInput("runs.absent", f"no store at {root}", fix="name the folder that `redline run` wrote to with --runs")
    return store.Store(root)
