"""Measures one candidate at a time, and each measurement once: joins the live candidate, measure and the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from redline.data import read_bytes
from redline.errors import TrialError
from redline.evaluate import Observer
from redline.examining import Examiner
from redline.gpus import GpuHost, watched
from redline.inspecting import Inspector
from redline.live import Live, candidate_profiles, identity, open_live, order_of, request_mix
from redline.measure.knee import GROWTH, find_knee
from redline.measure.load import closed_loop, open_loop
from redline.measure.verdict import judge_latency, noise_pilot, on_time
from redline.measure.warm import warm_up
from redline.parity import differs
from redline.records import (
    Candidate,
    Choice,
    EngineBuild,
    EngineRecord,
    Knee,
    Load,
    Noise,
    ParityReport,
    Picture,
    Telemetry,
    Trial,
    Verdict,
)
from redline.served import Host, ServedLive, open_served, plain
from redline.store import Journal, Store, digest_of

if TYPE_CHECKING:
    from redline.prepare import Graphs, Subject
    from redline.progress import Progress
    from redline.records import Dataset, Environment

T = TypeVar("T")
Measure = Callable[["Live | ServedLive"], Load]

PROTOCOL = 1
"""Raise it when the meaning of a measurement changes: what was measured before is then measured again."""
SCREEN_S = 2.0
SHORTEST_S, BRIEF_S = 3.0, 2.0
"""Least duration of a load at a rate; and where the whole budget is less than `BRIEF_MINUTES`."""
BRIEF_MINUTES = 1.0
OBJECTIVE_REQUESTS, OBJECTIVE_S = 200, 30.0
"""Requests of a load that a verdict rests on (about ten lie above its P95), and its longest duration."""
OBJECTIVE_SHARE = 0.1
"""It may be longer if this share of the budget is: slow detectors need the time to answer enough requests."""
STEP_REQUESTS, STEP_S = 80, 10.0
"""The same for a step of the search for the knee and for the A/A pilot; 72 is the least for a P95 (`requests_needed`)."""
WARM_UP_S = 3.0
SAME_ANSWERS = 8
"""Images whose detections are compared between the server and in-process before a served candidate is measured."""
OVERDUE = 3.0
"""A load is given up once a request is this many times the P95 limit old: it is overload, and waiting longer shows no more."""
ATTEMPTS = 3
"""A load whose generator was late, or whose GPU was throttled, says nothing: it is measured again, so often at the most."""
CLIMB_SHARE = 0.5
"""Share of the budget after which the climb stops, so that the finalists can be measured."""
NEAR = 1.1
"""First step of the search for a knee whose place the simulation tells."""
PILOT_LOAD = 0.5
"""The A/A pilot runs at the objective's rate, or at this share of the capacity if that is less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A load and what it took with warm-up and building: its share of the budget, also when it is reused."""

    load: Load
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    seconds: float
    """From nothing to the first answer."""


