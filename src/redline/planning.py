"""`redline plan`: a network's costs, a device's roof and a queue make ladder, limits and answer, before any build."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from redline.errors import BadInput
from redline.plan.decide import Case, decide, node_path
from redline.plan.devices import device as device_facts
from redline.plan.devices import devices as all_devices
from redline.plan.devices import known_device
from redline.plan.efficiency import shipped_table
from redline.plan.ladder import Image, ladder, loaded_steps
from redline.plan.limits import node_limits
from redline.plan.roofline import roofline
from redline.prepare import run_id
from redline.records import (
    PLAN_SCHEMA,
    DeviceAnswer,
    DeviceFacts,
    EfficiencyTable,
    FleetAnswer,
    HeavyKernel,
    ModelCosts,
    Node,
    NodeLimits,
    PlanRecord,
    PredictionCheck,
    Roofline,
    Spec,
)
from redline.store import Journal, Store, dump, load
from redline.store.disk import guarded, write_file

if TYPE_CHECKING:
    from redline.progress import Progress
    from redline.records import Environment

COSTS, EFFICIENCY, PLAN, PAGE = "costs.json", "efficiency.json", "plan.json", "plan.md"
REFERENCE = "a100-80"
"""Planned for where no GPU is at hand and none is named."""
NODE_GPUS = 8
FLEET_REQUESTS = 40_000
"""Of a simulation of a few nodes together; a search takes some dozens."""
HEAVIEST = 8
TIMED_IMAGES = 8
FP32_BYTES = 4
BOX_BYTES = 24
"""A detection as tensors: four coordinates and a score in FP32, an int32 label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """See `api.plan`."""

    device: str | None = None
    gpus: int = NODE_GPUS
    facts: Path | None = None
    cores: int | None = None
    nic_gbit_s: float | None = None
    rate: float | None = None


def plan(spec: Spec, asked: Asked, *, runs: Path, environment: Environment, progress: Progress) -> PlanRecord:
    """See `api.plan`."""
    folder = runs / run_id(spec)
    store = Store(runs / "store", on_wait=progress.note)
    with progress.stage("costs of the network"):
        costs = model_costs(spec, asked.facts, folder, store, progress)
    device, why = _device(asked.device, environment)
    table = efficiency_table(runs)
    record = make_plan(spec, costs, device, why, asked, table, progress)
    write_file(folder / COSTS, dump(costs, indent=1), store.scratch)
    write_plan(record, folder, store.scratch)
    return record


def make_plan(
    spec: Spec, costs: ModelCosts, device: DeviceFacts, why: str, asked: Asked, table: EfficiencyTable, progress: Progress
) -> PlanRecord:
    """The plan of a network whose costs are known. Raises BadInput for a size that the graph does not take and a rate that is
    none."""
    if asked.rate is not None and not 0 < asked.rate < math.inf:
        raise BadInput("plan.rate", "no fleet for such a rate", got=asked.rate, allowed="more than 0 requests/s")
    image, request_bytes = _image(spec, costs)
    size, answer_bytes = (1, image.height, image.width), BOX_BYTES * spec.model.postprocess.max_detections
    case = Case(costs=costs, device=device, image=image, objective=spec.objective, table=table)

    def limits(kind: DeviceFacts, gpus: int, rate: float) -> NodeLimits:
        return node_limits(kind, _node(asked, image, request_bytes, answer_bytes, gpus, rate))

    with progress.stage(f"ladder on {device.title}"):
        steps = ladder(costs, device, image, table)
    with progress.stage("queues of all devices"):
        decision = decide(case, all_devices(), limits, most=asked.gpus)
    own = next((a for a in decision.devices if a.device == device.name and a.arithmetic == "fp16"), None)
    fleet: FleetAnswer | None = None
    lacking: tuple[str, ...] = ()
    if asked.rate is not None:
        with progress.stage(f"a fleet for {asked.rate:,.0f}/s"):
            fleet, lacking = _fleet(case, own, asked, limits)
    with_load = (*steps, *loaded_steps(steps, own, spec.objective)) if own is not None else steps
    network = _network(case)
    gpus = own.gpus or asked.gpus if own is not None else asked.gpus
    return PlanRecord(
        schema_version=PLAN_SCHEMA,
        model=Path(spec.model.onnx).stem if spec.model.onnx else str(spec.model.factory).partition(":")[2],
        graph_digest=costs.graph_digest,
        parameters=costs.parameters,
        gflop=2 * costs.macs(*size) / 1e9,
        device=device.name,
        device_title=device.title,
        device_reason=why,
        size=size,
        objective=spec.objective,
        efficiency=table.source,
        ladder=with_load,
        heavy=_heavy(network),
        bounds=_bounds(network),
        limits=limits(device, gpus, own.full_per_gpu) if own is not None and own.full_per_gpu else None,
        decision=decision,
        notes=(*_notes(network, image), *lacking),
        fleet=fleet,
    )


