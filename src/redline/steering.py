"""What a run's searches are steered by: the plan's curves of its engines, and what was measured in-process for the server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from redline.errors import StoreError
from redline.plan.candidates import Space
from redline.plan.devices import known_device
from redline.plan.guide import Guide, Prior, bare, prior
from redline.planning import COSTS, efficiency_table, input_hw
from redline.records import Candidate, DeviceFacts, EfficiencyTable, Environment, ModelCosts, Objective, Spec, Trial
from redline.store import load
from redline.store.disk import guarded


def by_plan(spec: Spec, space: Space, folder: Path, runs: Path, environment: Environment) -> Guide | None:
    """Of the search in-process; None where the plan has no curve of what runs here: no GPU of the device table, no graph."""
    device = known_device(environment.gpus[0]) if environment.gpus else None
    engines = [family for family in space.families if family.runner == "tensorrt"]
    if device is None or not engines or not (folder / COSTS).exists():
        return None
    try:
        with guarded("read", folder / COSTS):
            costs = load(ModelCosts, (folder / COSTS).read_bytes())
    except StoreError:
        return None
    known = dict(_priors(engines, spec, costs, device, space.batches, efficiency_table(runs)))
    return Guide(objective=spec.objective, priors=known) if known else None


def by_trials(objective: Objective, trials: tuple[Trial, ...]) -> Guide:
    """Of the search through a server: a request there is what it is in-process, and what the server adds."""
    return Guide(objective=objective, priors={}, before=trials, narrow=True)


def _priors(
    engines: Iterable[Candidate],
    spec: Spec,
    costs: ModelCosts,
    device: DeviceFacts,
    batches: tuple[int, ...],
    table: EfficiencyTable,
) -> Iterable[tuple[Candidate, Prior]]:
    """Replayed as CUDA graphs and not. At the whole input whatever the shapes: a measurement sets the height of the curve."""
    size = input_hw(spec, costs)
    for engine in engines:
        for graphs in (True, False):
            found = prior(costs, device, engine.precision, size, batches, table, cuda_graph=graphs)
            if found is not None:
                yield bare(replace(engine, cuda_graphs=graphs)), found
