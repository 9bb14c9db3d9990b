"""`redline release`: a run's choice -> repository -> staged beside what is served -> verified -> promoted -> held, or away."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from redline.data import load_dataset, load_traffic, read_bytes
from redline.errors import BadInput, RedlineError
from redline.live import mix_of
from redline.networks import Network, network_of, open_network, require_server, with_engine_shapes
from redline.predict import Predictor
from redline.records import (
    Candidate,
    EngineFacts,
    Golden,
    Release,
    RunRecord,
    Spec,
    Switch,
    Trial,
    Verdict,
    Verification,
)
from redline.releasable import choice_to_serve, trial_like
from redline.rollout import Expected, Rollout, passed, require_accuracy
from redline.serving import prepare_service, service_folder
from redline.store.disk import guarded

if TYPE_CHECKING:
    from redline.progress import Progress
    from redline.serve.admin import Service, Status

CONTAINER = "container"
GOLDEN_IMAGES = 8
KEPT_RELEASES = 5
"""Rendered releases that stay on the disk for `redline rollback --to`, besides those in use."""
PROBE_SHARE = 0.3
"""During the hold requests are sent at this share of the objective's rate, so that there is something to judge."""
PROBE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a release. pass: promoted and held; fail: refused or rolled back; inconclusive: the hold goes on, or
    it was rendered for a server that is not here."""

    release: int
    service: str
    verdict: Verdict
    verification: Verification | None
    switches: tuple[Switch, ...] = ()
    gateway_port: int | None = None
    folder: str = ""
    """Of the service, or of the rendered repository."""


def release(
    spec: Spec,
    record: RunRecord,
    *,
    runs: Path,
    progress: Progress,
    hold: bool = True,
    probe: bool = True,
    candidate: Candidate | None = None,
) -> Outcome:
    """Verify the choice of `record` through the server and promote it. `hold`: wait until its probation is over.

    `candidate`: serve this one instead; its accuracy on record is that of the run's trial with the same network and shapes.

    Raises BadInput (release.not-met: the run's choice may not be released; release.engine: its network is gone;
    release.busy: another release is under way), StoreError, or what the service raises.
    """
    from redline.serve.daemon import start_detached
    from redline.serve.repository import releases_in, write_repository
    from redline.serve.state import LOCK, REPOSITORY, read_state

    if candidate is None:
        candidate, trial = choice_to_serve(record)
        if candidate.prepost != (chosen := (record.served or record).choice.candidate or candidate).prepost:
            progress.note(f"{chosen.name} keeps images on the GPU, which the server does not do: {candidate.name} is released")
    else:
        trial = trial_like(record, candidate)
    network = network_of(spec, record, candidate, trial, runs, progress)
    candidate = with_engine_shapes(candidate, network.engine, spec, record)
    folder = service_folder(spec, runs)
    if spec.target.server == "container":
        return _render_for_container(spec, record, candidate, trial, network, folder / CONTAINER, progress)
    if spec.target.server == "none":
        raise BadInput("release.no-target", 'the spec has [target] server = "none"', fix='set it to "embedded" or "container"')
    require_server(network)
    with _one_at_a_time(folder / LOCK, spec.serve.name):
        with progress.stage("what the server must answer"):
            expected = expect(spec, record, candidate, network)
        folder = prepare_service(spec, runs)
        with progress.stage("service"):
            service = start_detached(folder)
        state = read_state(folder, spec.serve.name)
        number = 1 + max((*state.releases, *releases_in(folder / REPOSITORY, spec.serve.name)), default=0)
        made = make_release(spec, record, candidate, trial, expected, number, engine=network.engine)
        if network.anew:
            require_accuracy(made, expected)
        with progress.stage(f"release {number} of {spec.serve.name}"):
            with golden_files(made, expected) as files:
                write_repository(folder / REPOSITORY, made, "embedded", network_file=network.path, golden_files=files)
            _forget_old(folder, spec.serve.name)
        return _roll_out(service, made, expected, spec, progress, folder, hold=hold, probe=probe)


def _render_for_container(
    spec: Spec,
    record: RunRecord,
    candidate: Candidate,
    trial: Trial,
    network: Network,
    folder: Path,
    progress: Progress,
) -> Outcome:
    """The files for NVIDIA's image, with a README of how to start them; nothing here can load them, so nothing is promoted."""
    from redline.serve.repository import releases_in, write_repository, write_stable
    from redline.serve.state import LOCK

    with _one_at_a_time(folder.parent / LOCK, spec.serve.name), progress.stage("repository for the container"):
        expected = expect(spec, record, candidate, network)
        number = 1 + max(releases_in(folder, spec.serve.name), default=0)
        made = make_release(spec, record, candidate, trial, expected, number, engine=network.engine)
        if network.anew:
            require_accuracy(made, expected)
        with golden_files(made, expected) as files:
            write_repository(folder, made, "container", network_file=network.path, golden_files=files)
        write_stable(folder, made.service, made)
    reason = f"rendered for NVIDIA's image, not verified: {folder / 'README.md'} says how to start it"
    verdict = Verdict(answer="inconclusive", reason=reason)
    return Outcome(release=number, service=made.service, verdict=verdict, verification=None, folder=str(folder))