class Workbench:
    """A `tune.Bench`. One runner is open at a time; a second run on this machine waits while the first one measures."""

    def __init__(
        self,
        subject: Subject,
        graphs: Graphs,
        baseline: Candidate,
        store: Store,
        journal: Journal,
        environment: Environment,
        progress: Progress,
        salt: str,
        *,
        minutes: float,
        gpus: GpuHost | None = None,
    ) -> None:
        """`gpus`: what candidates on a GPU run on."""
        self._gpus, self._foundry = gpus, gpus.foundry if gpus is not None else None
        self._subject, self._graphs, self._store, self._journal, self._progress = subject, graphs, store, journal, progress
        self._common = _conditions(subject, environment, salt)
        self._mix = request_mix(subject)
        self._observer = Observer(subject, baseline, self._once, self._in_process, progress)
        self._examiner = self._make_examiner(baseline, salt)
        self._live: Live | ServedLive | None = None
        self._host: Host | None = None
        self._baseline, self._warm = baseline, False
        self.noise: Noise | None = None
        self._capacity: dict[Candidate, float] = {}
        self._spent: dict[Candidate, float] = {}
        # The cost of every load so far, reused or not: a second run decides as the first did, and finds all it needs.
        self._elapsed = 0.0
        self._phase_s, self._budget_s = 0.0, 60 * minutes
        self._shortest_s = SHORTEST_S if subject.spec.budget.minutes >= BRIEF_MINUTES else min(SHORTEST_S, BRIEF_S)
        """When the phase began and when its budget ends, in the time of `_elapsed`."""

    def close(self) -> None:
        """What is open; a server belongs to who made it."""
        if self._live is not None:
            self._live.close()
            self._live = None

    def through(self, host: Host, minutes: float) -> None:
        """From now on candidates may be measured through `host`, for `minutes` more."""
        self.close()
        self._host = host
        self._phase_s, self._budget_s = self._elapsed, self._elapsed + 60 * minutes

    def trial(self, candidate: Candidate) -> Trial:
        held = self._examiner.held(candidate) if self._examiner is not None else ()
        return Trial(candidate=candidate, digest=digest_of(self._key(candidate)), seconds=0.0, held=held)

    def examined(self, trial: Trial) -> Trial:
        return self._examiner.examined(trial) if self._examiner is not None else trial

    def wider(self, trial: Trial) -> Candidate | None:
        return self._examiner.wider(trial) if self._examiner is not None else None

    def parity(self, candidate: Candidate) -> ParityReport:
        """A served candidate has the accuracy of its network in-process, if the server gives the same detections."""
        if candidate.serving is not None:
            self._same_answers(candidate)
        return self._observer.parity(plain(candidate))

    def observer(self, dataset: Dataset) -> Observer:
        if dataset is self._subject.dataset:
            return self._observer
        once = partial(self._once, protocol={"data": dataset.digest})
        return Observer(replace(self._subject, dataset=dataset), self._baseline, once, self._in_process, self._progress)

    def _same_answers(self, candidate: Candidate) -> None:
        wanted = self._observer.detections(plain(candidate))
        live = self._open(candidate)
        assert isinstance(live, ServedLive)
        for image, expected in zip(self._subject.dataset.images[:SAME_ANSWERS], wanted, strict=False):
            difference = differs(expected, live.endpoint.detect(read_bytes(image)))
            if difference is not None:
                raise TrialError("serve-differs", f"the server answers otherwise than in-process: {image.path}", got=difference)

    def pictures(self, choice: Choice) -> tuple[Picture, ...]:
        return self._observer.pictures(choice.candidate) if choice.candidate is not None else ()

    def screen(self, candidate: Candidate) -> Load:
        """Short closed loop with every place taken: capacity. An engine's boundary shapes are right before it counts."""
        if self._examiner is not None:
            self._examiner.require_boundaries(candidate)

        def load(live: Live | ServedLive) -> Load:
            return closed_loop(
                live.target,
                concurrency=live.closed_callers,
                batch=live.joined,
                seconds=SCREEN_S,
                same_batch=live.same_batch,
            )

        found = self._measured("screen", candidate, {}, load)
        self._capacity[candidate] = found.achieved_per_s
        return found

    def at_objective(self, candidate: Candidate, *, repeat: int = 0) -> Load:
        if repeat:
            self.close()  # a confirmation is built afresh
        if self.noise is None:
            self.noise = self._pilot()
        return self._open_loop("objective", candidate, self._objective.throughput, seed=repeat)

    def judge(self, load: Load) -> Verdict:
        return judge_latency(load, p95_ms=self._objective.p95_ms, noise=self.noise, rate=self._objective.throughput)

    def knee(self, candidate: Candidate, *, capacity: float, expected: float | None = None) -> Knee:
        """Search between 5 % and 110 % of the screened capacity, in small steps from the `expected` rate if there is one."""
        visits: dict[float, int] = {}

        def at(rate: float) -> Load:
            visits[rate] = visits.get(rate, -1) + 1
            return self._open_loop("step", candidate, rate, seed=visits[rate])

        return find_knee(
            at,
            p95_ms=self._objective.p95_ms,
            start_rate=expected or 0.7 * capacity,
            growth=NEAR if expected else GROWTH,
            low=0.05 * capacity,
            high=1.1 * capacity,
            noise=self.noise,
            deadline=max(self._budget_s, self._elapsed + 4 * self._shortest_s),
            now=lambda: self._elapsed,
        )

    def out_of_time(self, *, climbing: bool = False) -> bool:
        share = CLIMB_SHARE if climbing else 1.0
        return self._elapsed > self._phase_s + share * (self._budget_s - self._phase_s)

    def complete(self, trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
        """The trials with what each one took and the identity of what was built."""
        return tuple(self._completed(trial) for trial in trials)

    def engines(self, trials: tuple[Trial, ...]) -> tuple[EngineRecord, ...]:
        """Every TensorRT engine of the run; see `Examiner.engines`."""
        return self._examiner.engines(trials) if self._examiner is not None else ()

    def _make_examiner(self, baseline: Candidate, salt: str) -> Examiner | None:
        if self._foundry is None:
            return None
        inspector = Inspector(
            subject=self._subject,
            graphs=self._graphs,
            foundry=self._foundry,
            reference=baseline,
            store=self._store,
            journal=self._journal,
            progress=self._progress,
            salt=salt,
        )
        return Examiner(inspector, self._observer, self._built, self._anatomy, self.close)

    def _anatomy(self, candidate: Candidate, dissect: Callable[[Live], EngineRecord]) -> EngineRecord:
        def compute() -> EngineRecord:
            live = self._in_process(candidate)
            with self._store.lock("measure"), self._progress.stage(f"anatomy of {candidate.name}"):
                return dissect(live)

        return self._once("anatomy", candidate, "engine-record", EngineRecord, compute)

    def _built(self, candidate: Candidate) -> EngineBuild | None:
        """The engine of a TensorRT candidate, which is built unless the store has it."""
        order = order_of(self._subject, self._graphs, candidate, self._foundry)
        graph = self._graphs.of(candidate)
        return None if order is None or graph is None else order.foundry.engine(graph, order.options, candidate.name)

    @property
    def _objective(self) -> Any:
        return self._subject.spec.objective

    def _completed(self, trial: Trial) -> Trial:
        spent = self._spent.get(trial.candidate, 0.0)
        if trial.candidate.profiles is not None:
            waste = candidate_profiles(self._subject, self._graphs, trial.candidate).waste
            trial = replace(trial, expected_padding_pct=100 * waste / (1 + waste))
        if trial.failure is not None and trial.screen is None:
            return replace(trial, seconds=spent)
        built = self._built(trial.candidate)
        engine = built.digest if built is not None else self._identity(trial.candidate)
        build = self._once("build", trial.candidate, "build", Build, lambda: self._timed_build(trial.candidate))
        padding = self._mix.padding_pct(self._subject.detector.preprocess, trial.candidate.shapes)
        return replace(trial, seconds=spent, engine=engine, build_seconds=build.seconds, padding_pct=padding)

    def _timed_build(self, candidate: Candidate) -> Build:
        self.close()
        live = self._new(candidate)
        live.close()
        return Build(seconds=live.build_seconds)

    def _pilot(self) -> Noise | None:
        """A/A on the candidate of highest capacity."""
        if not self._capacity:
            return None
        best = max(self._capacity, key=lambda c: self._capacity[c])
        rate = min(self._objective.throughput, PILOT_LOAD * self._capacity[best])
        visits = iter(range(100))
        return noise_pilot(lambda: self._open_loop("pilot", best, rate, seed=0, visit=next(visits)))

    def _open_loop(self, stage: str, candidate: Candidate, rate: float, *, seed: int, visit: int = 0) -> Load:
        requests, longest = (STEP_REQUESTS, STEP_S)
        if stage == "objective":
            requests, longest = (OBJECTIVE_REQUESTS, max(OBJECTIVE_S, OBJECTIVE_SHARE * self._budget_s))
        seconds = min(max(self._shortest_s, requests / rate), longest)

        def load(live: Live | ServedLive) -> Load:
            return open_loop(
                live.target,
                rate_per_s=rate,
                seconds=seconds,
                concurrency=live.callers,
                batch=live.joined,
                seed=seed,
                same_batch=live.same_batch,
                max_backlog_s=max(2.0, OVERDUE * self._objective.p95_ms / 1000),
            )

        for attempt in range(ATTEMPTS):
            how = {"rate": rate, "seconds": seconds, "seed": seed, "visit": visit, "attempt": attempt}
            found = self._measured(stage, candidate, how, load)
            if on_time(found, self._objective.p95_ms) and not found.throttled:
                break
        return found

    def _measured(
        self, stage: str, candidate: Candidate, protocol: dict[str, Any], load: Callable[[Live | ServedLive], Load]
    ) -> Load:
        def compute() -> Timed:
            with self._store.lock("measure"):
                started = time.perf_counter()
                live = self._open(candidate)
                at = f" at {protocol['rate']:.1f}/s" if "rate" in protocol else ""
                with self._progress.stage(f"{stage} {candidate.name}{at}"):
                    if not self._warm:
                        warm_up(live.target, requests=live.warm_up_requests(), window=3, max_seconds=WARM_UP_S)
                        self._warm = True
                    found: list[Telemetry] = []
                    with watched(self._gpus, candidate, found, self._progress):
                        made = load(live)
                    made = replace(made, gpus=tuple(found))
                    return Timed(load=made, seconds=time.perf_counter() - started)

        timed: Timed = self._once(stage, candidate, "load", Timed, compute, protocol)
        self._elapsed += timed.seconds
        return timed.load

    def _in_process(self, candidate: Candidate) -> Live:
        live = self._open(candidate)
        assert isinstance(live, Live)
        return live

    def _new(self, candidate: Candidate) -> Live | ServedLive:
        if candidate.serving is None:
            return open_live(self._subject, self._graphs, candidate, self._mix, self._foundry)
        if self._host is None:
            raise TrialError("serve-no-server", "there is no server to measure through", fix="redline serve --install")
        return open_served(self._host, self._subject, self._graphs, candidate, self._mix)

    def _open(self, candidate: Candidate) -> Live | ServedLive:
        if self._live is None or self._live.candidate != candidate:
            self.close()
            self._live, self._warm = self._new(candidate), False
            seconds = self._live.build_seconds
            self._once("build", candidate, "build", Build, lambda: Build(seconds=seconds))
        return self._live

    def _once(
        self,
        stage: str,
        candidate: Candidate,
        kind: str,
        type: type[T],
        compute: Callable[[], T],
        protocol: dict[str, Any] | None = None,
    ) -> T:
        started = time.perf_counter()
        try:
            key = {**self._key(candidate), "how": protocol or {}}
            return self._store.once(stage=stage, key=key, kind=kind, type=type, compute=compute, journal=self._journal)
        finally:
            self._spent[candidate] = self._spent.get(candidate, 0.0) + time.perf_counter() - started

    def _key(self, candidate: Candidate) -> dict[str, Any]:
        return {"candidate": candidate, "engine": self._identity(candidate), **self._common}

    def _identity(self, candidate: Candidate) -> str:
        return identity(self._subject, self._graphs, candidate, self._foundry)


def _conditions(subject: Subject, environment: Environment, salt: str) -> dict[str, Any]:
    """What else a measurement depends on."""
    detector = subject.detector
    return {
        "data": subject.dataset.digest,
        "traffic": subject.traffic.shapes,
        "preprocess": detector.preprocess,
        "postprocess": detector.postprocess,
        "head": detector.head,
        "labels": subject.spec.model.labels,
        "objective": subject.spec.objective,
        "machine": digest_of(
            [environment.cpu, environment.cores, environment.python, environment.libraries, *environment.gpus]
        ),
        "protocol": PROTOCOL,
        "salt": salt,
    }
