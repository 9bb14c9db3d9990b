"""An engine against the reference at every boundary shape of its profiles. Joins the rooms plan and parity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from redline.errors import TrialError
from redline.parity import compare_tensors
from redline.plan.boundaries import boundary_shapes, profile_at
from redline.records import BoundaryCheck, EngineProfile, Preprocess, Runner

if TYPE_CHECKING:
    from redline.records.detect import Tensor
    from redline.records.spec import Precision


def check_boundaries(
    engine: Runner,
    reference: Runner,
    profiles: Sequence[EngineProfile],
    preprocess: Preprocess,
    precision: Precision,
    outputs: Sequence[str],
    *,
    refuses: bool,
    allowed: float = 0.0,
) -> tuple[BoundaryCheck, ...]:
    """One record a shape: where some profile takes it, both are run on the same random picture and compared; elsewhere, if
    the runner `refuses` what lies outside, it must say so (engine-shape) and still work.

    `allowed`: what outputs may differ by if that is more than the tolerance of the precision. Raises what the runners raise on
    shapes that they must take, and TrialError (parity-outputs, boundary-reference).
    """
    inside, beyond = boundary_shapes(profiles, preprocess.stride)
    found = []
    for shape in inside:
        batch = boundary_picture(shape, preprocess)
        try:
            wanted = reference.run(batch)
        except TrialError as error:
            got = f"{' x '.join(map(str, shape))}: {error.line()}"
            raise TrialError("boundary-reference", "The reference does not run at a boundary shape", got=got) from error
        deltas = compare_tensors(outputs, [wanted], [engine.run(batch)], precision)
        worst = max(deltas, key=lambda delta: delta.max_rel / delta.tolerance)
        tolerance, finite = max(worst.tolerance, allowed), all(delta.finite for delta in deltas)
        found.append(
            BoundaryCheck(
                shape=shape,
                profile=profile_at(profiles, shape).index,
                taken=True,
                max_rel=worst.max_rel,
                tolerance=tolerance,
                finite=finite,
                passed=finite and worst.max_rel <= tolerance,
            )
        )
    return (*found, *(_refused(engine, shape, profile_at(profiles, shape)) for shape in beyond if refuses))


def boundary_failure(checks: Sequence[BoundaryCheck], profiles: Sequence[EngineProfile]) -> TrialError | None:
    """engine-boundary with every shape that failed and its profile; None if all passed."""
    wrong = [check for check in checks if not check.passed]
    if not wrong:
        return None
    spans = {profile.index: _span(profile) for profile in profiles}
    got = "; ".join(f"{_what(check)} (profile {check.profile}: {spans[check.profile]})" for check in wrong)
    return TrialError("engine-boundary", "The engine is wrong at a boundary shape of its profiles", got=got)


def boundary_picture(shape: tuple[int, ...], preprocess: Preprocess) -> Tensor:
    """Noise over the whole range of brightness, as preprocessing would hand it over."""
    noise = np.random.default_rng(abs(hash(shape))).uniform(0, 255, (shape[0], *shape[2:], shape[1])) * preprocess.scale
    scaled = (noise - np.array(preprocess.mean)) / np.array(preprocess.std)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def _refused(engine: Runner, shape: tuple[int, ...], near: EngineProfile) -> BoundaryCheck:
    passed = False
    try:
        engine.run(np.zeros(shape, np.float32))
    except TrialError as error:
        passed = error.code == "engine-shape"
    return BoundaryCheck(shape=shape, profile=near.index, taken=False, max_rel=0.0, tolerance=0.0, finite=True, passed=passed)


def _what(check: BoundaryCheck) -> str:
    shape = " x ".join(map(str, check.shape))
    if not check.taken:
        return f"{shape} is not refused"
    if not check.finite:
        return f"{shape} gives NaN or infinity"
    return f"{shape} differs by {check.max_rel:.2g} (tolerance {check.tolerance:.2g})"


def _span(profile: EngineProfile) -> str:
    pairs = zip(profile.minimum, profile.maximum, strict=True)
    return " x ".join(str(low) if low == high else f"{low}..{high}" for low, high in pairs)
