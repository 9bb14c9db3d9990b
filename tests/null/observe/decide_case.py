"""Where `decide` draws its lines, so that many probations can be simulated at once with its own answers."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from redline.observe.decide import decide
from redline.records import Action, Objective, Observation, ServeSpec

OBJECTIVE = Objective(p95_ms=20.0, throughput=30.0)
POLICY = ServeSpec()
HOLD_S, LOOK_S = 60.0, 0.5
LOOKS_S = np.arange(1, int(HOLD_S / LOOK_S) + 1) * LOOK_S


def judged(requests: int, seconds: float, *, held_s: float | None = None, hold_s: float = HOLD_S, **counts: int) -> Action:
    seen = Observation(
        release=4,
        seconds=seconds,
        requests=requests,
        **{name: counts.get(name, 0) for name in ("errors", "slow", "compared", "differing")},
    )
    return decide(seen, OBJECTIVE, POLICY, held_s=seconds if held_s is None else held_s, hold_s=hold_s)


@cache
def fewest(kind: str, trials: int, seconds: float) -> int:
    """Fewest slow requests (errors, differing boxes) among `trials` for which `decide` rolls back; trials + 1: none would."""

    def rolls_back(events: int) -> bool:
        if kind == "differing":
            return judged(0, seconds, compared=trials, differing=events).decision == "rollback"
        return judged(trials, seconds, **{kind: events}).decision == "rollback"

    low, high = 0, trials + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if rolls_back(middle) else (middle + 1, high)
    return low


def chance_of_rollback(kind: str, share: float, rate: int, seconds: float = HOLD_S) -> np.ndarray:
    """Chance that a release whose requests go wrong independently with `share` was rolled back by each look. Exact: the
    distribution of the count is carried from look to look, without what was rolled back."""
    counts, gone, chances, before = np.ones(1), 0.0, [], 0
    for at in LOOKS_S[: int(seconds / LOOK_S)]:
        new = int(rate * at) - before
        before += new
        step = [math.comb(new, k) * share**k * (1 - share) ** (new - k) for k in range(new + 1)]
        counts = np.convolve(counts, step)
        limit = fewest(kind, before, float(at))
        gone += float(counts[limit:].sum())
        counts = counts[:limit]
        chances.append(gone)
    return np.array(chances)


def rolled_back(kind: str, trials: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Time of the rollback of each simulated probation, inf for none. `trials`, `events`: (probations, looks), growing."""
    limits = np.empty_like(trials)
    for look, at in enumerate(LOOKS_S[: trials.shape[1]]):
        settled = 8.0 if kind == "differing" else float(at)  # the time does not matter to it: one line per count
        for count in np.unique(trials[:, look]):
            limits[trials[:, look] == count, look] = fewest(kind, int(count), settled)
    hits = events >= limits
    return np.where(hits.any(axis=1), LOOKS_S[hits.argmax(axis=1)], np.inf)
