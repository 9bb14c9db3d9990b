"""Verifying a release through the gateway: golden images, mAP, P95 under load, agreement with what is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from redline.errors import BadInput, RedlineError
from redline.measure.load import open_loop
from redline.measure.verdict import judge_latency, on_time
from redline.observe.decide import decide
from redline.parity import differs, ground_truth, observe
from redline.records import Check, Dataset, Detections, Load, Noise, Release, Verdict, Verification
from redline.serve.client import Endpoint

if TYPE_CHECKING:
    from redline.live import Mix
    from redline.progress import Progress
    from redline.records import ServeSpec
    from redline.serve.admin import Service

AP_TOLERANCE = 0.001
"""Largest difference of mAP between the server and the same pipeline in-process."""
CLIENTS = 32
"""Connections of a load: more than the requests that are in flight while P95 holds."""
LOAD_REQUESTS, LOAD_S = 200, 60.0
ATTEMPTS = 3
"""A load whose generator was late says nothing, and is measured again so often at the most."""
CANARY_LOAD = 0.5
"""Canary requests are sent at this share of the objective's rate: each one that is compared costs the server two."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expected:
    """What the release's pipeline makes of the evaluation set in-process; the server must answer the same."""

    dataset: Dataset
    encoded: tuple[bytes, ...]
    detections: tuple[Detections, ...]
    mix: Mix
    noise: Noise | None


