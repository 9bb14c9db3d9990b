"""A plan that was built elsewhere: whether it may run with this TensorRT on this GPU, and the runner that opens it here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import TrialError

if TYPE_CHECKING:
    from redline.engine.tensorrt_runner import TensorRTRunner
    from redline.records import EngineProfile, PlanOrigin, Runner

AMPERE = 8
"""Major compute capability."""


def require_here(origin: PlanOrigin, library: str, version: str, gpu: str) -> None:
    """Raises TrialError (engine-place) unless the plan may run with this TensorRT on this GPU (name and compute capability)."""
    if not (library == origin.library and _same_version(origin, version)) or not _same_gpu(origin, gpu):
        newer = ", or a newer one of its major version" if origin.version_compatible else ""
        kind = {"this": origin.gpu, "same-capability": f"any GPU of compute capability {origin.gpu.rsplit(' ', 1)[-1]}"}
        raise TrialError(
            "engine-place",
            "The engine was built for another GPU or another TensorRT",
            got=f"{library} {version} on {gpu}",
            allowed=f"{origin.library} {origin.version}{newer} on {kind.get(origin.hardware, 'Ampere or a newer GPU')}",
            fix=f"build it here: {origin.rebuild}",
        )


def open_plan(
    plan: bytes, origin: PlanOrigin, *, device: int, lanes: int, graphs: bool, outputs: Sequence[str]
) -> TensorRTRunner:
    """The runner of a plan on the GPU `device`.

    Raises BadInput (engine.no-tensorrt), TrialError (engine-place, engine-plan, engine-memory, engine-outputs, engine-cuda).
    """
    from redline.engine import cuda
    from redline.engine.tensorrt_runner import TensorRTRunner
    from redline.engine.tensorrt_versions import find

    library = find("tensorrt-rtx" if origin.library == "tensorrt-rtx" else "tensorrt")
    name, capability, _ = cuda.describe(device)
    require_here(origin, library.name, library.version, f"{name} {capability}")
    return TensorRTRunner(
        plan,
        library,
        device=device,
        lanes=lanes,
        graphs=graphs,
        outputs=outputs,
        rebuild=origin.rebuild,
        host_code=origin.version_compatible,
    )


def warm(runner: Runner, profiles: Sequence[EngineProfile], batch: int) -> None:
    """Zeros in the best shape of every profile, one image and a full batch: contexts have run, CUDA graphs are captured."""
    for profile in profiles:
        for images in sorted({profile.minimum[0], max(profile.minimum[0], min(batch, profile.maximum[0]))}):
            zeros: Any = np.zeros((images, *profile.optimum[1:]), np.float32)
            runner.run(zeros)


def _same_version(origin: PlanOrigin, version: str) -> bool:
    if version == origin.version:
        return True
    here, built = (_numbers(text) for text in (version, origin.version))
    return origin.version_compatible and here[:1] == built[:1] and here > built


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _same_gpu(origin: PlanOrigin, gpu: str) -> bool:
    capability, built = (text.rsplit(" ", 1)[-1] for text in (gpu, origin.gpu))
    if origin.hardware == "same-capability":
        return capability == built
    if origin.hardware == "ampere-plus":
        return _numbers(capability)[:1] >= [AMPERE]
    return gpu == origin.gpu