def _fleet(
    case: Case, own: DeviceAnswer | None, asked: Asked, limits: Callable[[DeviceFacts, int, float], NodeLimits]
) -> tuple[FleetAnswer | None, tuple[str, ...]]:
    """Nodes of the most GPUs that a node has, in FP16, or why there is no fleet."""
    from redline.plan.queueing.fleet import fleet

    assert asked.rate is not None
    if own is None or not own.rate_per_gpu or not own.full_per_gpu:
        return None, (f"no fleet: {own.reason if own is not None else 'a peak of the device is unknown'}",)
    known = limits(case.device, asked.gpus, own.full_per_gpu).known
    price = min((price.usd_per_hour for price in case.device.prices), default=None)
    made = fleet(
        node_path(case, own, asked.gpus),
        demand_per_s=asked.rate,
        p95_ms=case.objective.p95_ms,
        usd_per_gpu_hour=price,
        limit=next((limit for limit in known if limit.resource != "network"), None),
        requests=FLEET_REQUESTS,
    )
    return made, ()


def model_costs(spec: Spec, facts: Path | None, folder: Path, store: Store, progress: Progress) -> ModelCosts:
    """From a file of costs, or from the model's graph; without torch, from what an earlier plan or run of this spec left.

    What was left is no more than that: the model's code and weights may have changed under an unchanged spec.
    Raises BadInput: plan.facts (a file that holds no costs), plan.no-torch (neither torch nor costs).
    """
    from importlib.util import find_spec

    from redline.errors import StoreError

    needs_torch = spec.model.onnx is None and find_spec("torch") is None
    left = folder / COSTS
    if facts is None and needs_torch and left.exists():
        progress.note(f"without torch the costs of an earlier plan are taken: {left}")
        facts = left
    if facts is not None:
        try:
            return load(ModelCosts, _read(facts))
        except StoreError as error:
            fix = f"give the {COSTS} that `redline plan` or `redline run` left in runs/"
            raise BadInput("plan.facts", f"{facts} holds no costs of a network", got=error.what, fix=fix) from error
    if needs_torch:
        fix = f'pip install "redline[torch]", or --facts with the {COSTS} of a machine that has it'
        raise BadInput("plan.no-torch", "reading the model needs torch, which is not installed", fix=fix)
    from redline.plan.costs.read import read_costs

    return read_costs(_graph(spec, folder, store, progress))


def _graph(spec: Spec, folder: Path, store: Store, progress: Progress) -> Path:
    """The network's graph, exported as a run does: it is found there again."""
    from redline.prepare import export_graphs, load_subject

    journal = Journal(folder / "journal.jsonl")
    with ThreadPoolExecutor(1) as aside:  # as in a run: torch's OpenMP pool ends with the thread
        subject = aside.submit(load_subject, spec, progress).result()
        graphs = aside.submit(export_graphs, subject, store, journal, progress, int8=False).result()
    if graphs.network is None:
        raise BadInput("plan.no-graph", "the model has no graph to count", got=graphs.network_failure, fix="see `redline run`")
    return Path(graphs.network.path)


def efficiency_table(runs: Path) -> EfficiencyTable:
    """What `redline plan --calibrate` left in `runs`, or the packaged table."""
    path = runs / EFFICIENCY
    return load(EfficiencyTable, _read(path)) if path.exists() else shipped_table()


def _read(path: Path) -> bytes:
    with guarded("read", path):
        return path.read_bytes()


def write_plan(record: PlanRecord, folder: Path, scratch: Path, checks: Sequence[PredictionCheck] = ()) -> None:
    """plan.json, and plan.md with the checks of its predictions if there are any."""
    from redline.report.plan import plan_markdown

    write_file(folder / PLAN, dump(record, indent=2), scratch)
    write_file(folder / PAGE, plan_markdown(record, checks).encode(), scratch)


