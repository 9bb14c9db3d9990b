"""Small served paths, and their requests one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from redline.plan.queueing import core
from redline.plan.queueing import state as at
from redline.plan.queueing.build import prepared
from redline.plan.queueing.paths import trial
from redline.plan.queueing.state import World
from redline.records import LatencyCurve, ServedPath, ShapeLoad

CURVE = LatencyCurve(points=((1, 4.0), (8, 9.0)))


def path(*points: tuple[int, float], cv: float = 0.0, law: Any = "lognormal", **knobs: Any) -> ServedPath:
    """One shape of this curve; `ms` are arrival times instead of a rate."""
    if "ms" in knobs:
        knobs["trace_s"] = tuple(time / 1000 for time in knobs.pop("ms"))
    return ServedPath(shapes=(ShapeLoad(curve=LatencyCurve(points=points, cv=cv, law=law)),), **knobs)


def ended(case: ServedPath, requests: int = 0, seed: int = 0) -> World:
    return trial(case, requests, seed)[0]


def ended_as(case: ServedPath, kinds: tuple[int, ...]) -> World:
    """The requests of a trace have these shapes."""
    world, rules, outages = prepared(case, 0, 0)
    world.notes[:, at.SHAPE] = kinds
    core.run(world, rules, outages)
    return world


def answers(case: ServedPath) -> list[float]:
    """When each request of a trace is answered, milliseconds to six digits."""
    return [round(float(time), 6) for time in ended(case).times[:, at.DONE]]


def starts(case: ServedPath) -> list[float]:
    return [round(float(time), 6) for time in ended(case).times[:, at.STARTED]]


def servers(arrive: np.ndarray[Any, Any], service: np.ndarray[Any, Any], count: int) -> list[float]:
    """Ends of requests that `count` servers take first come first served (Kiefer and Wolfowitz), an independent recursion."""
    free, found = [0.0] * count, []
    for came, needs in zip(arrive.tolist(), service.tolist(), strict=True):
        free.sort()
        free[0] = max(free[0], came) + needs
        found.append(free[0])
    return found
