"""The threads that call a target, and the times at which its requests were sent and came back."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from redline.measure.backlog import Backlog, SameBatch
from redline.measure.clock import Clock

Target = Callable[[Sequence[int]], None]
"""Gets the indices of the requests joined into one inference, returns when they are done.

An exception makes all of them errors; the measurement goes on.
"""
Refill = Callable[[int, int, float], int]
"""(requests just finished, requests sent so far, now) -> how many to send at once."""

JOIN_S = 0.5


class Crew:
    """`concurrency` daemon threads that call `target` with up to `batch` waiting requests that may be joined.

    Requests are numbered as they are sent. `sent` and `ended` hold clock times; `ended` is NaN until the answer.
    """

    def __init__(
        self,
        target: Target,
        *,
        concurrency: int,
        batch: int,
        clock: Clock,
        same_batch: SameBatch | None = None,
        refill: Refill | None = None,
    ) -> None:
        if concurrency < 1 or batch < 1:
            raise ValueError(f"concurrency and batch must be at least 1, got {concurrency} and {batch}")
        self.sent: list[float] = []
        self.ended: list[float] = []
        self.inferences = 0
        self.errors = 0
        self.unfinished = 0
        self.first_error: str | None = None
        self._target, self._batch, self._clock, self._refill = target, batch, clock, refill
        self._backlog = Backlog(same_batch)
        lock = threading.RLock()
        self._changed, self._idle = threading.Condition(lock), threading.Condition(lock)
        self._pending = 0
        self._oldest = 0
        self._sealed = self._hung = False
        self._threads = [threading.Thread(target=self._work, daemon=True, name=f"load-{i}") for i in range(concurrency)]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seal()
        for thread in self._threads:
            thread.join(0 if self._hung else JOIN_S)

    def send(self, count: int = 1) -> None:
        with self._changed:
            self._send(count, self._clock.now())

    def oldest_unfinished(self) -> int | None:
        """Index of the first request sent that has no answer yet."""
        while self._oldest < len(self.ended) and not math.isnan(self.ended[self._oldest]):
            self._oldest += 1
        return self._oldest if self._oldest < len(self.ended) else None

    def wait(self, deadline: float) -> bool:
        """Until every request sent has its answer (True) or the deadline has passed (False)."""
        with self._idle:
            while self._pending:
                left = deadline - self._clock.now()
                if left <= 0:
                    return False
                self._idle.wait(left)
            return True

    def drop_waiting(self) -> None:
        """Ends, as unfinished, what no thread has taken yet: it has waited at least until now."""
        with self._changed:
            now = self._clock.now()
            while waiting := self._backlog.take(len(self._backlog)):
                self._end(waiting, now)
                self.unfinished += len(waiting)

    def seal(self, reason: str = "no answer") -> None:
        """Ends what is still in flight, as errors; later answers change nothing, and idle threads leave."""
        with self._changed:
            if self._sealed:
                return
            self.drop_waiting()
            hung = [request for request, ended in enumerate(self.ended) if math.isnan(ended)]
            self._end(hung, self._clock.now())
            self._fail(len(hung), reason)
            self._sealed, self._hung = True, bool(hung)
            self._changed.notify_all()

    def _send(self, count: int, now: float) -> None:
        first = len(self.sent)
        self.sent.extend([now] * count)
        self.ended.extend([math.nan] * count)
        self._pending += count
        self._backlog.put(range(first, first + count))
        self._changed.notify(count)

    def _end(self, requests: Sequence[int], now: float) -> None:
        for request in requests:
            self.ended[request] = now
        self._pending -= len(requests)

    def _fail(self, count: int, reason: str) -> None:
        if count:
            self.errors += count
            self.first_error = self.first_error or reason

    def _work(self) -> None:
        joined: Sequence[int] = ()
        failure: str | None = None
        while joined := self._next(joined, failure):
            failure = None
            try:
                self._target(joined)
            except Exception as error:  # whatever a target raises is data of the measurement
                failure = f"{type(error).__name__}: {error}"

    def _next(self, done: Sequence[int], failure: str | None) -> Sequence[int]:
        """Records what the calling thread has just done and gives it its next inference; empty: leave."""
        now = self._clock.now()
        with self._changed:
            if done and not self._sealed:
                self._record(done, failure, now)
            while not self._sealed:
                if joined := self._backlog.take(self._batch):
                    self.inferences += 1
                    return joined
                self._changed.wait()
            return ()

    def _record(self, done: Sequence[int], failure: str | None, now: float) -> None:
        self._end(done, now)
        if failure is not None:
            self._fail(len(done), failure)
        if self._refill is not None:
            self._send(self._refill(len(done), len(self.sent), now), now)
        if not self._pending:
            self._idle.notify_all()
