"""One queue over runners of several GPUs, with made-up runners whose every call is known."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from redline.engine.pool import PooledRunner
from redline.errors import TrialError


class Fake:
    """Doubles its input after `seconds`, and knows how many calls it had at once."""

    def __init__(self, name: str, seconds: float = 0.0) -> None:
        self.name, self.seconds, self.calls, self.at_once, self.most, self.closed = name, seconds, 0, 0, 0, False
        self.lock = threading.Lock()

    def run(self, batch):
        with self.lock:
            self.calls, self.at_once = self.calls + 1, self.at_once + 1
            self.most = max(self.most, self.at_once)
        time.sleep(self.seconds)
        if batch[0, 0] < 0:
            with self.lock:
                self.at_once -= 1
            raise TrialError("engine-run", f"{self.name} failed")
        with self.lock:
            self.at_once -= 1
        return (2 * batch,)

    def close(self) -> None:
        self.closed = True


def batch(value: float):
    return np.full((1, 1), value, np.float32)


def test_every_answer_is_its_own_and_no_gpu_takes_more_than_its_lanes() -> None:
    runners = [Fake("a", 0.002), Fake("b", 0.002)]
    pool = PooledRunner(runners, lanes=3)
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda i: float(pool.run(batch(i))[0][0, 0]), range(120)))
    assert answers == [2.0 * i for i in range(120)]
    assert [runner.most for runner in runners] == [3, 3]
    assert sum(runner.calls for runner in runners) == 120
    assert min(runner.calls for runner in runners) > 30


def test_one_caller_goes_round_all_gpus() -> None:
    runners = [Fake("a"), Fake("b"), Fake("c")]
    pool = PooledRunner(runners, lanes=2)
    for i in range(12):
        pool.run(batch(i))
    assert [runner.calls for runner in runners] == [4, 4, 4]


def test_a_slow_gpu_does_not_hold_up_the_fast_one() -> None:
    fast, slow = Fake("fast", 0.001), Fake("slow", 0.1)
    pool = PooledRunner([fast, slow], lanes=1)
    with ThreadPoolExecutor(2) as callers:
        list(callers.map(lambda i: pool.run(batch(i)), range(40)))
    assert fast.calls > 5 * slow.calls


def test_two_gpus_do_twice_the_work_of_one_behind_the_same_queue() -> None:
    def seconds(count: int) -> float:
        pool = PooledRunner([Fake(str(i), 0.02) for i in range(count)], lanes=1)
        start = time.perf_counter()
        with ThreadPoolExecutor(4) as callers:
            list(callers.map(lambda i: pool.run(batch(i)), range(24)))
        return time.perf_counter() - start

    assert seconds(1) / seconds(2) > 1.6


def test_what_fails_frees_its_lane() -> None:
    pool = PooledRunner([Fake("a")], lanes=1)
    with pytest.raises(TrialError, match="a failed"):
        pool.run(batch(-1))
    assert float(pool.run(batch(3))[0][0, 0]) == 6.0


def test_closing_closes_all_of_them_and_says_what_failed() -> None:
    class Stuck(Fake):
        def close(self) -> None:
            raise TrialError("engine-cuda", "the driver is gone")

    last = Fake("b")
    pool = PooledRunner([Stuck("a"), last], lanes=1)
    with pytest.raises(TrialError, match="driver is gone"):
        pool.close()
    assert last.closed


@pytest.mark.parametrize(("runners", "lanes"), [([], 1), ([Fake("a")], 0)])
def test_a_pool_of_nothing_is_a_mistake(runners, lanes) -> None:
    with pytest.raises(ValueError, match="needs runners and lanes"):
        PooledRunner(runners, lanes=lanes)


def test_its_name_counts_the_gpus() -> None:
    assert PooledRunner([Fake("H100"), Fake("H100")], lanes=1).name == "2 x H100"