def _roll_out(
    service: Service,
    made: Release,
    expected: Expected,
    spec: Spec,
    progress: Progress,
    folder: Path,
    *,
    hold: bool,
    probe: bool,
) -> Outcome:
    number, policy = made.number, spec.serve
    outcome = Outcome(
        release=number,
        service=made.service,
        verdict=Verdict(answer="fail", reason=""),
        verification=None,
        gateway_port=service.info.gateway_port,
        folder=str(folder),
    )
    with contextlib.closing(Rollout(service, made, expected, policy, progress)) as rollout:
        try:
            outcome = _tried(service, rollout, outcome, folder, policy.hold_s, progress)
        finally:
            if not outcome.switches:  # refused, interrupted or broken: what was served before is served on, untouched
                with contextlib.suppress(RedlineError):
                    service.withdraw(number, outcome.verdict.reason or "verification did not finish")
        if outcome.verdict.answer == "fail" or not hold:
            return outcome
        return _held(service, rollout, outcome, policy.hold_s, progress, probe=probe)


def _tried(service: Service, rollout: Rollout, outcome: Outcome, folder: Path, hold_s: float, progress: Progress) -> Outcome:
    """Staged, verified and promoted, or why not."""
    number = outcome.release
    try:
        with progress.stage(f"load release {number} beside what is served"):
            service.stage(number)
    except RedlineError as error:
        return replace(outcome, verdict=Verdict(answer="fail", reason=error.text()))
    verification = rollout.verify(_active(service, folder, outcome.service))
    outcome = replace(outcome, verification=verification)
    if not passed(verification):
        worst = verification.checks[-1]
        return replace(outcome, verdict=Verdict(answer="fail", reason=f"{worst.name}: {worst.verdict.reason}"))
    switch = service.promote(number, hold_s=hold_s)
    return replace(outcome, switches=(switch,), verdict=Verdict(answer="inconclusive", reason="promoted, on probation"))


def _held(service: Service, rollout: Rollout, outcome: Outcome, hold_s: float, progress: Progress, *, probe: bool) -> Outcome:
    """Wait for the end of the probation. The service decides it; this only watches, and keeps it supplied with requests."""
    number, deadline, seed = outcome.release, time.monotonic() + 3 * hold_s + 60, 0
    with progress.stage(f"hold release {number} for {hold_s:g} s"):
        while time.monotonic() < deadline:
            status = service.status()
            if status.state.routes.active != number:
                last = status.state.switches[-1]
                verdict = Verdict(answer="fail", reason=f"rolled back: {last.reason}")
                return replace(outcome, verdict=verdict, switches=(*outcome.switches, last))
            if status.holding_s is None:
                return replace(outcome, verdict=_held_verdict(status))
            if probe:
                with contextlib.suppress(RedlineError):
                    rollout.probe(PROBE_S, PROBE_SHARE, seed)
            else:
                time.sleep(PROBE_S)
            seed += 1
    reason = f"the hold is not over: {status.action.reason}" if status.action else "the hold is not over"
    return replace(outcome, verdict=Verdict(answer="inconclusive", reason=reason))


def _held_verdict(status: Status) -> Verdict:
    if status.action is None:
        return Verdict(answer="pass", reason="verified and promoted")
    if status.action.decision == "rollback":
        reason = f"{status.action.reason}; it is served on, as there is no release to go back to"
        return Verdict(answer="fail", reason=reason)
    return Verdict(answer="pass", reason=status.action.reason)


def expect(spec: Spec, record: RunRecord, candidate: Candidate, network: Network) -> Expected:
    """The release's pipeline in this process, over the whole evaluation set."""
    dataset = load_dataset(spec.data.evaluate)
    traffic = load_traffic(spec.data.traffic, dataset)
    encoded = tuple(read_bytes(image) for image in dataset.images)
    runner = open_network(network, candidate)
    try:
        model = spec.model
        predict = Predictor(runner, model.preprocess, model.head, model.postprocess, candidate.shapes)
        detections = tuple(one for image in encoded for one in predict.from_bytes([image]))
    finally:
        runner.close()
    return Expected(dataset=dataset, encoded=encoded, detections=detections, mix=mix_of(dataset, traffic), noise=record.noise)


