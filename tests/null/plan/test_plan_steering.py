"""What a run's searches are steered by, from what lies in its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from paper_plan import NETWORK, spec_on_paper
from test_plan_guide import ENGINE, HOST, rates, trial

from redline.plan.candidates import Space
from redline.planning import COSTS
from redline.records import Candidate, Environment
from redline.steering import by_plan, by_trials
from redline.store import dump

H100 = Environment(
    platform="Linux", python="3.12", cpu="CPU", cores=16, memory_bytes=1, gpus=("NVIDIA H100 80GB HBM3, 81559 MiB",),
    libraries=(), redline="0.1.0", commit=None,
)  # fmt: skip
EAGER = Candidate(runner="torch-eager", device="cuda:0")
SPACE = Space(baseline=EAGER, families=(EAGER, ENGINE), refusals=(), cores=16, batches=(1, 2, 4, 8), devices=("cuda:0",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / COSTS).write_bytes(dump(NETWORK))
    return tmp_path


def test_on_a_known_gpu_the_plans_curve_tells_of_batches_that_nobody_measured(folder: Path) -> None:
    guide = by_plan(spec_on_paper(folder), SPACE, folder, folder, H100)
    assert guide is not None
    assert not guide.narrow, "in-process the run wants every runner's best"
    one, eight, bare, eager = rates(
        guide,
        [ENGINE, replace(ENGINE, batch=8), replace(ENGINE, cuda_graphs=False, batch=8), replace(EAGER, batch=8)],
        trial(ENGINE, 1000.0),
        trial(replace(ENGINE, cuda_graphs=False), 900.0),
        trial(EAGER, 100.0),
    )
    assert one is not None
    assert eight is not None
    assert bare is not None
    assert eight > 1.5 * one, "the launch is paid once for 8 images"
    assert eager is None, "eager torch has no curve in the plan"


def test_without_a_known_gpu_an_engine_or_costs_nothing_steers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    spec, empty = spec_on_paper(folder), tmp_path_factory.mktemp("empty")
    assert by_plan(spec, SPACE, folder, folder, replace(H100, gpus=("Made Up 9000",))) is None
    assert by_plan(spec, SPACE, folder, folder, replace(H100, gpus=())) is None
    assert by_plan(spec, replace(SPACE, families=(EAGER,)), folder, folder, H100) is None
    assert by_plan(spec, SPACE, empty, folder, H100) is None
    (empty / COSTS).write_text("{")
    assert by_plan(spec, SPACE, empty, folder, H100) is None


def test_the_search_through_a_server_starts_from_the_trials_in_process() -> None:
    guide = by_trials(spec_on_paper(Path("nowhere")).objective, (trial(HOST, 100.0),))
    assert guide.narrow
    assert [one.candidate for one in guide.before] == [HOST]