def _device(wanted: str | None, environment: Environment) -> tuple[DeviceFacts, str]:
    if wanted is not None:
        return device_facts(wanted), "asked for"
    if environment.gpus and (known := known_device(environment.gpus[0])) is not None:
        return known, "this machine's"
    missing = "this machine's GPU is not in the table" if environment.gpus else "no GPU on this machine"
    return device_facts(REFERENCE), f"{missing}: the reference case's; --device names another"


def _image(spec: Spec, costs: ModelCosts) -> tuple[Image, float]:
    """The network's whole input, its host stages timed on this machine, and the mean bytes of an encoded image.

    Without an image at hand, an encoded one is taken as large as the input's pixels, which is a bound.
    """
    height, width = input_hw(spec, costs)
    files = _pictures(Path(spec.data.evaluate.images))
    sizes = [os.stat(file).st_size for file in files]
    host_ms, source = _timed(spec, files[:TIMED_IMAGES])
    output_bytes = FP32_BYTES * costs.output_elements.at(1, height, width)
    image = Image(height=height, width=width, host_ms=host_ms, source_bytes=source, output_bytes=output_bytes)
    return image, statistics.mean(sizes) if sizes else 3.0 * height * width


def input_hw(spec: Spec, costs: ModelCosts) -> tuple[int, int]:
    """Height and width of the network's whole input, pixels."""
    stride = spec.model.preprocess.stride
    height, width = (-(-side // stride) * stride for side in spec.model.preprocess.size)
    return costs.size[1] or height, costs.size[2] or width


def _pictures(folder: Path) -> list[Path]:
    known = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in known) if folder.is_dir() else []


def _timed(spec: Spec, files: Sequence[Path]) -> tuple[float | None, int]:
    """Median ms of decoding and preprocessing an image on one core here, and the most decoded bytes; (None, 0) without any."""
    from redline.vision.image import decode
    from redline.vision.preparation import prepare

    times, largest = [], 0
    for file in files:
        data = file.read_bytes()
        started = time.process_time()  # of this process alone: others on the machine do not count
        try:
            pixels = decode(data, name=file.name)
            prepare(pixels, spec.model.preprocess, "fixed")
        except BadInput:
            continue
        times.append(1000 * (time.process_time() - started))
        largest = max(largest, pixels.nbytes)
    return (statistics.median(times), largest) if times else (None, 0)


def _node(asked: Asked, image: Image, request_bytes: float, answer_bytes: float, gpus: int, rate: float) -> Node:
    return Node(
        gpus=gpus,
        request_bytes=request_bytes,
        input_bytes=3 * image.height * image.width * FP32_BYTES,
        output_bytes=image.output_bytes,
        answer_bytes=answer_bytes,
        decode="host",
        network_per_s=rate,
        host_cores=asked.cores,
        decode_ms=image.host_ms,
        nic_gbit_s=asked.nic_gbit_s,
    )


def _network(case: Case) -> Roofline | None:
    """The engine of the plan, or None where a peak is unknown."""
    try:
        return roofline(case.costs, case.device, "fp16", 1, case.image.height, case.image.width, table=case.table)
    except BadInput:
        return None


def _heavy(network: Roofline | None) -> tuple[HeavyKernel, ...]:
    if network is None:
        return ()
    groups = sorted(network.groups, key=lambda group: -group.expected_us)[:HEAVIEST]
    return tuple(
        HeavyKernel(
            name=group.name,
            kind=group.kind,
            bound=group.bound,
            expected_us=group.expected_us,
            roof_us=group.roof_us,
            share=group.expected_us / network.expected_us,
        )
        for group in groups
    )


def _bounds(network: Roofline | None) -> tuple[tuple[str, float], ...]:
    if network is None:
        return ()
    found: Counter[str] = Counter()
    for group in network.groups:
        found[group.bound] += group.expected_us / network.expected_us  # type: ignore[assignment]
    return tuple(found.most_common())


def _notes(network: Roofline | None, image: Image) -> tuple[str, ...]:
    found = list(network.notes) if network is not None else []
    if image.host_ms is None:
        found.append(
            "no image at hand: the host's stages are not counted, and an encoded image is taken as large as its pixels"
        )
    else:
        text = f"decoding and preprocessing took {image.host_ms:.2f} ms an image on one core of this machine; "
        found.append(text + "post-processing on the host is not counted")
    return tuple(found)
