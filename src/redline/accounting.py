"""Predictions held to account: a plan beside what a run measured, and the efficiency table refitted from runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from redline.errors import BadInput, StoreError
from redline.plan.account import checks
from redline.plan.devices import known_device
from redline.plan.efficiency import Measured, calibrate, kernel_times
from redline.plan.roofline import roofline
from redline.planning import COSTS, EFFICIENCY, PLAN, Asked, efficiency_table, make_plan, write_plan
from redline.records import EfficiencyTable, EngineRecord, Environment, ModelCosts, PlanRecord, PredictionCheck, RunRecord, Spec
from redline.store import Store, dump, load
from redline.store.disk import guarded, write_file

if TYPE_CHECKING:
    from redline.prepare import Graphs
    from redline.progress import Progress

RECORD, PREDICTIONS = "run.json", "predictions.json"
T = TypeVar("T")


def plan_run(
    spec: Spec, graphs: Graphs, folder: Path, runs: Path, environment: Environment, progress: Progress, *, on_gpu: bool
) -> PlanRecord | None:
    """Leave the costs of a run's network in its folder and, on a GPU of the device table, its plan; None without one.

    What cannot be planned is noted and stops no run.
    """
    from redline.plan.costs.read import read_costs

    if graphs.network is None:
        return None
    scratch = Store(runs / "store").scratch
    try:
        with progress.stage("costs of the network"):
            costs = read_costs(graphs.network.path)
        write_file(folder / COSTS, dump(costs, indent=1), scratch)
        device = known_device(environment.gpus[0]) if on_gpu and environment.gpus else None
        if device is None:
            return None
        plan = make_plan(spec, costs, device, "this machine's", Asked(), efficiency_table(runs), progress)
    except BadInput as error:
        progress.note(f"no plan: {error.line()}")
        return None
    write_plan(plan, folder, scratch)
    return plan


def hold_to_account(plan: PlanRecord, record: RunRecord, folder: Path, store: Store) -> tuple[PredictionCheck, ...]:
    """Write predictions.json, each prediction of the plan beside what the run's trials measured, and plan.md with them."""
    found = checks(plan, record.trials)
    write_file(folder / PREDICTIONS, dump(found, indent=2), store.scratch)
    write_plan(plan, folder, store.scratch, found)
    return found


def read_plan(folder: Path) -> tuple[PlanRecord | None, tuple[PredictionCheck, ...]]:
    """The plan that a run was held to and its checks; (None, ()) where the run made none."""
    if not (folder / PREDICTIONS).exists():
        return None, ()
    return _load(PlanRecord, folder / PLAN), _load(tuple[PredictionCheck, ...], folder / PREDICTIONS)


def recalibrate(folders: Sequence[Path], runs: Path) -> EfficiencyTable:
    """Refit the table from the engines that finished runs measured alone, and keep it in `runs` for the plans to come.

    Raises BadInput (plan.calibrate) for a folder that holds no run or no costs, and where no run measured an engine on a GPU
    of the device table.
    """
    found: list[Measured] = []
    for folder in folders:
        costs, record = _read(folder)
        found += [one for engine in record.engines if (one := _measured(record, costs, engine, runs)) is not None]
    if not found:
        fix = "give runs that were made on a GPU with TensorRT"
        raise BadInput("plan.calibrate", "no engine was measured in these runs", got=", ".join(map(str, folders)), fix=fix)
    names = ", ".join(folder.name for folder in folders)
    table = calibrate(found, efficiency_table(runs), source=f"fitted on {len(found)} engines of {names}")
    write_file(runs / EFFICIENCY, dump(table, indent=1), Store(runs / "store").scratch)
    return table


def _read(folder: Path) -> tuple[ModelCosts, RunRecord]:
    try:
        return _load(ModelCosts, folder / COSTS), _load(RunRecord, folder / RECORD)
    except StoreError as error:
        fix = f"a finished run has {RECORD} and {COSTS}"
        raise BadInput("plan.calibrate", f"{folder} cannot be calibrated on", got=error.what, fix=fix) from error


def _measured(record: RunRecord, costs: ModelCosts, engine: EngineRecord, runs: Path) -> Measured | None:
    """An engine's inference alone beside its prediction; None where it never ran or its GPU is not in the table."""
    device = known_device(record.environment.gpus[0]) if record.environment.gpus else None
    precision = engine.build.options.precision
    if device is None or engine.anatomy is None or engine.shape is None or precision in ("int8", "fp8"):
        return None
    images, _, height, width = engine.shape
    at = replace(costs, size=(None, None, None)) if costs.size[0] != images else costs
    predicted = roofline(at, device, precision, images, height, width, table=efficiency_table(runs))
    whole_ms = engine.anatomy.gpu_ms
    # Only the slowest layers are kept of a large engine: what timing costs a layer cannot be told from them.
    complete = sum(layer.ms for layer in engine.layers) >= whole_ms
    kernels = kernel_times(costs, engine.layers, whole_ms) if complete else ()
    return Measured(prediction=predicted, step_us=1000 * whole_ms, kernels=kernels)


def _load(kind: type[T], path: Path) -> T:
    with guarded("read", path):
        data = path.read_bytes()
    return load(kind, data)