def make_release(
    spec: Spec,
    record: RunRecord,
    candidate: Candidate,
    trial: Trial,
    expected: Expected,
    number: int,
    *,
    engine: EngineFacts,
) -> Release:
    from redline import __version__
    from redline.store.journal import now
    from redline.store.tools import tool_versions

    parity = trial.parity
    return Release(
        service=spec.serve.name,
        number=number,
        created=now(),
        run=record.id,
        trial=trial.digest,
        candidate=candidate,
        engine=engine,
        preprocess=spec.model.preprocess,
        postprocess=spec.model.postprocess,
        head=spec.model.head,
        labels=spec.model.labels,
        classes=_classes(spec, expected),
        objective=spec.objective,
        accuracy=parity.accuracy if parity is not None else None,
        golden=tuple(_golden(expected, index) for index in _golden_indices(expected)),
        redline=__version__,
        tools=tool_versions(),
        data=expected.dataset.digest,
    )


def _classes(spec: Spec, expected: Expected) -> tuple[str, ...]:
    categories = expected.dataset.categories
    if spec.model.labels == "index":
        return tuple(category.name for category in categories)
    names = {category.id: category.name for category in categories}
    return tuple(names.get(number, "") for number in range(max(names, default=-1) + 1))


def _golden_indices(expected: Expected) -> list[int]:
    """A few images, of as many sizes as possible, those with most detections first."""
    order = sorted(range(len(expected.encoded)), key=lambda index: -len(expected.detections[index].scores))
    seen: dict[tuple[int, int], list[int]] = {}
    for index in order:
        image = expected.dataset.images[index]
        seen.setdefault((image.height, image.width), []).append(index)
    rounds = (members[turn] for turn in range(GOLDEN_IMAGES) for members in seen.values() if turn < len(members))
    return [index for _, index in zip(range(GOLDEN_IMAGES), rounds, strict=False)]


def _golden(expected: Expected, index: int) -> Golden:
    image, found = expected.dataset.images[index], expected.detections[index]
    x1, y1, x2, y2 = (found.boxes[:, column].tolist() for column in range(4))
    return Golden(
        file=f"{index:05d}{Path(image.path).suffix.lower()}",
        sha256=hashlib.sha256(expected.encoded[index]).hexdigest(),
        boxes=tuple(zip(x1, y1, x2, y2, strict=True)),
        scores=tuple(found.scores.tolist()),
        labels=tuple(found.labels.tolist()),
    )


@contextlib.contextmanager
def golden_files(made: Release, expected: Expected) -> Iterator[dict[str, Path]]:
    """The golden images as files, by name, for as long as it takes to copy them into a repository."""
    by_digest = {hashlib.sha256(data).hexdigest(): data for data in expected.encoded}
    with guarded("write", Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="redline-") as name:
        files = {golden.file: Path(name) / golden.file for golden in made.golden}
        for golden in made.golden:
            files[golden.file].write_bytes(by_digest[golden.sha256])
        yield files


def _active(service: Service, folder: Path, name: str) -> Release | None:
    from redline.serve.loader import read_release
    from redline.serve.state import REPOSITORY

    active = service.status().state.routes.active
    return None if active is None else read_release(folder / REPOSITORY, name, active)


def _forget_old(folder: Path, name: str) -> None:
    """Releases beyond `KEPT_RELEASES`, those of processes that were killed included. The new one does not depend on it."""
    from redline.serve.repository import releases_in, remove_release
    from redline.serve.state import REPOSITORY, read_state

    routes = read_state(folder, name).routes
    for number in releases_in(folder / REPOSITORY, name)[: -KEPT_RELEASES - 1]:
        if number not in (routes.active, routes.previous, routes.canary):
            with contextlib.suppress(RedlineError):
                remove_release(folder / REPOSITORY, name, number)


@contextlib.contextmanager
def _one_at_a_time(path: Path, name: str) -> Iterator[None]:
    from redline.store.disk import flocked

    path.parent.mkdir(parents=True, exist_ok=True)
    with flocked(path, wait=False) as held:
        if not held:
            what, fix = f"another release of {name} is under way", "wait for it: redline release --status"
            raise BadInput("release.busy", what, fix=fix)
        yield