class Rollout:
    """The checks of one staged release, in order; the first that fails ends it."""

    def __init__(self, service: Service, release: Release, expected: Expected, policy: ServeSpec, progress: Progress) -> None:
        self._service, self._release, self._expected = service, release, expected
        self._policy, self._progress = policy, progress
        self._endpoints: dict[int | None, Endpoint] = {}
        self._served_ap: float | None = None
        self._in_process_ap: float | None = None
        self._load: Load | None = None

    def verify(self, active: Release | None) -> Verification:
        """`active`: what is served now; agreement with it is the last check. A failure of the server is a failed check."""
        steps: list[tuple[str, Callable[[], Verdict]]] = [
            ("golden detections", self._golden),
            ("accuracy through the server", self._accuracy),
            ("load at the objective", self._at_objective),
        ]
        if active is not None:
            steps.insert(2, ("accuracy against the active release", lambda: self._not_worse(active)))
            steps.append(("canary beside the active release", self._canary))
        checks: list[Check] = []
        for name, step in steps:
            started = time.perf_counter()
            with self._progress.stage(name):
                try:
                    verdict = step()
                except RedlineError as error:
                    verdict = Verdict(answer="fail", reason=error.text())
            checks.append(Check(name=name, verdict=verdict, seconds=time.perf_counter() - started))
            if verdict.answer == "fail":
                break
        return Verification(
            release=self._release.number,
            checks=tuple(checks),
            served_ap=self._served_ap,
            in_process_ap=self._in_process_ap,
            load=self._load,
        )

    def probe(self, seconds: float, share: float, seed: int) -> None:
        """Requests like the traffic's, to whatever is served, at `share` of the objective's rate."""
        rate = share * self._release.objective.throughput
        open_loop(
            self._target(None),
            rate_per_s=rate,
            seconds=max(seconds, 1.01 / rate),
            concurrency=CLIENTS,
            seed=seed,
        )

    def close(self) -> None:
        """The connections to the gateway."""
        for endpoint in self._endpoints.values():
            endpoint.close()

    def _endpoint(self, version: int | None) -> Endpoint:
        if version not in self._endpoints:
            self._endpoints[version] = Endpoint(self._service.info.gateway_port, self._release.service, version)
        return self._endpoints[version]

    def _target(self, version: int | None) -> Callable[[Sequence[int]], None]:
        endpoint, mix = self._endpoint(version), self._expected.mix

        def send(requests: Sequence[int]) -> None:
            for request in requests:
                endpoint.send(mix.at(request))

        return send

    def _golden(self) -> Verdict:
        endpoint = self._endpoint(self._release.number)
        by_digest = {image.sha256: index for index, image in enumerate(self._expected.dataset.images)}
        for golden in self._release.golden:
            wanted = Detections(
                boxes=np.array(golden.boxes, np.float32).reshape(-1, 4),
                scores=np.array(golden.scores, np.float32),
                labels=np.array(golden.labels, np.int64),
            )
            difference = differs(wanted, endpoint.detect(self._expected.encoded[by_digest[golden.sha256]]))
            if difference is not None:
                return Verdict(answer="fail", reason=f"{golden.file}: {difference}")
        return Verdict(answer="pass", reason=f"{len(self._release.golden)} images answered as in-process")

    def _accuracy(self) -> Verdict:
        endpoint, expected = self._endpoint(self._release.number), self._expected
        served = [endpoint.detect(image) for image in expected.encoded]
        different = sum(differs(a, b) is not None for a, b in zip(expected.detections, served, strict=True))
        self._in_process_ap = _ap(expected, expected.detections, self._release)
        self._served_ap = _ap(expected, served, self._release)
        gap = abs(self._served_ap - self._in_process_ap)
        figures = f"mAP {self._served_ap:.4f} through the server, {self._in_process_ap:.4f} in-process, {len(served)} images"
        figures += f", {different} of them with other detections" if different else ""
        return Verdict(answer="pass" if gap <= AP_TOLERANCE else "fail", reason=figures)

    def _not_worse(self, active: Release) -> Verdict:
        """On the same data a release may not lose more than the objective allows against the one it replaces."""
        if active.data != self._release.data or active.accuracy is None or self._served_ap is None:
            return Verdict(answer="inconclusive", reason=f"release {active.number} was measured on other data")
        before, now = active.accuracy.ap, self._served_ap
        drop = 100 * (before - now) / before if before > 0 else 0.0
        reason = f"mAP {now:.4f} against {before:.4f} of release {active.number}: {drop:.2f} % less"
        return Verdict(answer="pass" if drop <= self._release.objective.map_drop_pct else "fail", reason=reason)

    def _at_objective(self) -> Verdict:
        objective = self._release.objective
        target = self._target(self._release.number)
        seconds = min(max(3.0, LOAD_REQUESTS / objective.throughput), LOAD_S)
        verdict = Verdict(answer="inconclusive", reason="not measured")
        for attempt in range(ATTEMPTS):
            self._load = open_loop(
                target,
                rate_per_s=objective.throughput,
                seconds=seconds,
                concurrency=CLIENTS,
                seed=attempt,
                max_backlog_s=max(2.0, 3 * objective.p95_ms / 1000),
            )
            noise, rate = self._expected.noise, objective.throughput
            verdict = judge_latency(self._load, p95_ms=objective.p95_ms, noise=noise, rate=rate)
            if on_time(self._load, objective.p95_ms):
                break
        return verdict

    def _canary(self) -> Verdict:
        """The canary answers its share, and copies of the others' requests; detections and failures are counted."""
        policy, number, objective = self._policy, self._release.number, self._release.objective
        self._service.canary(number, share=policy.canary_pct / 100, shadow=True)
        rate = CANARY_LOAD * objective.throughput
        self.probe(policy.canary_requests / rate, CANARY_LOAD, seed=number)
        seen = self._service.observed(number)
        action = decide(seen, objective, policy, held_s=seen.seconds, hold_s=seen.seconds)
        share = f"{seen.differing} of {seen.compared} boxes differ, {seen.errors} of {seen.requests} requests failed"
        if action.decision == "rollback":
            return Verdict(answer="fail", reason=f"{action.reason}; {share}")
        return Verdict(answer="pass" if seen.compared else "inconclusive", reason=share)


def passed(verification: Verification) -> bool:
    return all(check.verdict.answer != "fail" for check in verification.checks)


def require_accuracy(release: Release, expected: Expected) -> None:
    """A network that was made anew must be as accurate as the one that was measured. Raises BadInput: release.accuracy."""
    measured = release.accuracy
    if measured is None or measured.kind != "map":
        return
    found = _ap(expected, expected.detections, release)
    if abs(found - measured.ap) > AP_TOLERANCE:
        raise BadInput(
            "release.accuracy",
            "the engine that was built anew is not as accurate as the one that was measured",
            got=f"mAP {found:.4f}",
            allowed=f"{measured.ap:.4f} within {AP_TOLERANCE}",
            fix="redline run --fresh measures the new one",
        )


def _ap(expected: Expected, found: Sequence[Detections], release: Release) -> float:
    truth = ground_truth(expected.dataset, expected.detections, release.labels)
    return observe(truth, found).evaluation.accuracy.ap
