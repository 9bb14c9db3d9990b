"""Warm-up on a fake clock."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from redline.measure.warm import WarmUp, warm_up


class Service:
    """A target whose calls take the given times on its own clock, the last of them for ever."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.time = 0.0
        self.calls: list[tuple[int, ...]] = []

    def now(self) -> float:
        return self.time

    def sleep_until(self, deadline: float) -> None:
        self.time = max(self.time, deadline)

    def __call__(self, joined: Sequence[int]) -> None:
        self.calls.append(tuple(joined))
        self.time += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]


def test_it_runs_until_the_medians_of_two_windows_agree() -> None:
    """1 first round, then 8 4 2 1 1 1 1: windows of two are (8 4) (2 1), then (4 2) (1 1), (2 1) (1 1), (1 1) (1 1)."""
    service = Service(30, 8, 4, 2, 1)
    assert warm_up(service, window=2, tolerance=0.1, clock=service) == WarmUp(runs=8, seconds=48.0, steady=True)
    assert service.calls == [(0,)] * 8


def test_every_inference_is_run_in_each_round() -> None:
    service = Service(1)
    done = warm_up(service, requests=[(0,), (3, 4)], window=2, clock=service)
    assert done == WarmUp(runs=10, seconds=10.0, steady=True)
    assert service.calls == [(0,), (3, 4)] * 5


def test_it_gives_up_in_time_but_finishes_the_first_round() -> None:
    service = Service(*(2.0**i for i in range(6)), 64.0)
    done = warm_up(service, window=1, tolerance=0.1, max_seconds=10, clock=service)
    assert done == WarmUp(runs=4, seconds=15.0, steady=False)
    slow = Service(1000)
    assert warm_up(slow, requests=[(0,), (1,)], max_seconds=0, clock=slow) == WarmUp(runs=2, seconds=2000.0, steady=False)


def test_what_the_target_raises_is_passed_on() -> None:
    def broken(joined: Sequence[int]) -> None:
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        warm_up(broken)


def test_the_real_clock_works() -> None:
    done = warm_up(lambda joined: None, window=3, tolerance=1e9, max_seconds=5)
    assert (done.runs, done.steady) == (7, True)


@pytest.mark.parametrize("changes", [{"requests": ()}, {"window": 0}])
def test_nothing_to_run_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="at least"):
        warm_up(lambda joined: None, **changes)  # type: ignore[arg-type]
