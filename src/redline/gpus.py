"""What a run has of GPUs: those that it uses, where engines for them are made, and their telemetry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redline.errors import BadInput, TrialError
from redline.plan.gpu import GpuAbilities, first_gpu
from redline.records import EngineRecord, TensorRTFacts

if TYPE_CHECKING:
    from redline.engine.devices import Gpu
    from redline.engine.foundry import Foundry
    from redline.live import Live
    from redline.progress import Progress
    from redline.records import Candidate, EngineBuild, Environment, Spec, Telemetry
    from redline.store import Journal, Store

TOP_LAYERS = 40
"""Layer times kept of each engine, the slowest."""


@dataclass(slots=True, eq=False)
class GpuHost:
    """`gpus`: by CUDA's index. `foundry` is None without a TensorRT that can be used; `tensorrt.problem` says why."""

    gpus: tuple[Gpu, ...]
    tensorrt: TensorRTFacts
    foundry: Foundry | None
    told: bool = False
    """That there is no telemetry was said once."""

    def abilities(self) -> GpuAbilities:
        from redline.engine.devices import no_compile

        names = tuple(gpu.name for gpu in self.gpus)
        memory = min(gpu.memory_bytes for gpu in self.gpus)
        return GpuAbilities(
            names=names, memory_bytes=memory, tensorrt=self.tensorrt, no_compile=no_compile(), no_kernels=_no_kernels()
        )


def _no_kernels() -> str | None:
    """Why no kernels can be made around an engine."""
    try:
        import torch
        from cuda.bindings import runtime

        import triton
    except ImportError as error:
        return f"{error.name or error} is not installed: pip install redline[kernels,torch]"
    del triton, runtime
    return None if torch.cuda.is_available() else "this torch is not built for CUDA, and the kernels run on its streams"


def open_gpus(
    spec: Spec, environment: Environment, store: Store, journal: Journal, progress: Progress
) -> tuple[GpuHost | None, str]:
    """The GPUs of this machine, or None and why none is used. A machine without one is asked nothing."""
    if spec.target.devices == "cpu":
        return None, '[target] devices = "cpu"'
    if not environment.gpus:
        if spec.target.devices != "auto":
            fix = 'devices = "auto" takes what is there; see `redline doctor`'
            raise BadInput("plan.no-gpu", "no NVIDIA GPU on this machine", got=f'devices = "{spec.target.devices}"', fix=fix)
        return None, "no NVIDIA GPU on this machine"
    from redline.engine.devices import visible_gpus

    try:
        gpus = visible_gpus()
    except TrialError as error:
        if spec.target.devices != "auto":
            raise BadInput(error.code, error.what, got=error.got, fix=error.fix) from error
        return None, error.line()
    foundry, facts = open_foundry(spec, store, journal, progress)
    return GpuHost(gpus, facts, foundry), ""


def open_foundry(spec: Spec, store: Store, journal: Journal | None, progress: Progress) -> tuple[Foundry | None, TensorRTFacts]:
    """Where engines for the first GPU of `spec` are made; None with the problem if TensorRT cannot be used as it asks."""
    from dataclasses import replace

    from redline.engine.devices import tensorrt_facts
    from redline.engine.tensorrt_versions import find

    facts = tensorrt_facts()
    if facts.problem is not None:
        return None, facts
    from redline.engine.foundry import Foundry

    library = find()
    problem = library.refuses(spec.target.tensorrt)
    if problem is not None:
        return None, replace(facts, problem=problem)
    try:
        return Foundry(library, store, journal, progress.build, device=first_gpu(spec.target.devices)), facts
    except TrialError as error:
        return None, replace(facts, problem=error.line())


@contextmanager
def watched(host: GpuHost | None, candidate: Candidate, found: list[Telemetry], progress: Progress) -> Iterator[None]:
    """Telemetry of every GPU of the candidate over the block, in `found`; none, said once, where NVML is not there."""
    from redline.measure.telemetry import telemetry

    with ExitStack() as stack:
        if host is not None:
            try:
                for device in candidate.gpus:
                    stack.enter_context(telemetry(device, found))
            except (BadInput, ImportError) as error:
                if not host.told:
                    progress.note(f"no telemetry, so a throttled GPU goes unseen (nvidia-ml-py): {error}")
                host.told = True
        yield


def dissect(live: Live, build: EngineBuild) -> EngineRecord:
    """Where the time of one image's inference goes in the open engine. Raises TrialError if it does not run alone."""
    import numpy as np

    from redline.engine.pool import PooledRunner
    from redline.engine.tensorrt_anatomy import anatomy, layer_times
    from redline.engine.tensorrt_runner import TensorRTRunner

    runner = live.runner.first if isinstance(live.runner, PooledRunner) else live.runner
    assert isinstance(runner, TensorRTRunner)
    shape = (1, 3, *live.input_hw[0])
    batch = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    times = layer_times(runner, batch, build.proof.layers)
    return EngineRecord(build=build, shape=shape, anatomy=anatomy(runner, batch), layers=times[:TOP_LAYERS])
