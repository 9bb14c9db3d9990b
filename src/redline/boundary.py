"""An engine against the reference at every boundary shape of its profiles. Joins the rooms plan and parity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from redline.errors import TrialError
from redline.parity import compare_tensors
from redline.plan.boundaries import boundary_shapes
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
) -> tuple[BoundaryCheck, ...]:
    """One record a shape: where some profile takes it, both are run on the same random picture and compared; elsewhere, if
    the runner `refuses` what lies outside, it must say so (engine-shape) and still work.

    Raises what the runners raise on shapes that they must take, and TrialError (parity-outputs).
    """
    inside, beyond = boundary_shapes(profiles, preprocess.stride)
    found = [_compared(engine, reference, shape, preprocess, precision, outputs) for shape in inside]
    return (*found, *(_refused(engine, shape) for shape in beyond if refuses))


def _compared(
    engine: Runner,
    reference: Runner,
    shape: tuple[int, ...],
    preprocess: Preprocess,
    precision: Precision,
    outputs: Sequence[str],
) -> BoundaryCheck:
    batch = _picture(shape, preprocess)
    deltas = compare_tensors(outputs, [reference.run(batch)], [engine.run(batch)], precision)
    worst = max(deltas, key=lambda delta: delta.max_rel / delta.tolerance)
    passed = all(delta.finite and delta.max_rel <= delta.tolerance for delta in deltas)
    return BoundaryCheck(shape=shape, taken=True, max_rel=worst.max_rel, tolerance=worst.tolerance, passed=passed)


def _refused(engine: Runner, shape: tuple[int, ...]) -> BoundaryCheck:
    passed = False
    try:
        engine.run(np.zeros(shape, np.float32))
    except TrialError as error:
        passed = error.code == "engine-shape"
    return BoundaryCheck(shape=shape, taken=False, max_rel=0.0, tolerance=0.0, passed=passed)


def _picture(shape: tuple[int, ...], preprocess: Preprocess) -> Tensor:
    """Noise over the whole range of brightness, as preprocessing would hand it over."""
    noise = np.random.default_rng(abs(hash(shape))).uniform(0, 255, (shape[0], *shape[2:], shape[1])) * preprocess.scale
    scaled = (noise - np.array(preprocess.mean)) / np.array(preprocess.std)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)
