"""Several GPUs behind one queue: whichever has a free lane takes the next inference."""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redline.records import Runner
    from redline.records.detect import Tensor


class PooledRunner:
    """A `Runner` over runners of the same network, each of which takes `lanes` inferences at once.

    The lanes wait in one queue, first come first served, so no GPU idles while an inference waits; the runners take turns.
    """

    def __init__(self, runners: Sequence[Runner], *, lanes: int) -> None:
        if not runners or lanes < 1:
            raise ValueError(f"a pool needs runners and lanes, got {len(runners)} and {lanes}")
        self._runners = tuple(runners)
        self.name = f"{len(runners)} x {runners[0].name}"
        self._free: SimpleQueue[Runner] = SimpleQueue()
        for _ in range(lanes):
            for runner in runners:
                self._free.put(runner)

    @property
    def first(self) -> Runner:
        return self._runners[0]

    def run(self, batch: Tensor) -> tuple[Tensor, ...]:
        """On the GPU that has been free the longest; waits for one. What its runner raises is passed on, and its lane freed."""
        runner = self._free.get()
        try:
            return runner.run(batch)
        finally:
            self._free.put(runner)

    def close(self) -> None:
        """All of them, also if one fails to close."""
        failed: Exception | None = None
        for runner in self._runners:
            failed = _closed(runner) or failed
        if failed is not None:
            raise failed


def _closed(runner: Runner) -> Exception | None:
    try:
        runner.close()
    except Exception as error:
        return error
    return None
